"""pix2pix: what an l1 term, a critic, and a critic that sees the input each add.

Isola et al., "Image-to-image translation with conditional adversarial networks", CVPR
2017. A U-Net makes an image of another one, and learns from pairs: from how far it is
from the target in the mean (l1), from a critic that scores patches of images (GAN),
from one that sees the input beside the image (cGAN), or from both (l1 + cGAN). By
default it paints photographs of blood cells into their edges, at 64 pixels.

    python -m launch.sweep --experiment=gans.pix2pix --sweep=losses --executor=vmap
    python -m launch.sweep --experiment=gans.pix2pix --sweep=patches --executor=vmap
    python -m launch.figures --experiment=gans.pix2pix

Other pairs, as aerial photographs and maps, are read from a folder that holds `train`
and `val`, folders or zip files of images with both halves side by side:
`--config.data.name=side_by_side --config.data.path=FOLDER`.

Look for: how blurred and grey l1 alone leaves the images, for where a cell may be red
or blue the median of both is the best guess: their gradient has 0.4 of the energy of
the photographs'; that both losses together are as near to the target and twice as
sharp (0.8); and what a critic alone makes of the edges. In 400 steps it is a
checkerboard with ten times the photographs' energy and more, further from the target
than l1, and the critic that sees the edges is no better at it than the one that does
not: the paper's order of the two is not seen so early. The size of the patch changes
the sharpness (most at 1 pixel, least with one score an image), hardly the scores. All
are of test photographs. Pixels are counted by the nearest of three colours, the means
of k-means on training pixels: background, red cell, nucleus of a white cell.

At 64 pixels a patch of 70 covers nearly all of the image; "image" gives one score.
As in the paper dropout stays on in tests, and an image is normalised by its own
statistics, in the critic too (`--config.model.normalize_critic`): through these a score
depends on the whole image a little; the patch is what the convolutions see.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static, traced
from dl_core.data.batches import Data, InMemory
from dl_core.data.pairs import PairsConfig, jitter, load_pairs, to_unit
from dl_core.errors import UserError
from dl_core.metrics.translation import Ratio, gradient_energy, nearest, palette
from dl_core.models.pix2pix import Patch, PatchCritic, UNet, smallest_image
from dl_core.ops.adversarial import critic_loss, generator_loss
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train.adversarial import Player
from dl_core.train.metrics import Mean
from dl_core.train.optimizers import Adam

Objective = Literal["l1", "gan", "cgan", "l1+gan", "l1+cgan"]


@config
class Model:
    """Generator and critic."""

    width: int = static(16, "Channels of the generator's first layer.", at_least=1)
    critic_width: int = static(16, "Channels of the critic's first layer.", at_least=1)
    patch: Patch = static(70, "Pixels a side that one score of the critic sees.")
    normalize_critic: bool = static(True, "Instance normalisation in the critic too.")


@config
class Config(RunConfig):
    """Settings of the experiment; a step updates the critic, then the generator."""

    steps: int = static(400, "Training steps.", at_least=1)
    batch_size: int = static(4, "Pairs in a training batch.", at_least=1)
    eval_every: int = static(200, "Steps between evaluations.", at_least=1)
    objective: Objective = static("l1+cgan", "What the generator learns from.")
    l1_weight: float = traced(100.0, "Weight of the l1 term.", at_least=0)
    classes: int = static(3, "Colours that the pixels are counted as.", at_least=2)
    model: Model = nested(Model)
    optimizer: Adam = nested(Adam)
    data: PairsConfig = nested(PairsConfig)


PRESETS = {
    "smoke": {
        "steps": 4,
        "batch_size": 2,
        "log_every": 2,
        "eval_every": 2,
        "checkpoint_every": 2,
        "model.width": 2,
        "model.critic_width": 2,
        "data.size": 32,
        "data.reduce": 4,
    },
    "paper": {
        "steps": 160_000,
        "batch_size": 1,
        "log_every": 100,
        "eval_every": 8_000,
        "checkpoint_every": 8_000,
        "classes": 4,
        "optimizer.learning_rate": 2e-4,
        "model.width": 64,
        "model.critic_width": 64,
        "data.name": "side_by_side",
        "data.size": 256,
    },
}


@struct.dataclass
class State:
    """Both networks; there is no critic where none is used."""

    step: Int[Array, ""]
    generator: Player
    critic: Player | None


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns the update rule of either network."""
    return config.optimizer.make()


