r"""RetinaNet: the focal loss lets a dense one-stage detector learn from every anchor.

Lin, Goyal, Girshick, He & Dollár, "Focal loss for dense object detection", ICCV 2017
(arXiv:1708.02002). Thousands of anchors, of which a hundredth hold an object, all count
in the loss, as -α_t (1 - p_t)^γ log p_t: what is known already counts little, so that
the many easy backgrounds do not drown the few objects. With γ = 0 this is
cross-entropy. The bias of the last layer says at first that an object is improbable
(section 3.3), or the backgrounds would rule the first steps.

    python -m launch.sweep --experiment=detection.retinanet --sweep=seeds \
        --executor=vmap
    python -m launch.figures --experiment=detection.retinanet

Look for: how near a few hundred steps of a dense detector come to others of its size,
class by class. `detection.class_imbalance` varies γ, and what else there is against the
backgrounds' number.

What differs from the paper: maps of stride 4 to 16, as the cells are of 10 to 50
pixels; three anchors a place instead of nine, all square, as most cells have
sides of a ratio between 2/3 and 3/2 (in the training set); subnets of two convolutions
instead of four, with group normalisation, from scratch; Adam. The anchor that overlaps
an object most learns it even below an IoU of 0.5, as in torchvision's RetinaNet.
`--preset=paper` has the paper's anchors and subnets.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from dl_core.config import config, nested, traced
from dl_core.data.batches import Data
from dl_core.data.detection import detection_data
from dl_core.models.detection import retinanet
from dl_core.models.detection.retinanet import Head, RetinaNet
from dl_core.models.detection.trunk import Trunk
from dl_core.ops.boxes import Detections
from dl_core.ops.losses import sigmoid_focal
from dl_core.pictures_detection import detections_beside_truth, precision_recall
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product
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

SWEEPS = {"seeds": product(seed=range(5))}


@figure(sweep="seeds")
def pictures(runs: Runs) -> Figure:
    """Detections of one run beside the truth."""
    run = next((run for run in runs if not run.diverged), runs[0])
    return detections_beside_truth(run.last_artifacts(), detection.names_in(runs))


@figure(sweep="seeds")
def curves(runs: Runs) -> Figure:
    """Precision over recall for each class."""
    return precision_recall(runs, detection.names_in(runs))


FIGURES = {"pictures": pictures, "precision_recall": curves}


def summary(runs: Runs) -> str:
    """Returns the average precision on the test set."""
    ap50, ap = (
        mean_and_spread(runs.final(metric), scale=100, unit=" %")
        for metric in (MAIN_METRIC, "test/ap")
    )
    return (
        f"RetinaNet's AP at IoU 0.5 on the test set after "
        f"{runs[0].config['steps']:,} steps, {len(runs)} seeds: {ap50} (COCO AP {ap})."
    )
