"""What the two heads train, what stays frozen, and which errors are counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.config import replace
from experiments.detection import localization

CONFIG = replace(localization.Config(), localization.PRESETS["smoke"])
LABELS = jnp.array([3, 3, 7, 5])
BOX = jnp.array([0.25, 0.25, 0.75, 0.75])


@pytest.fixture(scope="module")
def batch():
    shape = (4, CONFIG.data.height, CONFIG.data.width, 1)
    images = jax.random.uniform(jax.random.key(0), shape)
    # IoU with BOX: 1, 0.6, 0.4, 0.
    boxes = jnp.array([BOX, BOX, BOX, BOX - 0.5])
    boxes = boxes.at[1, 2].set(0.55).at[2, 2].set(0.45)
    return {"image": images, "label": LABELS, "box": boxes, "mask": jnp.ones(4)}


@pytest.fixture(scope="module")
def state():
    def make(key):
        first = localization.init_classifier(CONFIG, key)
        return localization.init_boxes(CONFIG, key, first)

    return jax.jit(make)(jax.random.key(1))


def test_a_step_trains_the_heads_alone_and_the_boxes_of_the_true_classes(state, batch):
    step = jax.jit(localization.train_boxes)
    after, _ = step(CONFIG, state, batch, jax.random.key(2))
    jax.tree.map(np.testing.assert_array_equal, after.collections, state.collections)

    def moved(name):
        change = jax.tree.map(lambda a, b: a - b, after.params, state.params)[name]
        return np.abs(change["Dense_2"]["bias"]).reshape(-1, 4).sum(1) > 0

    assert moved("single").tolist() == [True]
    assert np.flatnonzero(moved("per_class")).tolist() == [3, 5, 7]


def with_last_biases(params, **biases):
    return {
        name: {
            **head,
            "Dense_2": {
                "kernel": jnp.zeros_like(head["Dense_2"]["kernel"]),
                "bias": biases[name],
            },
        }
        for name, head in params.items()
    }


def test_an_error_is_a_wrong_class_or_an_iou_below_a_half(state, batch):
    measure = jax.jit(localization.evaluate_boxes)
    _, logits = localization.look(CONFIG, state.collections, batch["image"])
    found = logits.argmax(-1)
    # The first image's class is right, the last one's is not.
    labels = found.at[3].set((found[3] + 1) % localization.CLASSES)
    per_class = jnp.tile(BOX - 5, (localization.CLASSES, 1)).at[found[0]].set(BOX)
    params = with_last_biases(state.params, single=BOX, per_class=per_class.ravel())
    changed = state.replace(params=params)
    metrics = measure(CONFIG, changed, {**batch, "label": labels})
    values = {name: float(metric.compute()) for name, metric in metrics.items()}
    assert values["class_error"] == 0.25
    assert values["single_iou"] == pytest.approx((1 + 0.6 + 0.4) / 4)
    assert values["single_box_error"] == values["single_error"] == 0.5
    # Of a box for each class, that of the class found is used.
    right = (np.asarray(found) == found[0]) & (np.arange(4) < 2)
    assert values["per_class_box_error"] == 1 - right.mean()


def test_scenes_are_the_same_however_many_and_no_two_sets_share_one(data_dir):
    few = localization.scenes("test", 5, CONFIG.data, data_dir)
    more = localization.scenes("test", 9, CONFIG.data, data_dir)
    np.testing.assert_array_equal(few["image"], more["image"][:5])
    other = localization.scenes("validation", 5, CONFIG.data, data_dir)
    assert not (few["image"] == other["image"]).all((1, 2, 3)).any()
    low, high = few["box"][:, :2], few["box"][:, 2:]
    assert (low >= 0).all()
    assert (high > low).all()
