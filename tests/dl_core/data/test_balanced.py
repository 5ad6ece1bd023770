"""Label shuffle: exact counts, and the same order from any step on."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.data.balanced import Balanced, balanced_epoch

LABELS = np.repeat([3, 7, 1], [10, 4, 1])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(-2, 4), min_size=1, max_size=40), st.integers(0, 9))
def test_every_class_counts_alike_and_examples_of_a_class_do_up_to_one(labels, seed):
    labels = np.array(labels)
    indices = balanced_epoch(seed, 0, labels)
    classes, counts = np.unique(labels, return_counts=True)
    read = np.bincount(indices, minlength=len(labels))
    for label in classes:
        of_class = read[labels == label]
        assert of_class.sum() == counts.max()
        assert of_class.max() - of_class.min() <= 1


def test_epochs_differ_and_each_is_the_same_again():
    first = balanced_epoch(0, 0, LABELS)
    np.testing.assert_array_equal(first, balanced_epoch(0, 0, LABELS))
    assert (first != balanced_epoch(0, 1, LABELS)).any()
    assert (first != balanced_epoch(1, 0, LABELS)).any()
    # Which examples are read once more changes too.
    reads = [np.bincount(balanced_epoch(0, epoch, LABELS)) for epoch in range(30)]
    often = np.array(reads)[:, 10:14] == 3
    assert often.any(0).all()
    assert (often.sum(1) == 2).all()


def batches():
    return Balanced({"image": np.arange(15), "label": LABELS}, 4)


def test_batches_are_epochs_end_to_end_whatever_the_step_they_start_at():
    data = batches()
    whole = data.train_inputs(5, 0, 20)["indices"]
    assert whole.shape == (20, 4)
    epochs = [balanced_epoch(5, epoch, LABELS) for epoch in range(3)]
    np.testing.assert_array_equal(whole.ravel(), np.concatenate(epochs)[:80])
    for first, count in ((0, 1), (7, 1), (6, 5), (19, 1)):
        part = batches().train_inputs(5, first, count)["indices"]
        np.testing.assert_array_equal(part, whole[first : first + count])


def test_a_batch_is_gathered_as_ever_and_evaluation_sees_each_example_once():
    data = batches()
    (indices,) = data.train_inputs(0, 3, 1)["indices"]
    batch = data.assemble(None, data.resident, {"indices": indices}, jax.random.key(0))
    np.testing.assert_array_equal(batch["label"], LABELS[indices])
    seen = [x["indices"][x["mask"] > 0] for x in data.eval_inputs()]
    assert np.concatenate(seen).tolist() == list(range(15))


@pytest.mark.parametrize("labels", [np.zeros(0, int), np.zeros((3, 1), int)])
def test_labels_are_one_number_an_example(labels):
    with pytest.raises((ValueError, TypeError), match=r"labels|Labels"):
        balanced_epoch(0, 0, labels)
