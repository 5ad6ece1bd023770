r"""Faster R-CNN: a small network proposes regions from the detector's own features.

Ren, He, Girshick & Sun, "Faster R-CNN: towards real-time object detection with region
proposal networks", NIPS 2015 (arXiv:1506.01497). On the features of the whole image
stand anchors of several sizes and shapes; the region proposal network (RPN) says which
of them hold an object, of whatever class, and moves them onto it. The best of these
boxes, after suppression, are the regions of Fast R-CNN's head. Both are trained
together, on one trunk, by the sum of four losses; no gradient goes through a box.

    python -m launch.sweep --experiment=detection.faster_rcnn --sweep=seeds \
        --executor=vmap
    python -m launch.figures --experiment=detection.faster_rcnn

Look for: in `proposals`, the share of objects among the first boxes. The RPN puts its
best boxes first, so that a hundred find nearly all objects (a photograph has 13 cells
in the mean, 28 at most); selective search, the dashed line, does not say which of its
boxes are good, and finds fewer with three hundred.

What differs from the paper: features of stride 4 instead of 16, from scratch, with a
feature pyramid below them, for cells of 10 to 50 pixels; at stride 8 a platelet often
has no anchor that overlaps it by a half. Square anchors of 10, 25 and 50 pixels, about
the medians of the three classes' sizes in the training set, as cells are about as high
as wide. Adam. The paper leaves anchors that cross the image's border out of training,
and so does `--preset=paper`; at this size half of the largest do, and all are kept. The
loss of the RPN's boxes is divided by the sampled anchors, as that of their scores,
which is about what the paper's weight of 10 does. Background in the head is any box
with an overlap below 0.5, as in the authors' code for joint training.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from dl_core.config import config, nested, replace
from dl_core.data.batches import Data
from dl_core.data.detection import detection_data
from dl_core.models.detection import fast_rcnn, rpn
from dl_core.models.detection.fast_rcnn import (
    NUMBERS,
    FeatureMap,
    Proposals,
    RegionClassifier,
    RoIHead,
)
from dl_core.models.detection.rpn import RPN, RPNHead
from dl_core.models.detection.trunk import Trunk
from dl_core.ops.boxes import Detections
from dl_core.ops.proposals import ProposalConfig, recall
from dl_core.pictures import mean_and_range
from dl_core.pictures_detection import detections_beside_truth, precision_recall
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train import detection
from dl_core.train.detection import PAPER, SMOKE, DetectorConfig
from dl_core.train.state import TrainState


@config
class Config(DetectorConfig):
    """Settings of the experiment."""

    trunk: Trunk = nested(Trunk, features=32)
    rpn: RPN = nested(RPN)
    head: RoIHead = nested(RoIHead, background=0.0)


PRESETS = {
    "smoke": {
        **SMOKE,
        "rpn.width": 8,
        "rpn.before": 60,
        "rpn.after": 20,
        "head.width": 16,
        "head.pooled": 2,
    },
    "paper": {
        **PAPER,
        "rpn.width": 512,
        "rpn.sizes": (40.0, 100.0, 200.0),
        "rpn.ratios": (0.5, 1.0, 2.0),
        "rpn.inside": True,
        "rpn.before": 2_000,
        "rpn.after": 300,
        "head.stride": 16,
        "head.pooled": 7,
        "head.width": 1_024,
    },
}


class FasterRCNN(nn.Module):
    """One trunk, and two heads upon it."""

    trunk: Trunk
    rpn: RPN
    head: RoIHead
    classes: int

    def setup(self) -> None:
        """Makes the parts, which training and detection call one by one."""
        self.features = FeatureMap(self.trunk, self.head.stride)
        self.propose = RPNHead(self.rpn)
        self.classify = RegionClassifier(self.head, self.classes)

    def __call__(
        self, images: Float[Array, "batch height width 3"], *, train: bool
    ) -> tuple[Array, ...]:
        """Runs all parts once, for their parameters; each image is the only region."""
        features = self.features(images, train=train)
        height, width = images.shape[1:3]
        whole = jnp.tile(jnp.array([0.0, 0, width, height]), (len(images), 1, 1))
        return *self.propose(features), *self.classify(features, whole)


def network(config: Config) -> FasterRCNN:
    """Returns the network of the settings."""
    classes = len(detection.names_of(config))
    return FasterRCNN(config.trunk, config.rpn, config.head, classes)


def size(config: Config) -> tuple[int, int]:
    """Returns height and width of the network's input, in pixels."""
    return config.data.height, config.data.width


