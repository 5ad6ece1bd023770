r"""Labels in a GAN: ignored, concatenated or projected, and what the samples heed.

The generator gets a label beside its latent; what makes it heed the label is a critic
that gets it too. Compared are a critic that does not, one with the label as constant
planes beside the image (concatenation, after Mirza & Osindero, "Conditional generative
adversarial nets", 2014), and one with an inner product between the label's embedding
and its last features (Miyato & Koyama, "cGANs with projection discriminator", 2018).
All have spectrally normalised layers, by one power iteration a step as published
(`gans.spectral_norm` shows what that leaves open in short runs), and the hinge loss.

    python -m launch.sweep --experiment=gans.conditional --sweep=conditionings \
        --executor=vmap
    python -m launch.figures --experiment=gans.conditional

Look for: rows of the grid that each show their class, with the style of the latent kept
down a column; the class accuracy, which is the share of samples that a classifier
trained on real images (`gans.features`) takes for the class that was asked for; and
what labels do to the distances from the test images, by the same classifier's features.
The distance within classes, a mean over them (the intra FID of Miyato & Koyama, but for
the features), is large where samples are good digits of the wrong class, and where all
of a class are alike. In 2,500 steps the projection takes samples to the class accuracy
of the test images themselves (94 %, at 16×16 pixels), the concatenation to 68 ± 5 %,
falling from its best; without labels the critic leaves a single image. Adam's decays,
0 and 0.9, are theirs too and matter here: with `--config.optimizer.beta1=0.5
--config.optimizer.beta2=0.999` one run of 1,000 steps gave one digit a class whatever
the latent, of the right class in nearly all cases.

`--preset=paper` is CIFAR-10 with the residual networks and the projection, as the
authors' code sets it (pfnet-research/sngan_projection: hinge loss, batches of 64, five
critic updates, Adam at 2e-4 with decays 0 and 0.9, the rate falling linearly to 0), for
as long and with the generator's batches as small as in the best public reproduction
(kwotsin/mimicry, cGAN-PD: 100,000 steps and 64 images; the authors' code: 50,000 and
128). Both draw the labels of the critic's samples at random; here they are those of the
real images beside them.
"""

from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static, traced
from dl_core.data.batches import Data
from dl_core.data.gan_images import (
    CLASSES,
    Images,
    image_batches,
    prepare,
    with_latents,
)
from dl_core.errors import UserError
from dl_core.metrics.features import load_extractor
from dl_core.metrics.frechet import frechet_distance
from dl_core.metrics.generative import Generative
from dl_core.metrics.moments import gaussian
from dl_core.models.conditioning import Conditioning, Constraint
from dl_core.models.gans import Architecture, make_critic, make_generator
from dl_core.ops.adversarial import Objective
from dl_core.pictures import mean_and_range
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train.adversarial import Game, GanState
from dl_core.train.metrics import Mean
from dl_core.train.optimizers import FallingAdam