def make_networks(config: Config) -> tuple[UNet, PatchCritic]:
    """Returns generator and critic."""
    model = config.model
    critic = PatchCritic(model.critic_width, model.patch, model.normalize_critic)
    return UNet(model.width, 3), critic


def data(config: Config, data_dir: Any) -> Data:
    """Returns training pairs, and test pairs with the palette of the training ones."""
    size, patch = config.data.size, config.model.patch
    if size & (size - 1):
        raise UserError(
            f"--config.data.size={size}: expected a power of two, which the generator "
            "halves to a single pixel"
        )
    if patch != "image" and size < smallest_image(patch):
        raise UserError(
            f"--config.model.patch={patch}: expected images of at least "
            f"{smallest_image(patch)} pixels for it, and --config.data.size is {size}"
        )
    train = load_pairs(config.data, train=True)
    test = load_pairs(config.data, train=False)
    colors = palette(train["target"], config.classes)
    count = len(test["target"])
    test = {**test, "palette": np.broadcast_to(colors, (count, *colors.shape))}
    return Data(
        InMemory(train, config.batch_size, prepare_train),
        {"test": InMemory(test, 48, prepare_test)},
    )


def prepare_train(
    config: Config, batch: dict[str, Array], key: Any
) -> dict[str, Array]:
    """Crops and mirrors a training batch; numbers from -1 to 1."""
    return jax.tree.map(to_unit, jitter(key, batch, config.data.size))


def prepare_test(config: Config, batch: dict[str, Array], key: Any) -> dict[str, Array]:
    """Turns bytes into numbers from -1 to 1."""
    return {
        **batch,
        "input": to_unit(batch["input"]),
        "target": to_unit(batch["target"]),
    }


def init(config: Config, key: jax.Array) -> State:
    """Returns the networks before training."""
    generator_key, critic_key = jax.random.split(key)
    generator, critic = make_networks(config)
    size = config.data.size
    inputs = jnp.zeros((1, size, size, 1 if config.data.name == "bccd_small" else 3))
    images = jnp.zeros((1, size, size, 3))
    optimizer = make_optimizer(config)
    players = [Player.create(generator.init(generator_key, inputs), optimizer), None]
    if config.objective != "l1":
        seen = inputs if "cgan" in config.objective else None
        players[1] = Player.create(critic.init(critic_key, images, seen), optimizer)
    return State(jnp.int32(0), *players)


def train_step(
    config: Config, state: State, batch: dict[str, Array], key: jax.Array
) -> tuple[State, dict[str, Array]]:
    """Takes one step of the critic on a batch, then one of the generator on the same.

    The critic's loss is halved, which slows it against the generator.
    """
    generator, critic = make_networks(config)
    optimizer = make_optimizer(config)
    inputs, targets = batch["input"], batch["target"]
    seen = inputs if "cgan" in config.objective else None

    def score(params, images):
        return critic.apply({"params": params}, images, seen)[0]

    def generate(params):
        return generator.apply({"params": params}, inputs, rngs={"dropout": key})[0]

    images, pull_back = jax.vjp(generate, state.generator.params)
    metrics, player = {}, state.critic
    if player is not None:

        def critic_fn(params):
            real, generated = score(params, targets), score(params, images)
            return critic_loss("non_saturating", real, generated) / 2

        loss, gradients = jax.value_and_grad(critic_fn)(player.params)
        player = player.updated(gradients, optimizer, player.collections)
        metrics["critic_loss"] = loss

    def image_fn(images):
        parts = {}
        if "l1" in config.objective:
            parts["l1"] = jnp.abs(images - targets).mean()
        if player is not None:
            scores = score(player.params, images)
            parts["gan_loss"] = generator_loss("non_saturating", scores)
        loss = config.l1_weight * parts.get("l1", 0) + parts.get("gan_loss", 0)
        return loss, parts

    gradient, parts = jax.grad(image_fn, has_aux=True)(images)
    (gradients,) = pull_back(gradient)
    updated = state.generator.updated(gradients, optimizer, {})
    return State(state.step + 1, updated, player), metrics | parts


