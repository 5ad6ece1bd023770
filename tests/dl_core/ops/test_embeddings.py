"""A step of embeddings is that of torch word by word; frequencies; neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from gensim.models import KeyedVectors
from scipy import stats

from dl_core.ops import embeddings

WINDOW, SIZE, WORDS, DIMENSION, NEGATIVES = 3, 14, 11, 6, 4


@pytest.fixture
def block():
    rng = np.random.default_rng(0)
    padded = SIZE + 2 * WINDOW
    tokens = rng.integers(0, WORDS, padded)
    # One sentence is a single word, and the last words are none.
    sentences = np.repeat([0, 1, 2, 3, -1], [6, 1, 4, 6, 3])
    radius = rng.integers(1, WINDOW + 1, SIZE)
    names = ("input", "output")
    params = {n: rng.normal(size=(WORDS, DIMENSION)).astype(np.float32) for n in names}
    return tokens, sentences, radius, params


def naive(block, model, drawn=None):
    """Returns the loss and the gradients, word by word in float64.

    Negatives are drawn for each target, for groups of words, or for the block.
    """
    tokens, sentences, radius, params = block
    table, output = (
        torch.tensor(params[n], dtype=torch.float64, requires_grad=True)
        for n in ("input", "output")
    )
    total, count = torch.zeros((), dtype=torch.float64), 0
    for i in range(SIZE):
        here = i + WINDOW
        offsets = [o for o in range(-WINDOW, WINDOW + 1) if o]
        around = [
            (place, here + o)
            for place, o in enumerate(offsets)
            if abs(o) <= radius[i]
            and sentences[here + o] == sentences[here]
            and sentences[here] >= 0
        ]
        if not around:
            continue
        if model == "cbow":
            h = sum(table[tokens[j]] for _, j in around) / len(around)
            pairs = [(0, h, tokens[here])]
        else:
            pairs = [(place, table[tokens[here]], tokens[j]) for place, j in around]
        for place, h, target in pairs:
            count += 1
            if drawn is None:
                total = total - torch.log_softmax(output @ h, 0)[target]
                continue
            total = total - torch.nn.functional.logsigmoid(output[target] @ h)
            wrong = drawn if drawn.ndim == 1 else drawn[i * len(drawn) // SIZE]
            wrong = wrong[place] if drawn.ndim == 3 else wrong
            weight = NEGATIVES / len(wrong)
            for word in wrong:
                if word != target:
                    part = torch.nn.functional.logsigmoid(-(output[word] @ h))
                    total = total - weight * part
    total.backward()
    return total.item() / count, table.grad.numpy(), output.grad.numpy()


def check(block, new, loss, expected, rate):
    wanted, for_input, for_output = expected
    params = block[3]
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    for name, slope in (("input", for_input), ("output", for_output)):
        found = (params[name] - np.asarray(new[name], np.float64)) / rate
        np.testing.assert_allclose(found, slope, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("model", ["cbow", "skip_gram"])
def test_a_step_with_the_full_softmax_is_torchs_word_by_word(block, model):
    tokens, sentences, radius, params = block
    mask = embeddings.in_window(jnp.array(sentences), jnp.array(radius))
    new, loss = embeddings.descend_softmax(
        jax.tree.map(jnp.array, params), jnp.array(tokens), mask, 0.5, model
    )
    check(block, new, loss, naive(block, model), 0.5)


@pytest.mark.parametrize("model", ["cbow", "skip_gram"])
@pytest.mark.parametrize("sets", ["targets", "groups", "block"])
def test_a_step_with_negatives_is_torchs_word_by_word(block, model, sets):
    tokens, sentences, radius, params = block
    mask = embeddings.in_window(jnp.array(sentences), jnp.array(radius))
    targets = 1 if model == "cbow" else 2 * WINDOW
    shape = {
        "targets": (SIZE, targets, NEGATIVES),
        "groups": (SIZE // 2, 4),
        "block": (7,),
    }
    drawn = np.random.default_rng(1).integers(0, WORDS, shape[sets])
    new, loss = embeddings.descend_negative(
        jax.tree.map(jnp.array, params),
        jnp.array(tokens),
        mask,
        jnp.array(drawn),
        0.5,
        model,
        NEGATIVES,
    )
    check(block, new, loss, naive(block, model, drawn), 0.5)


def test_only_touched_rows_change(block):
    tokens, sentences, radius, params = block
    mask = embeddings.in_window(jnp.array(sentences), jnp.array(radius))
    tokens = tokens % 5
    drawn = jnp.full((SIZE, 1, NEGATIVES), 6)
    new, _ = embeddings.descend_negative(
        jax.tree.map(jnp.array, params), jnp.array(tokens), mask, drawn, 0.5
    )
    np.testing.assert_array_equal(new["input"][5:], params["input"][5:])
    np.testing.assert_array_equal(new["output"][7:], params["output"][7:])


def test_negatives_are_drawn_from_the_unigram_to_three_quarters():
    counts = np.array([1000, 300, 100, 20, 5, 1])
    expected = counts**0.75 / (counts**0.75).sum()
    np.testing.assert_allclose(embeddings.noise(counts), expected)
    drawn = embeddings.Sampler.of(expected).draw(jax.random.key(0), (200_000,))
    found = np.bincount(drawn, minlength=len(counts))
    assert stats.chisquare(found, expected * found.sum()).pvalue > 1e-3


def test_frequent_words_are_dropped_as_gensim_drops_them():
    from gensim.models import Word2Vec

    counts = {"a": 5000, "b": 700, "c": 50, "d": 2}
    model = Word2Vec(min_count=1, sample=1e-3)
    model.build_vocab_from_freq(counts)
    wanted = [model.wv.get_vecattr(w, "sample_int") / 2**32 for w in counts]
    found = embeddings.keep_probability(np.array(list(counts.values())), 1e-3)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert (embeddings.keep_probability(np.array([9, 1]), 0) == 1).all()


def test_neighbours_are_gensims():
    vectors = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    keyed = KeyedVectors(8)
    keyed.add_vectors([f"w{i}" for i in range(50)], vectors)
    best, cosines = embeddings.nearest(vectors, 7, 5)
    wanted = keyed.most_similar("w7", topn=5)
    assert [f"w{i}" for i in best] == [word for word, _ in wanted]
    np.testing.assert_allclose(cosines, [c for _, c in wanted], rtol=1e-5)
