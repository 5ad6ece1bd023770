"""The Neural Turing Machine: a network that reads and writes a memory.

Graves, Wayne & Danihelka, "Neural Turing Machines", 2014 (arXiv:1410.5401). At each
step the controller, an LSTM or layers without a state, sees the input and what was read
a step before. From its output comes what all heads ask for. They look for their places
in the memory as the step before left it, and the reading ones read from it; then the
writing ones erase and add, one after the other. The outputs are linear in the
controller's output and in what has just been read.

Beginnings and initial values are those of the public implementation
loudinthecloud/pytorch-ntm, which learns the LSTM's first state; here what was read
before the first step is learned too. It and this have the same number of parameters but
for that, and for the second bias of torch's LSTM.

The paper does not say enough to count its parameters. With its sizes, a learned memory
and learned places to start from, there are 1 to 8 % fewer here than in its tables where
it has one head, and 7 to 19 % fewer where it has several. A search over what may be
learned, over biases, shortcuts, fed back outputs and the heads' outputs, even with
another number of these for each count, found no structure with more than three of the
six counts of copy, repeat copy and n-grams, which is no more than chance gives.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dl_core.config import config, static
from dl_core.nn import memory_addressing as tape
from dl_core.nn.recurrent import Affine

_glorot = nn.initializers.glorot_uniform()
_small = nn.initializers.normal(0.01)
_wide = nn.initializers.variance_scaling(1.4**2, "fan_avg", "uniform")


@config
class Memory:
    """A memory, its heads, and the network that controls them."""

    slots: int = static(128, "Places in the memory.", at_least=1)
    width: int = static(20, "Numbers in a place.", at_least=1)
    heads: int = static(1, "Heads that read, and as many that write.", at_least=1)
    controller: Literal["lstm", "feedforward"] = static(
        "lstm", "What controls the heads: an LSTM, or tanh layers without a state."
    )
    hidden: int = static(100, "Units of each layer of the controller.", at_least=1)
    layers: int = static(1, "Layers of the controller.", at_least=1)
    shifts: int = static(
        3,
        "Steps a head can shift by, an odd number: 3 for -1, 0, 1.",
        at_least=1,
    )
    init: Literal["random", "learned", "constant"] = static(
        "random", "The memory at first: random and fixed, learned, or 1e-6 everywhere."
    )
    start: Literal["nowhere", "first", "learned"] = static(
        "nowhere", "Where heads are at first: all weights 0, the first place, learned."
    )
    clip: float = static(
        10.0,
        "Largest component of a gradient that goes from a step to the one before, as "
        "in the paper; 0 leaves it as it is.",
        at_least=0,
    )


class NTM(nn.Module):
    """A Neural Turing Machine over whole sequences.

    A memory that is random and fixed is the variable "memory" of the collection
    "constants". There are gradients of any order, but none in forward mode.
    """

    config: Memory
    outputs: int
    """Numbers, such as logits, at a step."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time inputs"], *, addressing: bool = False
    ) -> tuple[Float[Array, "batch time outputs"], dict[str, Any]]:
        """Returns the outputs, and the endpoints.

        With `addressing` these are "reads" and "writes", the weightings of the heads
        that read and write, both "batch time heads slots"; else there are none.

        Args:
          x: the sequences.
          addressing: whether to return where the heads were.

        Raises:
          ValueError: if the number of shifts is even.
        """
        c, (batch, time, inputs) = self.config, x.shape
        kernels, biases = zip(*self._layers(inputs), self._heads(), strict=True)
        first = (_rows(x.swapaxes(0, 1)) @ kernels[0][:inputs]).reshape(time, batch, -1)
        others = (jnp.zeros((time, batch, b.size)) for b in biases[1:])
        added = tuple(a + b for a, b in zip((first, *others), biases, strict=True))
        kernels = kernels[0][inputs:], *kernels[1:]
        hidden, reads, seen = _scan(c, kernels, added, self._first(batch))
        read = reads.reshape(time, batch, -1)
        kernel, bias = self._affine("output", c.hidden + read.shape[-1], self.outputs)
        rows = _rows(jnp.concatenate([hidden, read], axis=-1)) @ kernel + bias
        y = rows.reshape(time, batch, -1).swapaxes(0, 1)
        if not addressing:
            return y, {}
        seen = seen.swapaxes(0, 1)
        return y, {"reads": seen[:, :, : c.heads], "writes": seen[:, :, c.heads :]}

    def _affine(self, name, inputs, features, kernel_init=_glorot, bias_init=_small):
        return Affine(inputs, features, kernel_init, bias_init, name=name)()

    def _layers(self, inputs: int) -> list[tuple[Array, Array]]:
        """Returns the controller's kernels and biases.

        The rows are for the inputs, for what was read, and for the state of an LSTM.
        """
        c, layers = self.config, []
        ins = inputs + c.heads * c.width
        state, gates, init = 0, 1, _glorot
        if c.controller == "lstm":
            state, gates = c.hidden, 4
            init = _uniform(5 / math.sqrt(ins + c.hidden))
        for i in range(c.layers):
            sizes = ins + state, gates * c.hidden
            zeros = nn.initializers.zeros_init()
            layers.append(self._affine(f"layer_{i}", *sizes, init, zeros))
            ins = c.hidden
        return layers

    def _heads(self) -> tuple[Array, Array]:
        c = self.config
        return self._affine("heads", c.hidden, sum(_sizes(c)), _wide)

    def _first(self, batch: int) -> "State":
        c = self.config
        shape, random = (c.width, c.slots), _uniform(1 / math.sqrt(c.slots + c.width))
        if c.init == "learned":
            memory = self.param("memory", random, shape)
        elif c.init == "constant":
            memory = jnp.full(shape, 1e-6)
        else:
            memory = self.variable(
                "constants", "memory", lambda: random(self.make_rng("params"), shape)
            ).value
        places = 2 * c.heads, c.slots
        if c.start == "learned":
            weighting = jax.nn.softmax(self.param("start", _small, places))
        else:
            weighting = jnp.zeros(places).at[:, 0].set(float(c.start == "first"))
        controller = ()
        if c.controller == "lstm":
            init = nn.initializers.normal(0.05)
            pairs = self.param("state", init, (c.layers, 2, c.hidden))
            controller = tuple((pair[0], pair[1]) for pair in pairs)
        reads = self.param("reads", _small, (c.heads, c.width))
        state = State(controller, memory, weighting, reads)
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (batch, *a.shape)), state)


