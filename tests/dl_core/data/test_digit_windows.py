"""Windows of scenes: what they show is what they say, measured on their pixels."""

import jax
import jax.numpy as jnp
import numpy as np

from dl_core.data.digit_windows import BACKGROUND, WindowConfig, cut

SIDE, COUNT = 40, 64


def test_the_box_is_where_the_object_is_and_the_label_keeps_to_the_rule():
    image = np.zeros((COUNT, 48, 64, 1), np.float32)
    image[:, 10:26, 30:40] = 1
    scenes = {
        "image": jnp.asarray(image),
        "box": jnp.tile(jnp.array([30.0, 10, 40, 26]), (COUNT, 1)),
        "label": jnp.full(COUNT, 7),
    }
    chosen = WindowConfig()
    batch = jax.jit(
        lambda key: cut(scenes, key, chosen, side=SIDE, scales=(0.8, 1.6), border=12)
    )(jax.random.key(0))
    boxes, labels = SIDE * np.asarray(batch["box"]), np.asarray(batch["label"])
    shows = labels == 7
    assert 0.3 < shows.mean() < 0.8
    assert set(labels[~shows]) == {BACKGROUND}
    longer = (boxes[:, 2:] - boxes[:, :2]).max(1)
    apart = np.abs((boxes[:, :2] + boxes[:, 2:]) / 2 - SIDE / 2).max(1)
    fits = (longer > 19.99) & (longer < 27.01) & (apart < 6.01)
    np.testing.assert_array_equal(fits, shows)
    assert longer[shows].max() - longer[shows].min() > 4
    for window, box in zip(np.asarray(batch["image"])[..., 0], boxes, strict=True):
        rows, columns = (np.flatnonzero(window.max(axis) > 0.5) for axis in (1, 0))
        low, high = np.clip(box[:2], 0, SIDE), np.clip(box[2:], 0, SIDE)
        if (high - low).min() < 2:
            continue
        np.testing.assert_allclose([columns[0], rows[0]], low, atol=1)
        np.testing.assert_allclose([columns[-1] + 1, rows[-1] + 1], high, atol=1)
