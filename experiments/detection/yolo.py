r"""YOLO: one look says all boxes of an image; what each trick of two papers is worth.

Redmon, Divvala, Girshick & Farhadi, "You only look once: unified, real-time object
detection", CVPR 2016 (v1); Redmon & Farhadi, "YOLO9000: better, faster, stronger", CVPR
2017 (v2). Each cell of a grid has a few predictors of a box, how sure they are of it,
and its class; a cell answers for the object whose centre it holds, by the predictor
whose box is best. The loss is v1's sum of squares, equation 3. Each trick is a field of
the config: of v1 the two weights λ, the roots of sizes, the IoU as confidence, two
predictors, the leaky rectifier, dropout, augmentation and the warm-up; of v2 priors by
k-means, the sigmoid on the centre's place, classes for each box and the passthrough.

    python -m launch.sweep --experiment=detection.yolo --sweep=seeds --executor=vmap
    python -m launch.sweep --experiment=detection.yolo --sweep=tricks --executor=vmap
    python -m launch.figures --experiment=detection.yolo

Look for: in `tricks`, the average precision with one trick changed at a time, around
that of the default. In so short a training the weights λ, a leaky rectifier and direct
location help, as the papers say. Others cost: a confidence that must be the IoU, itself
still learned, augmentation, a second predictor, classes for each box; roots and priors
change nothing beyond the spread. Dropout costs most.

What differs from the papers: there is no fully connected layer, hence no dropout, which
followed one, unless asked for; no pretraining; and the trunk is that of all detectors
here, whose pyramid brings far context to the grid. The grid has 15 × 20 cells of 8
pixels, where v1 has 7 × 7 of 64 on 448 pixels, as cells of blood are small and many:
with 16 pixels 46 of the 2,804 training objects would share a cell with one before them,
which the grid then cannot say; with 8 it is 5. Sizes are in units of seven cells, v1's
image. Classes and confidences are linear and under squares in all variants, as in v1,
and the predictor with the highest IoU answers, where v2 has a softmax, a sigmoid, and
the prior nearest in shape. Adam with a cosine takes the place of momentum with stairs.
Other data have other priors: `dl_core.ops.yolo.cluster_sizes` finds those for
`--config.model.priors=`.
"""

from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

from dl_core.config import config, nested
from dl_core.data.batches import Data
from dl_core.data.detection import DetectionData, detection_data
from dl_core.models.detection import yolo
from dl_core.models.detection.yolo import PRIORS, Network, Weights, Yolo
from dl_core.ops.boxes import Detections
from dl_core.pictures_detection import detections_beside_truth, precision_recall
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import Point, chain, product
from dl_core.train import detection
from dl_core.train.detection import PAPER, SMOKE, DetectorConfig
from dl_core.train.state import TrainState


@config
class Config(DetectorConfig):
    """Settings of the experiment."""

    data: DetectionData = nested(DetectionData, augment="yolo")
    model: Network = nested(Network)
    loss: Weights = nested(Weights)


PRESETS = {
    "smoke": SMOKE,
    "paper": {**PAPER, "model.stride": 32, "trunk.features": 512},
}


def network(config: Config) -> Yolo:
    """Returns the network of the settings."""
    return Yolo(config.trunk, config.model, len(detection.names_of(config)))


def size(config: Config) -> tuple[int, int]:
    """Returns height and width of the network's input, in pixels."""
    return config.data.height, config.data.width


def data(config: Config, data_dir: Any) -> Data:
    """Returns images with boxes."""
    config.model.check()
    return detection_data(config, data_dir)


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training."""
    return detection.create(config, network(config), key)


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of equation 3, of the images' mean."""

    def loss(params):
        said = network(config).apply(
            {"params": params}, batch["image"], train=True, rngs={"dropout": key}
        )
        parts = yolo.loss(
            said,
            batch["boxes"],
            batch["labels"],
            config.model,
            config.loss,
        )
        parts = {name: part.mean() for name, part in parts.items()}
        return sum(parts.values()), parts

    (total, parts), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    state = state.apply_gradients(gradients, config.optimizer.make(config.steps))
    return state, {"loss": total, **{f"loss_{k}": v for k, v in parts.items()}}


def detect(config: Config, state: TrainState, batch: dict[str, Array]) -> Detections:
    """Returns what is found in each image."""
    said = network(config).apply({"params": state.params}, batch["image"], train=False)
    return yolo.detections(said, size(config), config.model)


def eval_step(
    config: Config, state: TrainState, batch: dict[str, Array]
) -> dict[str, Any]:
    """Measures detections."""
    return detection.measure(config, detect(config, state, batch), batch)


def observe(
    config: Config, state: TrainState, key: jax.Array, shown: dict[str, Array]
) -> dict[str, Array]:
    """Keeps a few test images, what is there, and what is found."""
    return detection.kept(detect(config, state, shown), shown)


