"""Word embeddings: CBOW and skip-gram, with the full softmax or negative sampling.

Mikolov, Chen, Corrado & Dean, "Efficient estimation of word representations in vector
space", 2013 (arXiv:1301.3781): a word is predicted from the mean of the words around it
(CBOW), or predicts each of them (skip-gram). Mikolov, Sutskever, Chen, Corrado & Dean,
"Distributed representations of words and phrases and their compositionality", 2013
(arXiv:1310.4546): negative sampling, and the dropping of frequent words.

Both read a *block* of text: `count` words in a row, with `window` more on either side.
The vector of each is gathered once; what lies in the window of which word is a mask of
2 × window shifts. The gradient is that of the rows which the block touches, and a step
changes these alone (`descend`), so its cost does not depend on the vocabulary, except
where the softmax is the full one.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Params = Mapping[str, Float[Array, "vocabulary dimension"]]
"""The vectors of words, "input", and those by which they are predicted, "output"."""
Model = Literal["cbow", "skip_gram"]


class Sampler(NamedTuple):
    """Draws words by Walker's alias method, in time that is the same for any number."""

    threshold: Float[Array, " vocabulary"]
    alias: Int[Array, " vocabulary"]

    @classmethod
    def of(cls, probabilities: Float[np.ndarray, " vocabulary"]) -> "Sampler":
        """Returns the sampler of a distribution.

        Args:
          probabilities: of each word; they add up to 1.
        """
        size = len(probabilities)
        scaled = np.asarray(probabilities, np.float64) * size
        threshold, alias = np.ones(size), np.arange(size)
        small = list(np.flatnonzero(scaled < 1))
        large = list(np.flatnonzero(scaled >= 1))
        while small and large:
            low, high = small.pop(), large[-1]
            threshold[low], alias[low] = scaled[low], high
            scaled[high] -= 1 - scaled[low]
            if scaled[high] < 1:
                small.append(large.pop())
        return cls(jnp.asarray(threshold, jnp.float32), jnp.asarray(alias, jnp.int32))

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> Int[Array, "..."]:
        """Returns independent words."""
        for_column, for_side = jax.random.split(key)
        column = jax.random.randint(for_column, shape, 0, len(self.alias))
        aside = jax.random.uniform(for_side, shape) >= self.threshold[column]
        return jnp.where(aside, self.alias[column], column)


def noise(
    counts: Int[np.ndarray, " vocabulary"], power: float = 0.75
) -> Float[np.ndarray, " vocabulary"]:
    """Returns the distribution of negative words: the unigram's to the power of 3/4.

    Args:
      counts: of each word.
      power: 1 for the unigram's own, 0 for an even one.
    """
    weights = np.asarray(counts, np.float64) ** power
    return weights / weights.sum()


def keep_probability(
    counts: Int[np.ndarray, " vocabulary"], sample: float
) -> Float[np.ndarray, " vocabulary"]:
    """Returns how likely each word is kept, when frequent ones are dropped.

    It is that of word2vec.c, min(1, √(s/f) + s/f) for a word of frequency f; the
    paper's is √(s/f).

    Args:
      counts: of each word.
      sample: the threshold s; 0 keeps all.
    """
    counts = np.asarray(counts, np.float64)
    if not sample:
        return np.ones_like(counts)
    share = sample * counts.sum() / np.maximum(counts, 1)
    return np.minimum(1, np.sqrt(share) + share)


def in_window(
    sentences: Int[Array, " padded"], radius: Int[Array, " count"]
) -> Bool[Array, "count offsets"]:
    """Returns which of the words around each are in its window.

    Args:
      sentences: the sentence of each word of a block; no window crosses a border, and
        what has the number -1 is no word.
      radius: of the window of each word but those on either side.

    Returns:
      Row i has the offsets -window … -1, 1 … window of the block's word i.
    """
    count = len(radius)
    window = (len(sentences) - count) // 2
    here = sentences[window : window + count]
    columns = [
        (sentences[window + offset : window + offset + count] == here)
        & (abs(offset) <= radius)
        & (here >= 0)
        for offset in _offsets(window)
    ]
    return jnp.stack(columns, axis=1)


def _offsets(window: int) -> list[int]:
    return [offset for offset in range(-window, window + 1) if offset]


@jax.custom_vjp
def around(
    values: Float[Array, "padded dimension"], mask: Bool[Array, "count offsets"]
) -> Float[Array, "count dimension"]:
    """Returns the mean over the words in each window; 0 where there is none."""
    count, offsets = mask.shape
    window = offsets // 2
    total = sum(
        mask[:, place, None] * values[window + offset : window + offset + count]
        for place, offset in enumerate(_offsets(window))
    )
    return total / _sizes(mask)


