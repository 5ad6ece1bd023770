"""Linear support vector machines on a network's features, with hard negatives (R-CNN).

Girshick et al., CVPR 2014, section 2.3 and appendix B. There is a machine a class: its
positives are the objects' own boxes, its negatives the proposals that overlap each
object of the class by less than 0.3. These are too many, and a machine depends on those
within its margin alone. So of the images that go by, a memory keeps the examples that
the machine of the moment gets most wrong, and the machine is fitted to the memory anew
from time to time: hard negative mining (Felzenszwalb et al., TPAMI 2010). It must have
room for all negatives within the margin: of those alone that are beyond it, a machine
learns that all is positive. `forgotten` says how many there was no room for.

It is fitted by liblinear (scikit-learn's `LinearSVC`, with the hinge loss), on the
host: the same memory gives the same machine.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int
from sklearn.svm import LinearSVC

from dl_core.config import config, static, traced


@config
class SVM:
    """The machines and their memory; the prices are the authors'."""

    steps: int = static(26, "Batches of images that go by.", at_least=1)
    fit_every: int = static(13, "Batches between two fits.", at_least=1)
    cost: float = traced(1e-3, "C: the price of an example's hinge loss.", above=0)
    positive_weight: float = traced(
        2.0, "What a positive's loss counts, in those of a negative.", above=0
    )
    bias_scale: float = traced(
        10.0, "The constant feature: the larger, the freer the bias.", above=0
    )
    negative: float = traced(
        0.3, "IoU with each object of a class below which is background.", above=0
    )
    positives: int = static(4_096, "Positives of a class in memory.", at_least=1)
    negatives: int = static(8_192, "Negatives of a class in memory.", at_least=1)


@struct.dataclass
class Machines:
    """A linear function of the scaled features for each class."""

    scale: Float[Array, ""]
    """Takes the features to the norm that C is meant for."""
    weights: Float[Array, "classes d"]
    bias: Float[Array, " classes"]

    def scores(
        self, features: Float[Array, "*shape d"]
    ) -> Float[Array, "*shape classes"]:
        """Returns the distances from each class's boundary; 1 is the margin's edge."""
        scaled = features * self.scale
        return jnp.matmul(scaled, self.weights.T, precision="highest") + self.bias


@struct.dataclass
class Memory:
    """Scaled features of a class's hardest examples of one sign."""

    rows: Float[Array, "*classes kept d"]
    keys: Int[Array, "*classes kept"]
    """A number that tells an example from all others; -1 where there is none."""

    @classmethod
    def empty(cls, classes: int, kept: int, features: int) -> "Memory":
        """Returns a memory of nothing, for each class."""
        rows = jnp.zeros((classes, kept, features))
        return cls(rows, jnp.full((classes, kept), -1, jnp.int32))

    def with_(
        self,
        machines: Machines,
        features: Float[Array, "n d"],
        keys: Int[Array, " n"],
        there: Bool[Array, "n classes"],
        sign: int,
    ) -> tuple["Memory", Int[Array, " classes"]]:
        """Returns the memory with new examples, the hardest of all, and what it lost.

        An example that is remembered already is not taken twice.

        Args:
          machines: what tells how hard an example is.
          features: of the new examples, not scaled.
          keys: of these.
          there: of which class an example they are.
          sign: 1 if they are its positives, -1 if its negatives.

        Returns:
          The memory, and how many examples within the margin it had no room for.
        """
        one = jax.vmap(_remember, (0, 0, 0, None, None, 1, None))
        scaled = features * machines.scale
        return one(self, machines.weights, machines.bias, scaled, keys, there, sign)


def _remember(memory, weights, bias, features, keys, there, sign):
    """Returns the memory of one class, and what it lost."""
    kept = len(memory.keys)
    there &= ~jnp.isin(keys, memory.keys)
    rows = jnp.concatenate([memory.rows, features])
    keys = jnp.concatenate([memory.keys, jnp.where(there, keys, -1)])
    margins = sign * (jnp.matmul(rows, weights, precision="highest") + bias)
    hardness, order = jax.lax.top_k(jnp.where(keys >= 0, -margins, -jnp.inf), kept)
    stays = hardness > -jnp.inf
    within = jnp.sum((keys >= 0) & (margins < 1)) - jnp.sum(stays & (hardness > -1))
    rows = jnp.where(stays[:, None], rows[order], 0)
    return Memory(rows, jnp.where(stays, keys[order], -1)), within