def parameters(config: Memory, inputs: int, outputs: int) -> int:
    """Returns the number of parameters of an `NTM`.

    Args:
      config: which.
      inputs: numbers at a step of its input.
      outputs: numbers at a step of its output.
    """
    c, read, total = config, config.heads * config.width, 0
    lstm = c.controller == "lstm"
    ins = inputs + read
    for _ in range(c.layers):
        total += (4 if lstm else 1) * c.hidden * (ins + lstm * c.hidden + 1)
        total += 2 * lstm * c.hidden
        ins = c.hidden
    total += (c.hidden + 1) * sum(_sizes(c)) + (c.hidden + read + 1) * outputs + read
    total += c.slots * c.width * (c.init == "learned")
    return total + 2 * c.heads * c.slots * (c.start == "learned")


class State(NamedTuple):
    """What a step hands to the next."""

    controller: tuple[Any, ...]
    """(c, h) of each layer of an LSTM, and nothing of other layers."""
    memory: tape.Memory
    weighting: tape.Weighting
    """Of the heads that read, then of those that write."""
    reads: tape.Vectors


def _uniform(bound: float) -> Callable[..., Array]:
    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(c, kernels, added, state):
    """Returns the controller's outputs, what is read and the weightings, time first.

    The gradient of a kernel is one product over all steps, where that of `lax.scan`
    adds a matrix at every step.

    Args:
      c: the config.
      kernels: of the controller's layers, without the inputs' rows, and of the heads.
      added: to their products at each step: the biases, and the inputs' part.
      state: before the first step.
    """
    return _unrolled(c, kernels, added, state)[0]


