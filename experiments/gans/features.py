r"""Classifiers whose features measure generators, and whether the measure tells.

The Fréchet distance compares two sets of images by the means and covariances of their
features in a trained classifier (Heusel et al., "GANs trained by a two time-scale
update rule converge to a local Nash equilibrium", 2017, who also show that it rises
under noise, blur and the like). Theirs is an Inception network for photographs; this
trains a small one for digits, clothes or CIFAR-10, on images shifted, turned and scaled
a little. Its features are before the ReLU of the last hidden layer, where their skew is
a third of that after it: a Gaussian describes them better.

    python -m launch.sweep --experiment=gans.features --sweep=classifiers \
        --executor=vmap
    python -m launch.figures --experiment=gans.features

Look for: the distance of test digits from themselves, degraded, rises with every step
of blur, noise and shift and with every class that is left out, for all widths and
seeds. The least steps are no further than two halves of the digits are by chance. How
large it is depends on the classifier: hardly for classes left out, by factors for noise
and blur. So distances compare by one and the same classifier alone.

The classifier that comes with the project, `mnist_subset`, is the default run:

    python -m launch.run --experiment=gans.features
    python -c "from experiments.gans.features import ship; \
        ship('runs/gans.features/runs/default')"

Train another for other images (`--config.data.name=fashion_mnist`), and give other
experiments the file that its last evaluation left,
`--config.features=runs/gans.features/runs/default/artifacts/train-00000600.npz`. The
config decides it, to the bit on one machine. No paper has this network;
`--preset=paper` is a wide one for CIFAR-10, trained for longer.
"""

import os
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static, traced
from dl_core.data.batches import Data
from dl_core.data.digits import first_digits
from dl_core.data.gan_images import CLASSES, SHAPES, image_batches, to_unit
from dl_core.metrics.features import SHIPPED, flatten_variables
from dl_core.metrics.frechet import FrechetDistance
from dl_core.metrics.moments import Moments
from dl_core.models.feature_classifier import SIDE, FeatureClassifier
from dl_core.ops import augment
from dl_core.pictures import mean_and_range
from dl_core.results import Run, Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train.metrics import Mean, classification
from dl_core.train.state import TrainState

Images = Float[Array, "n 32 32 channels"]


@config
class Augmentation:
    """How training images are moved, each anew at every step."""

    shift: float = traced(0.06, "Largest shift, as a share of the side.", at_least=0)
    degrees: float = traced(10.0, "Largest turn, in degrees.", at_least=0)
    scale: float = traced(1.1, "Largest factor of growing or shrinking.", at_least=1)
    flip: float = traced(0.0, "Chance of a mirror image.", at_least=0, at_most=1)


