"""CBOW: exact probabilities, which rows a step touches, what is scored, bad paths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.config import replace
from dl_core.data.novels import read_novels
from dl_core.data.word_pairs import PAIRS
from dl_core.errors import UserError
from experiments.embeddings import cbow


@pytest.fixture(scope="module")
def config_of(tmp_path_factory):
    """Returns what makes configs of a text of one category, some words more often."""
    folder = tmp_path_factory.mktemp("novels")
    words = [word for pair in PAIRS["family"] for word in pair]
    lines = [" ".join(words[place:]) + "!" for place in range(20)]
    (folder / "family.txt").write_text("\n".join(lines * 10))
    smoke = replace(cbow.Config(), cbow.PRESETS["smoke"])
    base = {"data.path": str(folder), "data.min_count": 1, "window": 2}
    return lambda **changes: replace(smoke, base | changes)


def state_of(config):
    """Returns a state of random vectors, those by which words are predicted too."""
    size = len(read_novels(config.data).vocabulary), config.dimension
    names, keys = ("input", "output"), jax.random.split(jax.random.key(0))
    params = {n: jax.random.normal(k, size) for n, k in zip(names, keys, strict=True)}
    return cbow.State(jnp.int32(0), params)


@pytest.mark.parametrize("model", ["cbow", "skip_gram"])
@pytest.mark.parametrize("loss", ["softmax", "negative"])
def test_held_out_words_have_probabilities_that_add_up_to_one(config_of, model, loss):
    config = config_of(model=model, loss=loss)
    state, counts = state_of(config), read_novels(config.data).counts
    every = jnp.arange(len(counts))
    # One word and the one after it: each is the other's window, and one is asked.
    asked, given = (2, 3) if model == "cbow" else (3, 2)

    @jax.jit
    @jax.vmap
    def probability(word):
        batch = {
            "tokens": jnp.zeros(5, int).at[asked].set(word).at[given].set(4),
            "sentences": jnp.array([-1, -1, 0, 0, -1]),
            "radius": jnp.array([2]),
        }
        mean = cbow.eval_step(config, state, batch)["likelihood"]
        return jnp.exp(-mean.total / mean.count)

    found = probability(every)
    logits = state.params["output"] @ state.params["input"][4]
    wanted = np.exp(np.asarray(logits, np.float64))
    if loss == "negative":
        wanted *= counts**0.75
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(found, wanted / wanted.sum(), rtol=1e-4)


def test_a_step_touches_the_rows_of_the_block_and_the_negatives(config_of):
    config = config_of(shared=3)
    state = state_of(config)
    batch = {
        "tokens": jnp.array([5, 6, 7, 5, 8, 7]),
        "sentences": jnp.zeros(6, int),
        "radius": jnp.array([2, 1]),
    }
    step = jax.jit(cbow.train_step)
    new, metrics = step(config, state, batch, jax.random.key(1))
    changed = {
        name: set(np.flatnonzero(np.any(new.params[name] != table, axis=1)))
        for name, table in state.params.items()
    }
    assert np.isfinite(metrics["loss"])
    assert changed["input"] == {5, 6, 7, 8}
    # The targets are 7 and 5; the negatives are three words at most.
    assert {5, 7} < changed["output"]
    assert len(changed["output"] - {5, 7}) <= 3
    last = state.replace(step=jnp.int32(config.steps))
    still, _ = step(config, last, batch, jax.random.key(1))
    # But for rounding, the step has fallen to nothing.
    same = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    jax.tree.map(same, still.params, state.params)


def test_the_analogies_that_ship_are_scored_and_files_where_there_are(
    config_of, tmp_path
):
    questions, pairs = tmp_path / "questions.txt", tmp_path / "pairs.tsv"
    questions.write_text(": kin\nMan woman boy girl\nman woman king queen\n: none\n")
    pairs.write_text("man\twoman\t9\nman\tgirl\t5\nboy\taunt\t1\nman\tking\t3\n")
    config = config_of(questions=str(questions), wordsim=str(pairs))
    vocabulary = read_novels(config.data).vocabulary
    rng = np.random.default_rng(0)
    vectors = {word: rng.normal(size=16) for word in vocabulary}
    shift = rng.normal(size=16)
    for male, female in PAIRS["family"]:
        vectors[female] = vectors[male] + shift
    observed = {"vectors": np.array([vectors[w] for w in vocabulary], np.float16)}
    found = cbow.score(config, observed)
    assert -1 <= found.pop("wordsim") <= 1
    assert found == {
        "analogies": found["analogies/family"],
        "analogies/asked": 132,
        "analogies/family": pytest.approx(1, abs=0.1),
        "questions": 1,
        "questions/asked": 1,
        "questions/kin": 1,
        "wordsim/pairs": 3,
    }


def test_what_is_left_out_is_told(config_of, capsys):
    config = config_of(**{"data.vocabulary": 5})
    cbow.data(config, None)
    novels = read_novels(config.data)
    kept = len(novels.words["train"])
    told = capsys.readouterr().err
    assert f"{kept:,} words to train on, 5 different ones" in told
    assert f"left out {novels.left_out:,} (" in told
    whole = read_novels(config_of().data)
    assert kept + novels.left_out == len(whole.words["train"])
    assert whole.left_out == 0


def test_dropping_nearly_all_words_is_one_sentence(config_of):
    told = r"^--config\.sample=1e-09: expected .* the 32 words of a block.* keeps about"
    with pytest.raises(UserError, match=told) as caught:
        cbow.data(config_of(sample=1e-9), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["questions", "wordsim", "simlex"])
def test_a_file_that_is_not_there_is_one_sentence(config_of, tmp_path, name):
    path = str(tmp_path / "none.txt")
    with pytest.raises(UserError, match=r"none\.txt cannot be read") as caught:
        cbow.data(config_of(**{name: path}), None)
    assert "\n" not in str(caught.value)
