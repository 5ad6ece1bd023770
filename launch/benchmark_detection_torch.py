"""SSD's training step once more, in torch: network, matching, mining, loss, Adam.

    ours, torchs = steps()

are two calls that each take one more step from the same weights on the same batch, and
return the loss before it. Matching and mining are as in torchvision: each object's best
box is its own, even where it is another's too (ours settles that as the paper does).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.detection import ssd
from launch.benchmark_conv import stepping

Params = Mapping[str, Any]
Batch = Mapping[str, np.ndarray]


def steps(
    config: ssd.Config | None = None,
    batch: Batch | None = None,
    layout: str = "channels_last",
) -> tuple[Callable[[], float], Callable[[], float]]:
    """Returns our training step and torch's.

    Args:
      config: of the experiment; its defaults, where none is given.
      batch: normalised images, boxes and labels; the first of the training set, where
        none is given.
      layout: of torch's images in memory, the name of one of its memory formats.
    """
    import jax

    config = config or ssd.Config()
    batch = first_batch(config) if batch is None else batch
    state = jax.jit(ssd.init)(config, jax.random.key(0))

    def descend(state, batch):
        return ssd.train_step(config, state, batch, jax.random.key(0))

    ours = stepping(descend, state, batch)
    return ours, step(config, jax.device_get(state.params), batch, layout)


def first_batch(config: ssd.Config) -> Batch:
    """Returns the first images of the training set, as they are, and their objects."""
    from dl_core.data.detection import detection_data, normalize

    arrays = detection_data(config, None).train.resident
    batch = {name: array[: config.batch_size] for name, array in arrays.items()}
    return {**batch, "image": np.asarray(normalize(batch["image"]))}


def step(
    config: ssd.Config, params: Params, batch: Batch, layout: str = "channels_last"
) -> Callable[[], float]:
    """Returns a call that takes one more step in torch, and returns the loss before it.

    Args:
      config: of the experiment.
      params: with which it begins, of our network.
      batch: images, boxes and labels.
      layout: the name of one of torch's memory formats.
    """
    network = SSD(config, params).to(memory_format=getattr(torch, layout))
    settings = config.optimizer
    betas = settings.beta1, settings.beta2
    adam = torch.optim.Adam(network.parameters(), betas=betas, fused=True)
    defaults = torch.tensor(np.asarray(ssd.default_boxes(config)))
    images = torch.tensor(batch["image"]).permute(0, 3, 1, 2)
    images = images.contiguous(memory_format=getattr(torch, layout))
    truths = [
        (torch.tensor(boxes[labels >= 0]), torch.tensor(labels[labels >= 0]).long())
        for boxes, labels in zip(batch["boxes"], batch["labels"], strict=True)
    ]
    count = 0

    def call():
        nonlocal count
        found = [assign(config, defaults, *truth) for truth in truths]
        wanted, targets = (torch.stack(x) for x in zip(*found, strict=True))
        loss = multibox_loss(config, *network(images), wanted, targets)
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
        for group in adam.param_groups:
            group["lr"] = rate(config, count)
        adam.step()
        count += 1
        return loss.item()

    return call


def rate(config: ssd.Config, count: int) -> float:
    """Returns the size of a step, as `dl_core.train.optimizers.Warmed` has it."""
    settings = config.optimizer
    rise = (count + 1) / (settings.warmup + 1)
    falling = max(config.steps - settings.warmup, 1)
    fallen = min(max((count - settings.warmup) / falling, 0), 1)
    cosine = (1 + math.cos(math.pi * fallen)) / 2
    shape = settings.least + (1 - settings.least) * cosine
    return settings.learning_rate * min(rise, shape)


class SSD(nn.Module):
    """The network, with the weights of ours."""

    def __init__(self, config: ssd.Config, params: Params):
        """Args: as for `step`."""
        super().__init__()
        backbone, depth = params["Backbone_0"], config.trunk.depth
        self.stem = conv_norm(backbone["ConvNorm_0"], 2)
        strides = [s for s in config.trunk.widths() if s <= max(config.boxes.strides)]
        self.stages = nn.ModuleDict(
            {
                str(stride): nn.Sequential(
                    *(
                        Residual(
                            backbone[f"Residual_{depth * number + block}"],
                            2 if block == 0 else 1,
                        )
                        for block in range(depth)
                    )
                )
                for number, stride in enumerate(strides)
            }
        )
        heads = {str(s): conv(params[f"head_{s}"]) for s in config.boxes.strides}
        self.heads = nn.ModuleDict(heads)
        self.cell = 2 + 2 * len(config.boxes.ratios)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logits and the codes of every default box."""
        x, found = torch.relu(self.stem(images)), []
        for stride, stage in self.stages.items():
            x = stage(x)
            if stride in self.heads:
                y = self.heads[stride](x).permute(0, 2, 3, 1)
                found.append(y.reshape(len(y), -1, y.shape[-1] // self.cell))
        logits, codes = torch.cat(found, 1).tensor_split([-4], dim=-1)
        return logits, codes


class Residual(nn.Module):
    """The basic block."""

    def __init__(self, params: Params, stride: int):
        """Args: the block's parameters, and the stride of its first convolution."""
        super().__init__()
        self.first = conv_norm(params["ConvNorm_0"], stride)
        self.second = conv_norm(params["ConvNorm_1"])
        self.past = nn.Identity()
        if "ConvNorm_2" in params:
            self.past = conv_norm(params["ConvNorm_2"], stride)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features after the rectifier."""
        y = self.second(torch.relu(self.first(x)))
        return torch.relu(self.past(x) + y)


def conv_norm(params: Params, stride: int = 1) -> nn.Sequential:
    """Returns a convolution and a normalisation, with the parameters of ours."""
    layer = conv(params["Conv_0"], stride)
    groups = max(layer.out_channels // 8, 1)
    norm = nn.GroupNorm(groups, layer.out_channels, eps=1e-5)
    _write(norm.weight, params["GroupNorm_0"]["scale"])
    _write(norm.bias, params["GroupNorm_0"]["bias"])
    return nn.Sequential(layer, norm)


def conv(params: Params, stride: int = 1) -> nn.Conv2d:
    """Returns a convolution with the kernel of ours, and its bias if it has one."""
    kernel = np.asarray(params["kernel"]).transpose(3, 2, 0, 1)
    outs, ins, size, _ = kernel.shape
    layer = nn.Conv2d(ins, outs, size, stride, size // 2, bias="bias" in params)
    _write(layer.weight, kernel)
    if layer.bias is not None:
        _write(layer.bias, params["bias"])
    return layer


def _write(target: nn.Parameter, values: Any) -> None:
    target.data.copy_(torch.tensor(np.asarray(values)))


@torch.no_grad()
def assign(
    config: ssd.Config, defaults: Tensor, boxes: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns what each default box is to say of an image: class, and codes."""
    if not len(boxes):
        return torch.zeros(len(defaults), dtype=torch.long), torch.zeros_like(defaults)
    low = torch.maximum(defaults[:, None, :2], boxes[:, :2])
    high = torch.minimum(defaults[:, None, 2:], boxes[:, 2:])
    both = (high - low).clamp(min=0).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (defaults, boxes)]
    overlaps = both / (areas[0][:, None] + areas[1] - both)
    best, matched = overlaps.max(1)
    own = overlaps.argmax(0)
    best[own], matched[own] = 1.0, torch.arange(len(boxes))
    wanted = torch.where(best >= config.loss.overlap, labels[matched] + 1, 0)
    truth = boxes[matched]
    size = defaults[:, 2:] - defaults[:, :2]
    apart = (truth[:, :2] + truth[:, 2:] - defaults[:, :2] - defaults[:, 2:]) / 2
    center, spread = ssd.CODER.variances
    codes = [
        apart / size / center,
        ((truth[:, 2:] - truth[:, :2]) / size).log() / spread,
    ]
    return wanted, torch.cat(codes, 1)


def multibox_loss(
    config: ssd.Config, logits: Tensor, codes: Tensor, wanted: Tensor, targets: Tensor
) -> Tensor:
    """Returns SSD's loss over the matched boxes, with the hardest of the background."""
    confusion = functional.cross_entropy(
        logits.transpose(1, 2), wanted, reduction="none"
    )
    positive = wanted > 0
    hardness = confusion.detach().masked_fill(positive, -math.inf)
    place = hardness.argsort(1, descending=True).argsort(1)
    allowed = config.loss.negatives * positive.sum(1, keepdim=True)
    counted = positive | (place < allowed)
    location = functional.smooth_l1_loss(
        codes[positive], targets[positive], reduction="sum"
    )
    loss = confusion[counted].sum() + config.loss.location * location
    return loss / positive.sum().clamp(min=1)