@config
class Model:
    """Generator and critic."""

    architecture: Architecture = static("dcgan", "Which networks.")
    conditioning: Conditioning = static(
        "projection", "How the label enters the critic."
    )
    latent: int = static(64, "Dimensions of the latent.", at_least=1)
    width: int = static(16, "Channels of the narrowest layers.", at_least=1)


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(2_500, "Updates of the generator.", at_least=1)
    batch_size: int = static(64, "Images in a batch of each update.", at_least=1)
    eval_every: int = static(500, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(2_500, "Steps between checkpoints.", at_least=1)
    objective: Objective = static("hinge", "The two networks' losses.")
    constraint: Constraint = static("spectral", "What keeps the critic Lipschitz.")
    critic_steps: int = static(1, "Critic updates in a step.", at_least=1)
    average: float = traced(
        0.99, "Decay of the generator's moving average.", at_least=0, below=1
    )
    features: str = static(
        "mnist_subset", "Classifier that evaluates: a name, or the path of one."
    )
    model: Model = nested(Model)
    optimizer: FallingAdam = nested(FallingAdam, beta1=0.0, beta2=0.9)
    data: Images = nested(Images, size=16)


PRESETS = {
    "smoke": {
        "steps": 4,
        "batch_size": 8,
        "log_every": 2,
        "eval_every": 2,
        "checkpoint_every": 2,
        "model.latent": 4,
        "model.width": 2,
        "data.size": 8,
        "data.test": "test[:100]",
    },
    "paper": {
        "steps": 100_000,
        "eval_every": 5_000,
        "checkpoint_every": 5_000,
        "critic_steps": 5,
        "average": 0.0,
        "features": "cifar10.npz",
        "model.architecture": "resnet",
        "model.latent": 128,
        "model.width": 128,
        "optimizer.learning_rate": 2e-4,
        "optimizer.falls": True,
        "data.name": "cifar10",
        "data.size": 32,
    },
}

_BATCH = 100
"""Images that are compared at once."""
_COLUMNS = 8
"""Fixed latents, of each of which an image a class is kept at each evaluation."""


def networks(config: Config) -> tuple[nn.Module, nn.Module]:
    """Returns the generator and the critic."""
    model, images = config.model, config.data
    shared = {
        "classes": CLASSES,
        # Several critic updates are a loop on the device.
        "lowering": "loop" if config.critic_steps > 1 else "auto",
    }
    generator = make_generator(
        model.architecture,
        width=model.width,
        size=images.size,
        channels=images.channels,
        **shared,
    )
    shared |= {"constraint": config.constraint, "conditioning": model.conditioning}
    return generator, make_critic(model.architecture, width=model.width, **shared)


def optimizers(config: Config) -> tuple[optax.GradientTransformation, ...]:
    """Returns the update rules of the generator and of the critic."""
    make, steps = config.optimizer.make, config.steps
    return make(steps), make(steps * config.critic_steps)


def data(config: Config, data_dir: Any) -> Data:
    """Returns real images with labels, and latents beside those of the test set."""
    load_extractor(config.features).require_classes(CLASSES)
    name, count = config.data.name, config.batch_size * config.critic_steps
    test = image_batches(name, config.data.test, data_dir, _BATCH, prepare)
    fewest = np.bincount(test.resident["label"], minlength=CLASSES).min()
    if fewest < 2:
        raise UserError(
            f"--config.data.test={config.data.test}: the distance within classes needs "
            f"two images of each or more, and of one there are {fewest}"
        )
    return Data(
        image_batches(name, "train", data_dir, count, prepare),
        {"test": with_latents(test, config.model.latent)},
    )


def init(config: Config, key: jax.Array) -> GanState:
    """Returns both networks before training."""
    generator, critic = networks(config)
    generator_key, critic_key = jax.random.split(key)
    latents, labels = jnp.zeros((1, config.model.latent)), jnp.zeros(1, jnp.int32)
    size = config.data.size
    images = jnp.zeros((1, size, size, config.data.channels))
    return GanState.create(
        generator.init(generator_key, latents, labels, train=False),
        critic.init(critic_key, images, labels, train=False),
        *optimizers(config),
    )


def train_step(
    config: Config, state: GanState, batch: dict[str, Array], key: jax.Array
) -> tuple[GanState, dict[str, Array]]:
    """Takes one step: `critic_steps` critic updates, then one of the generator.

    A critic update compares real images with samples of the same labels; the
    generator's labels are drawn uniformly.
    """
    real_key, generated_key, label_key, play_key = jax.random.split(key, 4)
    shape = (config.batch_size, config.model.latent)
    updates = (config.critic_steps, config.batch_size)
    example, label = batch["example"], batch["label"]
    real = {
        "example": example.reshape(*updates, *example.shape[1:]),
        "label": label.reshape(updates),
        "latents": jax.random.normal(real_key, (config.critic_steps, *shape)),
    }
    generated = {
        "label": jax.random.randint(label_key, shape[:1], 0, CLASSES),
        "latents": jax.random.normal(generated_key, shape),
    }
    generator_optimizer, critic_optimizer = optimizers(config)
    game = Game.of(
        *networks(config),
        objective=config.objective,
        generator_optimizer=generator_optimizer,
        critic_optimizer=critic_optimizer,
        decay=config.average,
    )
    return game.play(state, real, generated, play_key)


def generate(
    config: Config, state: GanState, latents: Array, labels: Array
) -> Float[Array, "n size size channels"]:
    """Returns the images of the averaged generator."""
    generator, _ = networks(config)
    return generator.apply(state.average, latents, labels, train=False)[0]


@struct.dataclass
class WithinClasses:
    """The mean over classes of the Fréchet distance between images of one class.

    Every class needs two images or more; from few, the distances are too large.
    """

    real: Float[Array, "n d"]
    generated: Float[Array, "n d"]
    labels: Int[Array, " n"]
    mask: Float[Array, " n"]

    def merge(self, other: Self) -> Self:
        """Returns the distance of both sets of features together."""
        return jax.tree.map(lambda *both: np.concatenate(both), self, other)

    def compute(self) -> float:
        """Returns the mean, of the examples whose mask is 1."""
        kept = self.mask > 0
        classes = [kept & (self.labels == x) for x in np.unique(self.labels[kept])]
        distances = [
            frechet_distance(*gaussian(self.real[of]), *gaussian(self.generated[of]))
            for of in classes
        ]
        return float(np.mean(distances))


def eval_step(
    config: Config, state: GanState, batch: dict[str, Array]
) -> dict[str, Any]:
    """Compares test images with samples of the same labels, by the classifier."""
    labels, mask = batch["label"], batch["mask"]
    extract = load_extractor(config.features)
    real = extract(batch["example"])
    generated = extract(generate(config, state, batch["latents"], labels))

    def accuracy(logits):
        return Mean.of((logits.argmax(-1) == labels).astype(jnp.float32), mask)

    return {
        "accuracy": accuracy(generated[1]),
        "accuracy_real": accuracy(real[1]),
        "frechet_within": WithinClasses(real[0], generated[0], labels, mask),
        "quality": Generative.of(real, generated, mask),
    }


def observe(config: Config, state: GanState, key: jax.Array) -> dict[str, Array]:
    """Returns images of each class (rows) from the same few latents (columns)."""
    shape = (_COLUMNS, config.model.latent)
    latents = jnp.tile(jax.random.normal(jax.random.key(0), shape), (CLASSES, 1))
    labels = jnp.repeat(jnp.arange(CLASSES), _COLUMNS)
    images = generate(config, state, latents, labels)
    return {"images": images.reshape(CLASSES, _COLUMNS, *images.shape[1:])}


MAIN_METRIC = "test/accuracy"
_CONDITIONING = "model.conditioning"

SWEEPS = {
    "conditionings": product(
        **{_CONDITIONING: ("none", "concatenation", "projection"), "seed": range(5)}
    ),
}

_LOOKS = {
    "none": ("no labels", "C7"),
    "concatenation": ("concatenation", "C1"),
    "projection": ("projection", "C0"),
}


@figure(sweep="conditionings")
def grid(runs: Runs) -> Figure:
    """Samples of each class from the same latents, for the first seed."""
    groups = runs.by(_CONDITIONING)
    fig, axes = plt.subplots(
        1, len(groups), figsize=(3.4 * len(groups), 4.7), layout="constrained"
    )
    for ax, (kind, group) in zip(axes, groups.items(), strict=True):
        run, (name, _) = group[0], _LOOKS[kind]
        ax.set(xticks=[], yticks=[], title=name)
        if run.diverged:
            ax.text(0.5, 0.5, "diverged", ha="center", transform=ax.transAxes)
            continue
        images = run.last_artifacts()["images"]
        size = images.shape[2]
        whole = np.concatenate(np.concatenate(images, axis=1), axis=1)
        ax.imshow((whole + 1) / 2, cmap="gray", vmin=0, vmax=1)
        ax.set_yticks(size * (np.arange(CLASSES) + 0.5) - 0.5, range(CLASSES))
        ax.tick_params(length=0)
        ax.set_title(f"{name}: {100 * run.final(MAIN_METRIC):.1f} % in class")
    axes[0].set_ylabel("class that was asked for")
    axes[len(axes) // 2].set_xlabel("a column: a latent")
    steps, seed = runs[0].config["steps"], runs[0].config["seed"]
    fig.suptitle(f"what the critic gets of the labels; {steps:,} steps, seed {seed}")
    return fig


_PANELS = {
    MAIN_METRIC: ("samples of the class asked for, in %", 100),
    "test/frechet_within": ("Fréchet distance within classes", 1),
    "test/frechet": ("Fréchet distance of all", 1),
}


@figure(sweep="conditionings")
def training(runs: Runs) -> Figure:
    """Class accuracy and distances over training, mean and range over seeds."""
    fig, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    for ax, (metric, (label, scale)) in zip(axes, _PANELS.items(), strict=True):
        for kind, group in runs.by(_CONDITIONING).items():
            name, color = _LOOKS[kind]
            steps, values = group.curves(metric)
            mean_and_range(ax, steps, scale * values, color=color, label=name)
        ax.set(xlabel="step", ylabel=label)
        ax.grid(alpha=0.3)
    real = runs.final("test/accuracy_real")
    real = 100 * real[np.isfinite(real)].mean() if np.isfinite(real).any() else np.nan
    axes[0].axhline(real, color="k", lw=1, ls="--", label="test images")
    axes[0].set_ylim(0, 100)
    for ax in axes[1:]:
        ax.set_yscale("log", subs=[2, 5])
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")
    axes[0].legend(loc="center right")
    fig.suptitle(
        f"by the {runs[0].config['features']} classifier and its features "
        "(mean and range over seeds)"
    )
    return fig


FIGURES = {"grid": grid, "training": training}


def summary(runs: Runs) -> str:
    """Returns class accuracy and distances at the end for each conditioning."""
    first = runs[0].config
    parts = []
    for kind, group in runs.by(_CONDITIONING).items():
        accuracy, within, overall = (
            mean_and_spread(group.final(metric), scale=scale, unit=" %" * (scale > 1))
            for metric, (_, scale) in _PANELS.items()
        )
        lost = int(np.nansum(group.final("test/collapsed")))
        collapsed = f" ({lost} of {len(group)} collapsed)" if lost else ""
        parts.append(f"{_LOOKS[kind][0]} {accuracy}, {within}, {overall}{collapsed}")
    real = mean_and_spread(runs.final("test/accuracy_real"), scale=100, unit=" %")
    return (
        f"Samples of the class asked for, Fréchet distance within classes and of all, "
        f"by the {first['features']} classifier after {first['steps']:,} steps, "
        f"{len(runs.values('seed'))} seeds: {'; '.join(parts)}. It takes {real} of the "
        "test images for what they are."
    )
