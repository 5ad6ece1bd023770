r"""Convolutions that turn with their input learn rotated digits from fewer examples.

Cohen & Welling, "Group equivariant convolutional networks", ICML 2016, section 8.1. A
planar network (Z2CNN) is compared with three of about as many parameters whose filters
are also applied in four orientations: P4CNN keeps the four responses apart up to the
last layer and takes their maximum there, the same with rotation pooling takes it after
every layer, and P4M adds reflections, which digits do not have. The paper's test errors
(table 1; there is no P4M): 5.03, 3.21 with rotation pooling, 2.28 %.

    python -m launch.sweep --experiment=convolution.equivariance \
        --sweep=train_examples --executor=vmap
    python -m launch.figures --experiment=convolution.equivariance

The digits are not the paper's files. They are MNIST's, dealt out and turned by
uniformly random angles with a fixed seed (`dl_core.data.rotated`): 10,000 to train on,
2,000 to validate, 50,000 to test with `--preset=paper`, which takes the widths, the
depth and the rates of the authors' code and its 100 epochs; it trains the planar
network for 300 (`--config.steps=23438`), turns each training batch anew at random,
which is not done here, and trains on the validation set too. By default there are
2,000, 1,000 and 5,000 of `mnist_subset`, their size halved after turning by averaging
2×2 pixels, and the networks have four layers in place of seven. All train for the same
number of steps, on whatever number of examples.

Look for: the error falls with the examples, and with the symmetry that is kept: P4 is
below P4 with rotation pooling and that below Z2; P4 needs about 400 examples for the
error that Z2 has after 2,000. P4M, held to a symmetry that digits lack, lies between P4
and P4 with rotation pooling. Turning an image by a multiple of 90 degrees leaves the
logits of all but Z2 as they are, up to rounding; between these angles nothing
guarantees it, and the logits of all change by about as much, 0.3 to 0.5 of their norm.
The step size is the best of 0.001, 0.003 and 0.01 by the validation error of Z2 and of
P4; so short a training has no dropout, which did not lower that of Z2.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static, traced
from dl_core.data.batches import Data, InMemory
from dl_core.data.rotated import rotate, rotated
from dl_core.errors import UserError
from dl_core.nn.conv import Conv
from dl_core.nn.group_conv import GroupConv, LiftingConv
from dl_core.nn.normalization import BatchNorm
from dl_core.ops.group_conv import ORDER, group_pool
from dl_core.ops.pooling import max_pool
from dl_core.pictures import mean_and_range
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train.metrics import Mean
from dl_core.train.state import TrainState


@config
class Model:
    """The network."""

    kind: Literal["z2", "p4_pooled", "p4", "p4m"] = static(
        "p4", "What its layers are equivariant to; p4_pooled pools after each of them."
    )
    width: int = static(
        16, "Channels of z2; p4 has 1/√4, p4m 1/√8 as many on the group.", at_least=1
    )
    depth: int = static(
        3, "Layers of 3×3 filters before the last; pooling follows two.", at_least=2
    )
    dropout: float = traced(
        0.0, "Share of activations dropped, of z2 alone.", at_least=0, below=1
    )


@config
class Dataset:
    """Which images, and how many of them."""

    name: str = static("mnist_subset", "TFDS data set of 28×28 digits; mnist is all.")
    size: int = static(
        14, "Pixels a side, to which the turned images are reduced.", at_least=1
    )
    train: int = static(2_000, "Examples in the training set.", at_least=1)
    validation: int = static(1_000, "Examples in the validation set.", at_least=1)
    test: int = static(5_000, "Examples in the test set.", at_least=1)
    turned: int = static(
        200, "Upright test images that are shown at each angle.", at_least=1
    )
    share: float = traced(
        1.0, "Share of the training set that is used.", above=0, at_most=1
    )


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(300, "Training steps.", at_least=1)
    batch_size: int = static(64, "Examples in a training batch.", at_least=1)
    eval_every: int = static(300, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(300, "Steps between checkpoints.", at_least=1)
    learning_rate: float = traced(1e-2, "Step size of Adam.", above=0)
    model: Model = nested(Model)
    data: Dataset = nested(Dataset)


PRESETS = {
    "smoke": {
        "steps": 6,
        "batch_size": 8,
        "log_every": 2,
        "eval_every": 3,
        "checkpoint_every": 3,
        "model.width": 6,
        "model.depth": 2,
        "data.train": 200,
        "data.validation": 10,
        "data.test": 10,
        "data.turned": 2,
    },
    "paper": {
        "steps": 7_813,
        "batch_size": 128,
        "log_every": 100,
        "eval_every": 2_000,
        "checkpoint_every": 1_000,
        "learning_rate": 1e-3,
        "model.width": 20,
        "model.depth": 6,
        "model.dropout": 0.3,
        "data.name": "mnist",
        "data.size": 28,
        "data.train": 10_000,
        "data.validation": 2_000,
        "data.test": 50_000,
        "data.turned": 1_000,
    },
}

ANGLES = np.arange(0.0, 360.0, 15.0)
"""Degrees by which upright test images are turned, to see what the output does."""


class Network(nn.Module):
    """Unpadded 3×3 layers, the last as large as what is left: one value an element.

    Each but the last is normalised and rectified; max pooling follows the second. The
    logits are the maxima over the group and the positions.
    """

    model: Model

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch size size channels"], *, train: bool
    ) -> Float[Array, "batch 10"]:
        """Returns the logits; training with dropout needs a key of that name."""
        kind, group = self.model.kind, self.model.kind.removesuffix("_pooled")
        order = ORDER[group] if kind in ORDER else 1
        width = max(1, round(self.model.width / order**0.5))
        x = images
        for layer in range(1, self.model.depth + 1):
            x = _convolve(x, group, width, 3, use_bias=False)
            x = nn.relu(BatchNorm()(x, train=train))
            if kind == "p4_pooled":
                x = group_pool(x)
            if layer == 2:
                x = max_pool(x, (2, 2) + (1,) * (x.ndim - 4))
            elif kind == "z2" and train:
                kept = 1 - self.model.dropout
                keep = jax.random.bernoulli(self.make_rng("dropout"), kept, x.shape)
                x = jnp.where(keep, x / kept, 0)
        x = _convolve(x, group, 10, x.shape[1])
        return x.max(axis=range(1, x.ndim - 1))


def _convolve(x: Array, group: str, features: int, size: int, **more: Any) -> Array:
    """Applies the layer of a group that takes an image, or a feature map on it."""
    if group == "z2":
        return Conv(features, size, padding="valid", **more)(x)
    layer = LiftingConv if x.ndim == 4 else GroupConv
    return layer(features, size, group=group, padding="valid", **more)(x)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns the update rule; the learning rate may be traced."""
    return optax.adam(config.learning_rate)