MAIN_METRIC = detection.MAIN_METRIC

TRICKS: dict[str, Point] = {
    "without λ_coord = 5": {"loss.coordinates": 1.0},
    "without λ_noobj = 0.5": {"loss.no_object": 1.0},
    "without roots of sizes": {"model.size_power": 1.0},
    "confidence is 1, not IoU": {"loss.overlap": 0.0},
    "rectifier, not leaky": {"model.leak": 0.0},
    "with dropout (v1)": {"model.dropout": 0.5},
    "without augmentation": {
        "data.scaling": 0.0,
        "data.translation": 0.0,
        "data.saturation": 1.0,
        "data.exposure": 1.0,
    },
    "one predictor, not two": {"model.predictors": 1, "model.priors": PRIORS[1]},
    "without priors (v2)": {"model.priors": ()},
    "without direct location (v2)": {"model.direct": False},
    "classes by cell, not box (v2)": {"model.class_per_box": False},
}
"""What changes one trick of the default. The first seven need no other program."""

SWEEPS = {
    "seeds": product(seed=range(5)),
    "tricks": product(chain(({},), tuple(TRICKS.values())), seed=range(5)),
}


def with_all(runs: Runs) -> Runs:
    """Returns the runs of the default tricks."""
    taken = {id(run) for point in TRICKS.values() for run in runs.where(**point)}
    return Runs(run for run in runs if id(run) not in taken)


def changes(runs: Runs, metric: str = MAIN_METRIC) -> dict[str, np.ndarray]:
    """Returns what changing each trick changes, for each seed.

    The change is to the mean over seeds of the runs with the default tricks.
    """
    finals = with_all(runs).final(metric)
    finite = finals[np.isfinite(finals)]
    mean = finite.mean() if len(finite) else np.nan
    values = {name: runs.where(**point).final(metric) for name, point in TRICKS.items()}
    return {name: value - mean for name, value in values.items() if len(value)}


@figure(sweep="tricks")
def tricks(runs: Runs) -> Figure:
    """Test AP50 with one trick changed, a point a seed, around that of the default."""
    everything = 100 * with_all(runs).final(MAIN_METRIC)
    everything = everything[np.isfinite(everything)]
    fig, ax = plt.subplots(figsize=(7.5, 5), layout="constrained")
    if len(everything):
        ax.axvspan(everything.min(), everything.max(), color="grey", alpha=0.2, lw=0)
        ax.axvline(everything.mean(), color="grey", ls="--", label="the default")
        ax.legend(loc="lower left")
    for row, (name, point) in enumerate(TRICKS.items()):
        values = 100 * runs.where(**point).final(MAIN_METRIC)
        finite = values[np.isfinite(values)]
        color = "C1" if name.endswith("(v2)") else "C0"
        ax.plot(finite, [row] * len(finite), "o", ms=4, color=color, alpha=0.6)
        if len(finite):
            ax.plot([finite.mean()], [row], "|", ms=14, mew=2.5, color=color)
        if lost := len(values) - len(finite):
            place = ax.get_yaxis_transform()
            ax.text(0.99, row, f"{lost} div.", transform=place, ha="right", fontsize=7)
    ax.set(yticks=range(len(TRICKS)), yticklabels=list(TRICKS))
    ax.invert_yaxis()
    ax.set(xlabel="test AP50, %")
    ax.set_title(
        f"after {runs[0].config['steps']:,} steps: a point a seed, a bar their mean"
    )
    ax.grid(alpha=0.3, axis="x")
    return fig


@figure(sweep="seeds")
def pictures(runs: Runs) -> Figure:
    """Detections in test images beside what is there."""
    return detections_beside_truth(
        runs[0].last_artifacts(), detection.names_in(runs), least_score=0.2
    )


@figure(sweep="seeds")
def precision_and_recall(runs: Runs) -> Figure:
    """Precision over recall of each class."""
    return precision_recall(runs, detection.names_in(runs))


FIGURES = {
    "pictures": pictures,
    "precision_recall": precision_and_recall,
    "tricks": tricks,
}


def summary(runs: Runs) -> str:
    """Returns AP50 on the test images, and what each trick changes."""
    everything = mean_and_spread(
        with_all(runs).final(MAIN_METRIC), scale=100, unit=" %"
    )
    text = (
        f"Test AP50 after {runs[0].config['steps']:,} steps, "
        f"{len(runs.values('seed'))} seeds: {everything}"
    )
    parts = [
        f"{name}: {mean_and_spread(change, scale=100)}"
        for name, change in changes(runs).items()
    ]
    return f"{text}; points more or less {'; '.join(parts)}." if parts else f"{text}."
