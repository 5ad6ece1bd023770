"""The benchmark of networks over time: torch's time over ours, and ours over our own.

A step of training is the same in both: from the same weights, on the same batch,
cross-entropy and Adam (torch's fused one). Ours also returns the gradient's norm, as in
every experiment. Where only the last output counts, torch's TCN computes all of them,
as its authors' code does, and ours the pyramid. Then come samples a second of a WaveNet
with and without memory, and the steps of several seeds at once and in turn. Torch comes
with the test tools (`pip install -e .[test]`).
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dl_core.models.sequence import NAMES, Network, SequenceModel
from dl_core.nn import streaming
from dl_core.nn.temporal import WaveNet
from dl_core.train.optimizers import Optimizer
from dl_core.train.state import TrainState
from launch.benchmark_conv import measure, require_torch, spread, stepping


@dataclasses.dataclass(frozen=True)
class Case:
    """A step of training: the network, its batch, and whether only the end counts."""

    network: Network
    batch: int
    time: int
    inputs: int
    outputs: int
    last_only: bool

    def __str__(self) -> str:
        net = self.network
        size = f"{net.hidden} units"
        if net.name == "tcn":
            size = f"{net.levels} levels, {net.channels} channels, k{net.kernel_size}"
        which = "the last output" if self.last_only else "all outputs"
        return f"{NAMES[net.name]}, {size}, {self.batch}×{self.time}, {which}"


@dataclasses.dataclass(frozen=True)
class Generation:
    """Sequences of a WaveNet, sample by sample."""

    model: WaveNet
    batch: int = 1
    samples: int = 1_000
    naive_samples: int = 20


CASES = (
    Case(Network(kernel_size=7, levels=7, channels=27), 32, 400, 2, 10, False),
    Case(Network(kernel_size=7, levels=8, channels=25), 64, 784, 1, 10, True),
    Case(Network(name="lstm", hidden=130), 32, 400, 2, 10, True),
    Case(Network(name="gru", hidden=150), 32, 400, 2, 10, True),
    Case(Network(name="lstm", hidden=200), 20, 35, 200, 50, False),
)
GENERATION = Generation(WaveNet(256, 32, 32, tuple(2**i for i in range(8)) * 2))
MANY = Case(Network(levels=7, channels=27), 32, 200, 2, 10, True)
SEEDS = 10
RATE = 2e-3


def run(repeats: int) -> None:
    """Prints times, and their ratios with the range over the measurements.

    Args:
      repeats: measurements of each.

    Raises:
      UserError: if torch is not installed.
    """
    torch = require_torch("sequence")
    from launch import benchmark_sequence_torch

    print(f"a step of training; torch has {torch.get_num_threads()} threads")
    for case in CASES:
        functions = {
            "ours": our_step(case),
            "torch": benchmark_sequence_torch.step(case, initial(case), batch(case)),
        }
        if case.last_only and case.network.name == "tcn":
            functions["full"] = our_step(case, pyramid=False)
        times = measure(functions, repeats)
        print(case)
        print(f"    ours {spread(times['ours'], 'ms')}")
        print(f"    torch {spread(times['torch'], 'ms')}")
        print(
            f"    torch's time over ours {spread(times['torch'], over=times['ours'])}"
        )
        if "full" in times:
            print(f"    our full stack {spread(times['full'], 'ms')}")
            print(f"    its time over ours {spread(times['full'], over=times['ours'])}")
    _generation(GENERATION, repeats)
    _seeds(MANY, SEEDS, repeats)


def _generation(case: Generation, repeats: int) -> None:
    functions = {
        "memory": functools.partial(cached(case), case.samples),
        "naive": functools.partial(naive(case), case.naive_samples),
    }
    times = measure(functions, repeats)
    memory = [t / case.samples for t in times["memory"]]
    slow = [t / case.naive_samples for t in times["naive"]]
    print(f"WaveNet of receptive field {case.model.receptive_field}, a sample")
    for name, each in (("with memory", memory), ("naive", slow)):
        speed = 1e3 * case.batch / statistics.median(each)
        print(f"    {name} {spread(each, 'ms')}, {speed:.0f} samples/s")
    print(f"    naive over with memory {spread(slow, over=memory)}")


def _seeds(case: Case, count: int, repeats: int) -> None:
    times = measure(seeds(case, count), repeats)
    print(f"{count} seeds of {case}")
    for name, values in times.items():
        print(f"    {name} {spread(values, 'ms')}")
    print(f"    in turn over at once {spread(times['in turn'], over=times['at once'])}")


@functools.cache
def batch(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sequences, and the class of each or of each step."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(case.batch, case.time, case.inputs)).astype(np.float32)
    return x, rng.integers(0, case.outputs, x.shape[: 1 if case.last_only else 2])


def _model(case: Case) -> SequenceModel:
    return SequenceModel(case.network, case.outputs)


@functools.cache
def initial(case: Case) -> Mapping[str, Any]:
    """Returns the parameters from which both start."""
    init = functools.partial(_model(case).init, train=True)
    return jax.jit(init)(jax.random.key(0), batch(case)[0])


def _descent(case: Case, *, pyramid: bool = True) -> Callable:
    """Returns the step: a function of the state and the batch."""
    model, optimizer = _model(case), _optimizer()

    def step(state, x, labels):
        def loss(params):
            logits, _ = model.apply(
                {"params": params}, x, train=True, last_only=case.last_only and pyramid
            )
            if case.last_only and not pyramid:
                logits = logits[:, -1]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean()

        return state.descend(loss, optimizer)

    return step


def _optimizer() -> optax.GradientTransformation:
    return Optimizer(learning_rate=RATE).make()


def our_step(case: Case, *, pyramid: bool = True) -> Callable[[], float]:
    """Returns a call that takes one more step, and returns the loss before it.

    Args:
      case: the network and its batch.
      pyramid: whether a TCN of which only the last output counts computes no others.
    """
    state = TrainState.create(initial(case), _optimizer())
    return stepping(_descent(case, pyramid=pyramid), state, *batch(case))


def seeds(case: Case, count: int) -> dict[str, Callable[[], list[float]]]:
    """Returns calls that take a step of every seed, in turn and at once.

    They return the seeds' losses before it.
    """
    arrays = jax.device_put(batch(case))
    optimizer = _optimizer()

    def create(key):
        variables = _model(case).init(key, arrays[0], train=True)
        return TrainState.create(variables, optimizer)

    states = jax.jit(jax.vmap(create))(jax.random.split(jax.random.key(0), count))
    step = _descent(case)
    single = jax.jit(step, donate_argnums=0)
    several = jax.jit(jax.vmap(step, in_axes=(0, None, None)), donate_argnums=0)
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in range(count)]

    def in_turn():
        losses = []
        for i, state in enumerate(each):
            each[i], metrics = jax.block_until_ready(single(state, *arrays))
            losses.append(float(metrics["loss"]))
        return losses

    def at_once():
        nonlocal states
        states, metrics = jax.block_until_ready(several(states, *arrays))
        return metrics["loss"].tolist()

    return {"in turn": in_turn, "at once": at_once}


def cached(case: Generation) -> Callable[[int], np.ndarray]:
    """Returns what draws so many samples with a memory, in one loop."""
    model, variables = case.model, _wavenet(case)
    silence = jnp.zeros((case.batch, model.features))
    start = streaming.init_stream(model, variables, silence)

    @functools.partial(jax.jit, static_argnums=2)
    def generate(variables, start, samples):
        def step(carry, time):
            state, x = carry
            state, logits = streaming.step(model, variables, state, x)
            drawn = _drawn(time, logits)
            return (state, jax.nn.one_hot(drawn, model.features)), drawn

        return jax.lax.scan(step, (start, silence), jnp.arange(samples))[1]

    return lambda samples: np.asarray(generate(variables, start, samples))


def naive(case: Generation) -> Callable[[int], np.ndarray]:
    """Returns what draws so many samples, each from the whole window before it."""
    model, variables = case.model, _wavenet(case)

    @jax.jit
    def step(variables, window, time):
        drawn = _drawn(time, model.apply(variables, window)[:, -1])
        x = jax.nn.one_hot(drawn, model.features)
        return jnp.concatenate([window[:, 1:], x[:, None]], axis=1), drawn

    def generate(samples):
        window = jnp.zeros((case.batch, model.receptive_field, model.features))
        drawn = []
        for time in range(samples):
            window, new = step(variables, window, time)
            drawn.append(new)
        return np.asarray(drawn)

    return generate


def _drawn(time: jax.Array, logits: jax.Array) -> jax.Array:
    return jax.random.categorical(jax.random.key(time), logits)


@functools.cache
def _wavenet(case: Generation) -> Mapping[str, Any]:
    x = jnp.zeros((case.batch, 1, case.model.features))
    return jax.jit(case.model.init)(jax.random.key(0), x)
