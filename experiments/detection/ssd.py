"""SSD: one network, one look, default boxes of every size, and the hardest negatives.

Liu et al., "SSD: single shot multibox detector", ECCV 2016: a convolution predicts, for
each of thousands of default boxes, its class and where the object really is. Every
object is matched with the box that overlaps it most and all that overlap it by half
(section 2.2); of the background only the hardest boxes count, three for each matched
one; the loss is cross-entropy and smooth l1, over the number of matched boxes.

    python -m launch.sweep --experiment=detection.ssd --sweep=seeds --executor=vmap
    python -m launch.sweep --experiment=detection.ssd --sweep=augmentation \
        --executor=vmap
    python -m launch.figures --experiment=detection.ssd

Look for: the three kinds of cell in the pictures and in the curves. Most of what is
lost is "background": cells that are there and that nobody labelled (`errors`). In
`augmentation`, mirror images change nothing, and the paper's crops, canvases and
colours cost 5 points. On VOC they give 19 in a public implementation (77.4 instead of
58.1: amdegroot/ssd.pytorch), in hundreds of epochs; these are 16, and the canvas shows
the network cells smaller than those it is tested on.

Three maps with four boxes a cell stand for the paper's six; the sizes are about the
medians of the three classes in the training photographs.
"""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from dl_core import pictures_detection as drawn
from dl_core.config import config, nested, traced
from dl_core.data.batches import Data
from dl_core.data.detection import detection_data
from dl_core.models.detection.ssd import SSD, Boxes
from dl_core.ops import box_coders
from dl_core.ops.boxes import Detections, clip, pairwise_iou
from dl_core.ops.losses import smooth_l1
from dl_core.ops.matching import bipartite, hard_negatives
from dl_core.ops.nms import suppress
from dl_core.pictures import seed_points
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train import detection as shared
from dl_core.train.detection import DetectorConfig
from dl_core.train.state import TrainState


@config
class Loss:
    """How default boxes are matched, and what they cost."""

    overlap: float = traced(
        0.5, "IoU from which a box learns an object.", above=0, at_most=1
    )
    negatives: float = traced(
        3.0, "Background boxes that count, for each matched one.", at_least=0
    )
    location: float = traced(1.0, "Weight of the positions' loss.", at_least=0)


@config
class Config(DetectorConfig):
    """Settings of the experiment."""

    boxes: Boxes = nested(Boxes)
    loss: Loss = nested(Loss)


PRESETS = {
    "smoke": {**shared.SMOKE, "boxes.sizes": (5.0, 12.0, 24.0, 32.0)},
    "paper": {
        **shared.PAPER,
        "data.augment": "ssd",
        "boxes.strides": (8, 16, 32),
        "boxes.sizes": (40.0, 100.0, 192.0, 256.0),
    },
}

CODER = box_coders.SSD(variances=(0.1, 0.2))
BACKGROUND = 0
"""The class of boxes without an object; an object's is its label plus 1."""


def data(config: Config, data_dir: Any) -> Data:
    """Returns the training images, varied, and those to validate and test on."""
    return detection_data(config, data_dir)


def make_network(config: Config) -> SSD:
    """Returns the network."""
    return SSD(config.trunk, config.boxes, len(shared.names_of(config)))


def default_boxes(config: Config) -> Float[Array, "boxes 4"]:
    """Returns the default boxes of the network's input."""
    return jnp.asarray(config.boxes.make((config.data.height, config.data.width)))


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training."""
    return shared.create(config, make_network(config), key)


def assign(
    config: Config, boxes: Float[Array, "objects 4"], labels: Int[Array, " objects"]
) -> tuple[Int[Array, " boxes"], Float[Array, "boxes 4"]]:
    """Returns what each default box is to say of an image: class, and codes."""
    defaults = default_boxes(config)
    overlaps = pairwise_iou(defaults, boxes)
    matched = bipartite(overlaps, labels >= 0, config.loss.overlap)
    has_object = matched >= 0
    wanted = jnp.where(has_object, labels[matched] + 1, BACKGROUND)
    # What is padded has no logarithm of its width, and boxes without an object no code.
    truth = jnp.where(has_object[:, None], boxes[matched], defaults)
    return wanted, CODER.encode(truth, defaults)


def multibox_loss(
    config: Config,
    logits: Float[Array, "batch boxes classes"],
    codes: Float[Array, "batch boxes 4"],
    wanted: Int[Array, "batch boxes"],
    target_codes: Float[Array, "batch boxes 4"],
) -> dict[str, Float[Array, ""]]:
    """Returns the loss of section 2.2 and its two parts, over the matched boxes."""
    confusion = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
    positive = wanted != BACKGROUND
    mine = jax.vmap(hard_negatives, in_axes=(0, 0, None))
    counted = positive | mine(confusion, positive, config.loss.negatives)
    matched = jnp.maximum(positive.sum(), 1)
    misplaced = smooth_l1(codes - target_codes).sum(-1)
    confidence = jnp.sum(confusion, where=counted) / matched
    location = jnp.sum(misplaced, where=positive) / matched
    loss = confidence + config.loss.location * location
    return {"loss": loss, "confidence": confidence, "location": location}


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the loss."""
    wanted, target_codes = jax.vmap(assign, in_axes=(None, 0, 0))(
        config, batch["boxes"], batch["labels"]
    )

    def loss(params):
        outputs = make_network(config).apply(
            {"params": params}, batch["image"], train=True
        )
        return multibox_loss(config, *outputs, wanted, target_codes)["loss"]

    return state.descend(loss, config.optimizer.make(config.steps))


