"""Sequences from a network that gives one token after the other.

The network is a pure function `step(state, tokens)` of a state whose leaves have the
sequences as rows (leaves of no axis belong to all) and of each sequence's last token.
It returns the logits of the next tokens, "rows vocabulary", and the next state, of the
same shapes. All decoders stop when every sequence has ended. They are to be called
inside `jax.jit`, where `step` may close over parameters.

A sequence holds at most `longest` tokens, its end among them; what follows the end is
filled with `end`. Where `end` is no token, such as -1, sequences do not end.
"""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree

Step = Callable[[PyTree, Array], tuple[Array, PyTree]]


def greedy(
    step: Step,
    state: PyTree,
    first: Int[Array, " batch"],
    end: int,
    longest: int,
    shortest: int = 0,
) -> tuple[Int[Array, "batch {longest}"], Float[Array, " batch"]]:
    """Returns sequences of the most probable next tokens, and their log-probabilities.

    Args:
      step: the network.
      state: before the first step.
      first: the tokens that the first step is given, which are not returned.
      end: the token that ends a sequence.
      longest: tokens of a sequence at most, the end included.
      shortest: tokens that a sequence has at least before its end.
    """

    def choose(time, logits):
        return jnp.argmax(logits, axis=-1)

    return _one_by_one(step, state, first, end, longest, shortest, choose)


def sample(
    step: Step,
    state: PyTree,
    first: Int[Array, " batch"],
    end: int,
    longest: int,
    key: Array,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | None = None,
    nucleus: float | Float[Array, ""] | None = None,
    shortest: int = 0,
) -> tuple[Int[Array, "batch {longest}"], Float[Array, " batch"]]:
    """Returns sequences drawn token by token, and their log-probabilities.

    These are the network's own, whatever the temperature and the restrictions.

    Args:
      step: the network.
      state: before the first step.
      first: the tokens that the first step is given, which are not returned.
      end: the token that ends a sequence.
      longest: tokens of a sequence at most, the end included.
      key: of the randomness.
      temperature: as for `restrict`.
      top_k: as for `restrict`.
      nucleus: as for `restrict`.
      shortest: tokens that a sequence has at least before its end.

    Raises:
      ValueError: as `restrict` does.
    """

    def choose(time, logits):
        chosen = restrict(logits, temperature, top_k, nucleus)
        return jax.random.categorical(jax.random.fold_in(key, time), chosen)

    return _one_by_one(step, state, first, end, longest, shortest, choose)


