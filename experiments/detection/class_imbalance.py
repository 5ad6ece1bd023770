r"""Of thousands of anchors few hold an object: six ways to keep the others in check.

Lin, Goyal, Girshick, He & Dollár, "Focal loss for dense object detection", ICCV 2017
(arXiv:1708.02002), section 5.1, tables 1a, 1b and 1d and figure 4. One network,
RetinaNet's, learns from its anchors by

    cross-entropy     of all anchors, with and without the prior: the bias by which all
                      say "no object" at first, with a probability of 0.99
    α-balanced        objects have the weight α, backgrounds 1 - α
    focal loss        and what is known already counts by (1 - p)^γ
    OHEM              of each image the 128 anchors of highest loss, after NMS at 0.5
                      (Shrivastava et al., CVPR 2016; the best setting of table 1d)
    3:1               the objects, and three backgrounds of highest loss for each
                      (SSD: Liu et al., ECCV 2016)

    python -m launch.sweep --experiment=detection.class_imbalance --sweep=losses \
        --executor=vmap
    python -m launch.figures --experiment=detection.class_imbalance

Look for: α-balanced cross-entropy and the focal loss with γ = 1 and 2 are level, within
the spread over seeds, and some ten points above plain cross-entropy; without the prior
that starts later (`convergence`). γ = 5 learns more slowly. Neither way to mine hard
examples helps: 3:1 is as plain cross-entropy, OHEM, which counts 128 anchors of 4,740,
below it. The figure `easy_and_hard` is the paper's figure 4: if anchors are sorted by
their loss, how much of the sum do the easiest have? With γ = 0 four fifths of the
backgrounds have about a third of it; with γ = 2 nearly all is the hardest hundredth's.
For objects it changes less.

What differs from the paper: cells in photographs of blood instead of COCO, a small
network from scratch (see `detection.retinanet`), and fewer anchors, of which more
hold an object. Every loss is divided by the number of anchors that learn an object,
OHEM's too, so that they differ only in what counts. "Cross-entropy" is that of α = 0.5,
halved like the others. OHEM suppresses among anchors; positives are not sure of
a place in it. The α of each γ is that of table 1b, and no other was tried.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Bool, Float
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from dl_core.config import config, nested, static, traced
from dl_core.data.batches import Data
from dl_core.data.detection import detection_data
from dl_core.models.detection import retinanet
from dl_core.models.detection.retinanet import Head, RetinaNet, Wanted
from dl_core.models.detection.trunk import Trunk
from dl_core.ops.boxes import Detections
from dl_core.ops.losses import sigmoid_focal
from dl_core.ops.matching import hard_negatives, ohem
from dl_core.pictures import seed_points
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train import detection
from dl_core.train.detection import PAPER, SMOKE, DetectorConfig
from dl_core.train.state import TrainState


@config
class Loss:
    """What counts, and how much."""

    counts: Literal["all", "ohem", "3:1"] = static("all", "Which anchors have a loss.")
    alpha: float = traced(
        0.5, "Weight of objects; backgrounds have 1 minus it.", above=0, below=1
    )
    gamma: float = traced(0.0, "How strongly easy anchors are discounted.", at_least=0)
    hardest: int = static(128, "ohem: anchors of an image.", at_least=1)
    iou: float = traced(
        0.5, "ohem: overlap above which one of two anchors goes.", above=0, at_most=1
    )


@config
class Config(DetectorConfig):
    """Settings of the experiment."""

    steps: int = static(180, "Training steps.", at_least=1)
    eval_every: int = static(45, "Steps between evaluations.", at_least=1)
    trunk: Trunk = nested(Trunk, features=32)
    head: Head = nested(Head)
    loss: Loss = nested(Loss)


PRESETS = {
    "smoke": {**SMOKE, "head.convolutions": 1, "loss.hardest": 16},
    "paper": {
        **PAPER,
        "head.strides": (8, 16, 32, 64, 128),
        "head.scale": 4.0,
        "head.ratios": (0.5, 1.0, 2.0),
        "head.convolutions": 4,
    },
}


def network(config: Config) -> RetinaNet:
    """Returns the network of the settings."""
    return RetinaNet(config.trunk, config.head, len(detection.names_of(config)))


def anchors(config: Config) -> Float[Array, "anchors 4"]:
    """Returns the anchors of the network's input."""
    return jnp.asarray(config.head.anchors((config.data.height, config.data.width)))


