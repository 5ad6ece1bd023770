r"""R-CNN: proposals warped to one size, a network, SVMs and box regression, in stages.

Girshick, Donahue, Darrell & Malik, "Rich feature hierarchies for accurate object
detection and semantic segmentation", CVPR 2014 (arXiv:1311.2524). Selective search
proposes boxes. Then three trainings follow each other, each on what the one before has
left:

finetune  a network classifies warped proposals: objects' from an IoU of 0.5 on, a
          quarter of those it sees, and background
svm       a linear support vector machine for each class, on the network's features of
          the objects' own boxes and of hard negatives below an IoU of 0.3
boxes     ridge regression from the last features with places to where the box should
          be, for each class, on proposals from an IoU of 0.6 on

The network sees each proposal by itself, at training and at test: the slowness that
Fast R-CNN ended.

    python -m launch.sweep --experiment=detection.rcnn --sweep=seeds --executor=vmap
    python -m launch.figures --experiment=detection.rcnn

Look for: what each stage adds (`stages`). The machines are level with the softmax; box
regression adds 5 points, about the paper's 4.3 on VOC 2007 (54.2 to 58.5). No stage can
find what no proposal covers: recall of red cells ends at 0.85. `--preset=paper` has
2,000 proposals of a full-size photograph, each seen by a wider network.

What differs from the paper: no pretrained network, but the trunk's first stages of all
detectors here, from scratch, on regions of 32 × 32 pixels; Adam; mirrored images in all
stages; positives are gathered in the same pass over the images as hard negatives, both
into a memory of fixed size, where the authors have all proposals' features on disk.
C, λ, and what weighs positives, bias and features are the authors' (`rbgirshick/rcnn`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Int, PyTree
from matplotlib.figure import Figure

from dl_core import pictures_detection
from dl_core.config import config, nested, static
from dl_core.data.batches import Data
from dl_core.data.detection import detection_data
from dl_core.experiment import Stage
from dl_core.models.detection import fast_rcnn, rcnn
from dl_core.models.detection.rcnn import BoxRidge, RegionNet, Regression, Seen
from dl_core.models.detection.rcnn_svm import SVM, Machines, Memory, refit, remember
from dl_core.ops.boxes import Detections
from dl_core.ops.proposals import ProposalConfig
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import product
from dl_core.train import detection
from dl_core.train.detection import PAPER, SMOKE, DetectorConfig
from dl_core.train.state import TrainState


@config
class Config(DetectorConfig):
    """Settings of the experiment; `steps` are those of the network's training."""

    eval_every: int = static(400, "Steps between evaluations.", at_least=1)
    proposals: ProposalConfig = nested(ProposalConfig)
    regions: RegionNet = nested(RegionNet)
    svm: SVM = nested(SVM)
    boxes: BoxRidge = nested(BoxRidge)


PRESETS = {
    "smoke": {
        **SMOKE,
        "proposals.most": 20,
        "regions.size": 16,
        "regions.width": 8,
        "regions.samples": 8,
        "svm.steps": 3,
        "svm.fit_every": 2,
        "svm.positives": 64,
        "svm.negatives": 32,
        "boxes.steps": 2,
    },
    "paper": {
        **PAPER,
        "proposals.most": 2_000,
        "batch_size": 4,
        "regions.size": 48,
        "regions.context": 3,
        "regions.width": 1_024,
        "regions.samples": 64,
        "svm.steps": 52,
        "svm.negatives": 65_536,
        "boxes.steps": 52,
    },
}


@struct.dataclass
class Classified:
    """The state of the second stage: the network's machines, and what they remember."""

    step: Int[Array, ""]
    params: PyTree
    machines: Machines
    positives: Memory
    negatives: Memory


@struct.dataclass
class Moved:
    """The state of the third stage: all that detects."""

    step: Int[Array, ""]
    params: PyTree
    machines: Machines
    regression: Regression


def data(config: Config, data_dir: Any) -> Data:
    """Returns images with boxes and proposals, the same for all stages."""
    return detection_data(config, data_dir, proposals=config.proposals)


def look(config: Config, params: PyTree, images: Array, boxes: Array) -> Seen:
    """Returns what the network makes of regions of each image."""
    classes = len(detection.names_of(config))
    return rcnn.look(config.regions, config.trunk, classes, params, images, boxes)


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training."""
    classes = len(detection.names_of(config))
    network = rcnn.RegionClassifier(config.trunk, config.regions.width, classes)
    size = config.regions.size
    variables = network.init(key, jnp.zeros((1, size, size, 3)))
    return TrainState.create(variables, config.optimizer.make(config.steps))


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the cross-entropy of a sample of regions of each image."""
    classes = len(detection.names_of(config))
    regions = rcnn.sample(config.regions, batch, classes, key)

    def loss(params):
        logits = look(config, params, batch["image"], regions.boxes).logits
        entropy = optax.softmax_cross_entropy_with_integer_labels(
            logits, regions.labels
        )
        return jnp.sum(entropy * regions.weights) / jnp.maximum(
            regions.weights.sum(), 1
        )

    return state.descend(loss, config.optimizer.make(config.steps))


