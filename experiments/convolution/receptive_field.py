r"""How the receptive field grows: what 3×3 stacks can see, and what they do see.

Four stacks of 3×3 convolutions on digits: plain ones, seven deep; and three layers with
dilations 1, 2, 4, with strides of 2, or with 2×2 max pooling between them. All end in
the mean over positions and a linear layer, so that nothing but the receptive field
brings distant pixels together. Theory says how large the field of a layer's outputs is
(Araujo, Norris & Sim, "Computing receptive fields of convolutional neural networks",
Distill 2019). The effective field is how strongly the output at the centre depends on
each pixel (Luo, Li, Urtasun & Zemel, "Understanding the effective receptive field in
deep convolutional neural networks", NIPS 2016): here the mean square of its gradient,
over images and channels; its size is the root of the number of pixels above 4.55 % of
the largest. (Of the gradient's magnitude a Gaussian field would be √2 times as wide.)
Before and after training are compared on the same images, those of the last training
batch.

    python -m launch.sweep --experiment=convolution.receptive_field \
        --sweep=stacks --executor=vmap
    python -m launch.figures --experiment=convolution.receptive_field

Look for: three dilated or strided layers reach as far as seven plain ones, 15 pixels.
In the plain stack many more paths lead to the centre than to the border: before
training its field is a Gaussian, which widens with the root of the depth and not with
the depth. With dilations 1, 2, 4 a few paths lead to every pixel: the field is filled
to its border, though in a grid. So short a training narrows the fields, by little more
than the seeds differ, where Luo et al. saw them grow. The plain stack trains least
reliably: when the sweep was run with other rounding, one of its three seeds died.
The table holds the receptive fields of eleven published networks, computed from their
layers, beside the published numbers.
"""

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import scipy.stats
from jaxtyping import Array, Float, PyTree, UInt8
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static, traced
from dl_core.data.batches import Batches, Data
from dl_core.data.named import named_batches
from dl_core.nn.conv import Conv
from dl_core.ops.effective_receptive_field import centre_gradient, effective_size
from dl_core.ops.pooling import global_avg_pool, max_pool
from dl_core.ops.published_networks import IMAGE_SIZE, PUBLISHED
from dl_core.ops.receptive_field import Layer, ReceptiveField, receptive_field
from dl_core.results import Run, Runs, figure, mean_and_spread
from dl_core.sweep import product, zipped
from dl_core.train.metrics import Mean, classification
from dl_core.train.state import TrainState

Kind = Literal["plain", "dilated", "strided", "pooled"]


@config
class Model:
    """A stack of 3×3 convolutions."""

    kind: Kind = static(
        "plain",
        "What makes the field grow: depth alone, dilations 1, 2, 4, …, strides of 2, "
        "or max pooling between the layers.",
    )
    depth: int = static(3, "Convolutions.", at_least=1)
    width: int = static(8, "Channels of each.", at_least=1)


@config
class Dataset:
    """Which images."""

    name: str = static("mnist_subset", "TFDS data set of images in ten classes.")
    side: int = static(28, "Height and width of the images.", at_least=1)
    channels: int = static(1, "Channels of the images.", at_least=1)