def data(config: Config, data_dir: Any) -> Data:
    """Returns turned digits, and test digits at each of `ANGLES` from upright."""
    chosen, layers = config.data, config.model.depth
    if (chosen.size - 4) // 2 - 2 * (layers - 2) < 1:
        raise UserError(
            f"--config.data.size={chosen.size}: nothing is left of so small images "
            f"after {layers} layers of 3×3 windows (--config.model.depth)"
        )
    sets = rotated(chosen.name, data_dir, chosen.train, chosen.validation, chosen.test)

    if (channels := sets["train"]["image"].shape[-1]) != 1:
        raise UserError(
            f"--config.data.name={chosen.name}: expected grey images, found {channels} "
            "channels"
        )

    def batches(name: str, size: int) -> InMemory:
        image, label = sets[name]["image"], sets[name]["label"]
        return InMemory({"image": _reduced(image, chosen.size), "label": label}, size)

    train = batches("train", config.batch_size)
    train.assemble = assemble_share
    upright = sets["test"]["upright"][: chosen.turned] / np.float32(255)
    views = [rotate(upright, np.full(len(upright), angle)) for angle in ANGLES]
    turned = {
        "views": np.stack([_reduced(view, chosen.size) for view in views], axis=1),
        "label": sets["test"]["label"][: chosen.turned],
    }
    evaluation = {name: batches(name, 500) for name in ("validation", "test")}
    return Data(train, evaluation | {"turned": InMemory(turned, 20)})


def assemble_share(
    config: Config, resident: dict[str, Array], inputs: dict[str, Array], key: Any
) -> dict[str, Array]:
    """Gathers a batch from the first part of the training set alone.

    An example's number is taken modulo the size of the part, a traced number: so all
    sizes run one program, and an epoch shows each example as often as any other where
    the size divides that of the whole set.
    """
    size = len(resident["label"])
    part = jnp.maximum(1, jnp.round(config.data.share * size)).astype(jnp.int32)
    return {name: x[inputs["indices"] % part] for name, x in resident.items()}