def init_svm(config: Config, key: jax.Array, previous: TrainState) -> Classified:
    """Returns machines that know nothing and remember nothing."""
    classes, width = len(detection.names_of(config)), config.regions.width
    machines = Machines(
        jnp.float32(1), jnp.zeros((classes, width)), jnp.full(classes, -1.0)
    )
    return Classified(
        jnp.int32(0),
        previous.params,
        machines,
        Memory.empty(classes, config.svm.positives, width),
        Memory.empty(classes, config.svm.negatives, width),
    )


def svm_step(
    config: Config, state: Classified, batch: dict[str, Array], key: jax.Array
) -> tuple[Classified, dict[str, Array]]:
    """Remembers the hardest regions of a batch; fits the machines when it is time."""
    del key
    mask, machines = batch["proposal_mask"], state.machines
    objects = look(config, state.params, batch["image"], batch["boxes"]).fc7
    others = look(config, state.params, batch["image"], batch["proposals"]).fc7
    scale = rcnn.NORM / rcnn.mean_norm(others, mask)
    scale = jnp.where(state.step == 0, scale, machines.scale)
    machines = machines.replace(scale=scale)

    overlaps = rcnn.overlap_by_class(batch["proposals"], batch, len(machines.bias))
    positives, negatives, forgotten = remember(
        config.svm,
        machines,
        (state.positives, state.negatives),
        (objects, others),
        overlaps,
        batch,
    )
    now = (state.step % config.svm.fit_every == 0) | (
        state.step == config.svm.steps - 1
    )
    machines = refit(config.svm, machines, positives, negatives, now)
    metrics = {
        "positives": (positives.keys >= 0).sum(),
        "negatives": (negatives.keys >= 0).sum(),
        "forgotten": forgotten,
    }
    state = state.replace(
        step=state.step + 1,
        machines=machines,
        positives=positives,
        negatives=negatives,
    )
    return state, metrics