@config
class Dataset:
    """Which images."""

    name: Literal["mnist_subset", "mnist", "fashion_mnist", "cifar10"] = static(
        "mnist_subset", "TFDS data set."
    )
    test: int = static(2_000, "Test images, each degraded in every way.", at_least=20)


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(600, "Training steps.", at_least=1)
    batch_size: int = static(64, "Images in a training batch.", at_least=2)
    eval_every: int = static(300, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(600, "Steps between checkpoints.", at_least=1)
    width: int = static(
        16, "Channels of the first layer; each next has twice as many.", at_least=1
    )
    learning_rate: float = traced(3e-3, "Adam's; half a cosine takes it to 0.", above=0)
    augmentation: Augmentation = nested(Augmentation)
    data: Dataset = nested(Dataset)


PRESETS = {
    "smoke": {
        "steps": 6,
        "batch_size": 8,
        "log_every": 2,
        "eval_every": 3,
        "checkpoint_every": 3,
        "width": 1,
        "data.test": 20,
    },
    "paper": {
        "steps": 20_000,
        "batch_size": 128,
        "eval_every": 2_000,
        "checkpoint_every": 2_000,
        "width": 64,
        "augmentation.shift": 0.125,
        "augmentation.degrees": 0.0,
        "augmentation.flip": 0.5,
        "data.name": "cifar10",
        "data.test": 10_000,
    },
}

STRENGTHS = {
    "blur": (0.5, 1.0, 1.5, 2.0, 3.0),
    "noise": (0.05, 0.1, 0.2, 0.4, 0.8),
    "shift": (1.0, 2.0, 3.0, 4.0, 6.0),
    "missing": (1, 2, 3, 5, 7),
}
"""Deviation in pixels; deviation, black to white being 1; pixels; classes left out."""


def degraded(
    name: str, images: Images, seeds: Array
) -> Float[Array, "strengths n 32 32 channels"]:
    """Returns images made worse by each strength, as `STRENGTHS` has them.

    Args:
      name: "blur", "noise" or "shift" (to the right; what comes in repeats the edge).
      images: from -1 to 1, which noise does not leave.
      seeds: of the noise on each image.
    """

    def change(strength, image, seed):
        if name == "blur":
            return augment.gaussian_blur(image, strength, radius=9)
        if name == "noise":
            return augment.gaussian_noise(jax.random.key(seed), image, strength)
        return augment.warp(image, augment.translation(strength, 0), border="edge")

    strengths = jnp.array(STRENGTHS[name])
    for_all = jax.vmap(jax.vmap(change, (None, 0, 0)), (0, None, None))
    return 2 * for_all(strengths, (images + 1) / 2, seeds) - 1


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns the update rule; the learning rate may be traced."""
    return optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))


def data(config: Config, data_dir: Any) -> Data:
    """Returns moved training images, and test images as they are."""
    name, count = config.data.name, config.data.test
    test = f"test[:{count}]"
    return Data(
        image_batches(name, "train", data_dir, config.batch_size, moved),
        {"test": image_batches(name, test, data_dir, min(100, count), as_they_are)},
    )


def as_they_are(
    config: Config, batch: dict[str, UInt8[Array, "n ..."] | Array], key: Any
) -> dict[str, Array]:
    """Turns bytes into numbers from -1 to 1; seeds each image's noise by its pixels."""
    seeds = batch["image"].sum((1, 2, 3), dtype=jnp.uint32)
    return {**batch, "image": to_unit(batch["image"]), "seed": seeds}


def moved(config: Config, batch: dict[str, Array], key: jax.Array) -> dict[str, Array]:
    """Turns bytes into numbers from -1 to 1, shifted, turned and scaled at random."""
    by, size = config.augmentation, (SIDE, SIDE)
    ranges = {"degrees": by.degrees, "translate": by.shift}
    ranges["scale"] = 1 / by.scale, by.scale

    def move(key, image):
        flip_key, affine_key = jax.random.split(key)
        matrix = augment.compose(
            augment.random_flip(flip_key, size, horizontal=by.flip),
            augment.random_affine(affine_key, size, **ranges),
        )
        return augment.warp(image, matrix, border="edge")

    images = to_unit(batch["image"])
    keys = jax.random.split(key, len(images))
    return {**batch, "image": jax.vmap(move)(keys, images)}


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training."""
    images = jnp.zeros((1, SIDE, SIDE, SHAPES[config.data.name][2]))
    model = FeatureClassifier(config.width, CLASSES)
    variables = model.init(key, images, train=False)
    return TrainState.create(variables, make_optimizer(config))


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the mean cross-entropy."""

    def loss_fn(params):
        (logits, _), updates = FeatureClassifier(config.width, CLASSES).apply(
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
) -> dict[str, Mean | FrechetDistance]:
    """Measures loss and accuracy, and the distances of degraded images from their own.

    `frechet_halves` is the distance between every second image and the others: what
    sets of half the size are apart that differ by chance alone.
    """
    images, labels, mask = batch["image"], batch["label"], batch["mask"]
    changed = [degraded(n, images, batch["seed"]) for n in STRENGTHS if n != "missing"]
    every = jnp.concatenate([images[None], *changed])
    logits, endpoints = FeatureClassifier(config.width, CLASSES).apply(
        {"params": state.params, **state.collections},
        every.reshape(-1, *images.shape[1:]),
        train=False,
    )
    logits = logits[: len(images)]
    real, *changed = endpoints["features"].reshape(*every.shape[:2], -1)
    even = mask * (jnp.arange(len(images)) % 2 == 0)
    halves = (Moments.of(real, half) for half in (even, mask - even))
    whole, changed = Moments.of(real, mask), iter(changed)
    metrics = {
        **classification(logits, labels, mask),
        "frechet_halves": FrechetDistance(*halves),
    }
    for name, strengths in STRENGTHS.items():
        for strength in strengths:
            if name == "missing":
                other = Moments.of(real, mask * (labels >= strength))
            else:
                other = Moments.of(next(changed), mask)
            metrics[f"frechet_{name}_{strength:g}"] = FrechetDistance(whole, other)
    return metrics


def observe(config: Config, state: TrainState, key: jax.Array) -> dict[str, Array]:
    """Returns a file of weights, as `dl_core.metrics.features` reads it.

    Half precision halves the file, and changes no answer but of near ties.
    """
    weights = flatten_variables({"params": state.params, **state.collections})
    name = config.data.name
    return jax.tree.map(lambda x: x.astype(jnp.float16), weights) | {
        "classes": jnp.int32(CLASSES),
        "width": jnp.int32(config.width),
        "side": jnp.int32(SIDE),
        "channels": jnp.int32(SHAPES[name][2]),
        "accuracy": jnp.float32(jnp.nan),  # Not known here; see `ship`.
        "trained_on": jnp.array(list(name.encode()), jnp.uint8),
    }


def ship(folder: str | os.PathLike, path: Any = SHIPPED["mnist_subset"]) -> None:
    """Writes the weights of a finished run, with its accuracy, to where they ship."""
    run = Run.read(pathlib.Path(folder))
    weights = run.artifacts()[run.config["steps"]]
    accuracy = np.float32(run.final(MAIN_METRIC))
    np.savez_compressed(path, **{**weights, "accuracy": accuracy})


MAIN_METRIC = "test/accuracy"

SWEEPS = {"classifiers": product(width=(4, 8, 16), seed=range(5))}

_AXES = {
    "blur": "blur: deviation, pixels",
    "noise": "noise: deviation (black to white is 1)",
    "shift": "shift to the right, pixels",
    "missing": "classes left out, from 0 on",
}


def _finals(runs: Runs, name: str) -> Float[np.ndarray, "runs strengths"]:
    """Returns the distances at the end of the runs that did not diverge."""
    metrics = [f"test/frechet_{name}_{strength:g}" for strength in STRENGTHS[name]]
    finals = np.stack([runs.final(metric) for metric in metrics], axis=1)
    return finals[np.isfinite(finals).all(1)]


def _strip(name: str) -> Float[np.ndarray, "height width"]:
    """Returns a digit degraded by each strength, or the digits left out one by one."""
    digits = to_unit(jnp.uint8(255 * first_digits()))
    if name == "missing":
        cells = digits[: STRENGTHS[name][-1]]
    else:
        cells = degraded(name, digits[2:3], jnp.zeros(1, jnp.uint32))[:, 0]
    return np.concatenate(cells[..., 0], axis=1)


@figure(sweep="classifiers")
def distance(runs: Runs) -> Figure:
    """Fréchet distance of test images from themselves, degraded more and more."""
    fig, axes = plt.subplots(
        *(2, 4), figsize=(13, 4.8), height_ratios=(1, 4), sharey="row"
    )
    fig.set_layout_engine("constrained")
    for (top, ax), (name, strengths) in zip(axes.T, STRENGTHS.items(), strict=True):
        top.imshow(_strip(name), cmap="gray")
        top.axis("off")
        for number, (width, group) in enumerate(runs.by("width").items()):
            values, color = _finals(group, name), f"C{number}"
            if not len(values):  # All diverged.
                continue
            mean_and_range(ax, strengths, values, ".-", color=color, label=width)
            chance = np.nanmean(group.final("test/frechet_halves"))
            ax.axhline(chance, color=color, ls=":", lw=1)
        ax.set(xlabel=_AXES[name], xscale="log", yscale="log")
        ax.minorticks_off()
        ax.set_xticks(strengths, [f"{strength:g}" for strength in strengths])
        ax.grid(alpha=0.3)
    axes[1, 0].set_ylabel("Fréchet distance")
    axes[1, 0].legend(title="width", loc="lower right")
    config = runs[0].config
    fig.suptitle(
        f"{config['data.test']:,} test images of {config['data.name']} and the same "
        "degraded: mean and range over seeds (dotted: between halves of the images)"
    )
    return fig


@figure(sweep="classifiers")
def classifiers(runs: Runs) -> Figure:
    """Accuracy by width, and how far classifiers differ about the distances."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    groups = runs.by("width")
    for number, group in enumerate(groups.values()):
        accuracies = 100 * group.final(MAIN_METRIC)
        places = number + np.linspace(-0.15, 0.15, len(group))
        left.plot(places, accuracies, "o", color=f"C{number}", alpha=0.6)
        known = accuracies[np.isfinite(accuracies)]
        if len(known):
            left.plot(number, known.mean(), "k_", ms=30)
        for name, marker in zip(STRENGTHS, "os^D", strict=True):
            middle = _finals(runs, name).mean(0)
            for values in _finals(group, name):
                share, style = values / middle, f"C{number}{marker}"
                right.plot(middle, share, style, alpha=0.5, ms=4)
            right.plot([], [], f"C7{marker}", label=None if number else name)
    left.set_xticks(range(len(groups)), groups)
    left.set(xlabel="width (channels of the first layer)", ylabel="test accuracy, %")
    left.set_title("a point a seed; a bar the mean")
    right.axhline(1, color="k", lw=0.8)
    right.set(xscale="log", yscale="log", ylabel="one classifier's, as a share of it")
    right.set(xlabel="Fréchet distance, mean over all classifiers")
    right.set_title("every degradation at every strength")
    right.legend(ncols=2)
    right.grid(alpha=0.3)
    fig.suptitle(
        f"{runs[0].config['data.name']}, after {runs[0].config['steps']:,} steps"
    )
    return fig


FIGURES = {"distance": distance, "classifiers": classifiers}


def summary(runs: Runs) -> str:
    """Returns the accuracies, one distance by width, and how often distances rise."""
    accuracies, distances = [], []
    for width, group in runs.by("width").items():
        accuracy = mean_and_spread(group.final(MAIN_METRIC), scale=100, unit=" %")
        accuracies.append(f"width {width} {accuracy}")
        distances.append(mean_and_spread(group.final("test/frechet_noise_0.2")))
    finals = [values for name in STRENGTHS for values in _finals(runs, name)]
    rises = [bool((np.diff(values, prepend=0) > 0).all()) for values in finals]
    return (
        f"Test accuracy after {runs[0].config['steps']:,} steps, "
        f"{len(runs.values('seed'))} seeds: {', '.join(accuracies)}; Fréchet distance "
        f"of test images from themselves with noise of 0.2: {', '.join(distances)}; "
        f"with each step of blur, noise, shift and missing classes the distance rises "
        f"in {sum(rises)} of {len(rises)} cases."
    )
