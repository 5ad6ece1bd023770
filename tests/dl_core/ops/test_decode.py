"""Decoding where all sequences can be listed: the best, their scores, frequencies."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dl_core.ops import decode

BATCH, VOCABULARY, END, LONGEST, SOURCE = 3, 4, 2, 4, 3
FIRST = jnp.array([0, 1, 3])
RNG = np.random.default_rng(0)
# The next token depends on the last two, the time and the example.
TABLE = RNG.normal(size=(BATCH, LONGEST, *[VOCABULARY] * 3)).astype(np.float32) * 1.5
ATTENTION = RNG.dirichlet(np.ones(SOURCE), (BATCH, LONGEST, VOCABULARY)).astype("f")
LENGTHS = jnp.array([3, 2, 3])


def start():
    return {
        "example": jnp.arange(BATCH),
        "before": jnp.zeros(BATCH, jnp.int32),
        "attention": jnp.zeros((BATCH, SOURCE)),
        "time": jnp.int32(0),
    }


def step(state, tokens):
    example, time = state["example"], state["time"]
    logits = jnp.asarray(TABLE)[example, time, state["before"], tokens]
    attention = jnp.asarray(ATTENTION)[example, time, tokens]
    new = {"before": tokens, "attention": attention, "time": time + 1}
    return logits, {**state, **new}


def continuations(example, prefix):
    """The log-probabilities of the next token after the first and a prefix."""
    last = [0, int(FIRST[example]), *prefix][-2:]
    logits = TABLE[example, len(prefix), last[0], last[1]]
    return logits - np.log(np.exp(logits).sum())


def covered(example, tokens):
    """What all tokens together attended to."""
    inputs = [int(FIRST[example]), *tokens[:-1]]
    return sum(ATTENTION[example, t, token] for t, token in enumerate(inputs))


@functools.cache
def sequences(example, shortest=0):
    """All sequences with their log-probabilities, those that ended and those cut."""
    ended, cut = [], []
    for length in range(1, LONGEST + 1):
        for tokens in itertools.product(range(VOCABULARY), repeat=length):
            if END in tokens[:-1]:
                continue
            steps = [continuations(example, tokens[:i]) for i in range(length)]
            each = [float(steps[i][token]) for i, token in enumerate(tokens)]
            if tokens[-1] == END and length > shortest:
                ended.append((tokens, sum(each)))
            elif length == LONGEST and tokens[-1] != END:
                cut.append((tokens, sum(each)))
    return ended, cut


def scored(example, alpha, beta):
    """Gives the score of a sequence and its log-probability."""

    def score(sequence):
        tokens, log_prob = sequence
        total = log_prob / ((5 + len(tokens)) / 6) ** alpha
        for position in range(int(LENGTHS[example])):
            total += beta * math.log(min(covered(example, tokens)[position], 1))
        return total

    return score


def ranked(example, alpha, beta, shortest=0):
    """The sequences from the best down, filled to the end, and their scores."""
    score, parts = scored(example, alpha, beta), []
    for part in sequences(example, shortest):
        parts += sorted(part, key=score, reverse=True)
    filled = [[*t, *[END] * (LONGEST - len(t))] for t, _ in parts]
    return filled, [score(sequence) for sequence in parts]


@pytest.mark.parametrize(
    ("alpha", "beta", "shortest"), [(0, 0, 0), (0.8, 0, 2), (0.6, 0.3, 0)]
)
def test_a_beam_of_all_widths_finds_the_best_of_all(alpha, beta, shortest):
    wide = VOCABULARY * 3 ** (LONGEST - 1)
    tokens, scores = jax.jit(
        lambda: decode.beam(
            step,
            start(),
            FIRST,
            END,
            LONGEST,
            wide,
            alpha,
            beta,
            lambda state: state["attention"],
            LENGTHS,
            shortest,
        )
    )()
    for example in range(BATCH):
        wanted, values = ranked(example, alpha, beta, shortest)
        many = min(wide, len(wanted))
        np.testing.assert_allclose(scores[example, :many], values[:many], rtol=1e-4)
        assert tokens[example, :many].tolist() == wanted[:many]
        assert np.isneginf(scores[example, many:]).all()
        assert (tokens[example, many:] == END).all()


def searched(example, width, alpha, beta):
    """What a beam search that never stops early finds, in plain Python."""
    score = scored(example, alpha, beta)
    alive, ended = [((), 0.0)], []
    for _ in range(LONGEST):
        every = [
            ((*tokens, token), total + float(log_prob))
            for tokens, total in alive
            for token, log_prob in enumerate(continuations(example, tokens))
        ]
        every.sort(key=lambda sequence: -sequence[1])
        ended += [each for each in every[:width] if each[0][-1] == END]
        alive = [each for each in every if each[0][-1] != END][:width]
    ended, alive = (sorted(x, key=score, reverse=True) for x in (ended, alive))
    best = [*ended[:width], *alive][:width]
    filled = [[*tokens, *[END] * (LONGEST - len(tokens))] for tokens, _ in best]
    return filled, [score(each) for each in best]


@pytest.mark.parametrize("width", [2, 3])
def test_a_narrow_beam_is_that_of_plain_python(width):
    @jax.jit
    def found(alpha, beta):
        penalties = alpha, beta, lambda state: state["attention"], LENGTHS
        return decode.beam(step, start(), FIRST, END, LONGEST, width, *penalties)

    for alpha, beta in [(0.0, 0.0), (0.6, 0.0), (0.0, 0.5), (1.5, 0.3)]:
        tokens, scores = found(alpha, beta)
        for example in range(BATCH):
            wanted, values = searched(example, width, alpha, beta)
            assert tokens[example].tolist() == wanted
            np.testing.assert_allclose(scores[example], values, rtol=1e-4)


@functools.partial(jax.jit, static_argnums=(0, 3))
def beam(width, alpha, first, shortest=0):
    return decode.beam(
        step, start(), first, END, LONGEST, width, alpha, shortest=shortest
    )


@functools.partial(jax.jit, static_argnums=1)
def greedy(first, shortest=0):
    return decode.greedy(step, start(), first, END, LONGEST, shortest)


@pytest.mark.parametrize("shortest", [0, 3])
def test_greedy_takes_the_best_next_token_as_a_beam_of_one_does(shortest):
    tokens, scores = greedy(FIRST, shortest)
    for example in range(BATCH):
        wanted, total = [], 0.0
        while len(wanted) < LONGEST and END not in wanted:
            each = continuations(example, wanted)
            allowed = np.where(np.arange(VOCABULARY) == END, -np.inf, each)
            wanted.append(int((allowed if len(wanted) < shortest else each).argmax()))
            total += each[wanted[-1]]
        filled = wanted + [END] * (LONGEST - len(wanted))
        assert tokens[example].tolist() == filled
        assert float(scores[example]) == pytest.approx(total, rel=1e-5)
    one, score = beam(1, 0.0, FIRST, shortest)
    np.testing.assert_array_equal(one[:, 0], tokens)
    np.testing.assert_allclose(score[:, 0], scores, rtol=1e-5)


def test_a_narrow_beam_holds_no_sequence_twice_and_scores_what_it_holds():
    tokens, scores = beam(5, 0.7, FIRST)
    for example in range(BATCH):
        found = tokens[example].tolist()
        assert len({tuple(t) for t in found}) == 5
        wanted, values = ranked(example, 0.7, 0)
        of = dict(zip(map(tuple, wanted), values, strict=True))
        told = [of[tuple(t)] for t in found]
        np.testing.assert_allclose(scores[example], told, rtol=1e-5)


def test_the_penalties_are_the_published_formulas():
    assert float(decode.length_norm(7, 0.6)) == pytest.approx(2**0.6)
    assert float(decode.length_norm(1, 0.9)) == 1
    attention = jnp.array([0.5, 1.7, 0.25, 0.0])
    valid = jnp.array([True, True, True, False])
    found = decode.coverage_score(attention, valid, 0.2)
    assert float(found) == pytest.approx(0.2 * (math.log(0.5) + math.log(0.25)))


def test_rows_of_a_beam_follow_their_example():
    tree = {"memory": jnp.arange(6).reshape(3, 2), "time": jnp.int32(4)}
    found = decode.repeat(tree, 2)
    assert found["memory"].tolist() == [[0, 1], [0, 1], [2, 3], [2, 3], [4, 5], [4, 5]]
    assert found["time"] == 4


def test_all_stop_when_all_have_ended():
    def counted(state, tokens):
        # After three tokens the end is certain.
        logits = jnp.where(jnp.arange(VOCABULARY) == END, 50.0 * (state - 2), 0.0)
        jax.debug.callback(lambda: calls.append(1))
        return jnp.broadcast_to(logits, (len(tokens), VOCABULARY)), state + 1

    arguments = (counted, jnp.float32(0), FIRST, END, 100)
    key = jax.random.key(0)
    for decoder in (
        lambda: decode.greedy(*arguments),
        lambda: decode.sample(*arguments, key),
        lambda: decode.beam(*arguments, 2)[0][:, 0],
    ):
        calls = []
        jax.block_until_ready(jax.jit(decoder)())
        jax.effects_barrier()
        assert len(calls) < 8


def test_without_an_end_sequences_are_as_long_as_they_may_be():
    tokens, _ = jax.jit(lambda: decode.greedy(step, start(), FIRST, -1, LONGEST))()
    assert tokens.min() >= 0
    found, scores = jax.jit(lambda: decode.beam(step, start(), FIRST, -1, LONGEST, 2))()
    assert found.min() >= 0
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("temperature", "top_k", "nucleus"), [(1.0, None, None), (0.6, 3, 0.8)]
)
def test_samples_are_as_frequent_as_they_are_probable(temperature, top_k, nucleus):
    draws = 3_000
    state = jax.tree.map(
        lambda x: jnp.broadcast_to(x[:1], (draws, *x.shape[1:])) if x.ndim else x,
        start(),
    )
    first = jnp.full(draws, FIRST[0])
    tokens, scores = jax.jit(
        lambda key: decode.sample(
            step, state, first, END, LONGEST, key, temperature, top_k, nucleus
        )
    )(jax.random.key(1))
    expected, log_probs = {}, {}
    for sequence, log_prob in itertools.chain(*sequences(0)):
        filled = (*sequence, *[END] * (LONGEST - len(sequence)))
        log_probs[filled] = log_prob
        expected[filled] = math.prod(
            restricted(continuations(0, sequence[:i]), temperature, top_k, nucleus)[t]
            for i, t in enumerate(sequence)
        )
    assert sum(expected.values()) == pytest.approx(1)
    drawn = [tuple(row) for row in tokens.tolist()]
    told = [log_probs[row] for row in drawn]
    np.testing.assert_allclose(scores, told, rtol=1e-4, atol=1e-5)
    assert all(expected[row] > 0 for row in drawn)
    common = [row for row, p in expected.items() if p * draws >= 5]
    counts = [drawn.count(row) for row in common]
    wanted = [expected[row] * draws for row in common]
    observed, hoped = [*counts, draws - sum(counts)], [*wanted, draws - sum(wanted)]
    if hoped[-1] < 1:
        observed, hoped = counts, np.array(wanted) * sum(counts) / sum(wanted)
    assert stats.chisquare(observed, hoped).pvalue > 1e-3


def restricted(logits, temperature, top_k, nucleus):
    """The probabilities of the tokens, by sorting."""
    p = np.exp(np.float64(logits) / temperature)
    p /= p.sum()
    order = np.argsort(-p)
    if top_k is not None:
        p[order[top_k:]] = 0
        p /= p.sum()
    if nucleus is not None:
        needed = int(np.searchsorted(p[order].cumsum(), nucleus)) + 1
        p[order[needed:]] = 0
        p /= p.sum()
    return p


PROBABILITIES = [0.1, 0.4, 0.2, 0.2, 0.1]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 2}, [1, 2, 3]),
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"nucleus": 0.3}, [1]),
        ({"nucleus": 0.5}, [1, 2, 3]),
        ({"nucleus": 0.85}, [0, 1, 2, 3, 4]),
        ({"nucleus": 1.0}, [0, 1, 2, 3, 4]),
        # Of the three that are left, the first has half.
        ({"top_k": 3, "nucleus": 0.49}, [1]),
        ({"temperature": 1e-3, "nucleus": 0.9}, [1]),
        ({"temperature": 1e3, "nucleus": 0.1}, [1]),
    ],
)
def test_what_may_be_drawn(options, kept):
    found = decode.restrict(jnp.log(jnp.array(PROBABILITIES)), **options)
    assert np.flatnonzero(np.isfinite(found)).tolist() == kept
    left = np.array(PROBABILITIES)[kept] / max(PROBABILITIES)
    wanted = left ** (1 / options.get("temperature", 1))
    probabilities = jax.nn.softmax(found)[np.array(kept)]
    np.testing.assert_allclose(probabilities, wanted / wanted.sum(), rtol=1e-4)


@pytest.mark.parametrize("traced", [False, True])
def test_the_whole_nucleus_leaves_nothing_out(traced):
    # The sum of the first hundred is 1 in single precision.
    logits = -jnp.arange(200.0)
    nucleus = jnp.float32(1) if traced else 1.0
    np.testing.assert_array_equal(decode.restrict(logits, nucleus=nucleus), logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a number above 0, got 0.0"),
        ({"top_k": 0}, "top_k: expected a number at least 1, got 0"),
        ({"nucleus": 1.5}, "nucleus: expected a number above 0 and at most 1, got 1.5"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        decode.restrict(jnp.zeros(3), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width"),
        ({"width": 2, "length_penalty": -0.5}, "length_penalty"),
        ({"width": 2, "coverage_penalty": 0.2}, "needs attention_of"),
    ],
)
def test_a_beam_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        decode.beam(step, start(), FIRST, END, LONGEST, **options)