def eval_step(
    config: Config, state: State, batch: dict[str, Array]
) -> dict[str, Mean | Ratio]:
    """Compares outputs with targets; dropout stays on, as in the paper.

    The error is the mean absolute difference as a share of the range. Pixels count as
    the nearest colour of the palette, and three scores are those of a segmentation
    (table 1 of the paper): accuracy by pixel, mean accuracy by class, mean intersection
    over union. Sharpness is the energy of the outputs' gradient over that of the
    targets': blurred images have less than 1.
    """
    outputs = translate(config, state, batch["input"])
    targets, mask = batch["target"], batch["mask"]
    colors = batch["palette"][0]
    found, true = (
        jax.nn.one_hot(nearest(images, colors), len(colors))
        for images in (outputs, targets)
    )
    # Rows are true classes, columns those of the output.
    counts = jnp.einsum("nhwt,nhwf,n->tf", true, found, mask)
    right, of_class, called = jnp.diag(counts), counts.sum(1), counts.sum(0)
    energies = (mask @ gradient_energy(x) for x in (outputs, targets))
    return {
        "error": Mean.of(jnp.abs(outputs - targets).mean((1, 2, 3)) / 2, mask),
        "accuracy": Ratio(right.sum()[None], counts.sum()[None]),
        "class_accuracy": Ratio(right, of_class),
        "iou": Ratio(right, of_class + called - right),
        "sharpness": Ratio(*(energy[None] for energy in energies)),
    }


def translate(
    config: Config, state: State, inputs: Float[Array, "n size size in"]
) -> Float[Array, "n size size 3"]:
    """Returns the generator's images; dropout is always the same."""
    generator, _ = make_networks(config)
    rngs = {"dropout": jax.random.key(0)}
    return generator.apply({"params": state.generator.params}, inputs, rngs=rngs)[0]


def observe(config: Config, state: State, key: jax.Array) -> dict[str, Array]:
    """Returns some test inputs, their targets and the outputs."""
    pairs = load_pairs(config.data, train=False)
    chosen = np.linspace(0, len(pairs["target"]) - 1, _SHOWN).astype(int)
    inputs, targets = (to_unit(jnp.asarray(x[chosen])) for x in pairs.values())
    outputs = translate(config, state, inputs)
    return {"input": inputs, "target": targets, "output": outputs}


MAIN_METRIC = "test/accuracy"
_SHOWN = 4
_OBJECTIVE, _PATCH = "objective", "model.patch"

SWEEPS = {
    "losses": product(objective=("l1", "gan", "cgan", "l1+cgan"), seed=range(5)),
    "patches": product(**{_PATCH: (1, 16, 70, "image"), "seed": range(5)}),
}

_NAMES = {
    "l1": "l1",
    "gan": "GAN",
    "cgan": "cGAN",
    "l1+gan": "l1 + GAN",
    "l1+cgan": "l1 + cGAN",
    1: "1×1",
    16: "16×16",
    34: "34×34",
    70: "70×70",
    "image": "whole image",
}
_SCORES = {
    "error": ("mean absolute error in %", 100),
    "accuracy": ("pixel accuracy in %", 100),
    "iou": ("mean class IoU in %", 100),
    "sharpness": ("gradient energy, share of the targets'", 1),
}


@figure(sweep="losses")
def losses(runs: Runs) -> Figure:
    """Input, target, and the output of each loss, for the first seed."""
    return _images(runs, _OBJECTIVE)


