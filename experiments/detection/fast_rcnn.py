r"""Fast R-CNN: the trunk sees the image once, and the head each proposal's features.

Girshick, "Fast R-CNN", ICCV 2015 (arXiv:1504.08083). Proposals come from selective
search, beforehand. The features of the whole image are computed once; each proposal is
pooled from them to one size (RoI pooling) and classified by two dense layers, which
also say, class by class, how its box is to be moved. All is trained at once, by
cross-entropy and smooth l1 on 64 regions of each image, of which up to a quarter are
objects' (IoU of 0.5 or more) and the others background (from 0.1 to 0.5): R-CNN takes
three trainings for that, and one pass of the network for each proposal.

    python -m launch.sweep --experiment=detection.fast_rcnn --sweep=seeds \
        --executor=vmap
    python -m launch.sweep --experiment=detection.fast_rcnn --sweep=pooling \
        --executor=vmap
    python -m launch.figures --experiment=detection.fast_rcnn

Look for: in `recall`, what share of the objects a number of proposals covers (drawn at
random, as selective search does not say which are good): about what the detector can
find, which moves boxes but makes none. In `pooling`, what the rounding to whole places
of the features costs where these are 4 pixels apart and a platelet is 10 wide: RoI
pooling rounds, and loses 4 points at an IoU of 0.5 and 7 at 0.75 to RoI align, which
interpolates (He et al., "Mask R-CNN", ICCV 2017). Its first version, off by half a
place, here 2 pixels of the image, is within the spread of the second.

What differs from the paper: features of stride 4 instead of 16, from scratch, with a
feature pyramid below them, for cells of 10 to 50 pixels; Adam; batches of 8 images
instead of 2 (in `pooling` of 4, so that its runs take minutes); no dropout. RoI align
is the default, which `pooling` compares with the paper's RoI pooling. `--preset=paper`
has the paper's pooling, to 7 × 7, from stride 16.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from dl_core.config import config, nested
from dl_core.data.batches import Data
from dl_core.data.detection import detection_data
from dl_core.models.detection import fast_rcnn
from dl_core.models.detection.fast_rcnn import (
    NUMBERS,
    FeatureMap,
    Proposals,
    RegionClassifier,
    RoIHead,
)
from dl_core.models.detection.trunk import Trunk
from dl_core.ops.boxes import Detections
from dl_core.ops.proposals import ProposalConfig
from dl_core.pictures import finals
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
    proposals: ProposalConfig = nested(ProposalConfig)
    head: RoIHead = nested(RoIHead)


PRESETS = {
    "smoke": {
        **SMOKE,
        "proposals.most": 20,
        "head.width": 16,
        "head.pooled": 2,
    },
    "paper": {
        **PAPER,
        "proposals.most": 2_000,
        "head.stride": 16,
        "head.pooling": "pool",
        "head.pooled": 7,
        "head.width": 1_024,
    },
}


class FastRCNN(nn.Module):
    """A trunk for the image, and a head for each region."""

    trunk: Trunk
    head: RoIHead
    classes: int

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        boxes: Float[Array, "batch n 4"],
        *,
        train: bool,
    ) -> tuple[Float[Array, "batch n logits"], Float[Array, "batch n classes 4"]]:
        """Returns the logits of each region, background's last, and its codes."""
        features = FeatureMap(self.trunk, self.head.stride)(images, train=train)
        return RegionClassifier(self.head, self.classes)(features, boxes)


def network(config: Config) -> FastRCNN:
    """Returns the network of the settings."""
    return FastRCNN(config.trunk, config.head, len(detection.names_of(config)))


def proposals_of(batch: dict[str, Array]) -> Proposals:
    """Returns the proposals of a batch."""
    return Proposals(batch["proposals"], batch["proposal_mask"])


def data(config: Config, data_dir: Any) -> Data:
    """Returns images with boxes and proposals."""
    return detection_data(config, data_dir, proposals=config.proposals)


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training."""
    return detection.create(config, network(config), key, jnp.zeros((1, 1, 4)))


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the loss of a sample of regions."""
    model = network(config)
    keys = jax.random.split(key, len(batch["image"]))
    regions = jax.vmap(fast_rcnn.sample, (None, 0, 0, 0, None, 0))(
        config.head,
        proposals_of(batch),
        batch["boxes"],
        batch["labels"],
        model.classes,
        keys,
    )

    def loss(params):
        said = model.apply(
            {"params": params}, batch["image"], regions.boxes, train=True
        )
        losses = fast_rcnn.losses(*said, regions)
        return sum(losses.values()), losses

    (total, losses), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    state = state.apply_gradients(gradients, config.optimizer.make(config.steps))
    return state, {"loss": total, **{f"loss_{k}": v for k, v in losses.items()}}


