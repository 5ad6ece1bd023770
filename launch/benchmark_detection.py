"""The benchmark of object detection: others' time over ours, for each of its parts.

Suppression of boxes and RoI align for a batch against ONNX Runtime, which has a thread
for each core of this process; COCO's measure of 5,000 images against pycocotools; a
step of training SSD against one in torch, from the same weights and on the same batch.
Each takes its arrays in its own layout. The others come with the test tools
(`pip install -e .[test]`).
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from dl_core.errors import UserError
from dl_core.ops.nms import nms
from dl_core.ops.roi import roi_align
from launch import benchmark_detection_measure
from launch.benchmark_conv import measure, require_torch, spread


@dataclasses.dataclass(frozen=True)
class Suppression:
    """Lists of boxes, of which the best stay that do not overlap."""

    threshold: float
    most: int
    lists: int = 8
    boxes: int = 2_000

    def __str__(self) -> str:
        lists = f"{self.lists}×{self.boxes} boxes"
        return f"NMS, {lists}, IoU {self.threshold}, {self.most} of a list may stay"


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Feature maps, and boxes on each, from which grids are sampled."""

    maps: int = 8
    boxes: int = 300
    size: tuple[int, int] = (30, 40)
    channels: int = 64
    grid: int = 7
    points: int = 2

    def __str__(self) -> str:
        size = "×".join(map(str, (self.maps, *self.size, self.channels)))
        grid = f"{self.grid}×{self.grid} of {self.points}×{self.points} points"
        return f"RoI align, features {size}, {self.boxes} boxes on each, {grid}"


SUPPRESSIONS = (Suppression(0.7, 300), Suppression(0.5, 100))
ALIGNMENT = Alignment()
IMAGES = 5_000
"""Images whose detections are measured."""
MOST_MEASURES = 3
"""Times that they are: pycocotools takes its time."""


def run(repeats: int) -> None:
    """Prints times, and their ratios with the range over the measurements.

    Args:
      repeats: measurements of each; of the 5,000 images at most three.

    Raises:
      UserError: if a library that is compared with is not installed.
    """
    require_onnxruntime()
    require_torch("detection")
    from launch import benchmark_detection_torch

    print(f"{cores()} threads")
    for case in SUPPRESSIONS:
        _compare(str(case), suppressions(case), repeats)
    _compare(str(ALIGNMENT), alignments(ALIGNMENT), repeats)
    measured = min(repeats, MOST_MEASURES)
    seconds = [benchmark_detection_measure.evaluation(IMAGES) for _ in range(measured)]
    ours, theirs = ([1e3 * s for s in each] for each in zip(*seconds, strict=True))
    name = f"COCO's measure of {IMAGES:,} images"
    _tell(name, {"ours": ours, "pycocotools": theirs})
    ours, theirs = benchmark_detection_torch.steps()
    _compare("SSD, a step of training", {"ours": ours, "torch": theirs}, repeats)


def _compare(
    name: str, functions: Mapping[str, Callable[[], object]], repeats: int
) -> None:
    _tell(name, measure(functions, repeats))


def _tell(name: str, times: Mapping[str, list[float]]) -> None:
    """Prints the times, and those of the other over ours."""
    (_, ours), (other, theirs) = times.items()
    print(name)
    print(f"    ours {spread(ours, 'ms')}")
    print(f"    {other} {spread(theirs, 'ms')}")
    print(f"    {other}'s time over ours {spread(theirs, over=ours)}")