def _unrolled(c, kernels, added, state):
    # Else XLA transposes them again at every step backwards.
    pairs = [(k, jax.lax.optimization_barrier(k.T)) for k in kernels]

    def step(state, added):
        state = _clip_backward(c.clip, state) if c.clip else state
        state, taken = _step(c, pairs, added, state)
        return state, ((taken[-1], state.reads, state.weighting), taken)

    return jax.lax.scan(step, state, added)[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _clip_backward(largest: float, state: State) -> State:
    """Returns the state; its gradient is clipped, which else overflows at times."""
    return state


_clip_backward.defvjp(
    lambda largest, state: (state, None),
    lambda largest, _, d: (jax.tree.map(lambda a: a.clip(-largest, largest), d),),
)


def _scan_forward(c, kernels, added, state):
    def run(added, state):
        return _unrolled(c, kernels, added, state)

    outputs, pull, taken = jax.vjp(run, added, state, has_aux=True)
    return outputs, (pull, taken)


def _scan_backward(c, saved, cotangents):
    pull, taken = saved
    d_added, d_state = pull(cotangents)
    pairs = zip(taken, d_added, strict=True)
    return tuple(_rows(x).T @ _rows(d) for x, d in pairs), d_added, d_state


_scan.defvjp(_scan_forward, _scan_backward)


@jax.custom_vjp
def _product(x: Array, kernel: Array, transposed: Array) -> Array:
    """Returns the product of both; the kernel's transpose is for the way back."""
    return x @ kernel


def _product_backward(saved, d):
    x, kernel, transposed = saved
    return _product(d, transposed, kernel), x.T @ d, None


_product.defvjp(lambda *args: (_product(*args), args), _product_backward)


def _step(c, kernels, added, state):
    """Returns the next state, and what each kernel was multiplied with.

    Args:
      c: the config.
      kernels: each with its transpose.
      added: to the products at this step.
      state: of the step before.
    """
    h = state.reads.reshape(len(state.reads), -1)
    new, taken = [], []
    for i in range(c.layers):
        if c.controller == "lstm":
            cell, before = state.controller[i]
            h = jnp.concatenate([h, before], axis=-1)
        taken.append(h)
        h = _product(h, *kernels[i]) + added[i]
        if c.controller == "lstm":
            enter, forget, candidate, leave = jnp.split(h, 4, axis=-1)
            cell = jax.nn.sigmoid(forget) * cell
            cell += jax.nn.sigmoid(enter) * jnp.tanh(candidate)
            h = jax.nn.sigmoid(leave) * jnp.tanh(cell)
            new.append((cell, h))
        else:
            h = jnp.tanh(h)
    taken.append(h)
    wanted, erase, add = _wishes(c, _product(h, *kernels[-1]) + added[-1])
    weighting = tape.address(state.memory, state.weighting, wanted)
    reads = tape.read(state.memory, weighting[:, : c.heads])
    memory = tape.write(state.memory, weighting[:, c.heads :], erase, add)
    return State(tuple(new), memory, weighting, reads), tuple(taken)


def _sizes(c: Memory) -> tuple[int, ...]:
    """Returns how many numbers of each kind all heads ask for: k, β, g, s, γ, e, a."""
    count, vectors = 2 * c.heads, c.heads * c.width
    return 2 * vectors, count, count, count * c.shifts, count, vectors, vectors


def _wishes(c: Memory, rows: Array) -> tuple[tape.Address, Array, Array]:
    """Returns where all heads want to look, and what those that write erase and add."""
    ends = [sum(_sizes(c)[: i + 1]) for i in range(6)]
    key, strength, gate, shift, sharpness, erase, add = jnp.split(rows, ends, axis=-1)
    wanted = tape.Address(
        key.reshape(len(rows), -1, c.width),
        jax.nn.softplus(strength),
        jax.nn.sigmoid(gate),
        jax.nn.softmax(shift.reshape(len(rows), -1, c.shifts)),
        1 + jax.nn.softplus(sharpness),
    )
    erase, add = (a.reshape(len(rows), -1, c.width) for a in (erase, add))
    return wanted, jax.nn.sigmoid(erase), add