@config
class Optimizer:
    """Adam."""

    learning_rate: float = traced(0.01, "Step size.", above=0)


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(400, "Training steps.", at_least=1)
    batch_size: int = static(64, "Examples in a training batch.", at_least=1)
    eval_every: int = static(200, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(400, "Steps between checkpoints.", at_least=1)
    model: Model = nested(Model)
    data: Dataset = nested(Dataset)
    optimizer: Optimizer = nested(Optimizer)


PRESETS = {
    "smoke": {"steps": 8, "eval_every": 4, "log_every": 2, "checkpoint_every": 4}
    | {"batch_size": 8, "model.width": 2},
    "paper": {"steps": 20_000, "eval_every": 1_000, "checkpoint_every": 5_000}
    | {"model.width": 64, "data.name": "cifar10"}
    | {"data.side": 32, "data.channels": 3},
}


def stack(model: Model) -> list[list[Layer]]:
    """Returns the layers from one convolution to the next."""
    scale = range(model.depth)
    if model.kind == "dilated":
        return [[Layer(3, padding="same", dilation=2**i)] for i in scale]
    if model.kind == "strided":
        return [[Layer(3, stride=2, padding="same")] for _ in scale]
    between = [Layer(2, stride=2)] if model.kind == "pooled" else []
    return [(between if i else []) + [Layer(3, padding="same")] for i in scale]


def theory(model: Model, side: int) -> list[ReceptiveField]:
    """Returns the receptive field of each convolution's outputs."""
    layers = stack(model)
    depths = range(1, model.depth + 1)
    return [receptive_field(layers[:depth], input_size=side) for depth in depths]


class Network(nn.Module):
    """The stack, the mean over positions, a linear layer."""

    model: Model

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch 10"], dict[str, Array]]:
        """Returns the logits, and what each convolution gives, by name."""
        x, endpoints = images, {}
        he = nn.initializers.he_normal()
        for i, layers in enumerate(stack(self.model), 1):
            for pooling in layers[:-1]:
                x = max_pool(x, pooling.kernel, stride=pooling.stride)
            stride, dilation = layers[-1].stride, layers[-1].dilation
            conv = Conv(
                self.model.width, 3, stride=stride, dilation=dilation, kernel_init=he
            )
            endpoints[f"conv_{i}"] = x = conv(x)
            x = nn.relu(x)
        return nn.Dense(10)(global_avg_pool(x)), endpoints


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns the update rule; the learning rate may be traced."""
    return optax.adam(config.optimizer.learning_rate)


def data(config: Config, data_dir: Any) -> Data:
    """Returns the training images in batches, and the test images."""
    side, channels = config.data.side, config.data.channels
    shapes = {"image": (side, side, channels), "label": ()}

    def batches(split: str, size: int) -> Batches:
        name = config.data.name
        return named_batches(name, split, data_dir, size, shapes, to_numbers)

    return Data(batches("train", config.batch_size), {"test": batches("test", 500)})


def to_numbers(
    config: Config, batch: dict[str, UInt8[Array, "batch ..."]], key: Any
) -> dict[str, Array]:
    """Turns images of bytes into numbers between 0 and 1."""
    pixels = batch["image"].astype(jnp.float32) / 255
    return {"image": pixels, "label": batch["label"]}


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the state, with the initial weights and the last images (first noise)."""
    side, channels = config.data.side, config.data.channels
    images = jax.random.uniform(key, (config.batch_size, side, side, channels))
    params = Network(config.model).init(key, images)["params"]
    kept = {"initial": params, "images": images}
    return TrainState.create({"params": params, **kept}, make_optimizer(config))


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the mean cross-entropy."""

    def loss_fn(params):
        logits, _ = Network(config.model).apply({"params": params}, batch["image"])
        labels = batch["label"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return loss.mean(), (logits.argmax(-1) == labels).mean()

    (loss, accuracy), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params
    )
    kept = {**state.collections, "images": batch["image"]}
    state = state.apply_gradients(gradients, make_optimizer(config), kept)
    return state, {"loss": loss, "accuracy": accuracy}


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Mean]:
    """Measures the loss and the accuracy."""
    logits, _ = Network(config.model).apply({"params": state.params}, batch["image"])
    return classification(logits, batch["label"], batch["mask"])


def effective_fields(
    model: Model,
    params: PyTree,
    images: Float[Array, "batch height width channels"],
    key: jax.Array,
) -> Float[Array, "depth height width"]:
    """Returns, for each convolution, how its centre output depends on each pixel.

    That is the mean square, over images and over the channels of the input, of the
    gradient of the output's channels, added with random signs: the expected square of
    such a sum is the sum of the squares.
    """

    def field(name: str) -> Float[Array, "height width"]:
        def output(x):
            return Network(model).apply({"params": params}, x)[1][name]

        def signs(features):
            return jax.random.rademacher(key, features.shape, features.dtype)

        gradient = centre_gradient(output, images, signs)
        return (gradient**2).mean((0, 3))

    return jnp.stack([field(f"conv_{i}") for i in range(1, model.depth + 1)])


def observe(config: Config, state: TrainState, key: jax.Array) -> dict[str, Array]:
    """Returns the effective fields with the initial and with the present weights."""
    images = state.collections["images"]
    weights = {"before": state.collections["initial"], "after": state.params}
    return {
        name: effective_fields(config.model, params, images, key)
        for name, params in weights.items()
    }


def score(config: Config, observed: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Measures the size of the effective field of each convolution's outputs."""
    return {
        f"{name}_{depth}": effective_size(field)
        for name in ("before", "after")
        for depth, field in enumerate(observed[name], 1)
    }


MAIN_METRIC = "test/accuracy"
_KIND, _DEPTH = "model.kind", "model.depth"

_STACKS = {_KIND: ("plain", "dilated", "strided", "pooled"), _DEPTH: (7, 3, 3, 3)}

SWEEPS = {"stacks": product(zipped(**_STACKS), seed=range(3))}

_WORDS = {
    "plain": "plain",
    "dilated": "dilations 1, 2, 4",
    "strided": "strides of 2",
    "pooled": "2×2 max pooling",
}
_STYLES = {
    "before": ("C0", "effective, before training"),
    "after": ("C3", "effective, after"),
}


def _theory_of(run: Run) -> list[ReceptiveField]:
    model = Model(kind=run.config[_KIND], depth=run.config[_DEPTH])
    return theory(model, run.config["data.side"])


@figure(sweep="stacks")
def growth(runs: Runs) -> Figure:
    """The size of the field against depth, in theory and as the gradient shows it."""
    groups = runs.by(_KIND)
    options = {"figsize": (3.2 * len(groups), 3.6), "layout": "constrained"}
    fig, axes = plt.subplots(1, len(groups), sharey=True, **options)
    for ax, (kind, group) in zip(axes, groups.items(), strict=True):
        depths = np.arange(1, group[0].config[_DEPTH] + 1)
        sizes = [field.size for field in _theory_of(group[0])]
        ax.plot(depths, sizes, "s-", color="black", label="theory")
        if kind == "plain":  # Each layer adds the variance of three equal taps, 2/3.
            law = np.sqrt(2 * np.pi * np.log(1 / 0.0455) * depths * 2 / 3)
            ax.plot(depths, law, ":", color="black", label="Gaussian, ∝ √depth")
        for name, (color, words) in _STYLES.items():
            found = np.stack([group.final(f"observed/{name}_{d}") for d in depths])
            mean = np.ma.masked_invalid(found).mean(1)  # Of those that did not diverge.
            ax.plot(depths, mean, "o-", color=color, ms=4, label=words)
            ax.plot(depths, found, "o", color=color, ms=3, alpha=0.4)
        accuracy = mean_and_spread(group.final(MAIN_METRIC), scale=100, unit=" %")
        ax.set(xlabel="convolutions", xticks=depths)
        ax.set_title(f"{_WORDS[kind]}\ntest accuracy {accuracy}", fontsize=10)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("side of the field (pixels)")
    axes[0].legend(loc="upper left", fontsize=8)
    return fig


@figure(sweep="stacks")
def fields(runs: Runs) -> Figure:
    """The last layer's effective field before and after training, and its profile."""
    firsts = [group[0] for group in runs.by(_KIND).values()]
    size = (3 * len(firsts), 8.4)
    fig, axes = plt.subplots(3, len(firsts), figsize=size, layout="constrained")
    for column, run in zip(axes.T, firsts, strict=True):
        whole = _theory_of(run)[-1]
        words = _WORDS[run.config[_KIND]]
        column[0].set_title(f"{words}: {whole.size} × {whole.size}")
        if run.diverged:
            column[0].text(0.5, 0.5, "diverged", ha="center")
            continue
        side = run.config["data.side"]
        output = (-(-side // whole.stride) - 1) // 2
        start = output * whole.stride - whole.padding - 0.5
        seen = run.last_artifacts()
        for ax, (name, style) in zip(column, _STYLES.items(), strict=False):
            field = seen[name][-1]
            ax.imshow(field, cmap="magma", vmin=0)
            box = plt.Rectangle((start, start), whole.size, whole.size, fill=False)
            box.set(edgecolor="white", linestyle="--")
            ax.add_patch(box)
            ax.set(xticks=[], yticks=[], ylabel=f"{name} training")
            ax.set_xlabel(f"effective {effective_size(field):.1f}")
            _draw_profile(column[2], field, color=style[0], label=f"{name} training")
        column[2].axvspan(start, start + whole.size, color="0.92", zorder=0)
        column[2].set(xlabel="column (pixel)", ylabel="share", xlim=(-0.5, side - 0.5))
        column[2].legend(fontsize=7)
    fig.suptitle(
        f"mean squared gradient of the centre output, seed {runs[0].config['seed']}\n"
        "dashed, grey: field in theory; dotted: Gaussian of the same mean and width"
    )
    return fig


def _draw_profile(
    ax: plt.Axes, field: Float[np.ndarray, "height width"], **style: str
) -> None:
    """Draws the columns' shares, and the Gaussian with their mean and deviation."""
    if not field.any():
        return
    columns = np.arange(field.shape[1])
    share = field.sum(0) / field.sum()
    mean = (share * columns).sum()
    deviation = np.sqrt((share * (columns - mean) ** 2).sum())
    fine = np.linspace(0, len(columns) - 1, 200)
    ax.plot(columns, share, **style)
    ax.plot(
        fine, scipy.stats.norm.pdf(fine, mean, deviation), ":", color=style["color"]
    )


@figure(sweep="stacks")
def published(runs: Runs) -> Figure:
    """The receptive fields of published networks, computed and as published."""
    rows = []
    for name, (layers, theirs) in PUBLISHED.items():
        ours = receptive_field(layers, input_size=IMAGE_SIZE)
        cells = (ours.size, theirs.size, ours.stride, theirs.stride)
        rows.append([name, *cells, ours.padding, theirs.padding])
    columns = ["network"]
    for what in ("size", "stride", "padding"):
        columns += [what, f"{what}, published"]
    fig, ax = plt.subplots(figsize=(11, 4), layout="constrained")
    ax.set_axis_off()
    ax.set_title(f"receptive fields (pixels) for {IMAGE_SIZE} × {IMAGE_SIZE} images")
    ax.table(rows, colLabels=columns, loc="center").scale(1, 1.4)
    return fig


FIGURES = {"growth": growth, "fields": fields, "published": published}


def summary(runs: Runs) -> str:
    """Returns the last layer's effective size before and after training, per stack."""
    parts = []
    for kind, group in runs.by(_KIND).items():
        depth, of = group[0].config[_DEPTH], _theory_of(group[0])[-1].size
        before, after = (
            mean_and_spread(group.final(f"observed/{name}_{depth}"))
            for name in ("before", "after")
        )
        accuracy = mean_and_spread(group.final(MAIN_METRIC), scale=100, unit=" %")
        parts.append(
            f"{_WORDS[kind]}, {depth} layers: {before} before, {after} after, of {of} "
            f"(test accuracy {accuracy})"
        )
    steps, seeds = runs[0].config["steps"], len(runs.values("seed"))
    return (
        f"Side of the effective receptive field in pixels before and after {steps:,} "
        f"steps, {seeds} seeds, beside the theoretical one: {'; '.join(parts)}."
    )
