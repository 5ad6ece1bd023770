"""The benchmark of convolutions: torch's time over ours, kind by kind.

Torch comes with the test tools (`pip install -e .[test]`). Every measurement of torch,
of the chosen lowering and of XLA's own convolution is taken in turn, so that whatever
else the machine does touches all of them.
"""

import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from dl_core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Case:
    """A convolution: its kind, shape and numbers."""

    kind: str
    batch: int
    spatial: tuple[int, ...]
    ins: int
    outs: int
    window: int
    stride: int = 1
    dilation: int = 1
    padding: int | None = None
    groups: int = 1
    transposed: bool = False

    @property
    def pads(self) -> int:
        """Positions added on each side; by default half the window's extent."""
        if self.padding is not None:
            return self.padding
        return self.dilation * (self.window - 1) // 2

    def __str__(self) -> str:
        size = "×".join(map(str, (self.batch, *self.spatial)))
        numbers = f"{size} {self.ins}→{self.outs} k{self.window}"
        numbers += f" s{self.stride}" * (self.stride > 1)
        return numbers + f" d{self.dilation}" * (self.dilation > 1)


def _transposed(kind: str, *args: int | tuple[int, ...], **more: int) -> Case:
    return Case(kind, *args, transposed=True, **more)


CASES = (
    Case("1×1", 8, (28, 28), 128, 128, 1),
    Case("1×1", 32, (14, 14), 64, 256, 1),
    Case("first layer", 64, (28, 28), 1, 16, 3),
    Case("first layer", 64, (32, 32), 3, 32, 5),
    Case("ordinary", 32, (32, 32), 32, 32, 3),
    Case("ordinary", 64, (28, 28), 16, 16, 3),
    Case("ordinary", 4, (56, 56), 64, 64, 3),
    Case("ordinary", 8, (14, 14), 256, 256, 3),
    Case("ordinary", 64, (28, 28), 8, 16, 5),
    Case("strided", 32, (28, 28), 32, 64, 3, stride=2),
    Case("strided", 32, (14, 14), 64, 128, 3, stride=2),
    Case("dilated", 16, (28, 28), 32, 32, 3, dilation=2),
    Case("one dimension", 16, (1000,), 32, 32, 3, dilation=4),
    Case("grouped", 32, (28, 28), 64, 64, 3, groups=4),
    Case("depthwise", 32, (28, 28), 32, 32, 3, groups=32),
    Case("depthwise", 8, (56, 56), 64, 64, 3, groups=64),
    Case("depthwise", 16, (14, 14), 256, 256, 3, groups=256),
    Case("depthwise", 8, (56, 56), 64, 64, 3, stride=2, groups=64),
    Case("depthwise", 32, (28, 28), 32, 32, 5, groups=32),
    Case("depthwise", 16, (28, 28), 64, 64, 3, dilation=2, groups=64),
    Case("depthwise", 16, (28, 28), 32, 64, 3, groups=32),
    _transposed("transposed", 64, (7, 7), 128, 64, 4, stride=2, padding=1),
    _transposed("transposed", 64, (14, 14), 64, 32, 4, stride=2, padding=1),
    _transposed("transposed", 32, (16, 16), 64, 32, 3, stride=2, padding=1),
    _transposed("transposed", 32, (16, 16), 32, 16, 5, stride=2, padding=2),
    _transposed("transposed", 64, (14, 14), 32, 1, 4, stride=2, padding=1),
    _transposed("transposed", 16, (500,), 32, 32, 4, stride=2, padding=1),
)


IN_SCAN = tuple(CASES[i] for i in (4, 5, 9, 14, 22))
_STEPS = 5
_WARM_UP = 0.02
"""Seconds of calls before a measurement."""


def require_torch(benchmark: str) -> ModuleType:
    """Returns torch, which is to use every core that this process may.

    Args:
      benchmark: what is to be compared with it.

    Raises:
      UserError: if torch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            f"the benchmark {benchmark} compares with torch, which is not installed: "
            "install the test tools (pip install -e .[test])"
        ) from None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch


def stepping(
    descend: Callable[..., tuple[Any, Mapping[str, Any]]], state: Any, *arrays: Any
) -> Callable[[], float]:
    """Returns a call that takes one more step, and returns the loss before it.

    Args:
      descend: a function of the state and the arrays; returns the next state and its
        metrics.
      state: before the first step; a copy of it is used up.
      *arrays: the batch.
    """
    import jax
    import jax.numpy as jnp

    compiled = jax.jit(descend, donate_argnums=0)
    state = jax.tree.map(jnp.copy, state)
    arrays = jax.device_put(arrays)

    def call():
        nonlocal state
        state, metrics = jax.block_until_ready(compiled(state, *arrays))
        return float(metrics["loss"])

    return call


def run(repeats: int) -> None:
    """Prints for each case torch's time over ours, then what a loop costs.

    Args:
      repeats: measurements of each.

    Raises:
      UserError: if torch is not installed.
    """
    require_torch("conv")
    print("torch's time over ours; in brackets, over that of XLA's own convolution")
    print(f"{'':<46}{'forward':^23}{'forward + backward':^25}")
    ratios: dict[str, list[tuple[float, ...]]] = {}
    for case in CASES:
        line, both = f"{case.kind:<15}{case!s:<31}", []
        for backward in (False, True):
            times = measure(_functions(case, backward), repeats)
            ours, xla = (ratio(times["torch"], times[n]) for n in ("auto", "xla"))
            took = statistics.median(times["auto"])
            line += f"{took:7.2f} ms {ours:5.2f} ({xla:.2f})"
            both.append(ours)
        print(line, flush=True)
        ratios.setdefault(case.kind, []).append(tuple(both))
    for kind, pairs in ratios.items():
        means = [statistics.geometric_mean(r) for r in zip(*pairs, strict=True)]
        print(f"{kind:<15}geometric mean {means[0]:.2f}, with backward {means[1]:.2f}")
    print(f"\nforward + backward inside lax.scan, {_STEPS} steps: a step's time, and")
    print("in brackets how many times that of the same step outside a loop")
    for case in IN_SCAN:
        line = f"{case.kind:<15}{case!s:<31}"
        functions = {}
        for lowering in ("xla", "loop", "patches"):
            for steps in (None, _STEPS):
                functions[lowering, steps] = _with_jax(
                    case, *_arrays(case), True, lowering, steps
                )
        times = measure(functions, repeats)
        for lowering in ("xla", "loop", "patches"):
            inside = [t / _STEPS for t in times[lowering, _STEPS]]
            slower = ratio(inside, times[lowering, None])
            line += f" {lowering} {statistics.median(inside):.2f} ms ({slower:.2f})"
        print(line, flush=True)


def measure(
    functions: Mapping[Any, Callable[[], object]], repeats: int
) -> dict[Any, list[float]]:
    """Returns the milliseconds of each call; the functions take turns."""
    times: dict[Any, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            _warm_up(function)
            start = time.perf_counter()
            function()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def _warm_up(function: Callable[[], object]) -> None:
    """Calls it until its threads are awake, and those of the one before asleep."""
    end = time.perf_counter() + _WARM_UP
    while time.perf_counter() < end:
        function()


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Returns the median of the ratios of measurements that were taken together."""
    pairs = zip(numerators, denominators, strict=True)
    return statistics.median(a / b for a, b in pairs)


