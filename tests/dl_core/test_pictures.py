"""Images side by side, and points a seed."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from dl_core.pictures import (
    mean_and_range,
    mosaic,
    principal_plane,
    seed_points,
    table_of_mosaics,
)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_lie_row_by_row(channels):
    images = np.random.default_rng(0).uniform(-1, 1, (5, 4, 6, channels))
    picture = mosaic(images, columns=3)
    assert picture.shape == (2 * 4 + 1, 3 * 6 + 2, 3)
    for number, image in enumerate(images):
        top, left = 5 * (number // 3), 7 * (number % 3)
        shown = picture[top : top + 4, left : left + 6]
        wanted = np.broadcast_to((image + 1) / 2, shown.shape)
        np.testing.assert_allclose(shown, wanted)
    assert (picture[5:, 14:] == 1).all()
    assert (picture[4] == 1).all()


def test_values_out_of_range_are_clipped():
    picture = mosaic(np.array([-3.0, 3.0]).reshape(2, 1, 1, 1), columns=2, gap=0)
    np.testing.assert_array_equal(picture[..., 0], [[0, 1]])


def test_a_diverged_run_has_a_cell_of_its_own():
    images = np.zeros((4, 3, 3, 1))
    fig = table_of_mosaics(
        {"first": [("A", images), ("B", None)], "second": [("A", images)]}, columns=2
    )
    axes = np.reshape(fig.axes, (2, 2))
    assert [len(ax.images) for ax in axes.flat] == [1, 0, 1, 0]
    assert axes[0, 1].texts[0].get_text() == "diverged"
    assert axes[0, 0].get_title() == "A"
    plt.close(fig)


def test_seeds_are_points_and_those_lost_are_counted():
    fig, ax = plt.subplots()
    seed_points(ax, 2.0, np.array([1.0, np.nan, 3.0]), "C0", "method")
    points, bar = ax.lines
    np.testing.assert_array_equal(points.get_xydata(), [[2, 1], [2, 3]])
    np.testing.assert_array_equal(bar.get_xydata(), [[2, 2]])
    assert ax.texts[0].get_text() == "1 div."
    plt.close(fig)


def test_the_plane_is_that_of_the_largest_variance():
    grid = np.stack(np.meshgrid([-2.0, 2.0], [-1.0, 1.0], [-0.1, 0.1]), -1)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    vectors = dict(zip("abcdefgh", grid.reshape(-1, 3) @ turn + 5, strict=True))
    last = {"h": vectors.pop("h")}
    _, ax = plt.subplots()
    assert principal_plane(ax, [vectors, last]) == pytest.approx(5 / 5.01)
    assert [text.get_text() for text in ax.texts] == list("abcdefgh")
    drawn = np.array([line.get_xydata()[0] for line in ax.lines])
    np.testing.assert_allclose(abs(drawn), np.tile([2, 1], (8, 1)))
    assert [line.get_color() for line in ax.lines] == ["C0"] * 7 + ["C1"]
    assert np.isnan(principal_plane(ax, [{}, last]))
    plt.close()


def test_names_of_vectors_that_lie_together_can_be_read():
    fig, ax = plt.subplots()
    near = {name: np.array([1.0, 0, i / 100]) for i, name in enumerate(("one", "two"))}
    far = {name: np.array([0.0, i, 0]) for i, name in enumerate(("left", "right"))}
    principal_plane(ax, [near, far])
    fig.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
    plt.close()


@pytest.mark.parametrize("points", [3, 0])
def test_a_curve_is_the_mean_and_its_band_the_range(points):
    values = np.array([[1.0, 2, 6], [3, 2, 0]])[:, :points]
    _, ax = plt.subplots()
    mean_and_range(ax, np.arange(points), values, "--", color="C3", label="three")
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_ydata(), [2, 2, 3][:points])
    assert (line.get_linestyle(), line.get_label()) == ("--", "three")
    (band,) = ax.collections
    corners = {tuple(xy) for path in band.get_paths() for xy in path.vertices}
    assert {(0, 1), (0, 3), (2, 0), (2, 6)} <= corners if points else not corners
    plt.close()