def init_boxes(config: Config, key: jax.Array, previous: Classified) -> Moved:
    """Returns machines whose boxes are not moved yet."""
    size = -(-config.regions.size // 8)  # Three halvings.
    pooled = size * size * 4 * config.trunk.width
    regression = Regression.zeros(len(previous.machines.bias), pooled)
    return Moved(jnp.int32(0), previous.params, previous.machines, regression)


def boxes_step(
    config: Config, state: Moved, batch: dict[str, Array], key: jax.Array
) -> tuple[Moved, dict[str, Array]]:
    """Fits the regression to a further batch of images."""
    del key
    pool5 = look(config, state.params, batch["image"], batch["proposals"]).pool5
    scale = rcnn.NORM / rcnn.mean_norm(pool5, batch["proposal_mask"])
    scale = jnp.where(state.step == 0, scale, state.regression.scale)
    regression = state.regression.replace(scale=scale)
    regression = regression.fitted_to(config.boxes, pool5, batch)
    state = state.replace(step=state.step + 1, regression=regression)
    return state, {"examples": regression.products[:, -1, -1].sum()}


def by_softmax(config: Config, batch: dict[str, Array], seen: Seen) -> Detections:
    """Returns what the network finds by itself."""
    scores = jax.nn.softmax(seen.logits)[..., :-1]
    return _detections(config, batch, scores, batch["proposals"])


def by_machines(
    config: Config,
    batch: dict[str, Array],
    seen: Seen,
    machines: Machines,
    boxes: Array | None = None,
) -> Detections:
    """Returns what the machines find, in boxes that may be moved.

    A machine's score s becomes σ(s), which orders alike: 0.5 is its boundary.
    """
    scores = jax.nn.sigmoid(machines.scores(seen.fc7))
    boxes = batch["proposals"] if boxes is None else boxes
    return _detections(config, batch, scores, boxes)


def _detections(config, batch, scores, boxes):
    size = config.data.height, config.data.width
    return rcnn.detections(config.regions, scores, boxes, batch["proposal_mask"], size)


def detect(config: Config, state: Moved, batch: dict[str, Array]) -> Detections:
    """Returns what is found in each image, of which the batch holds the proposals."""
    seen = look(config, state.params, batch["image"], batch["proposals"])
    boxes = state.regression.moved(seen.pool5, batch["proposals"])
    return by_machines(config, batch, seen, state.machines, boxes)


def eval_finetune(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Any]:
    """Measures what the network finds by itself."""
    seen = look(config, state.params, batch["image"], batch["proposals"])
    return detection.measure(config, by_softmax(config, batch, seen), batch)


def eval_svm(
    config: Config, state: Classified, batch: dict[str, Array]
) -> dict[str, Any]:
    """Measures what the machines find."""
    seen = look(config, state.params, batch["image"], batch["proposals"])
    found = by_machines(config, batch, seen, state.machines)
    return detection.measure(config, found, batch)


def eval_boxes(config: Config, state: Moved, batch: dict[str, Array]) -> dict[str, Any]:
    """Measures detections, and those of the stages before beside them."""
    seen = look(config, state.params, batch["image"], batch["proposals"])
    boxes = state.regression.moved(seen.pool5, batch["proposals"])
    names = detection.names_of(config)
    earlier = {
        "finetune": by_softmax(config, batch, seen),
        "svm": by_machines(config, batch, seen, state.machines),
    }
    found = by_machines(config, batch, seen, state.machines, boxes)
    return {
        **detection.measure(config, found, batch),
        **{
            stage: rcnn.StageAP.of(each, batch, names).replace(stage=stage)
            for stage, each in earlier.items()
        },
        "recall": fast_rcnn.recall(rcnn.proposals_of(batch), batch),
    }


def observe(
    config: Config, state: Moved, key: jax.Array, shown: dict[str, Array]
) -> dict[str, Array]:
    """Keeps a few test images, what is there, and what is found."""
    return detection.kept(detect(config, state, shown), shown)


def _svm_steps(config: Config) -> int:
    return config.svm.steps


def _boxes_steps(config: Config) -> int:
    return config.boxes.steps


_SVM = {"name": "svm", "steps": _svm_steps}
_BOXES = {"name": "boxes", "steps": _boxes_steps, "observe": observe}

STAGES = (
    Stage(init, train_step, eval_finetune, data, name="finetune"),
    Stage(init_svm, svm_step, eval_svm, data, **_SVM),
    Stage(init_boxes, boxes_step, eval_boxes, data, **_BOXES),
)
MAIN_METRIC = detection.MAIN_METRIC

SWEEPS = {"seeds": product(seed=range(5))}

_STAGES = {
    "test/ap50_after_finetune": "network\n(softmax)",
    "test/ap50_after_svm": "machines\n(SVM)",
    MAIN_METRIC: "machines and\nbox regression",
}


@figure(sweep="seeds")
def pictures(runs: Runs) -> Figure:
    """Test images: what is in them, and what was found, right and wrong."""
    run = next((run for run in runs if not run.diverged), runs[0])
    return pictures_detection.detections_beside_truth(
        run.last_artifacts(), detection.names_in(runs)
    )


@figure(sweep="seeds")
def precision_recall(runs: Runs) -> Figure:
    """Precision over recall of each class: mean and range over seeds."""
    return pictures_detection.precision_recall(runs, detection.names_in(runs))


@figure(sweep="seeds")
def stages(runs: Runs) -> Figure:
    """Average precision after each stage, seed by seed."""
    fig, ax = plt.subplots(figsize=(5.5, 4), layout="constrained")
    finals = np.stack([runs.final(metric) for metric in _STAGES])
    for values in finals.T:
        ax.plot(range(len(finals)), values, "o-", color="C0", alpha=0.3, ms=4)
    kept = finals[:, np.isfinite(finals).all(0)]
    if kept.size:
        ax.plot(
            range(len(finals)), kept.mean(1), "s-", color="C0", label="mean of seeds"
        )
        ax.legend(loc="lower right")
    ax.set_xticks(range(len(finals)), _STAGES.values())
    ax.set(ylabel="AP at an IoU of 0.5, test", xlim=(-0.3, len(finals) - 0.7))
    ax.set_title("after each stage (a line a seed)")
    ax.grid(axis="y", alpha=0.3)
    return fig


FIGURES = {
    "pictures": pictures,
    "precision_recall": precision_recall,
    "stages": stages,
}


def summary(runs: Runs) -> str:
    """Returns average precision after each stage."""
    parts = (
        f"{mean_and_spread(runs.final(metric), scale=100)} by the "
        f"{name.replace(chr(10), ' ')}"
        for metric, name in _STAGES.items()
    )
    return (
        f"AP at an IoU of 0.5 in per cent on test images, {len(runs.values('seed'))} "
        f"seeds: {', '.join(parts)}."
    )
