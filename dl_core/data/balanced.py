"""Class-balanced sampling: an order of examples in which all classes are as frequent.

"Label shuffle", from Hikvision's entry to ILSVRC 2016: the list of every class is
shuffled and repeated up to the length of the largest class, and all lists are shuffled
together. So the counts are exact, not expected: in an epoch each class has as many
examples as the largest one, and no example of a class is read more than once more often
than another.
"""

import functools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int, Integer, Shaped

from dl_core.data.batches import InMemory, Prepare


def balanced_epoch(
    seed: int, epoch: int, labels: Integer[np.ndarray, " examples"]
) -> Int[np.ndarray, " balanced"]:
    """Returns the examples of one epoch: classes × the largest class's size of them.

    Args:
      seed: chooses the orders.
      epoch: its number; each is shuffled anew.
      labels: the class of each example. A class that no example has is left out.

    Raises:
      ValueError: where labels are not one whole number an example.
    """
    if labels.ndim != 1 or not labels.size:
        raise ValueError(f"Labels are one number an example, not {labels.shape}.")
    generator = np.random.default_rng([seed, epoch])
    classes, counts = np.unique(labels, return_counts=True)
    lists = [
        np.resize(generator.permutation(np.flatnonzero(labels == label)), counts.max())
        for label in classes
    ]
    return generator.permutation(np.concatenate(lists)).astype(np.int32)


class Balanced(InMemory):
    """Examples in memory, trained on in class-balanced order; evaluated once each."""

    def __init__(
        self,
        arrays: Mapping[str, Shaped[np.ndarray, "examples ..."]],
        batch_size: int,
        prepare: Prepare | None = None,
        *,
        label: str = "label",
    ):
        """Args:
        arrays: the examples, field by field.
        batch_size: examples in a batch.
        prepare: as for `InMemory`.
        label: the field that holds the class of each example.
        """
        super().__init__(arrays, batch_size, prepare)
        labels = arrays[label]
        self._epoch = functools.lru_cache(maxsize=8)(
            lambda seed, epoch: balanced_epoch(seed, epoch, labels)
        )

    def train_inputs(self, seed: int, first: int, count: int) -> dict[str, np.ndarray]:
        """Returns the indices of `count` batches: balanced epochs laid end to end."""
        start, stop = first * self.batch_size, (first + count) * self.batch_size
        length = len(self._epoch(seed, 0))
        epochs = range(start // length, (stop - 1) // length + 1)
        read = np.concatenate([self._epoch(seed, epoch) for epoch in epochs])
        read = read[start - epochs.start * length :][: stop - start]
        return {"indices": read.reshape(count, self.batch_size)}