def _sizes(mask: Bool[Array, "count offsets"]) -> Int[Array, "count 1"]:
    return jnp.maximum(mask.sum(1, keepdims=True), 1)


def _around_forward(values, mask):
    return around(values, mask), mask


def _around_backward(mask, slope):
    # Shifts back: one pass, where the transpose that JAX derives adds up padded copies.
    count, offsets = mask.shape
    window = offsets // 2
    edges = ((2 * window, 2 * window), (0, 0))
    slope, mask = jnp.pad(slope / _sizes(mask), edges), jnp.pad(mask, edges)
    length = count + 2 * window
    total = sum(
        mask[begin : begin + length, place, None] * slope[begin : begin + length]
        for place, begin in enumerate(window - o for o in _offsets(window))
    )
    return total, None


around.defvjp(_around_forward, _around_backward)


def targets(
    tokens: Int[Array, " padded"], mask: Bool[Array, "count offsets"], model: Model
) -> tuple[Int[Array, "count targets"], Bool[Array, "count targets"]]:
    """Returns what each word of a block is to predict, and which of it counts.

    For CBOW it is the word itself, where there is a word in its window; for skip-gram
    every word of the window.
    """
    count, offsets = mask.shape
    window = offsets // 2
    if model == "cbow":
        return tokens[window : window + count, None], mask.any(1, keepdims=True)
    columns = [tokens[window + o : window + o + count] for o in _offsets(window)]
    return jnp.stack(columns, axis=1), mask


