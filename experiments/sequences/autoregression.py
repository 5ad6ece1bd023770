r"""Images pixel by pixel, by the chain rule: likelihoods, samples and completions.

p(x) = Π p(xᵢ | x₁ … xᵢ₋₁), the pixels in reading order. Three networks give all of the
conditionals in one pass. MADE (Germain et al., 2015) masks the weights of dense layers;
PixelCNN (van den Oord, Kalchbrenner & Kavukcuoglu, 2016) masks convolutions in residual
blocks, of which none sees all pixels above to the right; the gated PixelCNN (van den
Oord et al., 2016) has a second stack for the rows above, and sees all.

    python -m launch.sweep --experiment=sequences.autoregression --sweep=depths \
        --executor=vmap
    python -m launch.sweep --experiment=sequences.autoregression --sweep=levels \
        --executor=vmap
    python -m launch.figures --experiment=sequences.autoregression

Images are MNIST's, of two kinds. Binary ones are drawn from the greys as probabilities,
anew at every step to train on, once and for all runs to test on; their negative log
likelihood is in nats an image. With `--config.data.levels=256` a pixel is one of 256
greys, and the unit is bits a dimension: 8 for a network that knows nothing. Numbers are
comparable within a figure alone: by default the 14,000 digits of `mnist_subset` are
halved in size by averaging 2×2 pixels, which leaves more greys and so more noise, and
training is short.

Look for: what depth gives each network. PixelCNNs gain by it, gated ones more, with
weights that convolutions share between places: 13 thousand parameters in a PixelCNN of
four blocks, 197 in a MADE of one layer, whose step in turn takes a thirtieth of the
time. After so short a training that MADE is still level with the best of them, and
deeper ones fall behind: not the published order. Samples cost one pass a pixel. The
known upper half of a digit comes before the rest, so completions are draws from the
exact conditional distribution; two draws for a digit differ where the upper half leaves
open which digit it is. Adam's step size is the best of 0.001, 0.003 and 0.01 for MADE
and for PixelCNN, by the likelihood of the last thousand training digits, not trained
on.

`--preset=paper` is the PixelCNN of the best public reproduction
(EugenHotaj/pytorch-generative: 81.45 nats at 28×28 pixels, 15 residual blocks, 457
epochs, a step size falling by 0.0023 % a step), `--preset=paper_made` its MADE (84.87,
one layer of 8,000 units, 85 epochs); its gated PixelCNN has 81.50. It draws binary
images anew for testing, too; its MADE draws an order and the units' degrees at random,
where here the order is that of reading and the degrees are spread evenly; and a
residual block there adds its input twice.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float, Int, Num
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static
from dl_core.data.batches import Data, InMemory
from dl_core.data.digits import first_digits
from dl_core.data.named import named_batches
from dl_core.errors import UserError
from dl_core.models.made import MADE
from dl_core.models.pixel_cnn import GatedPixelCNN, PixelCNN
from dl_core.ops.autoregression import bits_per_dimension, log_likelihood, sample
from dl_core.ops.pooling import avg_pool
from dl_core.pictures import seed_points, table_of_mosaics
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import chain, product
from dl_core.train.metrics import Mean
from dl_core.train.optimizers import Optimizer
from dl_core.train.state import TrainState


@config
class Model:
    """The network."""

    name: Literal["made", "pixel_cnn", "gated_pixel_cnn"] = static(
        "pixel_cnn", "Which network."
    )
    depth: int = static(
        4,
        "Hidden layers of MADE, residual blocks, or gated layers after the first.",
        at_least=1,
    )
    units: int = static(500, "Units of each hidden layer of MADE.", at_least=1)
    channels: int = static(16, "Channels of a convolution.", at_least=1)


@config
class Digits:
    """Which images."""

    name: Literal["mnist_subset", "mnist"] = static("mnist_subset", "TFDS data set.")
    size: int = static(14, "Pixels a side; below 28, averages of squares.", at_least=2)
    levels: int = static(
        2, "Values of a pixel; 2 for binary images, 256 for 8 bits.", at_least=2
    )


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(400, "Training steps.", at_least=1)
    batch_size: int = static(64, "Images in a training batch.", at_least=1)
    eval_every: int = static(400, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(400, "Steps between checkpoints.", at_least=1)
    model: Model = nested(Model)
    data: Digits = nested(Digits)
    optimizer: Optimizer = nested(Optimizer, learning_rate=1e-2)


_FULL = {
    "log_every": 100,
    "eval_every": 10_000,
    "checkpoint_every": 5_000,
    "data.name": "mnist",
    "data.size": 28,
    "optimizer.learning_rate": 1e-3,
}
PRESETS = {
    "smoke": {
        "steps": 4,
        "batch_size": 8,
        "log_every": 2,
        "eval_every": 2,
        "checkpoint_every": 2,
        "model.units": 8,
        "model.channels": 2,
        "data.size": 4,
    },
    "paper": {
        **_FULL,
        "steps": 107_109,
        "batch_size": 256,
        "model.depth": 15,
        "optimizer.stair": 1,
        "optimizer.stair_factor": 0.999977,
    },
    "paper_made": {
        **_FULL,
        "steps": 79_688,
        "model.name": "made",
        "model.depth": 1,
        "model.units": 8_000,
    },
}

_SIDE = 28
_SAMPLES = 20
"""Images that are drawn at each evaluation with nothing known."""
_DRAWS = 2
"""Completions of each of the ten digits."""


def make_model(config: Config) -> nn.Module:
    """Returns the network: of images, their conditionals' logits and endpoints."""
    model = config.model
    if model.name == "made":
        return MADE((model.units,) * model.depth)
    network = {"pixel_cnn": PixelCNN, "gated_pixel_cnn": GatedPixelCNN}[model.name]
    levels = config.data.levels
    return network(model.channels, model.depth, levels=levels, lowering="loop")


