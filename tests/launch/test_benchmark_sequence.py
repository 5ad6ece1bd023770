"""The benchmark of networks over time: both do the same, and it says what it found."""

import sys

import numpy as np
import pytest

from dl_core.errors import UserError
from dl_core.models.sequence import Network, parameters
from dl_core.nn.temporal import WaveNet
from launch import benchmark_sequence, benchmark_sequence_torch
from launch.benchmark_sequence import Case, Generation

TINY = Network(kernel_size=3, levels=3, channels=4)
CASES = {
    "tcn": Case(TINY, 5, 11, 2, 3, True),
    "lstm": Case(Network(name="lstm", hidden=6, layers=2), 5, 7, 2, 3, True),
    "gru": Case(Network(name="gru", hidden=6), 5, 7, 2, 3, False),
}
GENERATION = Generation(WaveNet(8, 3, 3, (1, 2, 4)), 2, 12, 12)


@pytest.mark.parametrize("name", CASES)
def test_both_descend_in_the_same_way(name):
    case = CASES[name]
    theirs = benchmark_sequence_torch.step(
        case, benchmark_sequence.initial(case), benchmark_sequence.batch(case)
    )
    ours = [benchmark_sequence.our_step(case)]
    if name == "tcn":
        ours.append(benchmark_sequence.our_step(case, pyramid=False))
    wanted = [theirs() for _ in range(4)]
    # Torch's recurrent layers have a second bias, which Adam moves as far as the first.
    rtol = 1e-5 if case.network.name == "tcn" else 1e-3
    for step in ours:
        losses = [step() for _ in range(4)]
        assert losses[0] == pytest.approx(wanted[0], rel=1e-5)
        np.testing.assert_allclose(losses, wanted, rtol=rtol)
        assert losses[-1] < losses[0]


def test_the_tcns_are_of_one_size():
    case = CASES["tcn"]
    params = benchmark_sequence.initial(case)["params"]
    network = benchmark_sequence_torch.SequenceModel(case, params)
    count = sum(p.numel() for p in network.parameters())
    assert count == parameters(case.network, case.inputs, case.outputs)


def test_samples_are_the_same_with_and_without_memory():
    drawn = benchmark_sequence.cached(GENERATION)(12)
    assert drawn.shape == (12, 2)
    assert len(np.unique(drawn)) > 3
    np.testing.assert_array_equal(drawn, benchmark_sequence.naive(GENERATION)(12))


def test_seeds_at_once_are_those_in_turn():
    calls = benchmark_sequence.seeds(CASES["tcn"], 3)
    for _ in range(2):
        losses = calls["in turn"]()
        assert len(set(losses)) == 3
        np.testing.assert_allclose(calls["at once"](), losses, rtol=1e-5)


def test_everything_is_told_with_its_ratio(monkeypatch, capsys):
    monkeypatch.setattr(benchmark_sequence, "CASES", (CASES["tcn"],))
    monkeypatch.setattr(benchmark_sequence, "GENERATION", GENERATION)
    monkeypatch.setattr(benchmark_sequence, "MANY", CASES["tcn"])
    benchmark_sequence.run(repeats=2)
    text = capsys.readouterr().out
    ratios = [line for line in text.splitlines() if " over " in line]
    told = [line.split(" over ")[0].strip() for line in ratios]
    assert told == ["torch's time", "its time", "naive", "in turn"]
    for line in ratios:
        middle, low, _, high = (word.strip("()") for word in line.split()[-4:])
        assert 0 < float(low) <= float(middle) <= float(high)
    assert "threads" in text
    assert "samples/s" in text


def test_without_torch_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install -e .\[test\]"):
        benchmark_sequence.run(repeats=1)
