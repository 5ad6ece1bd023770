r"""Mode collapse on stacked digits: how many of 1,000 modes a generator makes.

Three random digits are the colour channels of one image, so there are 1,000 kinds of
images, and a classifier of digits tells which of them a sample is (Metz, Poole, Pfau &
Sohl-Dickstein, "Unrolled generative adversarial networks", ICLR 2017, section 3.3;
Srivastava et al., "VEEGAN", NeurIPS 2017; Lin, Khetan, Fanti & Oh, "PacGAN", NeurIPS
2018). Counted are the kinds among a fixed number of samples, and the divergence of
their shares from uniform, KL(samples ‖ uniform). A generator that makes few kinds has
collapsed. How large the critic is matters: for the first of these papers' comparison,
rerun by the authors of the third, it has a half or a quarter of the generator's
channels. Here both have as many; `--config.model.critic_width` changes that.

    python -m launch.sweep --experiment=gans.mode_collapse --sweep=objectives \
        --executor=vmap
    python -m launch.sweep --experiment=gans.mode_collapse --sweep=batches \
        --executor=vmap
    python -m launch.figures --experiment=gans.mode_collapse

`objectives` compares the losses and what keeps the critic Lipschitz; all critics take
five updates a step: with one, no method left the single image that all begin with in
so short a training. `batches` varies the size of the minibatch and the critic's updates
a step, at the same number of generator updates, for the Wasserstein loss with gradient
penalty.

Look for: with the gradient penalty some 300 of 1,000 modes are found in 600 steps,
under the Wasserstein and under the non-saturating loss alike; with clipping or spectral
normalisation tens, without a constraint or with the hinge loss a handful: there all
samples are one blot. So in so short a training it is the penalty that makes the
difference, not the objective.

Real stacks are the reference: as many, drawn from the test digits, told apart by the
same classifier. They do not reach 1,000 modes and a divergence of 0 either: 2,500 draws
that are uniform over the modes have 918 of them on average, and a divergence of about
999/5,000 = 0.2. Stacks are drawn anew at every step, as in the first paper.

`--preset=paper` is the DCGAN baseline of PacGAN's comparison with VEEGAN, by the
authors' code: batches of 64, 100,000 steps (50 epochs of 128,000 stacks), latents of
100 dimensions, 64 channels in the narrowest layers of both networks, batch
normalisation in the critic, Adam (2e-4, β₁ = 0.5), 26,000 samples. There the latents
are uniform, the generator takes two updates a step, the digits are of 28 pixels, both
networks have one strided layer more, and the 128,000 stacks are fixed.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static, traced
from dl_core.data.batches import Data, InMemory
from dl_core.data.gan_images import Images, to_unit
from dl_core.data.memory import load
from dl_core.data.stacked import (
    CHANNELS,
    CLASSES,
    MODES,
    StackCoverage,
    draw_stacks,
    expected_modes,
    modes_of,
    split_stacks,
)
from dl_core.errors import UserError
from dl_core.metrics.features import load_extractor
from dl_core.models.dcgan import Critic, Generator
from dl_core.ops.adversarial import Objective
from dl_core.pictures import mean_and_range, mosaic
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product, zipped
from dl_core.train.adversarial import Game, GanState
from dl_core.train.optimizers import Adam

Constraint = Literal["none", "clipping", "gradient_penalty", "spectral"]


@config
class Model:
    """Generator and critic."""

    latent: int = static(64, "Dimensions of the latent.", at_least=1)
    width: int = static(16, "Channels of the generator's narrowest layer.", at_least=1)
    critic_width: int = static(
        16, "Channels of the critic's narrowest layer.", at_least=1
    )
    batch_norm: bool = static(
        False,
        "Whether a critic without a constraint normalises its batches, real and "
        "generated ones apart.",
    )


@config
class Config(RunConfig):
    """Settings of the experiment; a step is a round of updates of both networks."""

    steps: int = static(600, "Updates of the generator.", at_least=1)
    batch_size: int = static(64, "Stacks in a batch of each update.", at_least=1)
    eval_every: int = static(150, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(600, "Steps between checkpoints.", at_least=1)
    samples: int = static(2_500, "Samples whose modes are counted.", at_least=1)
    objective: Objective = static("non_saturating", "The two networks' losses.")
    constraint: Constraint = static("none", "What keeps the critic Lipschitz.")
    critic_steps: int = static(5, "Critic updates in a step.", at_least=1)
    clip: float = traced(0.01, "Largest weight under clipping.", above=0)
    penalty: float = traced(10.0, "Weight of the gradient penalty.", at_least=0)
    average: float = traced(
        0.0, "Decay of the generator's average; 0: none.", at_least=0, below=1
    )
    features: str = static(
        "mnist_subset", "Classifier of the digits: a name, or a file."
    )
    model: Model = nested(Model)
    optimizer: Adam = nested(Adam, beta2=0.9)
    data: Images = nested(Images, size=16)


PRESETS = {
    "smoke": {
        "steps": 4,
        "batch_size": 8,
        "log_every": 2,
        "eval_every": 2,
        "checkpoint_every": 2,
        "samples": 12,
        "model.latent": 4,
        "model.width": 2,
        "model.critic_width": 1,
        "data.size": 8,
        "data.test": "test[:100]",
    },
    "paper": {
        "steps": 100_000,
        "log_every": 500,
        "eval_every": 2_000,
        "checkpoint_every": 10_000,
        "samples": 26_000,
        "critic_steps": 1,
        "model.latent": 100,
        "model.width": 64,
        "model.critic_width": 64,
        "model.batch_norm": True,
        "optimizer.learning_rate": 2e-4,
        "optimizer.beta2": 0.999,
        "data.name": "mnist",
        "data.size": 32,
    },
}

_BATCH = 100
"""Samples that are made and told apart at once."""
_SHOWN = (6, 8)
"""Rows and columns of the samples that are kept at each evaluation."""


def networks(config: Config) -> tuple[nn.Module, nn.Module]:
    """Returns the generator and the critic."""
    model = config.model
    # Several critic updates are a loop on the device.
    lowering = "loop" if config.critic_steps > 1 else "auto"
    generator = Generator(model.width, config.data.size, CHANNELS, lowering=lowering)
    critic = Critic(
        model.critic_width,
        "spectral" if config.constraint == "spectral" else "none",
        batch_norm=model.batch_norm and config.constraint == "none",
        lowering=lowering,
    )
    return generator, critic


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns the update rule of either network."""
    return config.optimizer.make()


