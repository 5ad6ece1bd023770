"""The benchmark of convolutions: it compares equal things, and says what it found."""

import sys

import jax
import numpy as np
import pytest

from dl_core.errors import UserError
from launch import benchmark_conv
from launch.benchmark_conv import Case

SMALL = (
    Case("ordinary", 2, (6, 6), 4, 6, 3, stride=2),
    Case("grouped", 2, (9,), 4, 4, 3, groups=2, dilation=2),
    Case("transposed", 2, (5, 5), 4, 3, 4, stride=2, padding=1, transposed=True),
)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.kind)
def test_all_compute_the_same(case):
    for backward in (False, True):
        functions = benchmark_conv._functions(case, backward)
        theirs = functions.pop("torch")()
        if backward:
            first = (-2, -1) if case.transposed else (-1, -2)
            dx, dkernel = (np.asarray(gradient) for gradient in theirs)
            theirs = np.moveaxis(dx, 1, -1), np.moveaxis(dkernel, (0, 1), first)
        else:
            theirs = (np.moveaxis(theirs.numpy(), 1, -1),)
        for function in functions.values():
            ours = function()[1] if backward else (function(),)
            for mine, other in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(mine, other, atol=1e-5, rtol=1e-5)


def test_a_loop_takes_all_its_steps():
    case, steps = SMALL[0], 3
    arrays = benchmark_conv._arrays(case)
    looped = benchmark_conv._with_jax(case, *arrays, True, "patches", steps)()
    for _ in range(steps):
        arrays = benchmark_conv._with_jax(case, *arrays, True, "patches", 1)()
    for ours, wanted in zip(looped, arrays, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-6)
    assert np.any(np.asarray(looped[1]) != benchmark_conv._arrays(case)[1])


def test_every_kind_is_told_with_its_ratios(monkeypatch, capsys):
    monkeypatch.setattr(benchmark_conv, "CASES", SMALL)
    monkeypatch.setattr(benchmark_conv, "IN_SCAN", SMALL[:1])
    benchmark_conv.run(repeats=1)
    lines = capsys.readouterr().out.splitlines()
    for case in SMALL:
        (row, mean) = [line for line in lines if line.startswith(case.kind)][:2]
        assert str(case) in row
        assert "geometric mean" in mean
    assert "lax.scan" in "".join(lines)
    assert all(lowering in lines[-1] for lowering in ("xla", "loop", "patches"))


def test_measurements_are_told_with_their_range():
    spread = benchmark_conv.spread
    assert spread([3.0, 1.0, 2.0], "ms") == "2 ms (1 to 3)"
    assert spread([3.0, 1.0, 2.0], over=[2, 2, 1]) == "1.50 (0.50 to 2.00)"


def test_without_torch_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install -e .\[test\]"):
        benchmark_conv.run(repeats=1)


def test_the_cases_are_valid_convolutions():
    for case in benchmark_conv.CASES:
        call, arrays = benchmark_conv._call(case), benchmark_conv._arrays(case)
        assert jax.eval_shape(call, *arrays).shape[-1] == case.outs