def hidden(
    rows: Float[Array, "padded dimension"],
    mask: Bool[Array, "count offsets"],
    model: Model,
) -> Float[Array, "count dimension"]:
    """Returns the vectors from which a block's words are predicted, or predict.

    Args:
      rows: the input vector of each word of the block.
      mask: of `in_window`.
      model: CBOW takes the mean over the window, skip-gram the word's own vector.
    """
    if model == "cbow":
        return around(rows, mask)
    count, offsets = mask.shape
    return rows[offsets // 2 : offsets // 2 + count]


def softmax_loss(
    vectors: Float[Array, "count dimension"],
    output: Float[Array, "vocabulary dimension"],
    wanted: Int[Array, "count targets"],
    counts: Bool[Array, "count targets"],
    offset: Float[Array, " vocabulary"] | float = 0.0,
) -> Float[Array, "count targets"]:
    """Returns -log p of each target, p a softmax over the vocabulary.

    Args:
      vectors: of `hidden`.
      output: the output vectors of all words.
      wanted: the targets.
      counts: which of them count; the loss of others is 0.
      offset: added to the logits of each word.
    """
    logits = vectors @ output.T + offset
    log_total = jax.nn.logsumexp(logits, axis=1, keepdims=True)
    loss = log_total - jnp.take_along_axis(logits, wanted, axis=1)
    return loss * counts


def negative_loss(
    vectors: Float[Array, "count dimension"],
    right: Float[Array, "count targets dimension"],
    wrong: Float[Array, "*sets negatives dimension"],
    weight: Float[Array, "count *targets negatives"],
    counts: Bool[Array, "count targets"],
) -> Float[Array, ""]:
    """Returns -log σ(h·u) - Σ log σ(-h·n), added up over all targets.

    Args:
      vectors: h, of `hidden`.
      right: the targets' output vectors, u.
      wrong: the negatives', n: a set for each target ("count targets"), for each group
        of words in a row ("groups"), or one for the block.
      weight: of each negative; where they are shared, for all targets of a word.
      counts: which targets count.
    """
    of_right = jnp.einsum("nd,ntd->nt", vectors, right)
    if wrong.ndim == 2:
        of_wrong = vectors @ wrong.T
    elif wrong.ndim == 3:
        groups = vectors.reshape(len(wrong), -1, vectors.shape[-1])
        of_wrong = jnp.einsum("gnd,gkd->gnk", groups, wrong).reshape(weight.shape)
    else:
        of_wrong = jnp.einsum("nd,ntkd->ntk", vectors, wrong)
    loss = jnp.sum(jax.nn.softplus(-of_right) * counts)
    return loss + jnp.sum(jax.nn.softplus(of_wrong) * weight)


def negative_weight(
    wanted: Int[Array, "count targets"],
    counts: Bool[Array, "count targets"],
    drawn: Int[Array, "*sets negatives"],
    negatives: int,
) -> Float[Array, "count *targets negatives"]:
    """Returns the weights of negatives; one that is the target itself has none.

    Where words share them, each weighs so much that the weights of a target add up to
    `negatives`: the expectation of the loss is that of as many of its own.

    Args:
      wanted: the targets.
      counts: which of them count.
      drawn: the negatives: of each target, of each group of words, or of the block.
      negatives: how many a target has.
    """
    if drawn.ndim == 2:
        drawn = jnp.repeat(drawn, len(wanted) // len(drawn), axis=0)[:, None]
        shared = True
    else:
        shared = drawn.ndim == 1
    others = counts[..., None] & (drawn != wanted[..., None])
    if not shared:
        return others.astype(jnp.float32)
    weight = negatives / drawn.shape[-1]
    return jnp.sum(others, axis=1, dtype=jnp.float32) * weight


def initial(key: jax.Array, vocabulary: int, dimension: int) -> Params:
    """Returns word2vec's beginning: small input vectors, output vectors of zero."""
    bound = 0.5 / dimension
    shape = (vocabulary, dimension)
    return {
        "input": jax.random.uniform(key, shape, minval=-bound, maxval=bound),
        "output": jnp.zeros(shape),
    }


def descend_softmax(
    params: Params,
    tokens: Int[Array, " padded"],
    mask: Bool[Array, "count offsets"],
    rate: Float[Array, ""] | float,
    model: Model = "cbow",
) -> tuple[Params, Float[Array, ""]]:
    """Takes a step of SGD down the sum of a block's losses, with the full softmax.

    Args:
      params: the vectors.
      tokens: a block.
      mask: of `in_window`.
      rate: the step size for one target.
      model: what predicts what.

    Returns:
      The new vectors, and the loss before the step, per target.
    """
    wanted, counts = targets(tokens, mask, model)

    def loss_of(rows, output):
        vectors = hidden(rows, mask, model)
        return softmax_loss(vectors, output, wanted, counts).sum()

    rows, output = params["input"][tokens], params["output"]
    loss, slopes = jax.value_and_grad(loss_of, (0, 1))(rows, output)
    new = {
        "input": params["input"].at[tokens].add(-rate * slopes[0]),
        "output": output - rate * slopes[1],
    }
    return new, loss / jnp.maximum(counts.sum(), 1)


def descend_negative(
    params: Params,
    tokens: Int[Array, " padded"],
    mask: Bool[Array, "count offsets"],
    drawn: Int[Array, "*sets negatives"],
    rate: Float[Array, ""] | float,
    model: Model = "cbow",
    negatives: int = 5,
) -> tuple[Params, Float[Array, ""]]:
    """Takes a step of SGD down the sum of a block's losses, with negative sampling.

    Args:
      params: the vectors; only the rows of the block and of the negatives change.
      tokens: a block.
      mask: of `in_window`.
      drawn: negatives of each target ("count targets negatives"); or any number that
        a group of words in a row shares ("groups negatives"), or the block. Sharing
        costs fewer rows (Ji et al., 2016, arXiv:1604.04661).
      rate: the step size for one target.
      model: what predicts what.
      negatives: how many a target has.

    Returns:
      The new vectors, and the loss before the step, per target.
    """
    wanted, counts = targets(tokens, mask, model)
    weight = negative_weight(wanted, counts, drawn, negatives)

    def loss_of(rows, right, wrong):
        vectors = hidden(rows, mask, model)
        return negative_loss(vectors, right, wrong, weight, counts)

    source, output = params["input"], params["output"]
    parts = source[tokens], output[wanted], output[drawn]
    loss, slopes = jax.value_and_grad(loss_of, (0, 1, 2))(*parts)
    output = output.at[wanted].add(-rate * slopes[1])
    new = {
        "input": source.at[tokens].add(-rate * slopes[0]),
        "output": output.at[drawn].add(-rate * slopes[2]),
    }
    return new, loss / jnp.maximum(counts.sum(), 1)


def nearest(
    vectors: Float[np.ndarray, "vocabulary dimension"], word: int, count: int = 10
) -> tuple[Int[np.ndarray, " count"], Float[np.ndarray, " count"]]:
    """Returns the words of the largest cosine with a word, and the cosines.

    Args:
      vectors: of all words.
      word: whose neighbours.
      count: how many; the word itself is none of them.
    """
    lengths = np.linalg.norm(vectors, axis=1)
    cosines = vectors @ vectors[word] / np.maximum(lengths * lengths[word], 1e-12)
    cosines[word] = -np.inf
    best = np.argsort(-cosines, kind="stable")[:count]
    return best, cosines[best]