def restrict(
    logits: Float[Array, "*rows vocabulary"],
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | None = None,
    nucleus: float | Float[Array, ""] | None = None,
) -> Float[Array, "*rows vocabulary"]:
    """Returns logits divided by the temperature, -inf for the tokens left out.

    Tokens as probable as one that is kept are kept too, so that it never depends on
    their order which of them may be drawn.

    Args:
      logits: of the next token.
      temperature: above 0; nearer to 0, the most probable token is drawn more often.
      top_k: keep so many of the most probable tokens; all where None.
      nucleus: then keep the fewest most probable ones whose probabilities, among those
        still there, add up to this much (Holtzman et al., "The curious case of neural
        text degeneration", 2020, arXiv:1904.09751); all where None.

    Raises:
      ValueError: if a number is out of range.
    """
    _check("temperature", temperature, lambda x: x > 0, "above 0")
    _check("top_k", top_k, lambda x: x >= 1, "at least 1")
    _check("nucleus", nucleus, lambda x: 0 < x <= 1, "above 0 and at most 1")
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if nucleus is not None:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(ordered)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        # All of the probability is all tokens, however the sums are rounded.
        kept = jnp.where((before < nucleus) | (nucleus >= 1), ordered, jnp.inf)
        # The first is kept, however the sums are rounded.
        least = jnp.minimum(kept.min(-1, keepdims=True), ordered[..., :1])
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def beam(
    step: Step,
    state: PyTree,
    first: Int[Array, " batch"],
    end: int,
    longest: int,
    width: int,
    length_penalty: float | Float[Array, ""] = 0.0,
    coverage_penalty: float | Float[Array, ""] = 0.0,
    attention_of: Callable[[PyTree], Array] | None = None,
    source_lengths: Int[Array, " batch"] | None = None,
    shortest: int = 0,
) -> tuple[Int[Array, "batch {width} {longest}"], Float[Array, "batch {width}"]]:
    """Returns the best sequences that a beam search finds, and their scores.

    A step continues the `width` best sequences that have not ended; an end counts if it
    is among the `width` best continuations. The score of a sequence is its
    log-probability over `length_norm`, plus `coverage_score` (Wu et al., "Google's
    neural machine translation system", 2016, arXiv:1609.08144). The search stops when
    `width` sequences have ended that no other can still surpass. With width 1 and no
    penalties it is `greedy`.

    Args:
      step: the network. The sequences of one example are neighbours, `width` rows; it
        is called with as many from the start. What it closes over must have these
        rows too (see `repeat`): that is cheaper than in the state, whose rows follow
        their sequences after every step.
      state: before the first step, a row for each example.
      first: the tokens that the first step is given, which are not returned.
      end: the token that ends a sequence.
      longest: tokens of a sequence at most, the end included.
      width: sequences kept for each example.
      length_penalty: α, not negative; the larger, the longer the sequences.
      coverage_penalty: β, not negative.
      attention_of: gives the attention of the last step, "rows source", from the state
        after it; only for the coverage.
      source_lengths: positions of each source that count for the coverage; all where
        None.
      shortest: tokens that a sequence has at least before its end.

    Returns:
      Tokens, and scores from the best down. Sequences cut at `longest` come after those
      that ended. Where there are fewer sequences than `width`, the last scores are
      -inf.

    Raises:
      ValueError: if a number is out of range, or there is a coverage penalty without
        attention.
    """
    _check("width", width, lambda x: x >= 1, "at least 1")
    _check("length_penalty", length_penalty, lambda x: x >= 0, "at least 0")
    _check("coverage_penalty", coverage_penalty, lambda x: x >= 0, "at least 0")
    if attention_of is None and not _is_number(coverage_penalty, 0):
        raise ValueError("a coverage penalty needs attention_of")
    batch = len(first)
    state = repeat(state, width)
    coverage = valid = None
    if attention_of is not None:
        shape = jax.eval_shape(attention_of, state)
        coverage = jnp.zeros((batch, width, *shape.shape[1:]), shape.dtype)
        valid = jnp.ones((batch, 1, coverage.shape[-1]), bool)
        if source_lengths is not None:
            valid = jnp.arange(coverage.shape[-1]) < source_lengths[:, None, None]

    def score(log_probs, tokens, coverage):
        scores = log_probs / length_norm(tokens, length_penalty)
        if coverage is None:
            return scores
        return scores + coverage_score(coverage, valid, coverage_penalty)

    def unfinished(search):
        # Every further token lowers the log-probability, and the norm grows with it.
        reachable = search.log_probs[:, 0] / length_norm(longest, length_penalty)
        done = search.scores[:, -1] >= reachable
        return (search.time < longest) & ~done.all()

    def advance(search):
        time = search.time
        logits, state = step(search.state, search.last.reshape(-1))
        # Only `width` of the best 2 `width` can be ends, so enough others are left.
        total, parent, token = _continuations(
            search.log_probs, *_best(logits, 2 * width, end, time, shortest)
        )
        tokens = _rows(search.tokens, parent).at[..., time].set(token)
        covered = coverage
        if attention_of is not None:
            covered = search.coverage + attention_of(state).reshape(coverage.shape)
            covered = _rows(covered, parent)
        is_end = token == end
        counts = is_end & (jnp.arange(2 * width) < width)
        ended = jnp.where(counts, score(total, time + 1, covered), -jnp.inf)
        scores = jnp.concatenate([search.scores, ended], axis=1)
        scores, best = jax.lax.top_k(scores, width)
        every = jnp.concatenate([search.ended, tokens], axis=1)
        log_probs, alive = jax.lax.top_k(jnp.where(is_end, -jnp.inf, total), width)
        source = (_rows(parent, alive) + width * jnp.arange(batch)[:, None]).reshape(-1)
        return _Search(
            time=time + 1,
            state=jax.tree.map(lambda x: x[source] if x.ndim else x, state),
            last=_rows(token, alive),
            tokens=_rows(tokens, alive),
            log_probs=log_probs,
            coverage=None if covered is None else _rows(covered, alive),
            ended=_rows(every, best),
            scores=scores,
        )

    nothing = jnp.full((batch, width, longest), end, jnp.int32)
    search = _Search(
        time=jnp.int32(0),
        state=state,
        last=jnp.repeat(first[:, None], width, axis=1).astype(jnp.int32),
        tokens=nothing,
        # There is one beginning, not `width` equal ones.
        log_probs=jnp.full((batch, width), -jnp.inf).at[:, 0].set(0),
        coverage=coverage,
        ended=nothing,
        scores=jnp.full((batch, width), -jnp.inf),
    )
    search = jax.lax.while_loop(unfinished, advance, search)
    cut, order = jax.lax.top_k(score(search.log_probs, longest, search.coverage), width)
    tokens = jnp.concatenate([search.ended, _rows(search.tokens, order)], axis=1)
    scores = jnp.concatenate([search.scores, cut], axis=1)
    best = jnp.argsort(jnp.isneginf(scores), axis=1, stable=True)[:, :width]
    tokens, scores = _rows(tokens, best), _rows(scores, best)
    return jnp.where(jnp.isneginf(scores)[..., None], end, tokens), scores