def spread(
    values: Sequence[float], unit: str = "", *, over: Sequence[float] | None = None
) -> str:
    """Returns the median of measurements, and in brackets their range, as text.

    Args:
      values: the measurements.
      unit: of them.
      over: others that were taken together with them; told are then the ratios.
    """
    form = ".4g"
    if over is not None:
        form, pairs = ".2f", zip(values, over, strict=True)
        values = [value / other for value, other in pairs]
    low, middle, high = min(values), statistics.median(values), max(values)
    told = f"{middle:{form}} {unit}" if unit else f"{middle:{form}}"
    return f"{told} ({low:{form}} to {high:{form}})"


def _functions(case: Case, backward: bool) -> dict[str, Callable[[], object]]:
    """Returns the same computation by torch, by the chosen lowering and by XLA's."""
    x, kernel = _arrays(case)
    functions = {"torch": _with_torch(case, x, kernel, backward)}
    for lowering in ("auto", "xla"):
        functions[lowering] = _with_jax(case, x, kernel, backward, lowering)
    return functions


def _arrays(case: Case) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    channels = (case.ins // case.groups, case.outs)
    if case.transposed:
        channels = (case.ins, case.outs // case.groups)
    x = rng.normal(size=(case.batch, *case.spatial, case.ins))
    kernel = rng.normal(size=(*(case.window,) * len(case.spatial), *channels))
    kernel /= np.sqrt(kernel[..., 0].size)
    return x.astype(np.float32), kernel.astype(np.float32)


def _options(case: Case) -> dict[str, int]:
    names = ("stride", "dilation", "groups")
    return {"padding": case.pads, **{name: getattr(case, name) for name in names}}


def _call(case: Case) -> Callable[..., Any]:
    from dl_core.ops.conv import conv, conv_transpose

    function = conv_transpose if case.transposed else conv
    return functools.partial(function, **_options(case))


def _with_torch(
    case: Case, x: np.ndarray, kernel: np.ndarray, backward: bool
) -> Callable[[], object]:
    import torch
    from torch.nn import functional

    # Torch's kernels are "out in *window", of the transposed kind "in out *window".
    first = (-2, -1) if case.transposed else (-1, -2)
    inputs = [
        torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True),
        torch.tensor(np.moveaxis(kernel, first, (0, 1)).copy(), requires_grad=True),
    ]
    name = f"conv{'_transpose' * case.transposed}{len(case.spatial)}d"
    call = functools.partial(getattr(functional, name), *inputs, **_options(case))
    if backward:
        weights = torch.ones(call().shape)
        return lambda: torch.autograd.grad(call(), inputs, weights)

    def forward():
        with torch.no_grad():
            return call()

    return forward


def _with_jax(
    case: Case,
    x: np.ndarray,
    kernel: np.ndarray,
    backward: bool,
    lowering: str,
    steps: int | None = None,
) -> Callable[[], object]:
    """Returns a compiled call; with `steps`, of a loop of so many of them."""
    import jax
    import jax.numpy as jnp

    call = functools.partial(_call(case), lowering=lowering)

    def once(x, kernel, cotangent):
        if not backward:
            return call(x, kernel)
        y, gradients = jax.vjp(call, x, kernel)
        return y, gradients(cotangent)

    def loop(x, kernel, cotangent):
        def step(carry, _):
            y, gradients = once(*carry, cotangent)
            # What a step computes has to be used, or the compiler leaves it out.
            small = 1e-6 * y.sum()
            return jax.tree.map(lambda a, d: a + small * d, carry, gradients), None

        return jax.lax.scan(step, (x, kernel), length=steps)[0]

    arrays = jax.device_put((x, kernel))
    arrays += (jnp.ones(jax.eval_shape(call, *arrays).shape),)
    compiled = jax.jit(once if steps is None else loop)
    return lambda: jax.block_until_ready(compiled(*arrays))