@figure(sweep="losses")
def loss_scores(runs: Runs) -> Figure:
    """Error, accuracy, intersection over union and sharpness of each loss."""
    return _scores(runs, _OBJECTIVE, "loss of the generator")


@figure(sweep="patches")
def patches(runs: Runs) -> Figure:
    """Input, target, and the output for each size of the critic's patches."""
    return _images(runs, _PATCH)


@figure(sweep="patches")
def patch_scores(runs: Runs) -> Figure:
    """Error, accuracy, intersection over union and sharpness of each patch."""
    return _scores(runs, _PATCH, "what one score of the critic sees, in pixels")


FIGURES = {
    "losses": losses,
    "loss_scores": loss_scores,
    "patches": patches,
    "patch_scores": patch_scores,
}


def _images(runs: Runs, field: str) -> Figure:
    """Draws test pairs and outputs, a column a setting."""
    columns = {"input": None, "target": None}
    for setting, group in runs.by(field).items():
        title, run = _NAMES[setting], group[0]
        seen = None if run.diverged else run.last_artifacts()
        columns[title] = None if seen is None else seen["output"]
        if seen is not None:
            columns |= {"input": seen["input"], "target": seen["target"]}
    size = 1.7 * len(columns), 1.72 * _SHOWN + 0.5
    fig, axes = plt.subplots(_SHOWN, len(columns), figsize=size, layout="constrained")
    for column, (title, images) in zip(axes.T, columns.items(), strict=True):
        column[0].set_title(title)
        for ax, number in zip(column, range(_SHOWN), strict=True):
            ax.set(xticks=[], yticks=[])
            if images is None:
                ax.text(0.5, 0.5, "diverged", ha="center", transform=ax.transAxes)
            else:
                image = np.clip(images[number] / 2 + 0.5, 0, 1)
                ax.imshow(image, cmap="gray", vmin=0, vmax=1)
    steps, seed = (runs[0].config[name] for name in ("steps", "seed"))
    fig.suptitle(f"test images after {steps:,} steps, seed {seed}")
    return fig


def _scores(runs: Runs, field: str, label: str) -> Figure:
    """Draws each score, a point a seed and a line at the mean."""
    groups = runs.by(field)
    places = np.arange(len(groups))
    fig, axes = plt.subplots(1, len(_SCORES), figsize=(14, 3.6), layout="constrained")
    for ax, (metric, (name, scale)) in zip(axes, _SCORES.items(), strict=True):
        for place, group in zip(places, groups.values(), strict=True):
            values = scale * group.final(f"test/{metric}")
            values = values[np.isfinite(values)]
            ax.plot([place] * len(values), values, "o", color="C0", alpha=0.6)
            if len(values):
                ax.hlines(values.mean(), place - 0.3, place + 0.3, color="C0")
        if metric == "sharpness":
            ax.axhline(1, color="grey", lw=0.8, ls="--")
        ax.set_xticks(places, [_NAMES[setting] for setting in groups])
        ax.set(title=name, xlim=(-0.5, len(groups) - 0.5))
        ax.grid(alpha=0.3, axis="y")
    fig.supxlabel(label, fontsize=10)
    return fig


def summary(runs: Runs) -> str:
    """Returns the scores of each loss, or of each size of patches."""
    field = _OBJECTIVE if len(runs.values(_OBJECTIVE)) > 1 else _PATCH
    parts = []
    for setting, group in runs.by(field).items():
        error, accuracy, iou = (
            mean_and_spread(group.final(f"test/{metric}"), scale=100, unit=" %")
            for metric in ("error", "accuracy", "iou")
        )
        sharpness = mean_and_spread(group.final("test/sharpness"))
        parts.append(f"{_NAMES[setting]} {error}, {accuracy}, {iou}, {sharpness}")
    return (
        "Mean absolute error, pixel accuracy, class IoU and gradient energy (1: the "
        f"targets') after {runs[0].config['steps']:,} steps, "
        f"{len(runs.values('seed'))} seeds: {'; '.join(parts)}."
    )