def data(config: Config, data_dir: Any) -> Data:
    """Returns digits to train on, and to test on with random numbers of their own."""
    chosen = config.data
    if _SIDE % chosen.size:
        raise UserError(
            f"--config.data.size={chosen.size}: expected a divisor of {_SIDE}, the "
            "images' size"
        )
    if config.model.name == "made" and chosen.levels > 2:
        raise UserError(
            f"--config.data.levels={chosen.levels}: expected 2 with "
            "--config.model.name=made, which is for binary images"
        )

    def batches(split: str, size: int) -> InMemory:
        shapes = {"image": (_SIDE, _SIDE, 1)}
        return named_batches(chosen.name, split, data_dir, size, shapes, prepare)

    test = batches("test", 200)
    shape = (test.size, chosen.size, chosen.size, 1)
    uniform = np.random.default_rng(0).random(shape, np.float32)
    test = InMemory({**test.resident, "uniform": uniform}, test.batch_size, prepare)
    return Data(batches("train", config.batch_size), {"test": test})


def prepare(config: Config, batch: dict[str, Array], key: Any) -> dict[str, Array]:
    """Returns images of `levels` values; what is drawn comes from the key, or is given.

    Args:
      config: the config.
      batch: `image`, bytes, and to test on `uniform`, for each pixel of the result.
      key: of what is drawn, where it is not given.
    """
    grey = batch["image"].astype(jnp.float32) / 255
    if "uniform" in batch:
        uniform = batch["uniform"]
    else:
        size = config.data.size
        uniform = jax.random.uniform(key, (len(grey), size, size, 1))
    return {"image": quantise(grey, uniform, config.data.levels)}


