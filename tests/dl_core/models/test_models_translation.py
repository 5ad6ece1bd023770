"""Encoder-decoders as translators: what they are trained on, and what they write."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.config import replace
from dl_core.data.subwords import BEGIN, END, PAD, Vocabulary
from dl_core.errors import UserError
from dl_core.models import seq2seq, translation
from dl_core.models.translation import Translator, Vocabularies

LONGEST = 6
WORDS = Vocabulary.train(["a b c d e f g"], 11, "words")
KNOWN = Vocabularies(WORDS, WORDS)
SMALL = {
    "recurrent.features": 8,
    "recurrent.embedding": 4,
    "transformer.features": 8,
    "transformer.heads": 2,
    "transformer.layers": 1,
    "transformer.hidden": 8,
}
RANDOM = np.random.default_rng(0)
SOURCE = jnp.asarray(RANDOM.integers(4, 11, (4, LONGEST)))
LENGTHS = jnp.array([6, 3, 1, 4])
TARGET = jnp.asarray(RANDOM.integers(4, 11, (4, LONGEST)))
kinds = pytest.mark.parametrize("name", ["recurrent", "transformer"])


@functools.cache
def made(name):
    """Returns a model and parameters by which `PAD` and `BEGIN` are the likeliest."""
    net = replace(Translator(name=name), SMALL)
    model = translation.make_model(net, KNOWN, LONGEST)
    init = jax.jit(functools.partial(model.init, train=False))
    params = init(jax.random.key(0), SOURCE, LENGTHS, TARGET)["params"]
    # As it begins, a network has hardly a choice.
    random = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype), params
    )
    head = params["head"]
    bias = head["bias"].at[jnp.array([PAD, BEGIN])].set(50).at[END].add(1)
    return model, params | {"head": head | {"bias": bias}}


@kinds
def test_the_padding_has_no_part_in_the_losses(name):
    model, params = made(name)
    lengths = jnp.array([2, 6, 4, 1])
    batch = {
        "source": SOURCE,
        "source_length": LENGTHS,
        "target": TARGET,
        "target_length": lengths,
    }
    losses = jax.jit(functools.partial(translation.losses, model, params))
    loss, valid = losses(batch)
    assert valid.sum(1).tolist() == lengths.tolist()
    for side, count in (("source", LENGTHS), ("target", lengths)):
        padding = jnp.arange(LONGEST) >= count[:, None]
        batch[side] = jnp.where(padding, PAD, batch[side])
    other, _ = losses(batch)
    np.testing.assert_allclose(other * valid, loss * valid, atol=1e-6)


@kinds
def test_greedy_is_a_beam_of_one_and_writes_words_alone(name):
    arguments = (*made(name), SOURCE, LENGTHS, 12)
    if name == "transformer":
        assert made(name)[0].config.longest >= 12
    tokens = jax.jit(lambda: translation.greedy(*arguments))()
    assert not np.isin(tokens, (PAD, BEGIN)).any()
    one = jax.jit(lambda: translation.beam(*arguments, 1, 0.0))()
    np.testing.assert_array_equal(one, tokens)
    assert len(np.unique(tokens)) > 1


def test_the_weights_are_those_with_which_the_tokens_were_written():
    model, params = made("recurrent")

    @jax.jit
    def found():
        tokens = translation.greedy(model, params, SOURCE, LENGTHS, LONGEST)
        weights = translation.weights(model, params, SOURCE, LENGTHS, tokens)
        how = {"attention": True}
        step, state = seq2seq.decoding(model, params, SOURCE, LENGTHS, **how)

        def on(state, now):
            _, state = step(state, now)
            return state, seq2seq.attention_of(state)

        inputs = translation.shifted(tokens)
        return weights, jax.lax.scan(on, state, inputs.T)[1].swapaxes(0, 1)

    weights, while_writing = found()
    np.testing.assert_allclose(weights, while_writing, atol=1e-5)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert weights.shape == (4, LONGEST, LONGEST)


def test_a_transformers_weights_are_of_the_source_alone():
    model, params = made("transformer")
    weights = jax.jit(functools.partial(translation.weights, model))
    found = weights(params, SOURCE, LENGTHS, TARGET)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    padding = np.arange(LONGEST) >= np.asarray(LENGTHS)[:, None, None]
    assert not np.where(padding, found, 0).any()
    later = weights(params, SOURCE, LENGTHS, TARGET.at[:, 3].set(5))
    np.testing.assert_array_equal(later[:, :4], found[:, :4])


def test_a_coverage_penalty_is_of_recurrent_networks_with_attention():
    found = translation.translate(
        *made("recurrent"), KNOWN, ["a b c", "e f"], LONGEST, 3, coverage_penalty=0.2
    )
    assert len(found) == 2
    with pytest.raises(UserError, match="goes by the attention of a recurrent"):
        translation.translate(
            *made("transformer"), KNOWN, ["a"], LONGEST, 2, coverage_penalty=0.2
        )


def test_a_translation_says_whether_it_ended():
    model, params = made("recurrent")
    head = params["head"]
    for value, ended in ((-1e3, False), (1e3, True)):
        bias = head["bias"].at[END].set(value)
        changed = params | {"head": head | {"bias": bias}}
        found = translation.translate(model, changed, KNOWN, ["a b"], LONGEST)
        assert found[0].ended == ended


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"name": "transformer", "transformer.heads": 3},
            "heads=3: expected a div",
        ),
        (
            {"name": "transformer", "transformer.features": 9, "transformer.heads": 3},
            "features=9: expected an even number",
        ),
        (
            {
                "name": "transformer",
                "transformer.features": 6,
                "transformer.positions": "rotary",
            },
            "features=6: expected a multiple of twice the 2 heads",
        ),
        ({"recurrent.features": 1}, "features=1: expected at least 2"),
        (
            {"recurrent.features": 9, "recurrent.score": "dot"},
            "score=dot: expected as many units",
        ),
    ],
)
def test_a_model_that_cannot_be_is_refused(changes, said):
    net = replace(Translator(), SMALL | changes)
    with pytest.raises(UserError, match=said):
        translation.make_model(net, KNOWN, LONGEST)


@pytest.mark.parametrize("heads", [0, -1])
def test_there_is_at_least_one_head(heads):
    with pytest.raises(UserError, match="heads"):
        replace(Translator(), {"transformer.heads": heads})