def repeat(tree: PyTree, width: int) -> PyTree:
    """Returns arrays with each row `width` times, as a beam search has its rows."""
    return jax.tree.map(
        lambda leaf: jnp.repeat(leaf, width, axis=0) if jnp.ndim(leaf) else leaf, tree
    )


def length_norm(
    tokens: int | Int[Array, "*shape"], penalty: float | Float[Array, ""]
) -> Float[Array, "*shape"]:
    """Returns ((5 + n) / 6)^α, by which log-probabilities of n tokens are divided."""
    return ((5 + jnp.asarray(tokens, jnp.float32)) / 6) ** penalty


def coverage_score(
    attention: Float[Array, "*shape source"],
    valid: Bool[Array, "*#shape source"],
    penalty: float | Float[Array, ""],
) -> Float[Array, "*shape"]:
    """Returns β Σ log min(a, 1) over the positions of the source.

    Args:
      attention: a, what a position was given by all tokens together.
      valid: the positions that count.
      penalty: β.
    """
    least = jnp.finfo(attention.dtype).tiny
    logs = jnp.log(jnp.clip(attention, least, 1))
    return penalty * jnp.where(valid, logs, 0).sum(-1)


@struct.dataclass
class _Search:
    """The sequences of a beam search: those that go on, and the best that ended."""

    time: Array
    state: Any
    last: Array
    tokens: Array
    log_probs: Array
    coverage: Array | None
    ended: Array
    scores: Array


def _one_by_one(
    step: Step,
    state: PyTree,
    first: Array,
    end: int,
    longest: int,
    shortest: int,
    choose: Callable[[Array, Array], Array],
) -> tuple[Array, Array]:
    """Returns tokens and log-probabilities of sequences that do not compete."""

    def unfinished(carry):
        time, _, _, _, _, ended = carry
        return (time < longest) & ~ended.all()

    def advance(carry):
        time, state, last, tokens, log_probs, ended = carry
        logits, state = step(state, last)
        new = choose(time, _forbid(logits, end, time, shortest)).astype(jnp.int32)
        each = jnp.take_along_axis(_log_softmax(logits), new[:, None], axis=-1)
        log_probs += jnp.where(ended, 0, each[:, 0])
        new = jnp.where(ended, end, new)
        tokens = tokens.at[:, time].set(new)
        return time + 1, state, new, tokens, log_probs, ended | (new == end)

    batch = len(first)
    carry = (
        jnp.int32(0),
        state,
        first.astype(jnp.int32),
        jnp.full((batch, longest), end, jnp.int32),
        jnp.zeros(batch),
        jnp.zeros(batch, bool),
    )
    _, _, _, tokens, log_probs, _ = jax.lax.while_loop(unfinished, advance, carry)
    return tokens, log_probs


def _best(
    logits: Array, count: int, end: int, time: Array, shortest: int
) -> tuple[Array, Array]:
    """Returns the log-probabilities of each row's best tokens, and these."""
    logits = logits.astype(jnp.float32)
    norm = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    logits = _forbid(logits, end, time, shortest)
    best, tokens = jax.lax.top_k(logits, min(count, logits.shape[-1]))
    return best - norm, tokens


def _continuations(
    log_probs: Array, following: Array, tokens: Array
) -> tuple[Array, Array, Array]:
    """Returns the log-probabilities, parents and tokens of the best continuations.

    The best of all are among the best of each, of which there are few.

    Args:
      log_probs: of the sequences, "batch width".
      following: of the best tokens after each of them, "rows each".
      tokens: those.
    """
    batch, width = log_probs.shape
    each = following.shape[-1]
    total = log_probs[..., None] + following.reshape(batch, width, each)
    total, best = jax.lax.top_k(total.reshape(batch, -1), 2 * width)
    return total, best // each, _rows(tokens.reshape(batch, -1), best)


def _rows(x: Array, index: Array) -> Array:
    """Returns x[b, index[b, i]] for all b and i."""
    return jax.vmap(operator.getitem)(x, index)


def _log_softmax(logits: Array) -> Array:
    # Sums over a sequence need more digits than half precision has.
    return jax.nn.log_softmax(logits.astype(jnp.float32))


def _forbid(logits: Array, end: int, time: Array, shortest: int) -> Array:
    """Returns logits by which nothing ends before it has as many tokens."""
    if not shortest:
        return logits
    is_end = jnp.arange(logits.shape[-1]) == end
    return jnp.where(is_end & (time < shortest), -jnp.inf, logits)


def _is_number(x: Any, value: float) -> bool:
    return isinstance(x, int | float) and x == value


def _check(name: str, x: Any, holds: Callable[[Any], bool], expected: str) -> None:
    """Raises ValueError if a number, where it is known, is out of range."""
    if isinstance(x, int | float) and not holds(x):
        raise ValueError(f"{name}: expected a number {expected}, got {x}")