def _reduced(
    images: Float[np.ndarray, "images height width channels"], size: int
) -> Float[np.ndarray, "images size size channels"]:
    """Averages squares of pixels, such that `size` of them a side are left."""
    count, height, width, channels = images.shape
    if height != width or height % size:
        raise UserError(
            f"--config.data.size={size}: expected a divisor of the images' size, "
            f"{height}×{width}"
        )
    block = height // size
    return images.reshape(count, size, block, size, block, channels).mean(axis=(2, 4))


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training."""
    size = config.data.size
    images = jnp.zeros((1, size, size, 1))
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
            rngs={"dropout": key},
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return loss.mean(), updates

    (loss, updates), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    state = state.apply_gradients(gradients, make_optimizer(config), updates)
    return state, {"loss": loss}


def classify(
    config: Config, state: TrainState, images: Float[Array, "batch size size 1"]
) -> Float[Array, "batch 10"]:
    """Returns the logits, as in evaluation."""
    variables = {"params": state.params, **state.collections}
    return Network(config.model).apply(variables, images, train=False)


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Mean]:
    """Measures the error; of the digits turned from upright, at each angle.

    For these it also measures how far the logits move, ‖f(turned) − f(upright)‖ as a
    share of ‖f(upright)‖.
    """
    labels, mask = batch["label"], batch["mask"]
    if "views" not in batch:
        wrong = classify(config, state, batch["image"]).argmax(-1) != labels
        return {"error": Mean.of(wrong.astype(jnp.float32), mask)}
    views = batch["views"]
    logits = classify(config, state, views.reshape(-1, *views.shape[2:]))
    logits = logits.reshape(*views.shape[:2], -1)
    wrong = logits.argmax(-1) != labels[:, None]
    moved = jnp.linalg.norm(logits - logits[:, :1], axis=-1)
    change = moved / jnp.linalg.norm(logits[:, :1], axis=-1)
    return {
        "error": Mean.of(wrong.astype(jnp.float32), mask),
        "change": Mean.of(change, mask),
    }


MAIN_METRIC = "test/error"
_KIND, _SHARE = "model.kind", "data.share"

SWEEPS = {
    "train_examples": product(
        **{
            _KIND: ("z2", "p4_pooled", "p4", "p4m"),
            _SHARE: (0.05, 0.2, 1.0),
            "seed": range(3),
        }
    ),
}

_LOOKS = {
    "z2": ("Z2", "C7"),
    "p4_pooled": ("P4, rotation pooling", "C1"),
    "p4": ("P4", "C0"),
    "p4m": ("P4M", "C2"),
}


def examples(config: Any) -> int:
    """Returns how many training examples a run used, from its config by dotted path."""
    return round(config[_SHARE] * config["data.train"])


@figure(sweep="train_examples")
def error(runs: Runs) -> Figure:
    """Test error against the number of training examples, seed by seed."""
    fig, ax = plt.subplots(figsize=(6, 4.2), layout="constrained")
    sizes = [examples(part[0].config) for part in runs.by(_SHARE).values()]
    for kind, group in runs.by(_KIND).items():
        label, color = _LOOKS[kind]
        parts = list(group.by(_SHARE).values())
        finals = [100 * part.final(MAIN_METRIC) for part in parts]
        finals = [values[np.isfinite(values)] for values in finals]
        means = [values.mean() if len(values) else np.nan for values in finals]
        ax.plot(sizes, means, color=color, label=label)
        for size, values in zip(sizes, finals, strict=True):
            ax.plot([size] * len(values), values, "o", color=color, ms=4, alpha=0.6)
    ax.set(xscale="log", yscale="log", xlabel="training examples")
    ax.set(ylabel="test error in %")
    ax.set(xticks=sizes, xticklabels=[f"{size:,}" for size in sizes])
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.tick_params(axis="x", which="minor", bottom=False)
    ax.set_title(f"after {runs[0].config['steps']:,} steps (a point a seed)")
    ax.grid(alpha=0.3, which="both")
    ax.legend()
    return fig


@figure(sweep="train_examples")
def angles(runs: Runs) -> Figure:
    """What turning an upright test digit does to the logits and to the error."""
    largest = max(runs.values(_SHARE))
    fig, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for kind, group in runs.where(**{_SHARE: largest}).by(_KIND).items():
        label, color = _LOOKS[kind]
        for ax, metric, scale in zip(axes, ("change", "error"), (1, 100), strict=True):
            _, values = group.curves(f"turned/{metric}")
            if not values.size:
                continue
            # At 0 nothing changes, which a logarithm cannot show.
            last = scale * values[:, -1, 1:]
            mean_and_range(ax, ANGLES[1:], last, ".-", color=color, label=label)
    for ax in axes:
        ax.set(xlabel="turned by, in degrees", xticks=np.arange(0, 361, 90))
        ax.grid(alpha=0.3)
    axes[0].set(yscale="log", ylabel="change of the logits, as a share of their norm")
    axes[1].set(ylabel="error in %", ylim=(0, None))
    axes[1].legend(loc="lower center", ncols=2)
    number = examples(runs.where(**{_SHARE: largest})[0].config)
    count = runs[0].config["data.turned"]
    fig.suptitle(
        f"{count} upright test digits turned, after training on {number:,} examples "
        "(mean and range over seeds)"
    )
    return fig


FIGURES = {"error": error, "angles": angles}


def summary(runs: Runs) -> str:
    """Returns the test error of each network for each number of training examples."""
    parts = []
    for group in runs.by(_SHARE).values():
        errors = ", ".join(
            f"{_LOOKS[kind][0]} "
            + mean_and_spread(same.final(MAIN_METRIC), scale=100, unit=" %")
            for kind, same in group.by(_KIND).items()
        )
        parts.append(f"{examples(group[0].config):,} examples: {errors}")
    return (
        f"Test error on rotated digits after {runs[0].config['steps']:,} steps, "
        f"{len(runs.values('seed'))} seeds: {'; '.join(parts)}."
    )