def detect(config: Config, state: TrainState, batch: dict[str, Array]) -> Detections:
    """Returns what is found in each image, of which the batch holds the proposals."""
    proposals = proposals_of(batch)
    said = network(config).apply(
        {"params": state.params}, batch["image"], proposals.boxes, train=False
    )
    size = config.data.height, config.data.width
    return fast_rcnn.detections(config.head, *said, proposals, size)


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Any]:
    """Measures detections, and the recall of the first few proposals."""
    found = detect(config, state, batch)
    return {
        **detection.measure(config, found, batch),
        "recall": fast_rcnn.recall(proposals_of(batch), batch),
    }


def observe(
    config: Config, state: TrainState, key: jax.Array, shown: dict[str, Array]
) -> dict[str, Array]:
    """Keeps a few test images, what is there, and what is found."""
    return detection.kept(detect(config, state, shown), shown)


MAIN_METRIC = detection.MAIN_METRIC
_POOLING = "head.pooling"

SWEEPS = {
    "seeds": product(seed=range(5)),
    "pooling": product(
        **{_POOLING: ("pool", "align", "align_shifted"), "batch_size": (4,)},
        seed=range(5),
    ),
}

_POOLINGS = {"pool": "RoI pool", "align": "RoI align", "align_shifted": "shifted"}


@figure(sweep="seeds")
def pictures(runs: Runs) -> Figure:
    """What the first seed's detector finds in a few test images, beside the truth."""
    return detections_beside_truth(runs[0].last_artifacts(), detection.names_in(runs))


@figure(sweep="seeds")
def precision(runs: Runs) -> Figure:
    """Precision over recall at an IoU of 0.5, class by class."""
    return precision_recall(runs, detection.names_in(runs))


@figure(sweep="seeds")
def recall(runs: Runs) -> Figure:
    """The share of the test objects that the first few proposals cover."""
    fig, ax = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
    most = runs[0].config["proposals.most"]
    numbers = [number for number in NUMBERS if number <= most]
    found = [run.series("test/recall")[1][-1] for run in runs if not run.diverged]
    for share in found[:1]:  # It is the same for all seeds.
        text = "selective search"
        ax.plot(numbers, share[: len(numbers)], "o-", color="C0", ms=4, label=text)
    ax.set(xscale="log", xticks=numbers, xticklabels=numbers, ylim=(0, 1.02))
    ax.minorticks_off()
    ax.set(xlabel="proposals of an image", ylabel="share of objects at IoU 0.5")
    ax.grid(alpha=0.3)
    return fig


@figure(sweep="pooling")
def pooling(runs: Runs) -> Figure:
    """Average precision of ways to pool: at one overlap, at a tighter, in the mean."""
    measures = {
        "AP at IoU 0.5, %": ("test/ap50", 100, "C0"),
        "AP at IoU 0.75, %": ("test/ap75", 100, "C1"),
        "AP, mean of IoU 0.5 to 0.95, %": ("test/ap", 100, "C2"),
    }
    fig = finals(runs, _POOLING, "", measures)
    for ax in fig.axes:
        ax.set_xticklabels([_POOLINGS[name] for name in runs.values(_POOLING)])
    return fig


FIGURES = {
    "pictures": pictures,
    "precision_recall": precision,
    "recall": recall,
    "pooling": pooling,
}


def summary(runs: Runs) -> str:
    """Returns the average precision of each way to pool."""
    parts = []
    for name, group in runs.by(_POOLING).items():
        ap50, ap75 = (
            mean_and_spread(group.final(metric), scale=100, unit=" %")
            for metric in (MAIN_METRIC, "test/ap75")
        )
        parts.append(f"{_POOLINGS[name]}: {ap50} at IoU 0.5, {ap75} at 0.75")
    return (
        f"Test AP after {runs[0].config['steps']:,} steps, "
        f"{len(runs.values('seed'))} seeds; {'; '.join(parts)}."
    )
