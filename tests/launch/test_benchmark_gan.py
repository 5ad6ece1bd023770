"""The benchmark of GANs: both play the same game, and it says what it found."""

import sys

import jax
import pytest
import torch

from dl_core.errors import UserError
from launch import benchmark_gan, benchmark_gan_torch
from launch.benchmark_gan import Case

TINY = {"batch": 6, "size": 16, "latent": 5}


@pytest.mark.parametrize("refined", [False, True])
def test_a_step_of_both_leads_to_the_same_weights(refined):
    case = Case(4, critic_steps=2, refined=refined, **TINY)
    start = benchmark_gan.initial(case)
    arrays = benchmark_gan.arrays(case)
    theirs = benchmark_gan_torch.step(case, start, arrays)
    state, _ = benchmark_gan.our_step(case)()
    ours = state.generator.variables, state.critic.variables
    wanted = theirs()
    mine = benchmark_gan_torch.networks(case, ours)
    before = benchmark_gan_torch.networks(case, start)
    # Adam divides by the gradient's size, so tiny differences between gradients near 0
    # may be whole steps: nearly all weights must agree, not all.
    for a, b, old in zip(mine, wanted, before, strict=True):
        moved = [
            (p - r, q - r)
            for p, q, r in zip(
                a.parameters(), b.parameters(), old.parameters(), strict=True
            )
        ]
        one, two = (torch.cat([m[i].ravel() for m in moved]) for i in (0, 1))
        assert (two.abs() > 0.5 * benchmark_gan.RATE).float().mean() > 0.7
        close = (one - two).abs() < 0.02 * benchmark_gan.RATE
        assert close.float().mean() > 0.98


def test_every_case_is_told_with_its_ratio(monkeypatch, capsys):
    cases = Case(4, **TINY), Case(4, critic_steps=2, **TINY)
    monkeypatch.setattr(benchmark_gan, "CASES", cases)
    benchmark_gan.run(repeats=1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in lines[::4]] == ["DCGAN,", "DCGAN,"]
    assert all("images/s" in line for line in (*lines[1::4], *lines[2::4]))
    assert all(float(line.split()[-1]) > 0 for line in lines[3::4])


def test_operations_are_those_of_the_convolutions():
    case = Case(8, **TINY | {"size": 32})
    layers = [(16, 3, 8), (8, 8, 16), (4, 16, 32)]  # side, channels in and out
    critic = sum(2 * 16 * side**2 * ins * outs for side, ins, outs in layers)
    dense = 2 * 5 * 4 * 4 * 32
    generator = critic + dense
    # The critic's update: a forward pass of the generator, and of the critic on twice
    # the examples forward and backward, but not to the images; then both, forward and
    # backward, but not to the critic's kernels, nor to the latents.
    first = 2 * 16 * 16**2 * 3 * 8
    update = generator + 2 * (3 * critic - first)
    rest = 3 * generator - dense + 2 * critic
    wanted = 6 * (update + rest)
    assert benchmark_gan.flops(case) == pytest.approx(wanted, rel=0.25)


def test_unknown_peaks_are_said_to_be_unknown(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(benchmark_gan, "flops", lambda case: 2e12)
    case = Case(4)
    assert "unknown" in benchmark_gan._share(case, "float32", [10.0], None)
    text = benchmark_gan._share(case, "bfloat16", [10.0], 1000.0)
    assert "200.0 TFLOP/s" in text
    assert "20.0% of peak" in text
    assert "40.0%" in benchmark_gan._share(case, "float32", [10.0], 1000.0)


def test_half_precision_keeps_the_state_in_single():
    state, losses = benchmark_gan.our_step(Case(4, **TINY), "bfloat16")()
    assert {x.dtype.name for x in jax.tree.leaves(state)} == {"float32", "int32"}
    _, exact = benchmark_gan.our_step(Case(4, **TINY))()
    for name, loss in losses.items():
        assert float(loss) == pytest.approx(float(exact[name]), abs=0.05)
        assert loss != exact[name]


def test_without_torch_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install -e .\[test\]"):
        benchmark_gan.run(repeats=1)