def data(config: Config, data_dir: Any) -> Data:
    """Returns images with boxes."""
    return detection_data(config, data_dir)


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training."""
    return detection.create(config, network(config), key)


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the four losses' sum, of both heads."""
    image, boxes, labels = batch["image"], batch["boxes"], batch["labels"]
    anchor_keys, region_keys = jax.random.split(key, (2, len(image)))

    def loss(params):
        parts = network(config).bind({"params": params})
        features = parts.features(image, train=True)
        anchors = rpn.anchors_of(config.rpn, features, config.head.stride)
        scores, moves = parts.propose(features)
        first = jax.vmap(rpn.losses, (None, 0, 0, None, 0, 0, None, 0))(
            config.rpn, scores, moves, anchors, boxes, labels, size(config), anchor_keys
        )
        proposals = rpn.propose(config.rpn, scores, moves, anchors, size(config))
        regions = jax.vmap(fast_rcnn.sample, (None, 0, 0, 0, None, 0))(
            config.head, proposals, boxes, labels, parts.classes, region_keys
        )
        second = fast_rcnn.losses(*parts.classify(features, regions.boxes), regions)
        losses = {name: x.mean() for name, x in (first | second).items()}
        return sum(losses.values()), losses

    (total, losses), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    state = state.apply_gradients(gradients, config.optimizer.make(config.steps))
    return state, {"loss": total, **{f"loss_{k}": v for k, v in losses.items()}}


def look(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> tuple[Detections, Proposals]:
    """Returns what is found in each image, and the regions that it was sought in."""
    parts = network(config).bind({"params": state.params})
    features = parts.features(batch["image"], train=False)
    anchors = rpn.anchors_of(config.rpn, features, config.head.stride)
    proposals = rpn.propose(config.rpn, *parts.propose(features), anchors, size(config))
    said = parts.classify(features, proposals.boxes)
    return fast_rcnn.detections(config.head, *said, proposals, size(config)), proposals


def detect(config: Config, state: TrainState, batch: dict[str, Array]) -> Detections:
    """Returns what is found in each image."""
    return look(config, state, batch)[0]


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Any]:
    """Measures detections, and the recall of the first few proposals."""
    found, proposals = look(config, state, batch)
    return {
        **detection.measure(config, found, batch),
        "recall": fast_rcnn.recall(proposals, batch),
    }


def observe(
    config: Config, state: TrainState, key: jax.Array, shown: dict[str, Array]
) -> dict[str, Array]:
    """Keeps a few test images, what is there, and what is found."""
    return detection.kept(detect(config, state, shown), shown)


MAIN_METRIC = detection.MAIN_METRIC

SWEEPS = {"seeds": product(seed=range(5))}


def _settings(runs: Runs) -> Config:
    return replace(Config(), runs[0].config)


def selective_search_recall(
    config: Config, numbers: Sequence[int]
) -> Float[np.ndarray, " numbers"]:
    """Returns the share of the test objects that selective search's first boxes cover.

    Args:
      config: its data set.
      numbers: how many boxes of an image count.
    """
    search = ProposalConfig(most=max(numbers))
    test = detection_data(config, None, proposals=search).evaluation["test"].resident
    names = "proposals", "proposal_mask", "boxes"
    found = (test[name] for name in names)
    return recall(*found, test["labels"] >= 0, numbers)


def _recalls(runs: Runs) -> list[Float[np.ndarray, " numbers"]]:
    return [np.array(run.final("test/recall")) for run in runs if not run.diverged]


@figure(sweep="seeds")
def pictures(runs: Runs) -> Figure:
    """What the first seed's detector finds in a few test images, beside the truth."""
    return detections_beside_truth(runs[0].last_artifacts(), detection.names_in(runs))


@figure(sweep="seeds")
def precision(runs: Runs) -> Figure:
    """Precision over recall at an IoU of 0.5, class by class."""
    return precision_recall(runs, detection.names_in(runs))


@figure(sweep="seeds")
def proposals(runs: Runs) -> Figure:
    """Recall of the first few proposals; dashed that of selective search."""
    fig, ax = plt.subplots(figsize=(5.5, 4), layout="constrained")
    most = runs[0].config["rpn.after"]
    numbers = [number for number in NUMBERS if number <= most]
    if recalls := _recalls(runs):
        shares = np.array(recalls)[:, : len(numbers)]
        text = "region proposal network"
        mean_and_range(ax, numbers, shares, "o-", ms=4, color="C0", label=text)
    searched = selective_search_recall(_settings(runs), NUMBERS)
    ax.plot(NUMBERS, searched, "--", color="grey", label="selective search")
    ax.set(ylabel="share of objects at IoU 0.5", ylim=(0, 1.02))
    ax.set(xscale="log", xticks=NUMBERS, xticklabels=NUMBERS)
    ax.set_xlabel("proposals of an image")
    ax.set_title("recall of proposals (mean and range over seeds)", fontsize=10)
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend()
    return fig


FIGURES = {
    "pictures": pictures,
    "precision_recall": precision,
    "proposals": proposals,
}


def summary(runs: Runs) -> str:
    """Returns average precision, and the recall of the proposals."""
    ap50, ap75 = (
        mean_and_spread(runs.final(metric), scale=100, unit=" %")
        for metric in (MAIN_METRIC, "test/ap75")
    )
    recalls = [recalls[-1] for recalls in _recalls(runs)]
    found = mean_and_spread(recalls or [np.nan], scale=100, unit=" %")
    return (
        f"Faster R-CNN's AP on the test set after {runs[0].config['steps']:,} steps, "
        f"{len(runs)} seeds: {ap50} at IoU 0.5, {ap75} at 0.75; of the objects {found} "
        f"are among {runs[0].config['rpn.after']} proposals."
    )