def remember(
    settings: SVM,
    machines: Machines,
    memories: tuple[Memory, Memory],
    features: tuple[Float[Array, "batch objects d"], Float[Array, "batch n d"]],
    overlaps: Float[Array, "batch n classes"],
    batch: Mapping[str, Array],
) -> tuple[Memory, Memory, Int[Array, ""]]:
    """Returns the memories of positives and negatives with a batch of images in them.

    Args:
      settings: which proposals are background.
      machines: what tells how hard an example is.
      memories: of positives, of negatives.
      features: of the objects' boxes, of the proposals; not scaled.
      overlaps: the largest IoU of each proposal with an object of each class.
      batch: `labels`, `difficult`, `proposal_mask` and `example`.

    Returns:
      Both, and how many examples within the margin there was no room for.
    """
    classes = overlaps.shape[-1]
    labels = jnp.where(batch["difficult"], -1, batch["labels"])
    there = (
        labels[..., None] == jnp.arange(classes),
        batch["proposal_mask"][..., None] & (overlaps < settings.negative),
    )
    new, lost = [], 0
    for memory, rows, mask, sign in zip(
        memories, features, there, (1, -1), strict=True
    ):
        count, each, d = rows.shape
        keys = batch["example"].astype(jnp.int32)[:, None] * each + jnp.arange(each)
        memory, left_out = memory.with_(
            machines,
            rows.reshape(count * each, d),
            keys.reshape(-1),
            mask.reshape(-1, classes),
            sign,
        )
        new.append(memory)
        lost += left_out.sum()
    return *new, lost


def refit(
    settings: SVM,
    machines: Machines,
    positives: Memory,
    negatives: Memory,
    now: Bool[Array, ""],
) -> Machines:
    """Returns machines fitted to what is remembered; traceable, and run on the host.

    Args:
      settings: the prices.
      machines: what is returned where it is not yet time.
      positives: of each class.
      negatives: of each class.
      now: whether it is time.
    """
    prices = (settings.cost, settings.positive_weight, settings.bias_scale)
    old = (machines.weights, machines.bias)
    weights, bias = jax.pure_callback(
        _fit_on_host,
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), old),
        now,
        *prices,
        *old,
        (positives.rows, positives.keys),
        (negatives.rows, negatives.keys),
        vmap_method="sequential",
    )
    return machines.replace(weights=weights, bias=bias)


def _fit_on_host(now, cost, positive_weight, bias_scale, weights, bias, *memories):
    weights, bias = np.array(weights), np.array(bias)
    if not np.asarray(now):
        return weights, bias
    (rows, keys), (other_rows, other_keys) = jax.tree.map(np.asarray, memories)
    for label in range(len(bias)):
        positives = rows[label][keys[label] >= 0]
        negatives = other_rows[label][other_keys[label] >= 0]
        prices = float(cost), float(positive_weight), float(bias_scale)
        weights[label], bias[label] = fit(positives, negatives, *prices)
    return weights, bias


def fit(
    positives: Float[np.ndarray, "positives d"],
    negatives: Float[np.ndarray, "negatives d"],
    cost: float,
    positive_weight: float,
    bias_scale: float,
) -> tuple[Float[np.ndarray, " d"], float]:
    """Returns the weights and the bias of one machine.

    Where there are no examples of one sign, all are of the other: weights of 0, and a
    bias on the margin's edge.

    Args:
      positives: their features.
      negatives: likewise.
      cost: of an example's hinge loss, C.
      positive_weight: what a positive's counts.
      bias_scale: the constant feature's value.
    """
    features = np.concatenate([positives, negatives]).astype(np.float64)
    if not (len(positives) and len(negatives)):
        bias = 1.0 if len(positives) else -1.0
        return np.zeros(features.shape[1], np.float32), bias
    labels = np.repeat([1, -1], [len(positives), len(negatives)])
    machine: Any = LinearSVC(
        loss="hinge",
        C=cost,
        class_weight={1: positive_weight, -1: 1.0},
        intercept_scaling=bias_scale,
        random_state=0,
        max_iter=20_000,
    ).fit(features, labels)
    return machine.coef_[0].astype(np.float32), float(machine.intercept_[0])
