r"""Transposed convolution is the transpose of a matrix, and may leave a checkerboard.

A convolution is a matrix: 3×3 weights that take 4×4 pixels to 2×2 are one of 4 rows and
16 columns, and the transposed convolution from 2×2 to 4×4 is its transpose, not its
inverse (Dumoulin & Visin, "A guide to convolution arithmetic for deep learning", 2016,
sections 4.1 and 4.2). Unpooling undoes max pooling as far as it can: it puts each
maximum back where it was (Zeiler & Fergus, 2014).

Where the stride does not divide the window, the windows of a transposed convolution
overlap unevenly, and what it draws may show a checkerboard (Odena, Dumoulin & Olah,
"Deconvolution and checkerboard artifacts", Distill, 2016). Here autoencoders squeeze
digits into 7×7×4 numbers, and their decoders return by transposed convolutions of
several strides and windows, the article's resize-convolution (nearest neighbours, then
a convolution), or unpooling, then a convolution.

    python -m launch.sweep --experiment=convolution.arithmetic \
        --sweep=upsamplers --executor=vmap
    python -m launch.figures --experiment=convolution.arithmetic

The checkerboard is the part of all test images that repeats every 4 pixels, in per cent
of their standard deviation (see `Checkerboard`). Look for: before training every
transposed convolution shows it strongly, with even overlap or not, since each place of
a cell has random weights of its own. Training removes nearly all of it, down to what
digits have themselves for resize-convolution, not so far for transposed ones, again
with even overlap or not. Unpooling is told where the maxima were, and stride 4 leaves
out a layer, so their errors are not to be compared with the others'. `--preset=paper`
is a wider network on all of MNIST for longer: the article has no such experiment.
"""

from typing import Any, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, UInt8
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static, traced
from dl_core.data.batches import Batches, Data
from dl_core.data.digits import first_digits
from dl_core.data.named import named_batches
from dl_core.errors import UserError
from dl_core.nn.conv import Conv, ConvTranspose
from dl_core.ops.conv import conv, conv_matrix, conv_transpose
from dl_core.ops.pooling import (
    avg_pool,
    avg_pool_input_gradient,
    max_pool_with_argmax,
    max_unpool,
)
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product, zipped
from dl_core.train.metrics import Mean
from dl_core.train.state import TrainState


@config
class Model:
    """The autoencoder; `kind`, `stride` and `kernel_size` are its decoder's."""

    kind: Literal["transposed", "resize", "unpooling"] = static(
        "transposed", "What enlarges: convolution alone, or another before it."
    )
    stride: Literal[2, 4] = static(2, "Factor of one layer: two layers of 2, one of 4.")
    kernel_size: int = static(4, "Window of the decoder's convolutions.", at_least=1)
    width: int = static(16, "Channels of a hidden layer.", at_least=1)
    code: int = static(4, "Channels of the 7×7 code.", at_least=1)


@config
class Dataset:
    """Which images."""

    name: str = static("mnist_subset", "TFDS data set of images, 28×28 and grey.")


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(500, "Training steps.", at_least=1)
    batch_size: int = static(64, "Images in a training batch.", at_least=1)
    eval_every: int = static(250, "Steps between evaluations.", at_least=1)
    learning_rate: float = traced(3e-3, "Step size of Adam.", above=0)
    model: Model = nested(Model)
    data: Dataset = nested(Dataset)


PRESETS = {
    "smoke": {"steps": 10, "batch_size": 8, "eval_every": 5, "model.width": 2},
    "paper": {
        "steps": 20_000,
        "eval_every": 1_000,
        "model.width": 64,
        "data.name": "mnist",
    },
}

_PERIOD = 4
"""By how much the decoders enlarge, so what they may repeat."""
_SHOWN = 7  # Of the observed digits.


