r"""RetinaNet: the focal loss lets a dense one-stage detector learn from every anchor.

Lin, Goyal, Girshick, He & Dollár, "Focal loss for dense object detection", ICCV 2017
(arXiv:1708.02002). Thousands of anchors, of which a hundredth hold an object, all count
in the loss, as -α_t (1 - p_t)^γ log p_t: what is known already counts little, so that
the many easy backgrounds do not drown the few objects. With γ = 0 this is
cross-entropy. The bias of the last layer says at first that an object is improbable
(section 3.3), or the backgrounds would rule the first steps.

    python -m launch.sweep --experiment=detection.retinanet --sweep=seeds \
        --executor=vmap
    python -m launch.sweep --experiment=detection.retinanet --sweep=gammas \
        --executor=vmap
    python -m launch.figures --experiment=detection.retinanet

Look for: in `gammas`, average precision against γ, each with the α that the paper's
table 1b pairs it with, beside the loss over the probability p of the right answer. In
the paper γ = 2 gains 2.9 points of AP upon the best cross-entropy.

What differs from the paper: maps of stride 4 to 16, as the cells are of 10 to 50
pixels; three anchors a place instead of nine, all square, as nearly all cells have
sides of a ratio between 2/3 and 3/2 (in the training set); subnets of two convolutions
instead of four, with group normalisation, from scratch; Adam. The anchor that overlaps
an object most learns it even below an IoU of 0.5, as in torchvision's RetinaNet.
`--preset=paper` has the paper's anchors and subnets.
"""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from dl_core.config import config, nested, replace, traced
from dl_core.data.batches import Data
from dl_core.data.detection import detection_data
from dl_core.models.detection import retinanet
from dl_core.models.detection.retinanet import Head, RetinaNet
from dl_core.models.detection.trunk import Trunk
from dl_core.ops.boxes import Detections
from dl_core.ops.losses import sigmoid_focal
from dl_core.pictures import seed_points
from dl_core.pictures_detection import detections_beside_truth, precision_recall
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product, zipped
from dl_core.train import detection
from dl_core.train.detection import PAPER, SMOKE, DetectorConfig
from dl_core.train.state import TrainState


@config
class Focal:
    """The focal loss."""

    alpha: float = traced(
        0.25, "Weight of objects; backgrounds have 1 minus it.", above=0, below=1
    )
    gamma: float = traced(2.0, "How strongly easy anchors are discounted.", at_least=0)


@config
class Config(DetectorConfig):
    """Settings of the experiment."""

    trunk: Trunk = nested(Trunk, features=32)
    head: Head = nested(Head)
    focal: Focal = nested(Focal)


PRESETS = {
    "smoke": {**SMOKE, "head.convolutions": 1},
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


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the focal loss and the loss of the boxes.

    Both are divided by the number of anchors that learn an object.
    """
    net = network(config)
    wanted = jax.vmap(retinanet.assign, (None, None, 0, 0, None))(
        config.head, anchors(config), batch["boxes"], batch["labels"], net.classes
    )

    def loss(params):
        logits, codes = net.apply({"params": params}, batch["image"], train=True)
        focal = sigmoid_focal(
            logits, wanted.classes, config.focal.alpha, config.focal.gamma
        )
        classified = jnp.sum(focal.sum(-1), where=wanted.counted)
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


def observe(
    config: Config, state: TrainState, key: jax.Array, shown: dict[str, Array]
) -> dict[str, Array]:
    """Returns images of the test set, what is in them and what is found."""
    return detection.kept(detect(config, state, shown), shown)


MAIN_METRIC = detection.MAIN_METRIC
_GAMMA = "focal.gamma"

SWEEPS = {
    "seeds": product(seed=range(5)),
    "gammas": product(
        zipped(
            **{
                _GAMMA: (0.0, 0.5, 1.0, 2.0, 5.0),
                "focal.alpha": (0.75, 0.5, 0.25, 0.25, 0.25),
            }
        ),
        steps=(150,),
        seed=range(5),
    ),
}


@figure(sweep="seeds")
def pictures(runs: Runs) -> Figure:
    """Detections of one run beside the truth."""
    run = next((run for run in runs if not run.diverged), runs[0])
    return detections_beside_truth(run.last_artifacts(), _names(runs))


@figure(sweep="seeds")
def curves(runs: Runs) -> Figure:
    """Precision over recall for each class."""
    return precision_recall(runs, _names(runs))


def _names(runs: Runs) -> tuple[str, ...]:
    return detection.names_of(replace(Config(), runs[0].config))


@figure(sweep="gammas")
def gammas(runs: Runs) -> Figure:
    """The loss over the probability of the right answer, and AP for each γ."""
    groups = runs.by(_GAMMA, "focal.alpha")
    colors = [to_hex(c) for c in plt.cm.viridis(np.linspace(0, 0.85, len(groups)))]
    fig, (left, *right) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    p = np.linspace(0.005, 1, 400)
    logits = jnp.log(p) - jnp.log1p(-p + 1e-9)
    for (gamma, alpha), color in zip(groups, colors, strict=True):
        loss = sigmoid_focal(logits, jnp.ones_like(logits), None, gamma)
        left.plot(p, loss, color=color, label=f"γ = {gamma:g} (α = {alpha:g})")
    left.axvspan(0.5, 1, color="grey", alpha=0.12, lw=0)
    left.text(0.75, 3.4, "easy", color="grey", ha="center")
    left.set(xlabel="probability p of the right answer", ylabel="(1 - p)$^γ$ (-log p)")
    left.set(xlim=(0, 1), ylim=(0, 5))
    left.legend()
    for ax, metric, words in zip(
        right, ("test/ap50", "test/ap"), ("AP at IoU 0.5", "COCO AP"), strict=True
    ):
        for x, (group, color) in enumerate(zip(groups.values(), colors, strict=True)):
            seed_points(ax, x, group.final(metric), color, "")
        labels = [f"{gamma:g}\n({alpha:g})" for gamma, alpha in groups]
        ax.set(xticks=range(len(groups)), xticklabels=labels)
        ax.set(xlabel="γ (α)", ylabel=f"test {words}", xlim=(-0.6, len(groups) - 0.4))
    steps, seeds = runs[0].config["steps"], len(runs.values("seed"))
    right[0].set_title(f"after {steps:,} steps: {seeds} seeds and their mean")
    left.set_title("loss of an answer")
    return fig


FIGURES = {"pictures": pictures, "precision_recall": curves, "gammas": gammas}


def summary(runs: Runs) -> str:
    """Returns the average precision for each γ."""
    parts = []
    for (gamma, alpha), group in runs.by(_GAMMA, "focal.alpha").items():
        ap50, ap = (
            mean_and_spread(group.final(metric), scale=100, unit=" %")
            for metric in (MAIN_METRIC, "test/ap")
        )
        parts.append(f"γ = {gamma:g}, α = {alpha:g}: {ap50} (COCO AP {ap})")
    return (
        f"AP at IoU 0.5 after {runs[0].config['steps']:,} steps, "
        f"{len(runs.values('seed'))} seeds: {'; '.join(parts)}."
    )
