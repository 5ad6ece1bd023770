r"""Ways to keep a GAN's critic Lipschitz, under easy and hard settings of Adam.

Miyato, Kataoka, Koyama & Yoshida, "Spectral normalization for generative adversarial
networks", ICLR 2018: each kernel of the critic is divided by its largest singular
value. Compared with it are no constraint at all, clipping of the weights (Arjovsky et
al., "Wasserstein GAN", 2017) and a penalty on the gradient between real and generated
images (Gulrajani et al., "Improved training of Wasserstein GANs", 2017), under the six
settings of the paper's table 1: step size, decays of Adam, critic updates per update of
the generator.

    python -m launch.sweep --experiment=gans.spectral_norm --sweep=lipschitz \
        --executor=vmap
    python -m launch.figures --experiment=gans.spectral_norm

By default digits of 16×16 pixels and a small DCGAN; `--config.data.size=32`,
`--config.data.name=fashion_mnist` or `cifar10` and `--config.model.architecture=resnet`
change that, and `--preset=paper` is the published run on CIFAR-10: the residual
networks and the hinge loss, generator batches of 128 as in the authors' code, and the
100,000 steps of the best public reproduction (kwotsin/mimicry; the authors' code takes
50,000). The distances are between
features of a classifier that `gans.features` trains, and are named after it: they
cannot be compared with a FID. `--config.features=FILE` takes another classifier; the
paper's preset needs one of CIFAR-10 (`gans.features` says how it is made).

The paper takes one power iteration a step. So few steps as here leave it behind the
kernels, 3 to 10 % too low after 300; the default of 100 costs little and holds every
layer within 1 %.

Look for: in the figure `settings` (the paper's figure 1) that at the large step size (D
to F) the gradient penalty is far ahead (distances of 2 to 5), then spectral
normalisation (15 to 33), clipping (29 to 81), no constraint (45 to 107). In 750 steps
the small step sizes of A to C leave every method at the single image that all begin
with. The paper, after 100,000 steps, has spectral normalisation ahead; that is not seen
here, so early. In `singular_values` (figure 3): spectral normalisation holds every
layer's largest singular value at 1 and leaves others as large, while clipping lets a
few directions rule; the norm of a layer as an operator on its images is larger than
that of its kernel as a matrix, by up to 2 for 4×4 windows of stride 2, of which four
see a pixel, so that a critic whose kernels have norm 1 is not 1-Lipschitz
(`--config.constraint=operator` divides by the operator's norm).
"""

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static, traced
from dl_core.data.batches import Data
from dl_core.data.gan_images import Images, image_batches, prepare, with_latents
from dl_core.errors import UserError
from dl_core.metrics.features import load_extractor
from dl_core.metrics.generative import Generative
from dl_core.models.gans import Architecture, make_critic, make_generator
from dl_core.nn.spectra import layer_spectra
from dl_core.ops.adversarial import Objective
from dl_core.pictures import seed_points, table_of_mosaics
from dl_core.results import Run, Runs, figure, mean_and_spread
from dl_core.sweep import product, zipped
from dl_core.train.adversarial import Game, GanState
from dl_core.train.optimizers import FallingAdam

Constraint = Literal["none", "clipping", "gradient_penalty", "spectral", "operator"]


@config
class Model:
    """Generator and critic."""

    architecture: Architecture = static("dcgan", "Which networks.")
    latent: int = static(64, "Dimensions of the latent.", at_least=1)
    width: int = static(16, "Channels of the narrowest layers.", at_least=1)
    batch_norm: bool = static(False, "Whether the critic normalises batches.")
    power_iterations: int = static(
        100, "Of spectral normalisation, in each step.", at_least=1
    )