def data(config: Config, data_dir: Any) -> Data:
    """Returns images with boxes."""
    return detection_data(config, data_dir)


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training."""
    return detection.create(config, network(config), key)


def to_learn(config: Config, batch: dict[str, Array]) -> Wanted:
    """Returns what the anchors of each image are to say."""
    return jax.vmap(retinanet.assign, (None, None, 0, 0, None))(
        config.head,
        anchors(config),
        batch["boxes"],
        batch["labels"],
        len(detection.names_of(config)),
    )


def counting(
    config: Config, losses: Float[Array, "batch anchors"], wanted: Wanted
) -> Bool[Array, "batch anchors"]:
    """Returns which anchors count in the loss of classification.

    Args:
      config: of the experiment.
      losses: of each anchor, all classes together.
      wanted: what the anchors learn.
    """
    match config.loss.counts:
        case "ohem":
            hardest = jax.vmap(ohem, (None, 0, None, None))
            losses = jnp.where(wanted.counted, losses, 0)
            return hardest(
                anchors(config), losses, config.loss.hardest, config.loss.iou
            )
        case "3:1":
            background = wanted.counted & ~wanted.objects
            mine = jax.vmap(hard_negatives, (0, 0, None, 0))
            return wanted.objects | mine(losses, wanted.objects, 3.0, background)
        case _:
            return wanted.counted


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the chosen loss and the loss of the boxes."""
    net, wanted = network(config), to_learn(config, batch)

    def loss(params):
        logits, codes = net.apply({"params": params}, batch["image"], train=True)
        losses = sigmoid_focal(
            logits, wanted.classes, config.loss.alpha, config.loss.gamma
        ).sum(-1)
        classified = jnp.sum(losses, where=counting(config, losses, wanted))
        located = retinanet.location_loss(codes, wanted)
        return classified / retinanet.count(wanted) + located

    return state.descend(loss, config.optimizer.make(config.steps))


def detect(config: Config, state: TrainState, batch: dict[str, Array]) -> Detections:
    """Returns the objects that are found in each image."""
    logits, codes = network(config).apply(
        {"params": state.params}, batch["image"], train=False
    )
    size = config.data.height, config.data.width
    return retinanet.detections(logits, codes, anchors(config), size)


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Any]:
    """Measures the detections: average precisions, and what the errors cost."""
    return detection.measure(config, detect(config, state, batch), batch)


GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)
SHARES = np.linspace(0, 1, 201)
"""Of the anchors, the easiest first."""


def observe(
    config: Config, state: TrainState, key: jax.Array, shown: dict[str, Array]
) -> dict[str, Array]:
    """Returns the part of the loss that the easiest objects and backgrounds have.

    "objects" and "backgrounds" are (gammas, shares): of the sum of the loss with each γ
    the part of each share of the answers, sorted by loss; an answer is one anchor's
    about one class. Whatever γ the network learned with.
    """
    logits, _ = network(config).apply(
        {"params": state.params}, shown["image"], train=False
    )
    wanted = to_learn(config, shown)
    counted = wanted.counted[..., None]

    def parts(gamma):
        losses = sigmoid_focal(logits, wanted.classes, None, gamma)
        return {
            "objects": part_of_the_easiest(losses, wanted.classes & counted),
            "backgrounds": part_of_the_easiest(losses, ~wanted.classes & counted),
        }

    return jax.vmap(parts)(jnp.array(GAMMAS))


def part_of_the_easiest(
    losses: Float[Array, "*shape"], chosen: Bool[Array, "*shape"]
) -> Float[Array, " shares"]:
    """Returns the part of the chosen losses' sum in each of SHARES of them, from least.

    Args:
      losses: at least 0.
      chosen: which count.
    """
    ordered = jnp.sort(jnp.where(chosen, losses, 0).ravel())
    sums = jnp.cumsum(ordered) / jnp.maximum(ordered.sum(), 1e-30)
    # Those that do not count come first, as zeros.
    others = chosen.size - chosen.sum()
    places = others - 1 + jnp.asarray(SHARES) * chosen.sum()
    return jnp.interp(places, jnp.arange(chosen.size), sums)


MAIN_METRIC = detection.MAIN_METRIC
_FIELDS = ("loss.counts", "loss.alpha", "loss.gamma", "head.prior")


def setting(counts: str, alpha: float, gamma: float, prior: float) -> dict[str, Any]:
    """Returns a point of the sweep."""
    return dict(zip(_FIELDS, (counts, alpha, gamma, prior), strict=True))


SETTINGS = {
    "cross-entropy,\nno prior": setting("all", 0.5, 0.0, 0.5),
    "cross-entropy": setting("all", 0.5, 0.0, 0.01),
    "α-balanced": setting("all", 0.75, 0.0, 0.01),
    "focal, γ = 0.5": setting("all", 0.5, 0.5, 0.01),
    "focal, γ = 1": setting("all", 0.25, 1.0, 0.01),
    "focal, γ = 2": setting("all", 0.25, 2.0, 0.01),
    "focal, γ = 5": setting("all", 0.25, 5.0, 0.01),
    "OHEM": setting("ohem", 0.5, 0.0, 0.01),
    "3:1": setting("3:1", 0.5, 0.0, 0.01),
}

SWEEPS = {
    "losses": product(tuple(SETTINGS.values()), seed=range(5)),
}


def by_setting(runs: Runs) -> dict[str, Runs]:
    """Returns the runs of each of SETTINGS."""
    return {name: runs.where(**point) for name, point in SETTINGS.items()}


def _colors() -> dict[str, str]:
    shades = [to_hex(c) for c in plt.cm.viridis(np.linspace(0.1, 0.85, 4))]
    colors = "#b0b0b0", "#505050", "C1", *shades, "C3", "C6"
    return dict(zip(SETTINGS, colors, strict=True))