def quantise(
    grey: Num[Array, "n side side 1"],
    uniform: Float[Array, "n size size 1"],
    levels: int,
) -> Int[Array, "n size size 1"]:
    """Returns smaller images, binary with the grey as probability, or rounded.

    Args:
      grey: from 0 to 1.
      uniform: random numbers from 0 to 1, for binary images.
      levels: values of a pixel of the result.
    """
    grey = avg_pool(grey, grey.shape[1] // uniform.shape[1])
    if levels == 2:
        return (uniform < grey).astype(jnp.int32)
    return jnp.round(grey * (levels - 1)).astype(jnp.int32)


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training."""
    size = config.data.size
    variables = make_model(config).init(key, jnp.zeros((1, size, size, 1), jnp.int32))
    return TrainState.create(variables, config.optimizer.make())


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the mean negative log likelihood."""
    images = batch["image"]

    def loss(params):
        logits, _ = make_model(config).apply({"params": params}, images)
        return -log_likelihood(logits, images).mean()

    return state.descend(loss, config.optimizer.make())


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Mean]:
    """Measures the negative log likelihood: nats an image, and bits a dimension."""
    images, mask = batch["image"], batch["mask"]
    logits, _ = make_model(config).apply({"params": state.params}, images)
    nats = log_likelihood(logits, images)
    return {
        "nll": Mean.of(-nats, mask),
        "bits": Mean.of(bits_per_dimension(nats, config.data.size**2), mask),
    }


