r"""Depthwise-separable and bottlenecked convolutions: the accuracy a multiply-add buys.

A 3×3 convolution from M to N channels takes 9·M·N multiply-adds a position. Split into
a 3×3 filter for each channel by itself and a 1×1 convolution over channels it takes 9·M
+ M·N, a share of 1/N + 1/9 (Howard et al., "MobileNets", 2017, section 3.1). Between
1×1 convolutions to and from a fourth of the channels it takes, for M = N, 17/16·N², a
share of 17/144 (the bottleneck of He et al., "Deep residual learning for image
recognition", CVPR 2016). Here either replaces each 3×3 convolution of a small residual
network, at three widths, trained alike. In MobileNets (table 4) 4,866 million multiply-
adds become 569 million, for 71.7 % and 70.6 % of ImageNet.

    python -m launch.sweep --experiment=convolution.depthwise \
        --sweep=widths --executor=vmap
    python -m launch.figures --experiment=convolution.depthwise

Look for: at the same width the cheap blocks are less accurate, at a fifth to a seventh
of the multiply-adds. What they are worth shows at the same number of multiply-adds,
where separable networks should be ahead of narrower standard ones; in so short a
training on digits they are level with them at best. Nor does the time follow the
multiply-adds: a depthwise filter does little work for each number that it reads and
writes, and there are more layers, so on a CPU a seventh of the multiply-adds saves no
more than half of the time.

Multiply-adds are those of one image's forward pass, counted in the traced network
(`dl_core.ops.cost`). The time is the wall clock of a whole run, the quickest seed of a
setting (the first one also compiles): no benchmark, and no two sweeps give the same. By
default the images are `mnist_subset`, the first layer has stride 2 and a stage has one
block; `--preset=paper` is CIFAR-10 with the three blocks a stage, the augmentation and
the 64,000 steps of ResNet-20 (He et al., section 4.2), whose width is 16.
"""

import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from dl_core.config import RunConfig, config, nested, static, traced
from dl_core.data.batches import Batches, Data
from dl_core.data.named import named_batches
from dl_core.nn.conv import Conv, DepthwiseConv
from dl_core.nn.normalization import BatchNorm
from dl_core.ops.conv_lowerings import Lowering
from dl_core.ops.cost import multiply_adds, parameter_count
from dl_core.ops.pooling import global_avg_pool
from dl_core.results import Run, Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train.metrics import Mean, classification
from dl_core.train.state import TrainState

Convolution = Literal["standard", "separable", "bottleneck"]


@config
class Model:
    """The residual network."""

    convolution: Convolution = static("standard", "What its 3×3 convolutions become.")
    width: int = static(
        16, "Channels of the first stage; each next one has twice as many.", at_least=1
    )
    stages: int = static(3, "Stages, each at half the size of the last.", at_least=1)
    blocks: int = static(1, "Blocks of two convolutions in a stage.", at_least=1)
    stem_stride: int = static(2, "Stride of the first layer.", at_least=1)


@config
class Dataset:
    """Which images."""

    name: Literal["mnist_subset", "mnist", "fashion_mnist", "cifar10"] = static(
        "mnist_subset", "TFDS data set."
    )
    augment: bool = static(
        False, "Whether to shift training images by up to 4 pixels and to flip them."
    )