@figure(sweep="losses")
def average_precision(runs: Runs) -> Figure:
    """Average precision at the end for each loss, seed by seed."""
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    metrics = (MAIN_METRIC, "AP at IoU 0.5"), ("test/ap", "COCO AP")
    for ax, (metric, words) in zip(axes, metrics, strict=True):
        for x, (name, group) in enumerate(by_setting(runs).items()):
            seed_points(ax, x, group.final(metric), _colors()[name], name)
        ax.set_xticks(range(len(SETTINGS)), SETTINGS, rotation=40, ha="right")
        ax.set(ylabel=f"test {words}")
        ax.grid(axis="y", alpha=0.3)
    seeds = len(runs.values("seed"))
    fig.suptitle(f"after {runs[0].config['steps']:,} steps: {seeds} seeds, their mean")
    return fig


@figure(sweep="losses")
def convergence(runs: Runs) -> Figure:
    """Average precision on the validation set over training."""
    fig, ax = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
    for name, group in by_setting(runs).items():
        steps, values = group.curves("validation/ap50")
        label = name.replace("\n", " ")
        ax.plot(steps, values.mean(0), "o-", ms=3, color=_colors()[name], label=label)
        if len(steps):
            low, high = values.min(0), values.max(0)
            ax.fill_between(steps, low, high, color=_colors()[name], alpha=0.1, lw=0)
    ax.set(xlabel="step", ylabel="validation AP at IoU 0.5 (mean and range over seeds)")
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    fig.legend(loc="outside right upper", fontsize=8)
    return fig


@figure(sweep="losses")
def gammas(runs: Runs) -> Figure:
    """The loss of an answer over its probability, for each γ, and AP for each."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    p = np.linspace(0.005, 1, 400)
    logits = jnp.log(p) - jnp.log1p(-p + 1e-9)
    names = ("α-balanced", *(name for name in SETTINGS if "focal" in name))
    for x, name in enumerate(names):
        point, color = SETTINGS[name], _colors()[name]
        alpha, gamma = point["loss.alpha"], point["loss.gamma"]
        loss = sigmoid_focal(logits, jnp.ones_like(logits), None, gamma)
        left.plot(p, loss, color=color, label=f"γ = {gamma:g} (α = {alpha:g})")
        seed_points(
            right, x, 100 * by_setting(runs)[name].final(MAIN_METRIC), color, ""
        )
    left.axvspan(0.5, 1, color="grey", alpha=0.12, lw=0)
    left.text(0.75, 3.4, "easy", color="grey", ha="center")
    left.set(xlabel="probability p of the right answer", ylabel="(1 - p)$^γ$ (-log p)")
    left.set(xlim=(0, 1), ylim=(0, 5), title="loss of an answer")
    left.legend()
    labels = [f"{SETTINGS[name]['loss.gamma']:g}" for name in names]
    right.set(xticks=range(len(names)), xticklabels=labels, xlabel="γ")
    right.set(ylabel="test AP at IoU 0.5, %", title="a point a seed, a bar their mean")
    right.grid(axis="y", alpha=0.3)
    return fig


@figure(sweep="losses")
def easy_and_hard(runs: Runs) -> Figure:
    """Part of the loss that the easiest objects and backgrounds have, for each γ.

    As the paper's figure 4: one network, that of γ = 2, and its losses with each γ.
    """
    group = by_setting(runs)["focal, γ = 2"]
    seen = [run.last_artifacts() for run in group if not run.diverged]
    fig, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
    colors = plt.cm.viridis(np.linspace(0, 0.85, len(GAMMAS)))
    for ax, kind in zip(axes, ("objects", "backgrounds"), strict=True):
        for number, (gamma, color) in enumerate(zip(GAMMAS, colors, strict=True)):
            for run, arrays in enumerate(seen):
                label = f"γ = {gamma:g}" if run == 0 else None
                values = arrays[kind][number]
                ax.plot(SHARES, values, color=color, lw=1.2, alpha=0.8, label=label)
        ax.plot([0, 1], [0, 1], color="grey", ls="--", lw=1)
        ax.set(xlabel=f"share of the {kind}, the easiest first", xlim=(0, 1))
        ax.set(ylim=(0, 1), title=kind)
    axes[0].set_ylabel("part of the sum of their losses")
    axes[1].text(0.45, 0.5, "all alike", color="grey", rotation=40, ha="center")
    if seen:
        axes[0].legend()
    fig.suptitle("one network, trained with γ = 2 (a line a seed)", fontsize=10)
    return fig


FIGURES = {
    "average_precision": average_precision,
    "convergence": convergence,
    "gammas": gammas,
    "easy_and_hard": easy_and_hard,
}


def summary(runs: Runs) -> str:
    """Returns the average precision of each loss."""
    parts = []
    for name, group in by_setting(runs).items():
        value = mean_and_spread(group.final(MAIN_METRIC), scale=100, unit=" %")
        parts.append(f"{' '.join(name.split())} {value}")
    return (
        f"AP at IoU 0.5 on the test set after {runs[0].config['steps']:,} steps, "
        f"{len(runs.values('seed'))} seeds: {'; '.join(parts)}."
    )