@config
class Config(RunConfig):
    """Settings of the experiment; a step is a round of updates of both networks."""

    steps: int = static(750, "Updates of the generator.", at_least=1)
    batch_size: int = static(64, "Real images in a critic update.", at_least=1)
    generator_batch: int = static(64, "Images in a generator update.", at_least=1)
    eval_every: int = static(250, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(750, "Steps between checkpoints.", at_least=1)
    objective: Objective = static("non_saturating", "The two networks' losses.")
    constraint: Constraint = static("spectral", "What keeps the critic Lipschitz.")
    critic_steps: int = static(1, "Critic updates in a step.", at_least=1)
    clip: float = traced(0.01, "Largest weight under clipping.", above=0)
    penalty: float = traced(10.0, "Weight of the gradient penalty.", at_least=0)
    average: float = traced(
        0.0, "Decay of the generator's average; 0: none.", at_least=0, below=1
    )
    features: str = static(
        "mnist_subset", "Classifier of the distances: a name, or a file."
    )
    model: Model = nested(Model)
    optimizer: FallingAdam = nested(FallingAdam, learning_rate=2e-4)
    data: Images = nested(Images, size=16)


PRESETS = {
    "smoke": {
        "steps": 4,
        "batch_size": 8,
        "generator_batch": 8,
        "log_every": 2,
        "eval_every": 2,
        "checkpoint_every": 2,
        "model.width": 2,
        "model.latent": 4,
        "data.size": 8,
        "data.test": "test[:100]",
    },
    "paper": {
        "steps": 100_000,
        "generator_batch": 128,
        "log_every": 500,
        "eval_every": 5_000,
        "checkpoint_every": 5_000,
        "objective": "hinge",
        "critic_steps": 5,
        "features": "cifar10.npz",
        "model.architecture": "resnet",
        "model.latent": 128,
        "model.width": 128,
        "model.power_iterations": 1,
        "optimizer.beta1": 0.0,
        "optimizer.beta2": 0.9,
        "optimizer.falls": True,
        "data.name": "cifar10",
        "data.size": 32,
    },
}

_BATCH = 100
"""Images that are compared at once."""
_SHOWN = 8
"""Fixed latents whose images are kept at each evaluation."""


def networks(config: Config) -> tuple[nn.Module, nn.Module]:
    """Returns the generator and the critic."""
    model, images = config.model, config.data
    # Several critic updates are a loop on the device.
    shared = {"width": model.width, "lowering": "loop"}
    generator = make_generator(
        model.architecture, size=images.size, channels=images.channels, **shared
    )
    divided = config.constraint in ("spectral", "operator")
    critic = make_critic(
        model.architecture,
        constraint=config.constraint if divided else "none",
        batch_norm=model.batch_norm,
        iterations=model.power_iterations,
        **shared,
    )
    return generator, critic


def optimizers(config: Config) -> tuple[optax.GradientTransformation, ...]:
    """Returns the update rules of the generator and of the critic."""
    make, steps = config.optimizer.make, config.steps
    return make(steps), make(steps * config.critic_steps)


def data(config: Config, data_dir: Any) -> Data:
    """Returns real images, and latents beside those of the test set."""
    if config.model.batch_norm and config.constraint == "gradient_penalty":
        raise UserError(
            "--config.model.batch_norm: the gradient penalty "
            "(--config.constraint=gradient_penalty) is of each image's own score, and "
            "batch normalisation makes it depend on the others: choose one of the two"
        )
    name, count = config.data.name, config.batch_size * config.critic_steps
    test = image_batches(name, config.data.test, data_dir, _BATCH, prepare)
    return Data(
        image_batches(name, "train", data_dir, count, prepare),
        {"test": with_latents(test, config.model.latent)},
    )


def init(config: Config, key: jax.Array) -> GanState:
    """Returns both networks before training."""
    generator, critic = networks(config)
    generator_key, critic_key = jax.random.split(key)
    latents = jnp.zeros((1, config.model.latent))
    size = config.data.size
    images = jnp.zeros((1, size, size, config.data.channels))
    return GanState.create(
        generator.init(generator_key, latents, train=False),
        critic.init(critic_key, images, train=False),
        *optimizers(config),
    )


def train_step(
    config: Config, state: GanState, batch: dict[str, Array], key: jax.Array
) -> tuple[GanState, dict[str, Array]]:
    """Takes one step: `critic_steps` critic updates, then one of the generator."""
    real_key, generated_key, play_key = jax.random.split(key, 3)
    updates, latent = config.critic_steps, config.model.latent
    examples = batch["example"]
    real = {
        "example": examples.reshape(updates, -1, *examples.shape[1:]),
        "latents": jax.random.normal(real_key, (updates, config.batch_size, latent)),
    }
    shape = (config.generator_batch, latent)
    generated = {"latents": jax.random.normal(generated_key, shape)}
    generator_optimizer, critic_optimizer = optimizers(config)
    game = Game.of(
        *networks(config),
        objective=config.objective,
        generator_optimizer=generator_optimizer,
        critic_optimizer=critic_optimizer,
        clip=config.clip if config.constraint == "clipping" else None,
        penalty=config.penalty if config.constraint == "gradient_penalty" else None,
        apart=config.model.batch_norm,
        decay=config.average,
    )
    return game.play(state, real, generated, play_key)


def generate(config: Config, state: GanState, latents: Array) -> Array:
    """Returns the images of the averaged generator."""
    generator, _ = networks(config)
    return generator.apply(state.average, latents, train=False)[0]


def eval_step(
    config: Config, state: GanState, batch: dict[str, Array]
) -> dict[str, Generative]:
    """Compares as many generated images as there are real ones with these."""
    extract = load_extractor(config.features)
    real = extract(batch["example"])
    generated = extract(generate(config, state, batch["latents"]))
    return {"quality": Generative.of(real, generated, batch["mask"])}


def observe(config: Config, state: GanState, key: jax.Array) -> dict[str, Array]:
    """Returns images of fixed latents, and each critic layer's singular values."""
    latents = jax.random.normal(jax.random.key(0), (_SHOWN, config.model.latent))
    images = generate(config, state, latents)
    _, critic = networks(config)
    variables = state.critic.variables
    # The kernels as the next step uses them, its power iterations taken.
    collections = [name for name in variables if name != "params"]
    _, new = critic.apply(variables, images, train=True, mutable=collections)
    spectra = layer_spectra(critic, {**variables, **new}, images, train=False)
    seen = {"images": images}
    for layer, spectrum in spectra.items():
        seen[f"{layer}/singular_values"] = spectrum["singular_values"]
        seen[f"{layer}/operator_norm"] = spectrum["operator_norm"]
    return seen


def score(config: Config, observed: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the range over layers of the largest singular value, and the norms'."""
    largest = [values.max() for values in _of_layers(observed, "singular_values")]
    norms = _of_layers(observed, "operator_norm")
    return {
        "least_singular_value": float(min(largest)),
        "largest_singular_value": float(max(largest)),
        "least_operator_norm": float(min(norms)),
        "largest_operator_norm": float(max(norms)),
    }


def _of_layers(observed: Mapping[str, np.ndarray], what: str) -> list[np.ndarray]:
    return [x for name, x in observed.items() if name.endswith(f"/{what}")]


MAIN_METRIC = "test/frechet"

_RATE, _BETA1, _BETA2 = (
    f"optimizer.{name}" for name in ("learning_rate", "beta1", "beta2")
)
SETTINGS = {
    "A": (1e-4, 0.5, 0.9, 5),
    "B": (1e-4, 0.5, 0.999, 1),
    "C": (2e-4, 0.5, 0.999, 1),
    "D": (1e-3, 0.5, 0.9, 5),
    "E": (1e-3, 0.5, 0.999, 5),
    "F": (1e-3, 0.9, 0.999, 5),
}
"""Step size, both decays, critic steps: table 1 of Miyato et al., 2018. A is of
Gulrajani et al., B of Warde-Farley & Bengio, C of Radford et al."""
_LOOKED_AT = "D"
"""The setting of the figures that show one."""
_SETTING = (_RATE, _BETA1, _BETA2, "critic_steps")
_SET_BY = dict(zip(_SETTING, zip(*SETTINGS.values(), strict=True), strict=True))
_CONSTRAINTS = ("none", "clipping", "gradient_penalty", "spectral")

SWEEPS = {
    "lipschitz": product(
        product(constraint=_CONSTRAINTS), zipped(**_SET_BY), product(seed=range(5))
    ),
}

_LOOKS = {
    "none": ("no constraint", "C7"),
    "clipping": ("weight clipping", "C3"),
    "gradient_penalty": ("gradient penalty", "C1"),
    "spectral": ("spectral norm", "C0"),
}


def _setting(run_config: Mapping[str, Any]) -> str:
    """Returns the letter of a run's setting."""
    values = tuple(run_config[path] for path in _SETTING)
    return next(name for name, known in SETTINGS.items() if known == values)


def _by_setting(runs: Runs) -> dict[str, Runs]:
    return {_setting(group[0].config): group for group in runs.by(*_SETTING).values()}


@figure(sweep="lipschitz")
def settings(runs: Runs) -> Figure:
    """The distance at the end for each setting of Adam, seed by seed."""
    fig, ax = plt.subplots(figsize=(8.5, 4.4), layout="constrained")
    for place, group in enumerate(_by_setting(runs).values()):
        for number, (constraint, same) in enumerate(group.by("constraint").items()):
            label, color = _LOOKS[constraint]
            at = place + 0.18 * (number - 1.5)
            values = same.final(MAIN_METRIC)
            seed_points(ax, at, values, color, label if place == 0 else "_")
    names = [
        f"{name}\n{rate:g}\n{beta1:g}, {beta2:g}\n{updates}"
        for name, (rate, beta1, beta2, updates) in SETTINGS.items()
    ]
    ax.set_xticks(range(len(names)), names)
    features, steps = runs[0].config["features"], runs[0].config["steps"]
    ax.set(yscale="log", ylabel=f"Fréchet distance\n(features: {features} classifier)")
    ax.set_xlabel("setting: step size; decays of Adam; critic updates a step")
    ax.set_title(f"after {steps:,} steps (a point a seed, a bar their mean)")
    ax.grid(axis="y", which="both", alpha=0.25)
    fig.legend(loc="outside lower center", ncols=len(_LOOKS))
    return fig


@figure(sweep="lipschitz")
def singular_values(runs: Runs) -> Figure:
    """What the critic's layers do to lengths: at the end, and over training."""
    group = _by_setting(runs)[_LOOKED_AT]
    first = [same[0] for same in group.by("constraint").values()]
    seen = {
        run.config["constraint"]: run.artifacts() for run in first if not run.diverged
    }
    some = next((next(iter(arrays.values())) for arrays in seen.values()), {})
    ending = "/singular_values"
    layers = [key.removesuffix(ending) for key in some if key.endswith(ending)]
    fig, axes = plt.subplots(
        2,
        max(len(layers), 1),
        figsize=(3 * max(len(layers), 2), 5.6),
        layout="constrained",
        squeeze=False,
    )
    for (top, bottom), layer in zip(axes.T, layers, strict=False):
        for constraint, observed in seen.items():
            label, color = _LOOKS[constraint]
            key = f"{layer}/singular_values"
            values = list(observed.values())[-1][key]
            place = np.arange(1, len(values) + 1)
            top.plot(place, values / values[0], ".-", color=color, label=label)
            largest = [arrays[key][0] for arrays in observed.values()]
            norms = [arrays[f"{layer}/operator_norm"] for arrays in observed.values()]
            bottom.plot(list(observed), largest, color=color)
            bottom.plot(list(observed), norms, color=color, ls="--")
        top.set(title=layer, xlabel="number of the singular value", ylim=(0, 1.05))
        bottom.set(yscale="log", xlabel="step")
    axes[0, 0].set_ylabel("singular value at the end\n(of the largest)")
    axes[1, 0].set_ylabel("norm: of the kernel (line),\nas operator (dashed)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    seed = first[0].config["seed"]
    fig.suptitle(f"layers of the critic, setting {_LOOKED_AT}, seed {seed}")
    return fig


def _images(run: Run) -> list[tuple[int, np.ndarray]]:
    """Returns the images that a run kept, by step; none if it diverged."""
    return (
        [] if run.diverged else [(n, x["images"]) for n, x in run.artifacts().items()]
    )


def _line(constraint: str) -> str:
    return _LOOKS[constraint][0].replace(" ", "\n")


@figure(sweep="lipschitz")
def samples(runs: Runs) -> Figure:
    """Images of the same latents over training, by constraint, for one setting."""
    group = _by_setting(runs)[_LOOKED_AT]
    rows = {
        _line(constraint): [(f"step {n:,}", x) for n, x in _images(same[0])]
        or [("", None)]
        for constraint, same in group.by("constraint").items()
    }
    fig = table_of_mosaics(rows, columns=_SHOWN // 2)
    seed = group[0].config["seed"]
    fig.suptitle(f"eight latents, setting {_LOOKED_AT}, seed {seed}")
    return fig


@figure(sweep="lipschitz")
def samples_by_setting(runs: Runs) -> Figure:
    """Images of the same latents at the end, by constraint and setting."""
    rows = {
        _line(constraint): [
            (name, ([(0, None), *_images(same[0])])[-1][1])
            for name, same in _by_setting(group).items()
        ]
        for constraint, group in runs.by("constraint").items()
    }
    fig = table_of_mosaics(rows, columns=_SHOWN // 2)
    steps, seed = runs[0].config["steps"], runs[0].config["seed"]
    fig.suptitle(f"eight latents after {steps:,} steps, settings A to F, seed {seed}")
    return fig


FIGURES = {
    "settings": settings,
    "singular_values": singular_values,
    "samples": samples,
    "samples_by_setting": samples_by_setting,
}


def summary(runs: Runs) -> str:
    """Returns the distances at the end, and which runs collapsed."""
    count = f"{runs[0].config['steps']:,} steps, {len(runs.values('seed'))} seeds"
    parts = []
    for constraint, group in runs.by("constraint").items():
        each = ", ".join(
            f"{name} {mean_and_spread(same.final(MAIN_METRIC))}"
            for name, same in _by_setting(group).items()
        )
        parts.append(f"{_LOOKS[constraint][0]} {each}{_collapses(group)}")
    largest = runs.where(constraint="spectral").final("observed/largest_singular_value")
    if np.isfinite(largest).any():
        parts.append(
            "with spectral norm a layer's largest singular value ends at "
            f"{np.nanmax(largest):.4f} or less"
        )
    features = runs[0].config["features"]
    what = f"Fréchet distance on features of the {features} classifier"
    return f"{what} after {count}: {'; '.join(parts)}."


def _collapses(runs: Runs) -> str:
    collapsed = int(np.nansum(runs.final("test/collapsed")))
    return f" ({collapsed} of {len(runs)} runs collapsed)" if collapsed else ""