def require_onnxruntime() -> None:
    """Raises UserError if ONNX Runtime, or what makes its graphs, is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError:
        raise UserError(
            "the benchmark detection compares with ONNX Runtime, which is not "
            "installed: install the test tools (pip install -e .[test])"
        ) from None


def cores() -> int:
    """Returns the cores that this process may use."""
    return len(os.sched_getaffinity(0))


@functools.cache
def crowd(case: Suppression) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes around some objects, as an RPN proposes them, and their scores."""
    random = np.random.default_rng(0)
    middles = random.uniform(0, 600, (case.lists, 20, 2))
    sides = np.exp(random.uniform(np.log(30), np.log(200), (case.lists, 20, 2)))
    chosen = random.integers(0, 20, (case.lists, case.boxes))[..., None]
    about = np.take_along_axis(middles, chosen, axis=1)
    size = np.take_along_axis(sides, chosen, axis=1)
    about = about + 0.3 * size * random.normal(size=size.shape)
    size = size * np.exp(0.3 * random.normal(size=size.shape))
    boxes = np.concatenate([about - size / 2, about + size / 2], axis=-1)
    scores = random.uniform(size=(case.lists, case.boxes))
    return boxes.astype(np.float32), scores.astype(np.float32)


def suppressions(case: Suppression) -> dict[str, Callable[[], Any]]:
    """Returns calls that give the boxes that stay.

    Ours gives the numbers and the mask of each list, ONNX Runtime rows of list, class
    and number.
    """
    boxes, scores = crowd(case)
    arrays = jax.device_put((boxes, scores))
    compiled = jax.jit(lambda *arrays: nms(*arrays, case.threshold, case.most))
    inputs = {
        "boxes": boxes,
        "scores": scores[:, None],
        "most": np.array([case.most]),
        "threshold": np.array([case.threshold], np.float32),
    }
    session = onnx_session("NonMaxSuppression", inputs, np.int64, version=11)

    return {
        "ours": lambda: jax.block_until_ready(compiled(*arrays)),
        "ONNX Runtime": lambda: session.run(None, inputs)[0],
    }


def alignments(case: Alignment) -> dict[str, Callable[[], Any]]:
    """Returns calls that sample the features in the grid of each box.

    Ours gives (maps, boxes, grid, grid, channels), ONNX Runtime (maps × boxes,
    channels, grid, grid).
    """
    random = np.random.default_rng(0)
    height, width = case.size
    features = random.normal(size=(case.maps, height, width, case.channels))
    features = features.astype(np.float32)
    shape = case.maps, case.boxes, 2
    low = random.uniform(0, 0.7, shape) * [width, height]
    size = random.uniform(0.05, 0.3, shape) * [width, height]
    boxes = np.concatenate([low, low + size], axis=-1).astype(np.float32)
    arrays = jax.device_put((features, boxes))
    align = functools.partial(roi_align, sampling_ratio=case.points)
    compiled = jax.jit(jax.vmap(lambda x, boxes: align(x, boxes, case.grid)))
    inputs = {
        "x": np.ascontiguousarray(np.moveaxis(features, -1, 1)),
        "boxes": boxes.reshape(-1, 4),
        "images": np.repeat(np.arange(case.maps), case.boxes),
    }
    session = onnx_session(
        "RoiAlign",
        inputs,
        np.float32,
        version=16,
        output_height=case.grid,
        output_width=case.grid,
        sampling_ratio=case.points,
        coordinate_transformation_mode="half_pixel",
    )
    return {
        "ours": lambda: jax.block_until_ready(compiled(*arrays)),
        "ONNX Runtime": lambda: session.run(None, inputs)[0],
    }


def onnx_session(
    operator: str,
    inputs: Mapping[str, Shaped[np.ndarray, "..."]],
    output: type,
    *,
    version: int,
    **attributes: Any,
) -> Any:
    """Returns a session of ONNX Runtime that computes one operator.

    Args:
      operator: its name.
      inputs: by name, in the operator's order.
      output: the type of its output's numbers.
      version: of the set of operators.
      **attributes: of the operator.
    """
    import onnx
    import onnxruntime

    helper = onnx.helper

    def kind(dtype: Any) -> int:
        return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    values = [
        helper.make_tensor_value_info(name, kind(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    graph = helper.make_graph(
        [helper.make_node(operator, list(inputs), ["y"], **attributes)],
        operator,
        values,
        [helper.make_tensor_value_info("y", kind(output), None)],
    )
    opset = [helper.make_opsetid("", version)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = cores()
    return onnxruntime.InferenceSession(model.SerializeToString(), options)
