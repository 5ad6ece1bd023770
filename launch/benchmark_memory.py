"""The benchmark of the Neural Turing Machine: a public implementation's time over ours.

A step of training on the copy task at its longest, 20 vectors of 8 bits, is the same in
both: from the same weights, on the same batch, with cross-entropy, gradients clipped to
±10, and RMSprop; ours also returns the gradient's norm. The other one is built as
loudinthecloud/pytorch-ntm is, in torch, which comes with the test tools (`pip install
-e .[test]`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from dl_core.nn.memory import NTM, Memory
from dl_core.train.optimizers import RMSprop
from dl_core.train.state import TrainState
from launch.benchmark_conv import measure, ratio, require_torch, spread, stepping

RATE, DECAY, MOMENTUM = 1e-4, 0.95, 0.9


@dataclasses.dataclass(frozen=True)
class Case:
    """A step of training: the machine, with an LSTM, and its batch."""

    batch: int
    memory: Memory = dataclasses.field(default_factory=Memory)
    length: int = 20
    bits: int = 8

    @property
    def inputs(self) -> int:
        """The bits, and whether the sequence ends."""
        return self.bits + 1

    @property
    def outputs(self) -> int:
        """The bits."""
        return self.bits

    def __str__(self) -> str:
        c = self.memory
        size = f"{c.slots}×{c.width} memory, LSTM of {c.hidden}"
        return f"NTM, {size}, {self.batch} × copy of {self.length}"


CASES = (Case(1), Case(16))


def run(repeats: int) -> None:
    """Prints milliseconds a sequence of both, and their ratio.

    Args:
      repeats: measurements of each.

    Raises:
      UserError: if torch is not installed.
    """
    torch = require_torch("memory")
    from launch import benchmark_memory_torch

    print(f"a step of training; torch has {torch.get_num_threads()} threads")
    for case in CASES:
        functions = {
            "ours": our_step(case),
            "torch": benchmark_memory_torch.step(case, initial(case), batch(case)),
        }
        times = measure(functions, repeats)
        print(case)
        for name, values in times.items():
            each = [time / case.batch for time in values]
            print(f"    {name} {spread(each, 'ms a sequence')}")
        over = ratio(times["torch"], times["ours"])
        print(f"    torch's time over ours {over:.1f}", flush=True)


@functools.cache
def batch(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Returns sequences to copy, a mark where they end, and the bits wanted."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (case.batch, case.length, case.bits))
    x = np.zeros((case.batch, 2 * case.length + 1, case.inputs), np.float32)
    y = np.zeros((*x.shape[:2], case.outputs), np.float32)
    x[:, : case.length, : case.bits] = bits
    x[:, case.length, -1] = 1
    y[:, -case.length :] = bits
    return x, y


@functools.cache
def initial(case: Case) -> Mapping[str, Any]:
    """Returns the variables from which both start."""
    return jax.jit(_model(case).init)(jax.random.key(0), batch(case)[0])


def _model(case: Case) -> NTM:
    return NTM(case.memory, case.outputs)


def our_step(case: Case) -> Callable[[], float]:
    """Returns a call that takes one more step, and returns the loss before it."""
    model = _model(case)
    optimizer = RMSprop(
        learning_rate=RATE, decay=DECAY, momentum=MOMENTUM, epsilon=1e-8, clip=10.0
    ).make(0)
    state = TrainState.create(initial(case), optimizer)

    def step(state, x, bits):
        def loss(params):
            logits, _ = model.apply({"params": params, **state.collections}, x)
            return optax.sigmoid_binary_cross_entropy(logits, bits).mean()

        return state.descend(loss, optimizer)

    return stepping(step, state, *batch(case))
