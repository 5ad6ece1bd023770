"""The benchmark of embeddings: both sides learn, and it says what it found."""

import sys

import numpy as np
import pytest

from dl_core.data.novels import NovelsConfig, read_novels
from dl_core.errors import UserError
from launch import benchmark_embeddings

FORMS = {"own": (32, 1, 5), "by four": (32, 4, 5), "shared": (32, 32, 8)}


@pytest.fixture
def text(tmp_path, monkeypatch):
    """Makes a text of few words the benchmark's; returns it."""
    rng = np.random.default_rng(0)
    words = ["any", "of", "these", "few", "words", "may", "follow"]
    lines = [" ".join(rng.permutation(words)) for _ in range(200)]
    (tmp_path / "text.txt").write_text(". ".join(lines))
    chosen = NovelsConfig(path=str(tmp_path), vocabulary=0)
    monkeypatch.setattr(benchmark_embeddings, "TEXT", chosen)
    monkeypatch.setattr(benchmark_embeddings, "FORMS", FORMS)
    monkeypatch.setattr(benchmark_embeddings, "SAMPLE", 0.1)
    return read_novels(chosen)


@pytest.mark.parametrize("form", FORMS)
def test_ours_learns(text, form):
    epoch = benchmark_embeddings.our_epoch(text, *FORMS[form])
    first, *_, last = [epoch() for _ in range(4)]
    # It begins at six sigmoids of a half, less where a negative is the word itself.
    assert last < first < 6 * np.log(2)


def test_everything_is_told_with_its_ratio(text, capsys):
    benchmark_embeddings.run(repeats=2)
    out = capsys.readouterr().out
    assert f"CBOW, {len(text.vocabulary)} words, 100 numbers in a vector" in out
    assert out.count("thousand words/s") == 1 + len(FORMS)
    assert out.count("loss in the last epoch") == len(FORMS)
    ratios = [line for line in out.splitlines() if "over gensim's" in line]
    assert len(ratios) == len(FORMS)
    for line in ratios:
        middle, low, _, high = (word.strip("()") for word in line.split()[-4:])
        assert 0 < float(low) <= float(middle) <= float(high)


def test_without_gensim_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gensim", None)
    told = r"^launch.benchmark embeddings .*pip install -e .\[test\]"
    with pytest.raises(UserError, match=told):
        benchmark_embeddings.run(repeats=1)