class Autoencoder(nn.Module):
    """Two convolutions and max poolings, and the way back."""

    model: Model

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 1"]
    ) -> Float[Array, "batch height width 1"]:
        """Returns the reconstruction of images whose sides 4 divides."""
        model = self.model
        x, places = images, []
        for _ in range(2):
            x = nn.relu(Conv(model.width, 3)(x))
            x, indices = max_pool_with_argmax(x, 2)
            places.append(indices)
        x = Conv(model.code, 1)(x)
        x = nn.relu(Conv(model.width, 1)(x))
        if model.stride == 2:
            x = nn.relu(self._up(x, model.width, places[1]))
        return self._up(x, 1, places[0])

    def _up(self, x: Array, features: int, places: Array) -> Array:
        """Enlarges by the stride; `places` are those of the maxima at this size."""
        kind, stride = self.model.kind, self.model.stride
        window = self.model.kernel_size
        if kind == "transposed":
            return ConvTranspose(features, window, stride=stride, padding="same")(x)
        if kind == "resize":
            x = jnp.repeat(jnp.repeat(x, stride, 1), stride, 2)  # Nearest neighbours.
        else:
            x = max_unpool(x, places, (2 * x.shape[1], 2 * x.shape[2]))
        return Conv(features, window)(x)


@struct.dataclass
class Checkerboard(Mean):
    """How much of the images repeats every p = 4 pixels, of their standard deviation.

    √(V / W). Each image loses its trend, the mean over the p×p pixels centred at each
    pixel, as in the classical decomposition of time series (weights ½, 1, …, 1, ½ each
    way, so that nothing of period p is lost, and no ramp is left). The rest is averaged
    over all images and all cells of p×p pixels; V is the variance of this mean cell,
    its power at the multiples of the frequency 1/p but 0. W is the variance of the
    pixels of an image, averaged over the images. A border of p pixels is left out.
    """

    @classmethod
    def of(
        cls, images: Float[Array, "batch height width 1"], mask: Float[Array, " batch"]
    ) -> Self:
        """Returns the means over the images, with sides that 4 divides, of mask 1."""
        p, half = _PERIOD, slice(_PERIOD // 2, -(_PERIOD // 2))
        trend = avg_pool(avg_pool(images, p, stride=1), 2, stride=1)
        inner = images[:, p:-p, p:-p]
        rows, columns = (side // p for side in inner.shape[1:3])
        rest = (inner - trend[:, half, half]).reshape(-1, rows, p, columns, p)
        cells = rest.mean((1, 3)).reshape(-1, p * p)
        return super().of(jnp.c_[cells, inner.var((1, 2, 3))], mask)

    def compute(self) -> float:
        """Returns the measure; 0 for images of one value."""
        *cell, variance = super().compute().astype(float)
        return float(np.sqrt(np.var(cell) / max(variance, np.finfo("float32").tiny)))


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns the update rule; the learning rate may be traced."""
    return optax.adam(config.learning_rate)


def data(config: Config, data_dir: Any) -> Data:
    """Returns the training images in batches, and the test images."""
    if config.model.kind == "unpooling" and config.model.stride != 2:
        raise UserError(
            f"--config.model.stride={config.model.stride}: unpooling undoes pooling by "
            "2, so expected 2, or another --config.model.kind"
        )

    def batches(split: str, size: int) -> Batches:
        shapes = {"image": (28, 28, 1)}
        return named_batches(config.data.name, split, data_dir, size, shapes, scaled)

    return Data(batches("train", config.batch_size), {"test": batches("test", 500)})


def scaled(
    config: Config, batch: dict[str, UInt8[Array, "batch 28 28 1"]], key: Any
) -> dict[str, Array]:
    """Turns bytes into numbers between 0 and 1."""
    return {"image": batch["image"].astype(jnp.float32) / 255}


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the autoencoder's state before training."""
    variables = Autoencoder(config.model).init(key, jnp.zeros((1, 28, 28, 1)))
    return TrainState.create(variables, make_optimizer(config))


def reconstruct(config: Config, params: Any, images: Array) -> Array:
    """Returns what the autoencoder makes of the images."""
    return Autoencoder(config.model).apply({"params": params}, images)


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the mean squared error."""

    def loss_fn(params):
        output = reconstruct(config, params, batch["image"])
        return jnp.square(output - batch["image"]).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(gradients, make_optimizer(config)), {"loss": loss}


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Mean | Checkerboard]:
    """Measures the squared error, and the checkerboard of outputs and of inputs."""
    images, mask = batch["image"], batch["mask"]
    output = reconstruct(config, state.params, images)
    return {
        "error": Mean.of(jnp.square(output - images).mean((1, 2, 3)), mask),
        "checkerboard": Checkerboard.of(output, mask),
        "digits_checkerboard": Checkerboard.of(images, mask),
    }


def observe(config: Config, state: TrainState, key: jax.Array) -> dict[str, Array]:
    """Returns ten digits, their reconstructions, and themselves pooled and back."""
    images = jnp.asarray(first_digits())
    seen = {"digits": images, "outputs": reconstruct(config, state.params, images)}
    for window in (2, 4):
        largest, places = max_pool_with_argmax(images, window)
        means = avg_pool(images, window)
        seen |= {
            f"max_{window}": largest,
            f"argmax_{window}": places,
            f"unpooled_{window}": max_unpool(largest, places, (28, 28)),
            f"mean_{window}": means,
            f"spread_{window}": avg_pool_input_gradient(means, (28, 28), window),
        }
    return seen


MAIN_METRIC = "test/error"
_FIELDS = ("model.kind", "model.stride", "model.kernel_size")
_NAMES = {
    ("transposed", 2, 2): "transposed, stride 2, 2×2",
    ("transposed", 2, 3): "transposed, stride 2, 3×3",
    ("transposed", 2, 4): "transposed, stride 2, 4×4",
    ("transposed", 2, 5): "transposed, stride 2, 5×5",
    ("transposed", 4, 6): "transposed, stride 4, 6×6",
    ("transposed", 4, 8): "transposed, stride 4, 8×8",
    ("resize", 2, 3): "resize by 2, then 3×3",
    ("unpooling", 2, 3): "unpooling by 2, then 3×3",
}

SWEEPS = {
    "upsamplers": product(
        zipped(**dict(zip(_FIELDS, zip(*_NAMES, strict=True), strict=True))),
        product(seed=range(3)),
    ),
}


def overlap(stride: int, window: int) -> Float[np.ndarray, "side side"]:
    """Returns how many windows lie on each pixel, of the mean, within a large image."""
    paint, weights = jnp.ones((1, 7, 7, 1)), jnp.ones((window, window, 1, 1))
    for _ in range(1 if stride == _PERIOD else 2):
        paint = conv_transpose(paint, weights, stride=stride, padding="same")
    inner = np.asarray(paint)[0, 8:-8, 8:-8, 0]
    return inner / inner.mean()


def _image(ax: Any, pixels: Any, title: str, low: Any = 0, high: Any = 1) -> None:
    ax.imshow(pixels, cmap="gray", vmin=low, vmax=high)
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=9)


@figure(sweep="upsamplers")
def matrices(runs: Runs) -> Figure:
    """A convolution from 4×4 to 2×2 as a matrix, and its transpose (no run needed)."""
    w = np.arange(1, 10, dtype=np.float32).reshape(3, 3, 1, 1)
    x = (np.arange(16, dtype=np.float32) % 5).reshape(1, 4, 4, 1)
    matrix = conv_matrix(w, (4, 4, 1))
    y = np.asarray(conv(jnp.asarray(x), jnp.asarray(w)))
    z = np.asarray(conv_transpose(jnp.asarray(y), jnp.asarray(w)))
    fig = plt.figure(figsize=(11, 6.6), layout="constrained")
    axes = fig.subplot_mosaic("wCCT;xyzT", width_ratios=(1, 1, 1, 0.8))
    letters = np.array(["", *(f"$w_{{{i}{j}}}$" for i in range(3) for j in range(3))])
    for name, values, title in (
        ("w", w[..., 0, 0], "weights w = 1 … 9"),
        ("C", matrix, "convolution: C, 4×16"),
        ("T", matrix.T, "its transpose: Cᵀ, 16×4"),
        ("x", x[0, ..., 0], "x, 4×4"),
        ("y", y[0, ..., 0], "y = conv(x, w) = C x, 2×2"),
        ("z", z[0, ..., 0], "conv_transpose(y, w) = Cᵀ y, 4×4: not x"),
    ):
        ax = axes[name]
        ax.imshow(values, cmap="Blues", vmin=0, vmax=1.6 * values.max())
        for (row, column), value in np.ndenumerate(values):
            word = letters[int(value)] if name in "wCT" else f"{value:.0f}"
            ax.text(column, row, word, ha="center", va="center", fontsize=8)
        for axis, count in ((ax.xaxis, values.shape[1]), (ax.yaxis, values.shape[0])):
            axis.set_ticks(np.arange(count + 1) - 0.5, labels=[])
        ax.grid(color="0.85", lw=0.8)
        ax.set_title(title, fontsize=10)
    return fig


@figure(sweep="upsamplers")
def pooling(runs: Runs) -> Figure:
    """A digit pooled by 2 and by 4, by maximum and by mean, and what is had back."""
    seen = next(iter(runs[0].artifacts().values()))
    seen = {name: array[_SHOWN, ..., 0] for name, array in seen.items()}
    fig, axes = plt.subplots(2, 5, figsize=(11, 4.9), layout="constrained")
    _image(axes[0, 0], seen["digits"], "digit and the maxima in it")
    _image(axes[1, 0], seen["digits"], "digit, 28×28")
    for column, window in ((1, 2), (3, 4)):
        size, largest = f"of {window}×{window} pixels", seen[f"max_{window}"]
        rows, columns = np.divmod(seen[f"argmax_{window}"][largest > 0], 28)
        axes[0, 0].plot(columns, rows, ".", color=f"C{window // 2}", ms=2 + window / 2)
        _image(axes[0, column], largest, f"maxima {size}")
        _image(axes[0, column + 1], seen[f"unpooled_{window}"], "unpooled")
        _image(axes[1, column], seen[f"mean_{window}"], f"means {size}")
        spread = seen[f"spread_{window}"] * window**2
        _image(axes[1, column + 1], spread, f"spread (times {window**2})")
    return fig


@figure(sweep="upsamplers")
def checkerboard(runs: Runs) -> Figure:
    """What each upsampler draws before and after training, and the pattern in it."""
    kinds = runs.by(*_FIELDS)
    fig = plt.figure(figsize=(1.55 * len(kinds) + 1, 8.8), layout="constrained")
    top, bottom = fig.subfigures(2, 1, height_ratios=(1.7, 1))
    axes = top.subplots(3, len(kinds))
    pattern, error = bottom.subplots(1, 2)
    for number, (kind, group) in enumerate(kinds.items()):
        even, before, after = axes[:, number]
        flat = np.ones((12, 12)) if kind[0] != "transposed" else overlap(*kind[1:])
        _image(even, flat, _NAMES[kind].replace(", ", "\n"), high=2)
        outputs = [seen["outputs"][_SHOWN] for seen in group[0].artifacts().values()]
        _image(before, outputs[0], "", None, None)  # From its least to its most.
        _image(after, outputs[-1], "diverged" if group[0].diverged else "")
        for run in (run for run in group if not run.diverged):
            ends = 100 * run.series("test/checkerboard")[1][[0, -1]]
            pattern.plot(number, ends[0], "o", color="C1", alpha=0.6)
            pattern.plot(number, ends[1], "o", color="C0", alpha=0.6)
            error.plot(number, run.final(MAIN_METRIC), "o", color="C0", alpha=0.6)
    after = f"after {runs[0].config['steps']:,} steps"
    rows = ("overlap\n(mean grey)", "before training", after)
    for ax, words in zip(axes[:, 0], rows, strict=True):
        ax.set_ylabel(words, fontsize=9)
    own = 100 * np.nanmean(runs.final("test/digits_checkerboard"))
    pattern.axhline(own, color="0.5", ls=":", label="the digits' own")
    pattern.legend(fontsize=8)
    pattern.set(yscale="log", ylabel="checkerboard, % of deviation")
    error.set(ylabel="mean squared error, test", ylim=(0, None))
    names = [_NAMES[kind] for kind in kinds]
    for ax in (pattern, error):
        ax.set_xticks(range(len(kinds)), names, fontsize=7, rotation=30, ha="right")
    pattern.set_title("before (orange) and after training (blue)", fontsize=9)
    error.set_title("after training; a point a seed", fontsize=9)
    return fig


FIGURES = {"matrices": matrices, "pooling": pooling, "checkerboard": checkerboard}


def summary(runs: Runs) -> str:
    """Returns the checkerboard and the error at the end for each upsampler."""
    parts = []
    for kind, group in runs.by(*_FIELDS).items():
        pattern = mean_and_spread(group.final("test/checkerboard"), scale=100)
        error = mean_and_spread(group.final(MAIN_METRIC), scale=1_000)
        parts.append(f"{_NAMES[kind]}: {pattern} ({error})")
    own = 100 * np.nanmean(runs.final("test/digits_checkerboard"))
    return (
        f"Checkerboard of test reconstructions, % (in brackets 1,000 × squared error), "
        f"after {runs[0].config['steps']:,} steps, {len(runs.values('seed'))} seeds: "
        f"{'; '.join(parts)}; the digits' own: {own:.2g}."
    )
