"""YOLO's loss against loops written from the paper, its detections, its settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.errors import UserError
from dl_core.models.detection import yolo
from dl_core.models.detection.trunk import Trunk
from dl_core.models.detection.yolo import PRIORS, Network, Weights, Yolo
from dl_core.ops.yolo import Said, encode

SIZE = (24, 32)
GRID = (3, 4)
TINY = Trunk(width=4, features=8)


def an_image(seed, predictors, classes):
    """Returns what is said of an image, and its objects, one of them padding."""
    rng = np.random.default_rng(seed)
    codes = rng.normal(0.4, 0.3, (*GRID, predictors, 4))
    confidences = rng.normal(0.3, 0.5, (*GRID, predictors))
    said = rng.normal(0.3, 0.5, (*GRID, predictors, classes))
    low = rng.uniform([0, 0], [20, 12], (6, 2))
    boxes = np.concatenate([low, low + rng.uniform(4, 12, (6, 2))], 1)
    labels = rng.integers(classes, size=6)
    boxes[3], labels[3] = 0, -1
    return codes, confidences, said, boxes, labels


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def equation_3(codes, confidences, said, boxes, labels, *, power, iou, coord, noobj):
    """The loss of an image, object by object and predictor by predictor."""
    owners = {}
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        if labels[number] >= 0:
            cell = int((y0 + y1) / 2 // 8), int((x0 + x1) / 2 // 8)
            owners.setdefault(cell, number)
    total = 0.0
    for row, column in np.ndindex(GRID):
        answering = None
        if (row, column) in owners:
            box = boxes[owners[row, column]]
            x, y = (box[0] + box[2]) / 16 - column, (box[1] + box[3]) / 16 - row
            w, h = ((box[2:] - box[:2]) / 56) ** power
            overlaps, distances = [], []
            for code in codes[row, column]:
                cx, cy = (column + code[0]) * 8, (row + code[1]) * 8
                bw = 56 * max(code[2], 0) ** (1 / power)
                bh = 56 * max(code[3], 0) ** (1 / power)
                predicted = cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2
                overlaps.append(overlap(predicted, box))
                distances.append(((code - [x, y, w, h]) ** 2).sum())
            answering = np.argmax(overlaps) if max(overlaps) else np.argmin(distances)
            total += coord * distances[answering]
            wanted = overlaps[answering] if iou else 1.0
            total += (confidences[row, column, answering] - wanted) ** 2
            for label, p in enumerate(said[row, column, answering]):
                total += (p - (label == labels[owners[row, column]])) ** 2
        for predictor, confidence in enumerate(confidences[row, column]):
            if predictor != answering:
                total += noobj * confidence**2
    return total


@pytest.mark.parametrize(
    ("predictors", "power", "iou", "coord", "noobj"),
    [(2, 0.5, True, 5.0, 0.5), (1, 1.0, False, 1.0, 1.0), (3, 0.5, False, 2.0, 0.1)],
)
def test_the_loss_is_equation_3(predictors, power, iou, coord, noobj):
    images = [an_image(seed, predictors, 3) for seed in range(4)]
    codes, confidences, said, boxes, labels = (
        jnp.asarray(np.stack(x)) for x in zip(*images, strict=True)
    )
    network = Network(predictors=predictors, priors=(), size_power=power)
    weights = Weights(coordinates=coord, no_object=noobj, overlap=float(iou))
    parts = jax.jit(yolo.loss)(
        Said(codes, confidences, said),
        boxes.astype(jnp.float32),
        labels,
        network,
        weights,
    )
    settings = {"power": power, "iou": iou, "coord": coord, "noobj": noobj}
    expected = [equation_3(*image, **settings) for image in images]
    np.testing.assert_allclose(sum(parts.values()), expected, rtol=1e-4)


def test_gradients_are_finite_where_sizes_are_0_and_no_object_is_there():
    boxes = jnp.zeros((1, 3, 4)).at[0, 0].set(jnp.array([2.0, 2, 10, 10]))
    labels = jnp.array([[0, -1, -1]])
    zeros = Said(
        jnp.zeros((1, *GRID, 2, 4)),
        jnp.zeros((1, *GRID, 2)),
        jnp.zeros((1, *GRID, 2, 3)),
    )

    def total(said, labels):
        parts = yolo.loss(said, boxes, labels, Network(), Weights())
        return sum(part.sum() for part in parts.values())

    gradient = jax.jit(jax.grad(total))
    for said in (zeros, jax.tree.map(lambda x: x - 1, zeros)):
        some = gradient(said, labels)
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(some))
        # One predictor of one cell answers, and no other learns a box or a class.
        assert jnp.count_nonzero(jnp.abs(some.codes).sum(-1)) == 1
        none = gradient(said, jnp.full_like(labels, -1))
        assert jnp.count_nonzero(none.codes) == jnp.count_nonzero(none.classes) == 0


def test_whoever_says_the_truth_finds_it():
    boxes = jnp.array([[2.0, 2, 10, 10], [12, 4, 30, 22]])
    labels, cells = [1, 0], [(0, 0), (1, 2)]
    codes = encode(boxes, 8)
    said = Said(
        np.full((1, *GRID, 2, 4), 0.3, np.float32),
        np.full((1, *GRID, 2), -0.1, np.float32),
        np.zeros((1, *GRID, 2, 3), np.float32),
    )
    for number, (row, column) in enumerate(cells):
        place = 0, row, column, 1
        said.codes[place] = codes[number]
        said.confidences[place] = 0.9 - 0.1 * number
        said.classes[*place, labels[number]] = 1.2
    found = jax.jit(lambda said: yolo.detections(said, SIZE, Network()))(said)
    np.testing.assert_allclose(found.boxes[0, :2], boxes, atol=1e-4)
    np.testing.assert_allclose(found.scores[0, :3], [0.9, 0.8, 0], atol=1e-6)
    assert found.labels[0, :3].tolist() == [1, 0, -1]


IMAGES = jax.random.normal(jax.random.key(0), (2, 40, 56, 3))
MODEL = Yolo(TINY, Network(dropout=0.5), classes=3)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(MODEL.init, static_argnames="train")(
        jax.random.key(1), IMAGES, train=False
    )


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("class_per_box", [True, False])
def test_the_grid_covers_images_of_any_size(stride, class_per_box):
    settings = Network(stride=stride, class_per_box=class_per_box)
    model = Yolo(TINY, settings, classes=3)
    key = jax.random.key(0)
    said, variables = jax.eval_shape(
        lambda: model.init_with_output(key, IMAGES, train=False)
    )
    grid = (-(-40 // stride), -(-56 // stride))
    assert said.codes.shape == (2, *grid, 2, 4)
    assert said.classes.shape == (2, *grid, 2, 3)
    outputs = variables["params"]["last"]["bias"].shape
    assert outputs == ((16,) if class_per_box else (13,))


def test_sizes_begin_at_the_priors_and_dropout_is_of_training_alone(variables):
    apply = jax.jit(MODEL.apply, static_argnames="train")
    keys = [{"dropout": jax.random.key(k)} for k in (0, 1)]
    first, second = (apply(variables, IMAGES, train=True, rngs=k) for k in keys)
    assert (first.confidences != second.confidences).any()
    still = [apply(variables, IMAGES, train=False, rngs=k) for k in keys]
    np.testing.assert_array_equal(still[0].codes, still[1].codes)
    sizes = still[0].codes[..., 2:] ** 2 * 56 / np.array([56, 40])
    priors = np.reshape(PRIORS[2], (2, 2))
    np.testing.assert_allclose(sizes, np.broadcast_to(priors, sizes.shape), rtol=0.2)


def test_priors_must_fit_the_predictors():
    Network(priors=()).check()
    for priors, predictors in (((0.1, 0.1), 2), ((0.1, -0.1), 1)):
        with pytest.raises(UserError, match=r"--config.model.priors=0.1,-?0.1: expect"):
            Network(priors=priors, predictors=predictors).check()
