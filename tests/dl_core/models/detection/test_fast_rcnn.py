"""The head on regions against torch's losses, brute force, and pooling one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dl_core.models.detection import fast_rcnn
from dl_core.models.detection.fast_rcnn import (
    FeatureMap,
    Proposals,
    RegionClassifier,
    Regions,
    RoIHead,
)
from dl_core.models.detection.trunk import Trunk
from dl_core.ops.roi import roi_align, roi_pool

SIZE = 48, 64
CLASSES = 3
sample = jax.jit(fast_rcnn.sample, static_argnames="classes")


def iou(a, b):
    """Returns the overlaps of two lists of boxes."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.prod(np.maximum(high - low, 0), -1)
    of_a, of_b = (np.prod(x[:, 2:] - x[:, :2], -1) for x in (a, b))
    return both / (of_a[:, None] + of_b - both)


def to_host(tree):
    return jax.tree.map(np.asarray, tree)


def random_boxes(key, *shape, side=24):
    low, extent = jax.random.uniform(key, (2, *shape, 2))
    low = low * (jnp.array(SIZE[::-1]) - side)
    return jnp.concatenate([low, low + 4 + extent * (side - 4)], -1)


@pytest.fixture(scope="module")
def truth():
    """Two objects and a row of padding."""
    boxes = jnp.array([[5, 6, 20, 22], [30, 20, 50, 41], [0, 0, 0, 0]], jnp.float32)
    return boxes, jnp.array([2, 0, -1])


@pytest.fixture(scope="module")
def proposals(truth):
    """Around each object some, some anywhere, and padding."""
    shifts = jax.random.uniform(jax.random.key(0), (2, 30, 4), minval=-9, maxval=9)
    near = (truth[0][:2, None] + shifts).reshape(-1, 4)
    boxes = jnp.concatenate([near, random_boxes(jax.random.key(1), 20)])
    return Proposals(
        jnp.pad(boxes, ((0, 10), (0, 0))), jnp.arange(len(boxes) + 10) < len(boxes)
    )


@pytest.mark.parametrize("background", [0.0, 0.1])
def test_the_sample_is_what_the_paper_says(proposals, truth, background):
    head = RoIHead(samples=24, share=0.25, background=background)
    boxes, labels = to_host(truth)
    there = to_host(proposals)
    every = np.concatenate([there.boxes[there.mask], boxes[:2]])
    seen = set()
    for seed in range(12):
        key = jax.random.key(seed)
        regions = to_host(sample(head, proposals, *truth, classes=CLASSES, key=key))
        assert regions.weights.tolist() == [1.0] * 24
        overlaps = iou(regions.boxes, boxes[:2])
        best, whose = overlaps.max(1), overlaps.argmax(1)
        positive = regions.labels < CLASSES
        assert positive.sum() == 6  # A quarter; there are more.
        assert (best[positive] >= 0.5).all()
        assert (best[~positive] < 0.5).all()
        assert (best[~positive] >= background).all()
        right = labels[whose[positive]]
        assert regions.labels[positive].tolist() == right.tolist()
        decoded = head.coder.decode(*map(jnp.asarray, (regions.targets, regions.boxes)))
        np.testing.assert_allclose(decoded[positive], boxes[whose[positive]], atol=1e-3)
        assert not regions.targets[~positive].any()
        rows = {tuple(row) for row in regions.boxes.tolist()}
        assert rows <= {tuple(row) for row in every.tolist()}
        assert len(rows) == 24
        seen |= rows
    assert set(map(tuple, boxes[:2].tolist())) <= seen
    assert len(seen) > 30


def test_an_image_with_few_regions_pads_its_sample(truth):
    none = Proposals(jnp.zeros((30, 4)), jnp.zeros(30, bool))
    head, key = RoIHead(samples=24), jax.random.key(0)
    regions = to_host(sample(head, none, *truth, classes=CLASSES, key=key))
    assert regions.boxes.shape == (24, 4)
    assert regions.weights.sum() == 2
    chosen = regions.boxes[regions.weights > 0]
    assert sorted(chosen.tolist()) == sorted(truth[0][:2].tolist())


def test_losses_are_torchs_and_padding_does_not_count():
    keys = jax.random.split(jax.random.key(0), 4)
    shape = 2, 9
    logits = jax.random.normal(keys[0], (*shape, CLASSES + 1))
    codes = 2 * jax.random.normal(keys[1], (*shape, CLASSES, 4))
    labels = jax.random.randint(keys[2], shape, 0, CLASSES + 1)
    weights = (jnp.arange(9) < jnp.array([[9], [5]])).astype(jnp.float32)
    targets = jax.random.normal(keys[3], (*shape, 4))
    regions = Regions(jnp.zeros((*shape, 4)), labels, targets, weights)
    found = jax.jit(fast_rcnn.losses)(logits, codes, regions)

    counted = np.asarray(weights) > 0
    logits, codes, labels, targets = (
        torch.tensor(np.asarray(x)[counted]) for x in (logits, codes, labels, targets)
    )
    labels = labels.long()
    expected = torch.nn.functional.cross_entropy(logits, labels)
    np.testing.assert_allclose(found["class"], expected, rtol=1e-5)
    objects = labels < CLASSES
    own = codes[objects, labels[objects]]
    expected = torch.nn.functional.smooth_l1_loss(
        own, targets[objects], reduction="sum"
    )
    np.testing.assert_allclose(found["boxes"], expected / counted.sum(), rtol=1e-5)


