"""Batches of a data set by its name, in memory and streamed."""

import jax
import numpy as np
import pytest

from dl_core.data.batches import InMemory, Streamed
from dl_core.data.named import named_batches
from dl_core.errors import UserError

SHAPES = {"image": (28, 28, 1), "label": ()}


def test_streamed_and_in_memory_batches_are_the_same(data_dir):
    wanted = ("mnist_subset", "test", data_dir, 30, SHAPES)
    kept, streamed = named_batches(*wanted), named_batches(*wanted, fits=1)
    assert isinstance(kept, InMemory)
    assert isinstance(streamed, Streamed)
    try:
        for inputs in (
            zip(kept.eval_inputs(), streamed.eval_inputs(), strict=True),
            [
                (kept.train_inputs(3, i, 1), streamed.train_inputs(3, i, 1))
                for i in (0, 70)
            ],
        ):
            for ours, theirs in inputs:
                if "mask" not in ours:
                    ours, theirs = (
                        jax.tree.map(lambda x: x[0], t) for t in (ours, theirs)
                    )
                first = kept.assemble(None, kept.resident, ours, None)
                second = streamed.assemble(None, {}, theirs, None)
                assert first.keys() == second.keys()
                for field in first:
                    np.testing.assert_array_equal(first[field], second[field])
    finally:
        streamed.close()


@pytest.mark.parametrize("fits", [1, 2**31])
@pytest.mark.parametrize("shapes", [{"image": (32, 32, 3)}, {"pixels": (28, 28, 1)}])
def test_examples_of_another_shape_are_refused(data_dir, shapes, fits):
    with pytest.raises(UserError, match=r"'mnist_subset' does not fit: .*28×28×1"):
        named_batches("mnist_subset", "test", data_dir, 30, shapes, fits=fits)
