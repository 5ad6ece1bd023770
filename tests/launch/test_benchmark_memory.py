"""The benchmark of the Neural Turing Machine: both do the same; it says the ratio."""

import sys

import numpy as np
import pytest

from dl_core.errors import UserError
from dl_core.nn.memory import Memory
from launch import benchmark_memory, benchmark_memory_torch
from launch.benchmark_memory import Case

CASE = Case(3, Memory(slots=8, width=4, hidden=6), length=3, bits=2)


def test_both_descend_in_the_same_way(monkeypatch):
    for module in (benchmark_memory, benchmark_memory_torch):
        monkeypatch.setattr(module, "RATE", 1e-2)
    variables, batch = benchmark_memory.initial(CASE), benchmark_memory.batch(CASE)
    theirs = benchmark_memory_torch.step(CASE, variables, batch)
    wanted = [theirs() for _ in range(4)]
    ours = benchmark_memory.our_step(CASE)
    losses = [ours() for _ in range(4)]
    assert losses[0] == pytest.approx(wanted[0], rel=1e-5)
    # Torch's LSTM has a second bias, which RMSprop moves as far as the first.
    np.testing.assert_allclose(losses, wanted, rtol=5e-2)
    assert losses[-1] < losses[0]


def test_it_tells_both_times_and_the_ratio(monkeypatch, capsys):
    monkeypatch.setattr(benchmark_memory, "CASES", (CASE,))
    benchmark_memory.run(repeats=1)
    text = capsys.readouterr().out
    assert "NTM, 8×4 memory, LSTM of 6, 3 × copy of 3" in text
    assert float(text.split("torch's time over ours")[1]) > 0
    assert text.count("ms a sequence") == 2


def test_without_torch_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install -e .\[test\]"):
        benchmark_memory.run(repeats=1)