def data(config: Config, data_dir: Any) -> Data:
    """Returns digits to stack, latents to test, and the modes of real stacks.

    Real stacks are as many as the latents. Each test digit is classified once: what it
    is taken for does not depend on the other channels.
    """
    if config.data.channels != 1:
        raise UserError(
            f"--config.data.name={config.data.name}: expected grey images, to stack as "
            "channels"
        )
    load_extractor(config.features).require_classes(CLASSES)
    splits = ("train", config.data.test)
    train, test = (load(config.data.name, split, data_dir) for split in splits)
    stacks = InMemory(
        {"image": train["image"]}, config.batch_size * config.critic_steps
    )
    stacks.assemble = assemble_stacks
    random, count = np.random.default_rng(0), config.samples
    images = to_unit(jnp.asarray(test["image"]), config.data.size)
    parts = jnp.array_split(images, -(-len(images) // _BATCH))
    labels = jnp.concatenate([_read_digits(config.features, part) for part in parts])
    chosen = random.integers(len(labels), size=count * CHANNELS)
    latents = random.standard_normal((count, config.model.latent), np.float32)
    evaluation = {
        "test": InMemory({"latents": latents}, min(count, _BATCH)),
        "real": InMemory({"mode": np.asarray(modes_of(labels[chosen]))}, count),
    }
    return Data(stacks, evaluation)


def assemble_stacks(
    config: Config, resident: dict[str, Array], inputs: dict[str, Array], key: Any
) -> dict[str, Float[Array, "n ..."]]:
    """Makes the stacks of the critic updates of a step, and latents beside them."""
    stack_key, latent_key = jax.random.split(key)
    count = len(inputs["indices"])
    stacks = draw_stacks(stack_key, resident["image"], count)
    return {
        "example": to_unit(stacks, config.data.size),
        "latents": jax.random.normal(latent_key, (count, config.model.latent)),
    }


def read_digits(
    features: str, images: Float[Array, "n size size 1"]
) -> Int[Array, " n"]:
    """Returns which digits the classifier takes images for."""
    _, logits = load_extractor(features)(images)
    return logits.argmax(-1)


_read_digits = jax.jit(read_digits, static_argnums=0)


def init(config: Config, key: jax.Array) -> GanState:
    """Returns both networks before training."""
    generator, critic = networks(config)
    generator_key, critic_key = jax.random.split(key)
    size = config.data.size
    latents = jnp.zeros((1, config.model.latent))
    images = jnp.zeros((1, size, size, CHANNELS))
    return GanState.create(
        generator.init(generator_key, latents, train=False),
        critic.init(critic_key, images, train=False),
        make_optimizer(config),
        make_optimizer(config),
    )


def train_step(
    config: Config, state: GanState, batch: dict[str, Array], key: jax.Array
) -> tuple[GanState, dict[str, Array]]:
    """Takes one step: `critic_steps` critic updates, then one of the generator."""
    latent_key, play_key = jax.random.split(key)
    updates, size = config.critic_steps, config.batch_size
    real = jax.tree.map(lambda x: x.reshape(updates, size, *x.shape[1:]), batch)
    latents = jax.random.normal(latent_key, (size, config.model.latent))
    game = Game.of(
        *networks(config),
        objective=config.objective,
        generator_optimizer=make_optimizer(config),
        critic_optimizer=make_optimizer(config),
        clip=config.clip if config.constraint == "clipping" else None,
        penalty=config.penalty if config.constraint == "gradient_penalty" else None,
        apart=config.model.batch_norm,
        decay=config.average,
    )
    return game.play(state, real, {"latents": latents}, play_key)


def generate(
    config: Config, state: GanState, latents: Float[Array, "n latent"]
) -> Float[Array, "n size size 3"]:
    """Returns the samples of the averaged generator."""
    generator, _ = networks(config)
    return generator.apply(state.average, latents, train=False)[0]


def eval_step(
    config: Config, state: GanState, batch: dict[str, Array]
) -> dict[str, StackCoverage]:
    """Counts the modes of samples; of real stacks, whose modes are known."""
    if "mode" in batch:
        modes = batch["mode"]
    else:
        digits = split_stacks(generate(config, state, batch["latents"]))
        modes = modes_of(read_digits(config.features, digits))
    return {"coverage": StackCoverage.of(modes, batch["mask"], MODES)}


def observe(config: Config, state: GanState, key: jax.Array) -> dict[str, Array]:
    """Returns samples of latents that are always the same, as bytes."""
    shape = (int(np.prod(_SHOWN)), config.model.latent)
    images = generate(config, state, jax.random.normal(jax.random.key(0), shape))
    return {"samples": jnp.round(127.5 * (images + 1)).astype(jnp.uint8)}


MAIN_METRIC = "test/modes"
_KL, _COLLAPSED = "test/modes_kl", "test/collapsed"
_METHOD = ("objective", "constraint")

_LOOKS = {
    ("saturating", "none"): ("saturating", "C1"),
    ("non_saturating", "none"): ("non-saturating", "C2"),
    ("non_saturating", "gradient_penalty"): ("non-saturating, gradient penalty", "C6"),
    ("wasserstein", "clipping"): ("Wasserstein, clipping", "C3"),
    ("wasserstein", "gradient_penalty"): ("Wasserstein, gradient penalty", "C0"),
    ("wasserstein", "spectral"): ("Wasserstein, spectral norm", "C4"),
    ("hinge", "spectral"): ("hinge, spectral norm", "C5"),
}

SWEEPS = {
    "objectives": product(
        zipped(
            objective=[objective for objective, _ in _LOOKS],
            constraint=[constraint for _, constraint in _LOOKS],
        ),
        product(seed=range(5)),
    ),
    "batches": product(
        objective=("wasserstein",),
        constraint=("gradient_penalty",),
        critic_steps=(1, 5),
        batch_size=(8, 32, 128),
        seed=range(5),
    ),
}

_AXES = {MAIN_METRIC: "modes found, of 1,000", _KL: "KL(samples ‖ uniform) in nats"}


def _draw_reference(
    ax: Axes, runs: Runs, metric: str, *, along_x: bool = False
) -> None:
    """Draws what as many real stacks have, as a line."""
    real = _of_real(runs, metric)
    if np.isfinite(real):
        line = ax.axvline if along_x else ax.axhline
        line(real, color="k", ls="--", lw=1, label="real stacks")


def _of_real(runs: Runs, metric: str) -> float:
    """Returns a metric of the real stacks, the same in every run; NaN if all failed."""
    values = runs.final(metric.replace("test/", "real/"))
    return next(iter(values[np.isfinite(values)]), np.nan)


def _samples(runs: Runs) -> str:
    return f"{runs[0].config['samples']:,} samples"


@figure(sweep="objectives")
def coverage(runs: Runs) -> Figure:
    """Modes found at the end and their divergence from uniform, seed by seed."""
    methods = runs.by(*_METHOD)
    fig, axes = plt.subplots(
        1, 2, figsize=(10, 0.5 * len(methods) + 1.4), layout="constrained", sharey=True
    )
    for ax, metric in zip(axes, _AXES, strict=True):
        for row, (method, group) in enumerate(methods.items()):
            color, values = _LOOKS[method][1], group.final(metric)
            values = values[np.isfinite(values)]
            if len(values):
                ax.barh(row, values.mean(), color=color, alpha=0.35, height=0.7)
                ax.plot(values, [row] * len(values), "o", color=color, ms=4)
            else:
                ax.text(0, row, " diverged", va="center")
        _draw_reference(ax, runs, metric, along_x=True)
        ax.set(xlabel=_AXES[metric], xlim=(0, None))
    names = [_LOOKS[method][0] for method in methods]
    axes[0].set(yticks=range(len(names)), yticklabels=names)
    axes[0].invert_yaxis()
    fig.suptitle(
        f"{_samples(runs)} after {runs[0].config['steps']:,} steps: mean (bar) and "
        "seeds; dashed: as many real stacks"
    )
    return fig


@figure(sweep="objectives")
def training(runs: Runs) -> Figure:
    """Modes found and their divergence from uniform while training."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    for ax, metric in zip(axes, _AXES, strict=True):
        for method, group in runs.by(*_METHOD).items():
            name, color = _LOOKS[method]
            steps, values = group.curves(metric)
            looks = {"color": color, "alpha": 0.15, "label": name}
            mean_and_range(ax, steps, values, ".-", **looks)
        _draw_reference(ax, runs, metric)
        ax.set(xlabel="step (updates of the generator)", ylabel=_AXES[metric])
        ax.set(xlim=(0, None), ylim=(0, None))
        ax.grid(alpha=0.3)
    lines, labels = axes[0].get_legend_handles_labels()
    fig.legend(lines, labels, loc="outside lower center", ncols=4)
    fig.suptitle(f"{_samples(runs)}, mean and range over seeds")
    return fig


@figure(sweep="objectives")
def samples(runs: Runs) -> Figure:
    """Samples of each method at the end, of the same latents, for the first seed."""
    methods = runs.by(*_METHOD)
    columns = -(-len(methods) // 2)
    fig, axes = plt.subplots(
        2, columns, figsize=(3.9 * columns, 6.6), layout="constrained", squeeze=False
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (method, group) in zip(axes.flat, methods.items(), strict=False):
        run = group[0]
        if run.diverged:
            ax.set_title(_LOOKS[method][0], fontsize=10)
            ax.text(0.5, 0.5, "diverged", transform=ax.transAxes, ha="center")
            continue
        images = run.last_artifacts()["samples"]
        ax.imshow(mosaic(images / np.float32(127.5) - 1, _SHOWN[1]))
        name, found = _LOOKS[method][0], run.final(MAIN_METRIC)
        ax.set_title(f"{name}: {found:.0f} modes", fontsize=10)
    steps, seed = runs[0].config["steps"], runs[0].config["seed"]
    fig.suptitle(
        f"samples after {steps:,} steps, seed {seed}; {_samples(runs)} counted"
    )
    return fig


@figure(sweep="batches")
def batches(runs: Runs) -> Figure:
    """Modes found and divergence for each minibatch size and number of updates."""
    sizes = runs.values("batch_size")
    fig, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for ax, metric in zip(axes, _AXES, strict=True):
        for number, (updates, group) in enumerate(runs.by("critic_steps").items()):
            parts = [part.final(metric) for part in group.by("batch_size").values()]
            finite = [part[np.isfinite(part)] for part in parts]
            means = [part.mean() if len(part) else np.nan for part in finite]
            color, words = f"C{number}", "update" if updates == 1 else "updates"
            label = f"{updates} critic {words} a step"
            ax.plot(sizes, means, color=color, label=label)
            for size, values in zip(sizes, finite, strict=True):
                ax.plot([size] * len(values), values, "o", color=color, ms=4, alpha=0.6)
        _draw_reference(ax, runs, metric)
        ax.set(xscale="log", xlabel="stacks in a minibatch", ylabel=_AXES[metric])
        ax.set(xticks=sizes, xticklabels=sizes, ylim=(0, None))
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].legend()
    name = _LOOKS[tuple(runs[0].config[field] for field in _METHOD)][0]
    fig.suptitle(
        f"{name}: {_samples(runs)} after {runs[0].config['steps']:,} updates of the "
        "generator (a point a seed)"
    )
    return fig


FIGURES = {
    "coverage": coverage,
    "training": training,
    "samples": samples,
    "batches": batches,
}


def summary(runs: Runs) -> str:
    """Returns the modes found, their divergence, and how many runs collapsed."""
    if len(runs.values("batch_size")) > 1:
        parts = [
            f"batches of {size}, {updates} critic update{'s' * (updates > 1)} a step: "
            + _found(group)
            for (updates, size), group in runs.by("critic_steps", "batch_size").items()
        ]
    else:
        groups = runs.by(*_METHOD).items()
        parts = [f"{_LOOKS[method][0]} {_found(group)}" for method, group in groups]
    count, config = runs[0].config["samples"], runs[0].config
    return (
        f"Modes among {count:,} samples (KL to uniform in nats) after "
        f"{config['steps']:,} steps, {len(runs.values('seed'))} seeds: "
        f"{'; '.join(parts)}; as many real stacks {_of_real(runs, MAIN_METRIC):.0f} "
        f"({_of_real(runs, _KL):.3f}), uniform draws {expected_modes(count):.0f} on "
        "average."
    )


def _found(runs: Runs) -> str:
    collapsed = np.nansum(runs.final(_COLLAPSED))
    modes, kl = (mean_and_spread(runs.final(metric)) for metric in _AXES)
    told = f"{modes} ({kl})"
    return told + (f", {collapsed:.0f} of {len(runs)} collapsed" if collapsed else "")
