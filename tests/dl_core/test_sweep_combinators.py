"""The combinators of sweeps: which points, in which order."""

import pytest

from dl_core.sweep import chain, product, zipped


def test_product_varies_the_last_axis_fastest():
    assert product(a=(1, 2), **{"b.c": ("x", "y", "z")}) == (
        {"a": 1, "b.c": "x"},
        {"a": 1, "b.c": "y"},
        {"a": 1, "b.c": "z"},
        {"a": 2, "b.c": "x"},
        {"a": 2, "b.c": "y"},
        {"a": 2, "b.c": "z"},
    )


def test_product_takes_any_iterable():
    assert product(seed=range(2)) == ({"seed": 0}, {"seed": 1})
    assert product(a=(x for x in "pq")) == ({"a": "p"}, {"a": "q"})
    assert product(a=(1,), b=(x for x in "pq"))[1] == {"a": 1, "b": "q"}


def test_product_of_nothing_and_with_nothing():
    assert product() == ({},)
    assert product(a=()) == ()


def test_product_of_sweeps_and_axes():
    pairs = zipped(a=(1, 2), b=(3, 4))
    assert product(pairs, product(c=(5, 6)), d=(7,)) == (
        {"a": 1, "b": 3, "c": 5, "d": 7},
        {"a": 1, "b": 3, "c": 6, "d": 7},
        {"a": 2, "b": 4, "c": 5, "d": 7},
        {"a": 2, "b": 4, "c": 6, "d": 7},
    )


@pytest.mark.parametrize(
    "parts", [(product(a=(1,)), product(a=(2,))), (zipped(a=(1,), b=(2,)),)]
)
def test_product_refuses_a_field_set_twice(parts):
    with pytest.raises(ValueError, match="the field a is swept twice"):
        product(*parts, **({} if len(parts) > 1 else {"a": (3,)}))


def test_zipped_takes_values_in_step():
    assert zipped(seed=(0, 1), **{"model.depth": (2, 3)}) == (
        {"seed": 0, "model.depth": 2},
        {"seed": 1, "model.depth": 3},
    )


@pytest.mark.parametrize("axes", [((1, 2), (3,)), ((1,), (2, 3))])
def test_zipped_refuses_axes_of_different_lengths(axes):
    with pytest.raises(ValueError, match="argument 2 is"):
        zipped(a=axes[0], b=axes[1])


def test_chain_keeps_the_order():
    joined = chain(product(a=(1, 2)), zipped(a=(1,), b=(2,)), ())
    assert joined == ({"a": 1}, {"a": 2}, {"a": 1, "b": 2})


@pytest.mark.parametrize(
    "parts",
    [(product(a=(1, 2)), product(a=(2, 3))), (product(a=(1, 1)),)],
)
def test_chain_refuses_a_point_that_occurs_twice(parts):
    with pytest.raises(ValueError, match=r"the point \{'a': \d\} occurs twice"):
        chain(*parts)


def test_points_do_not_share_state():
    part = product(a=(1,))
    joined = product(part, b=(1, 2))
    joined[0]["a"] = 5
    assert part == ({"a": 1},)
    assert joined[1]["a"] == 1