def observe(config: Config, state: TrainState, key: jax.Array) -> dict[str, Array]:
    """Draws images, and the lower halves of test digits given the upper ones.

    Returns:
      samples: with nothing known.
      digits: the first test image of each digit.
      completions: for each draw, of each digit.
    """
    size = config.data.size
    uniform = jax.random.uniform(jax.random.key(0), (10, size, size, 1))
    digits = quantise(jnp.asarray(first_digits()), uniform, config.data.levels)
    copies = jnp.tile(digits, (_DRAWS, 1, 1, 1))
    nothing = jnp.zeros_like(digits, shape=(_SAMPLES, *digits.shape[1:]))
    upper = jnp.zeros_like(copies, bool).at[:, : size // 2].set(True)
    values = jnp.concatenate([nothing, copies])
    known = jnp.concatenate([nothing > 0, upper])

    def logits(images):
        return make_model(config).apply({"params": state.params}, images)[0]

    drawn = sample(logits, key, values, known)
    return {
        "samples": drawn[:_SAMPLES],
        "digits": digits,
        "completions": drawn[_SAMPLES:].reshape(_DRAWS, *digits.shape),
    }


MAIN_METRIC = "test/nll"
_NAME, _DEPTH, _LEVELS = "model.name", "model.depth", "data.levels"

SWEEPS = {
    "depths": product(
        chain(
            product(**{_NAME: ("made",), _DEPTH: (1, 2, 3)}),
            product(**{_NAME: ("pixel_cnn",), _DEPTH: (2, 4, 8)}),
            product(**{_NAME: ("gated_pixel_cnn",), _DEPTH: (2, 4)}),
        ),
        seed=range(5),
    ),
    "levels": product(
        **{_NAME: ("pixel_cnn", "gated_pixel_cnn"), _DEPTH: (2,), _LEVELS: (256,)},
        seed=range(5),
    ),
}

_LOOKS = {
    "made": ("MADE", "C7"),
    "pixel_cnn": ("PixelCNN", "C0"),
    "gated_pixel_cnn": ("gated PixelCNN", "C3"),
}
_PUBLISHED = {"made": 84.867, "pixel_cnn": 81.45, "gated_pixel_cnn": 81.50}
"""EugenHotaj/pytorch-generative: nats of binary MNIST, drawn anew, at 28×28 pixels."""


def _images(runs: Runs) -> str:
    """Says in words which images runs are of, and how long they were trained."""
    first = runs[0].config
    size, steps = first["data.size"], first["steps"]
    kind = "binary" if first[_LEVELS] == 2 else f"{first[_LEVELS]}-level"
    return f"{kind} {size}×{size} digits after {steps:,} steps"


@figure(sweep="depths")
def depth(runs: Runs) -> Figure:
    """Negative log likelihood of test images against the network's depth."""
    fig, ax = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    first = runs[0].config
    comparable = (first["data.name"], first["data.size"]) == ("mnist", _SIDE)
    for name, group in runs.by(_NAME).items():
        label, color = _LOOKS[name]
        parts = group.by(_DEPTH)
        finals = [part.final(MAIN_METRIC) for part in parts.values()]
        for number, values in enumerate(finals):
            at = list(parts)[number]
            seed_points(ax, at, values, color, label if number == 0 else "_")
        finite = [values[np.isfinite(values)] for values in finals]
        means = [values.mean() if len(values) else np.nan for values in finite]
        ax.plot(list(parts), means, color=color, lw=1)
        if comparable:
            text = f"{label}, pytorch-generative"
            ax.axhline(_PUBLISHED[name], color=color, ls="--", lw=1, label=text)
    depths = sorted(runs.values(_DEPTH))
    ax.set(xscale="log", xlabel="hidden layers (MADE), blocks or gated layers")
    ax.set(xticks=depths, xticklabels=depths)
    ax.minorticks_off()
    ax.set(
        ylabel="test NLL in nats an image", title=f"{_images(runs)} (a point a seed)"
    )
    ax.grid(alpha=0.3)
    ax.legend()
    return fig


@figure(sweep="depths")
def samples(runs: Runs) -> Figure:
    """Samples, and completions of test digits, of each network at its deepest."""
    return _table(runs)


@figure(sweep="levels")
def bits(runs: Runs) -> Figure:
    """Bits a dimension of 8-bit test images, seed by seed."""
    fig, ax = plt.subplots(figsize=(4.5, 4), layout="constrained")
    groups = runs.by(_NAME)
    for number, (name, group) in enumerate(groups.items()):
        label, color = _LOOKS[name]
        values = group.final("test/bits")
        finite = values[np.isfinite(values)]
        if len(finite):
            ax.bar(number, finite.mean(), 0.6, color=color, alpha=0.3)
        seed_points(ax, number, values, color, label)
    ax.set(xticks=range(len(groups)), xticklabels=[_LOOKS[n][0] for n in groups])
    ax.set(ylabel="test NLL in bits a dimension", ylim=(0, None))
    ax.set_title(_images(runs), fontsize=10)
    ax.grid(alpha=0.3, axis="y")
    return fig


@figure(sweep="levels")
def grey_samples(runs: Runs) -> Figure:
    """Samples and completions of 8-bit images."""
    return _table(runs)


def _table(runs: Runs) -> Figure:
    """Draws what the first run of each network's deepest observed at its end."""
    rows = {}
    for name, group in runs.by(_NAME).items():
        deepest = max(group.values(_DEPTH))
        run = group.where(**{_DEPTH: deepest})[0]
        images = {"samples": None, "test digits, the known half": None}
        images["completions"] = None
        if not run.diverged:
            found = run.artifacts()
            seen = found[max(found)]
            top = 2 / (run.config[_LEVELS] - 1)
            drawn, digits, completions = (
                seen[key] * top - 1 for key in ("samples", "digits", "completions")
            )
            hidden = digits.copy()
            hidden[:, hidden.shape[1] // 2 :] = 0
            parts = (drawn, np.concatenate([digits, hidden]), np.vstack(completions))
            images = dict(zip(images, parts, strict=True))
        rows[f"{_LOOKS[name][0]}, {deepest}"] = list(images.items())
    fig = table_of_mosaics(rows, columns=10)
    fig.set_size_inches(3.6 * 3, 0.9 * len(rows) + 0.4)
    return fig


FIGURES = {
    "depth": depth,
    "samples": samples,
    "bits": bits,
    "grey_samples": grey_samples,
}


def summary(runs: Runs) -> str:
    """Returns the test likelihood of each network at each depth."""
    binary = runs[0].config[_LEVELS] == 2
    metric, unit = (
        (MAIN_METRIC, "nats") if binary else ("test/bits", "bits a dimension")
    )
    parts = [
        f"{_LOOKS[name][0]} of depth {depth} {mean_and_spread(group.final(metric))}"
        for (name, depth), group in runs.by(_NAME, _DEPTH).items()
    ]
    return (
        f"Test NLL in {unit} of {_images(runs)}, {len(runs.values('seed'))} seeds: "
        f"{'; '.join(parts)}."
    )
