"""What the experiments on detectors share: settings, measures, what is kept to draw."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from dl_core.config import RunConfig, config, nested, replace, static
from dl_core.data.detection import DetectionData, classes
from dl_core.metrics.detection import Detected
from dl_core.models.detection.trunk import Trunk
from dl_core.ops.boxes import Detections
from dl_core.results import Runs
from dl_core.train.optimizers import Warmed
from dl_core.train.state import TrainState

MAIN_METRIC = "test/ap50"

SMOKE = {
    "steps": 6,
    "batch_size": 4,
    "eval_every": 3,
    "log_every": 3,
    "checkpoint_every": 3,
    "data.height": 48,
    "data.width": 64,
    "data.examples": 8,
    "data.evaluated": 8,
    "trunk.width": 4,
    "trunk.features": 8,
}
"""The preset `smoke` of every detector."""
PAPER = {
    "steps": 20_000,
    "batch_size": 16,
    "eval_every": 2_000,
    "checkpoint_every": 2_000,
    "data.height": 480,
    "data.width": 640,
    "trunk.width": 64,
    "trunk.depth": 2,
    "trunk.features": 256,
    "optimizer.warmup": 500,
}
"""Of the preset `paper`: photographs at their full size, a residual network of 18
layers, some 1,500 epochs from scratch; for a GPU."""


@config
class DetectorConfig(RunConfig):
    """Settings that all detectors begin with, so that they can be compared."""

    steps: int = static(400, "Training steps.", at_least=1)
    batch_size: int = static(8, "Images in a training batch.", at_least=1)
    log_every: int = static(20, "Steps between rows of train metrics.", at_least=1)
    eval_every: int = static(200, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(200, "Steps between checkpoints.", at_least=1)
    data: DetectionData = nested(DetectionData)
    trunk: Trunk = nested(Trunk)
    optimizer: Warmed = nested(Warmed, learning_rate=2e-3, warmup=20, clip=10.0)


def names_of(config: DetectorConfig) -> tuple[str, ...]:
    """Returns the names of the classes, in the order of their labels."""
    return classes(config.data)


def names_in(runs: Runs) -> tuple[str, ...]:
    """Returns the names of the classes of the data that some runs have read."""
    fields = runs[0].config.items()
    changes = {k.removeprefix("data."): v for k, v in fields if k.startswith("data.")}
    return classes(replace(DetectionData(), changes))


def create(
    config: DetectorConfig, network: nn.Module, key: jax.Array, *inputs: Array
) -> TrainState:
    """Returns a network's state before training.

    Args:
      config: of the experiment.
      network: `(images, *inputs, train=) -> …`.
      key: of the initial weights.
      *inputs: what the network reads beside the images, of one example.
    """
    images = jnp.zeros((1, config.data.height, config.data.width, 3))
    variables = network.init(key, images, *inputs, train=False)
    return TrainState.create(variables, config.optimizer.make(config.steps))


def measure(
    config: DetectorConfig, found: Detections, batch: dict[str, Array]
) -> dict[str, Any]:
    """Returns the metrics of an evaluation: average precisions, errors.

    Args:
      config: of the experiment.
      found: in the images of the batch, in pixels of these images.
      batch: of an evaluation set.
    """
    return {"detections": Detected.of(found, batch, names_of(config))}


def kept(found: Detections, shown: dict[str, Array]) -> dict[str, Array]:
    """Returns what an experiment's `observe` keeps: images, detections, the truth.

    Args:
      found: in the shown images.
      shown: `dl_core.data.batches.Data.shown`.
    """
    truth = {name: shown[name] for name in ("image", "boxes", "labels", "difficult")}
    return truth | {f"found_{name}": x for name, x in found._asdict().items()}