@config
class Optimizer:
    """Stochastic gradient descent; a tenth of the rate after 1/2, of that after 3/4."""

    learning_rate: float = traced(0.1, "First step size.", above=0)
    momentum: float = traced(0.9, "Of the velocity.", at_least=0, below=1)
    weight_decay: float = traced(1e-4, "Times the parameters.", at_least=0)


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(300, "Training steps.", at_least=1)
    batch_size: int = static(64, "Examples in a training batch.", at_least=1)
    eval_every: int = static(100, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(300, "Steps between checkpoints.", at_least=1)
    model: Model = nested(Model)
    data: Dataset = nested(Dataset)
    optimizer: Optimizer = nested(Optimizer)


PRESETS = {
    "smoke": {
        "steps": 4,
        "batch_size": 8,
        "log_every": 2,
        "eval_every": 2,
        "checkpoint_every": 2,
        "model.stages": 1,
    },
    "paper": {
        "steps": 64_000,
        "batch_size": 128,
        "log_every": 100,
        "eval_every": 2_000,
        "checkpoint_every": 2_000,
        "model.blocks": 3,
        "model.stem_stride": 1,
        "data.name": "cifar10",
        "data.augment": True,
    },
}

_DIGITS = ("mnist_subset", "mnist", "fashion_mnist")
SHAPES = dict.fromkeys(_DIGITS, (28, 28, 1)) | {"cifar10": (32, 32, 3)}
"""Height, width and channels of the images."""


class Network(nn.Module):
    """A residual network as those of He et al., 2016, for CIFAR-10."""

    model: Model
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch 10"]:
        """Returns the logits."""
        model = self.model
        stem = Conv(
            model.width,
            3,
            stride=model.stem_stride,
            use_bias=False,
            lowering=self.lowering,
        )
        x = nn.relu(BatchNorm()(stem(images), train=train))
        for stage in range(model.stages):
            for block in range(model.blocks):
                stride = 2 if stage and not block else 1
                features = model.width * 2**stage
                y = nn.relu(self._convolve(x, features, stride, train))
                y = self._convolve(y, features, 1, train)
                # Where the shape changes, every other position, and zeros for the new
                # channels (option A of the paper): no parameters, no multiply-adds.
                new = features - x.shape[-1]
                x = jnp.pad(x[:, ::stride, ::stride], ((0, 0),) * 3 + ((0, new),))
                x = nn.relu(x + y)
        return nn.Dense(10)(global_avg_pool(x))

    def _convolve(self, x: Array, features: int, stride: int, train: bool) -> Array:
        """Applies what stands for a 3×3 convolution, each part of it normalised."""
        conv = functools.partial(Conv, use_bias=False, lowering=self.lowering)
        match self.model.convolution:
            case "standard":
                layers = [conv(features, 3, stride=stride)]
            case "separable":
                depthwise = DepthwiseConv(
                    3, stride=stride, use_bias=False, lowering=self.lowering
                )
                layers = [depthwise, conv(features, 1)]
            case "bottleneck":
                few = max(1, features // 4)
                layers = [
                    conv(few, 1),
                    conv(few, 3, stride=stride),
                    conv(features, 1),
                ]
        for number, layer in enumerate(layers):
            x = BatchNorm()(layer(nn.relu(x) if number else x), train=train)
        return x


@functools.cache
def cost(model: Model, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Returns the multiply-adds of one image's forward pass, and the parameters."""
    network = Network(model, lowering="xla")
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(
        functools.partial(network.init, train=False), jax.random.key(0), image
    )
    forward = functools.partial(network.apply, train=False)
    adds = multiply_adds(forward, variables, image)
    return adds, parameter_count(variables["params"])


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns the update rule; its numbers may be traced."""
    optimizer, steps = config.optimizer, config.steps

    def rate(step):
        drops = (step >= steps / 2) * 1.0 + (step >= steps * 3 / 4)
        return optimizer.learning_rate * 0.1**drops

    return optax.chain(
        optax.add_decayed_weights(optimizer.weight_decay),
        optax.sgd(rate, optimizer.momentum),
    )


def data(config: Config, data_dir: Any) -> Data:
    """Returns the training images in batches, and the test images."""

    def batches(split: str, size: int) -> Batches:
        shapes = {"image": SHAPES[config.data.name], "label": ()}
        return named_batches(config.data.name, split, data_dir, size, shapes, prepare)

    return Data(batches("train", config.batch_size), {"test": batches("test", 500)})


def prepare(
    config: Config, batch: dict[str, UInt8[Array, "batch ..."]], key: Any
) -> dict[str, Array]:
    """Scales bytes to numbers between 0 and 1, and augments where there is a key."""
    images = batch["image"].astype(jnp.float32) / 255
    if config.data.augment and key is not None:
        keys = jax.random.split(key, len(images))
        images = jax.vmap(shift_and_flip)(keys, images)
    return {"image": images, "label": batch["label"]}


def shift_and_flip(
    key: jax.Array, image: Float[Array, "height width channels"]
) -> Float[Array, "height width channels"]:
    """Shifts an image by up to 4 pixels, zeros coming in, and flips every second."""
    shift_key, flip_key = jax.random.split(key)
    padded = jnp.pad(image, ((4, 4), (4, 4), (0, 0)))
    start = jax.random.randint(shift_key, (2,), 0, 9)
    image = jax.lax.dynamic_slice(padded, (*start, 0), image.shape)
    return jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training."""
    images = jnp.zeros((1, *SHAPES[config.data.name]))
    variables = Network(config.model).init(key, images, train=False)
    return TrainState.create(variables, make_optimizer(config))


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the mean cross-entropy."""

    def loss_fn(params):
        logits, updates = Network(config.model).apply(
            {"params": params, **state.collections},
            batch["image"],
            train=True,
            mutable=list(state.collections),
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return loss.mean(), updates

    (loss, updates), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    state = state.apply_gradients(gradients, make_optimizer(config), updates)
    return state, {"loss": loss}


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Mean]:
    """Measures the loss and the accuracy."""
    variables = {"params": state.params, **state.collections}
    logits = Network(config.model).apply(variables, batch["image"], train=False)
    return classification(logits, batch["label"], batch["mask"])


MAIN_METRIC = "test/accuracy"
_CONVOLUTION, _WIDTH = "model.convolution", "model.width"

SWEEPS = {
    "widths": product(
        **{
            _CONVOLUTION: ("standard", "separable", "bottleneck"),
            _WIDTH: (8, 16, 32),
            "seed": range(3),
        }
    ),
}

_LOOKS = {
    "standard": ("standard 3×3", "C0"),
    "separable": ("depthwise separable", "C3"),
    "bottleneck": ("1×1 bottleneck", "C2"),
}


def cost_of(run: Run) -> tuple[int, int]:
    """Returns the multiply-adds and the parameters of the network of a run."""
    names = [field.name for field in dataclasses.fields(Model)]
    model = Model(**{name: run.config[f"model.{name}"] for name in names})
    return cost(model, SHAPES[run.config["data.name"]])


def seconds(runs: Runs) -> float:
    """Returns the wall clock of the quickest of some runs, each one's share of it."""
    return min(run.seconds for run in runs)


def _against(ax: plt.Axes, runs: Runs, position: Any) -> None:
    """Draws test accuracy of each setting against a number of its runs."""
    for convolution, group in runs.by(_CONVOLUTION).items():
        label, color = _LOOKS[convolution]
        settings = list(group.by(_WIDTH).values())
        finals = [100 * same.final(MAIN_METRIC) for same in settings]
        finals = [values[np.isfinite(values)] for values in finals]
        means = [values.mean() if len(values) else np.nan for values in finals]
        places = [position(same) for same in settings]
        ax.plot(places, means, color=color, label=label)
        for place, values in zip(places, finals, strict=True):
            ax.plot([place] * len(values), values, "o", color=color, ms=4, alpha=0.6)
    ax.set(xscale="log")
    ax.grid(alpha=0.3, which="both")


@figure(sweep="widths")
def accuracy(runs: Runs) -> Figure:
    """Test accuracy against multiply-adds and parameters, seed by seed."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    _against(axes[0], runs, lambda same: cost_of(same[0])[0])
    _against(axes[1], runs, lambda same: cost_of(same[0])[1])
    axes[0].set(xlabel="multiply-adds an image", ylabel="test accuracy in %")
    axes[1].set(xlabel="parameters")
    axes[0].legend(loc="lower right")
    widths = ", ".join(map(str, runs.values(_WIDTH)))
    fig.suptitle(
        f"{runs[0].config['data.name']}, widths {widths}, after "
        f"{runs[0].config['steps']:,} steps (a point a seed)"
    )
    return fig


@figure(sweep="widths")
def time(runs: Runs) -> Figure:
    """Test accuracy against the seconds of a run, and these against multiply-adds."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    _against(axes[0], runs, seconds)
    axes[0].set(xlabel="seconds of a run", ylabel="test accuracy in %")
    axes[0].legend(loc="lower right")
    for convolution, group in runs.by(_CONVOLUTION).items():
        _, color = _LOOKS[convolution]
        settings = list(group.by(_WIDTH).values())
        axes[1].plot(
            [cost_of(same[0])[0] for same in settings],
            [seconds(same) for same in settings],
            "o-",
            color=color,
        )
    axes[1].set(xscale="log", yscale="log")
    axes[1].set(xlabel="multiply-adds an image", ylabel="seconds of a run")
    axes[1].grid(alpha=0.3, which="both")
    for axis in (axes[0].xaxis, axes[1].yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    device = runs[0].result.get("device", "an unnamed device")
    fig.suptitle(f"wall clock of the quickest seed, on {device}")
    return fig


FIGURES = {"accuracy": accuracy, "time": time}


def summary(runs: Runs) -> str:
    """Returns accuracy, multiply-adds and time of each network."""
    parts = []
    for convolution, group in runs.by(_CONVOLUTION).items():
        told = [
            f"{cost_of(same[0])[0] / 1e6:.2f} M "
            + mean_and_spread(same.final(MAIN_METRIC), scale=100, unit=" %")
            + f" in {seconds(same):.0f} s"
            for same in group.by(_WIDTH).values()
        ]
        parts.append(f"{_LOOKS[convolution][0]} {', '.join(told)}")
    return (
        f"Test accuracy after {runs[0].config['steps']:,} steps, "
        f"{len(runs.values('seed'))} seeds, by multiply-adds, with the seconds of the "
        f"quickest run: {'; '.join(parts)}."
    )