def detect(config: Config, state: TrainState, batch: dict[str, Array]) -> Detections:
    """Returns the objects found in each image, by the paper's settings of NMS."""
    logits, codes = make_network(config).apply(
        {"params": state.params}, batch["image"], train=False
    )
    size = batch["image"].shape[1:3]
    decode = jax.vmap(CODER.decode, in_axes=(0, None))
    boxes = clip(decode(codes, default_boxes(config)), size)
    scores = jax.nn.softmax(logits)[..., 1:]
    return suppress(boxes, scores, iou=0.45, least=0.01, candidates=200)


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Any]:
    """Measures the average precisions, and what the errors cost."""
    return shared.measure(config, detect(config, state, batch), batch)


def observe(
    config: Config, state: TrainState, key: jax.Array, shown: dict[str, Array]
) -> dict[str, Array]:
    """Returns what is found in a few images of the test set, to draw."""
    return shared.kept(detect(config, state, shown), shown)


MAIN_METRIC = shared.MAIN_METRIC
_AUGMENT = "data.augment"

SWEEPS = {
    "seeds": product(seed=range(5)),
    "augmentation": product(**{_AUGMENT: ("none", "flip", "ssd"), "seed": range(5)}),
}

_WORDS = {"none": "as they are", "flip": "mirrored", "ssd": "the paper's"}


@figure(sweep="seeds")
def pictures(runs: Runs) -> Figure:
    """What is found in six photographs of the test set, beside what is in them."""
    return drawn.detections_beside_truth(
        runs[0].last_artifacts(), shared.names_in(runs)
    )


@figure(sweep="seeds")
def precision_recall(runs: Runs) -> Figure:
    """Precision over recall at an IoU of 0.5, class by class."""
    return drawn.precision_recall(runs, shared.names_in(runs))


@figure(sweep="seeds")
def errors(runs: Runs) -> Figure:
    """What each kind of error costs."""
    return drawn.errors(runs)


@figure(sweep="augmentation")
def augmentation(runs: Runs) -> Figure:
    """Average precision of each class, and of all, by how images are varied."""
    metrics = {"mean": MAIN_METRIC}
    metrics |= {name: f"{MAIN_METRIC}_{name}" for name in shared.names_in(runs)}
    fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    groups = runs.by(_AUGMENT)
    for number, (name, group) in enumerate(groups.items()):
        for place, metric in enumerate(metrics.values()):
            at = place + 0.22 * (number - (len(groups) - 1) / 2)
            label = _WORDS[name] if place == 0 else ""
            seed_points(ax, at, 100 * _finals(group, metric), f"C{number}", label)
    ax.set(xticks=range(len(metrics)), xticklabels=list(metrics))
    ax.set(ylabel="AP at IoU 0.5 on the test set, %")
    ax.set_title(f"after {runs[0].config['steps']:,} steps; a point a seed")
    ax.grid(alpha=0.3, axis="y")
    ax.legend(title="training images", loc="lower left")
    return fig


def _finals(runs: Runs, metric: str) -> Float[np.ndarray, " runs"]:
    """Returns the last values of a metric; NaN where a class has no objects."""
    rows = [{} if run.diverged else run.result["metrics"] for run in runs]
    return np.array([row.get(metric, np.nan) for row in rows], float)


FIGURES = {
    "pictures": pictures,
    "precision_recall": precision_recall,
    "errors": errors,
    "augmentation": augmentation,
}


def summary(runs: Runs) -> str:
    """Says the average precision at an IoU of 0.5 on the test set, by augmentation."""
    parts = [
        f"{_WORDS[name]} {mean_and_spread(group.final(MAIN_METRIC), scale=100)} %"
        for name, group in runs.by(_AUGMENT).items()
    ]
    return (
        f"SSD's AP at IoU 0.5 on the test set after {runs[0].config['steps']:,} steps, "
        f"training images {', '.join(parts)}."
    )