@pytest.mark.parametrize("pooling", ["pool", "align", "align_shifted"])
def test_regions_are_pooled_as_in_one_list(pooling):
    keys = jax.random.split(jax.random.key(0))
    features = jax.random.normal(keys[0], (2, 6, 8, 3))
    boxes = random_boxes(keys[1], 2, 5)
    head = RoIHead(stride=8, pooling=pooling, pooled=4)
    found = jax.jit(fast_rcnn.pool)(head, features, boxes)
    images = jnp.repeat(jnp.arange(2), 5)
    args = features, boxes.reshape(-1, 4), 4, images
    if pooling == "pool":
        expected = roi_pool(*args, spatial_scale=1 / 8)
    else:
        aligned = pooling == "align"
        expected = roi_align(
            *args, spatial_scale=1 / 8, sampling_ratio=2, aligned=aligned
        )
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-5)


def test_a_region_is_judged_by_itself():
    network = RegionClassifier(RoIHead(pooled=2, width=4), CLASSES)
    keys = jax.random.split(jax.random.key(0), 3)
    features = jax.random.normal(keys[0], (2, 6, 8, 3))
    boxes = random_boxes(keys[1], 2, 5)
    said, variables = network.init_with_output(keys[2], features, boxes)
    assert [x.shape for x in said] == [(2, 5, CLASSES + 1), (2, 5, CLASSES, 4)]
    turned = network.apply(variables, features[::-1], boxes[::-1, ::-1])
    for one, other in zip(said, turned, strict=True):
        np.testing.assert_allclose(one, other[::-1, ::-1], atol=1e-5)


def test_the_feature_map_has_the_stride_that_is_asked_for():
    trunk = Trunk(width=2, features=4)
    images = jnp.zeros((1, *SIZE, 3))
    for stride in (4, 8, 16):
        network = FeatureMap(trunk, stride)
        shape = jax.eval_shape(
            lambda key, network=network: network.init_with_output(
                key, images, train=False
            )[0],
            jax.random.key(0),
        ).shape
        assert shape == (1, SIZE[0] // stride, SIZE[1] // stride, 4)


def test_detections_are_those_of_greedy_suppression_class_by_class():
    head = RoIHead(iou=0.3, least=0.2, most=6)
    keys = jax.random.split(jax.random.key(0), 3)
    logits = 2 * jax.random.normal(keys[0], (2, 20, CLASSES + 1))
    codes = jax.random.normal(keys[1], (2, 20, CLASSES, 4))
    proposals = Proposals(
        random_boxes(keys[2], 2, 20), jnp.arange(20) < jnp.array([[20], [12]])
    )
    detect = jax.jit(fast_rcnn.detections, static_argnums=4)
    found = to_host(detect(head, logits, codes, proposals, SIZE))
    likely = np.asarray(jax.nn.softmax(logits))
    regions = jnp.broadcast_to(proposals.boxes[:, :, None], codes.shape)
    moved = np.clip(head.coder.decode(codes, regions), 0, [SIZE[1], SIZE[0]] * 2)
    there = np.asarray(proposals.mask)
    for image in range(2):
        kept = []
        for label in range(CLASSES):
            own = np.empty((0, 4))
            for i in np.argsort(-likely[image, :, label]):
                score, box = likely[image, i, label], moved[image, i, label]
                wanted = score >= 0.2 and there[image, i]
                if wanted and (iou(box[None], own) <= 0.3).all():
                    own = np.concatenate([own, box[None]])
                    kept.append((score, label, box))
        kept = sorted(kept, key=lambda row: -row[0])[:6]
        scores, labels, boxes = map(np.array, zip(*kept, strict=True))
        assert len(kept) > 3
        count = len(kept)
        np.testing.assert_allclose(found.scores[image, :count], scores, rtol=1e-5)
        assert found.labels[image, :count].tolist() == labels.tolist()
        np.testing.assert_allclose(found.boxes[image, :count], boxes, atol=1e-3)
        assert (found.labels[image, count:] == -1).all()


def test_recall_is_the_share_of_objects_that_the_first_proposals_find():
    keys = jax.random.split(jax.random.key(0))
    boxes = random_boxes(keys[0], 3, 4)
    labels = jnp.array([[0, 1, -1, -1], [2, 2, 2, 2], [0, 0, 0, -1]])
    batch = {"boxes": boxes, "labels": labels, "mask": jnp.array([1.0, 1, 0])}
    proposals = Proposals(
        random_boxes(keys[1], 3, 50), jnp.arange(50) < jnp.array([[50], [20], [50]])
    )
    metric = jax.jit(fast_rcnn.recall, static_argnames="iou")
    found = metric(proposals, batch, iou=0.3).compute()
    boxes, labels, (regions, there) = to_host((boxes, labels, proposals))
    for number, share in zip(fast_rcnn.NUMBERS, found, strict=True):
        hits = []
        for image in range(2):
            first = regions[image][there[image]][:number]
            overlaps = iou(boxes[image], first)
            hits += (overlaps.max(1) >= 0.3)[labels[image] >= 0].tolist()
        assert share == pytest.approx(np.mean(hits))
    assert found[0] < found[-1]
