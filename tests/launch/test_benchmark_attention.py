"""The benchmark of attention: both do the same, and it says what it found."""

import sys

import numpy as np
import pytest

from dl_core.errors import UserError
from dl_core.models.transformer import Transformer
from launch import benchmark_attention, benchmark_attention_torch
from launch.benchmark_attention import Attention, Decoding, Training

TINY = Transformer(features=8, heads=2, layers=1, hidden=12, longest=6)
TRAINING = {
    "encoder": Training(TINY, 3, 6, 7, encoder=True),
    "decoder": Training(TINY, 3, 6, 7),
}
ATTENTION = Attention(2, 5, 2, 4)
DECODING = Decoding(TINY, 3, 6, 7, 2)


@pytest.mark.parametrize("name", TRAINING)
def test_both_descend_in_the_same_way(name):
    case = TRAINING[name]
    theirs = benchmark_attention_torch.step(
        case, benchmark_attention.initial(case), benchmark_attention.batch(case)
    )
    ours = benchmark_attention.our_step(case)
    losses, wanted = zip(*[(ours(), theirs()) for _ in range(4)], strict=True)
    assert losses[0] == pytest.approx(wanted[0], rel=1e-5)
    # Adam takes a whole step also where a gradient is 0 but for rounding.
    np.testing.assert_allclose(losses, wanted, rtol=1e-3)
    assert losses[-1] < losses[0]


def test_all_attend_alike():
    theirs = benchmark_attention_torch.attention(benchmark_attention.arrays(ATTENTION))
    wanted = [x.detach().transpose(1, 2).numpy() for x in theirs()]
    for lowering in benchmark_attention.LOWERINGS:
        call, needed = benchmark_attention.attention(ATTENTION, lowering)
        assert needed > 0
        for ours, x in zip(call(), wanted, strict=True):
            np.testing.assert_allclose(ours, x, rtol=1e-4, atol=1e-5)


def test_everything_is_told_with_its_ratio(monkeypatch, capsys):
    monkeypatch.setattr(benchmark_attention, "TRAINING", (TRAINING["decoder"],))
    monkeypatch.setattr(benchmark_attention, "ATTENTION", (ATTENTION,))
    monkeypatch.setattr(benchmark_attention, "LOWERINGS", ("auto",))
    monkeypatch.setattr(benchmark_attention, "DECODING", (DECODING,))
    benchmark_attention.run(repeats=2)
    text = capsys.readouterr().out
    ratios = [line for line in text.splitlines() if " over " in line]
    told = [line.split(" over ")[0].strip() for line in ratios]
    assert told == ["torch's time", "torch's time", "beam"]
    for line in ratios:
        middle, low, _, high = (word.strip("()") for word in line.split()[-4:])
        assert 0 < float(low) <= float(middle) <= float(high)
    assert "threads" in text
    assert "MiB" in text


def test_both_decode_as_many_tokens():
    assert benchmark_attention.greedy(DECODING)().shape == (3, 6)
    found = np.asarray(benchmark_attention.beam(DECODING)())
    assert found.shape == (3, 2, 6)
    assert found.min() >= 0


def test_without_torch_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install -e .\[test\]"):
        benchmark_attention.run(repeats=1)
