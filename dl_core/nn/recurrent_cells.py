"""The recurrences of `dl_core.nn.recurrent` as functions of time-major arrays.

The inputs' part of every pre-activation is computed before, for all steps at once, and
the gates of a cell lie side by side. Where a mask is given, a carry stays as it is at
steps that are not valid: so sequences may end before the last step, and a reversed
recurrence begins at the last valid one.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.experimental import rnn
from jaxtyping import Array, Bool, Float, Int, PyTree

Mask = Bool[Array, "time batch 1"] | None
LSTMCarry = tuple[Float[Array, "batch features"], Float[Array, "batch features"]]
"""The cell's state and the output, as in Flax."""


def scan(
    cell: Callable[[Array, Array], Array],
    carry: Float[Array, "batch features"],
    inputs: Float[Array, "time batch gates"],
    mask: Mask,
    reverse: bool,
) -> tuple[Float[Array, "batch features"], Float[Array, "time batch features"]]:
    """Returns the last carry of a cell and its carry after each step.

    Args:
      cell: makes the next carry of a carry and the inputs' part of a step.
      carry: before the first step.
      inputs: the inputs' part of the pre-activations.
      mask: which steps are valid.
      reverse: whether to go from the last step to the first.
    """

    def step(h, now):
        x, valid = now
        new = _held(valid, cell(h, x), h)
        return new, new

    return jax.lax.scan(step, carry, (inputs, mask), reverse=reverse)


def rnn_cell(h: Array, x: Array, *, kernel: Array) -> Array:
    """Returns the next state of Elman's network, tanh(x + Wh)."""
    return jnp.tanh(x + h @ kernel)


def gru_after_cell(h: Array, x: Array, *, kernel: Array, bias: Array) -> Array:
    """Returns the next state of a GRU that resets after the product (torch, cuDNN).

    Args:
      h: the state.
      x: the inputs' part of the gates r, z and n.
      kernel: of the three gates.
      bias: of the state's part of n, within what r multiplies.
    """
    x_r, x_z, x_n = jnp.split(x, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(h @ kernel, 3, axis=-1)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * (h_n + bias))
    return n + z * (h - n)


def gru_before_cell(h: Array, x: Array, *, kernel: Array) -> Array:
    """Returns the next state of a GRU that resets before the product (Cho et al.).

    Args: as for `gru_after_cell`.
    """
    size = h.shape[-1]
    x_r, x_z, x_n = jnp.split(x, 3, axis=-1)
    h_r, h_z = jnp.split(h @ kernel[:, : 2 * size], 2, axis=-1)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + (r * h) @ kernel[:, 2 * size :])
    return n + z * (h - n)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def lstm_scan(
    reverse: bool,
    kernel: Float[Array, "features gates"],
    carry: LSTMCarry,
    inputs: Float[Array, "time batch gates"],
    mask: Mask,
) -> tuple[LSTMCarry, Float[Array, "time batch features"]]:
    """Returns the last carry of an LSTM and its output after each step.

    The backward pass is written by hand: the gradient of the kernel is one product
    over all steps, where that of a scan adds a matrix at every step, and a step keeps
    each gate once. It has gradients of any order, but no forward-mode ones.

    Args:
      reverse: whether to go from the last step to the first.
      kernel: of the gates i, f, g and o.
      carry: before the first step.
      inputs: the inputs' part of the gates.
      mask: which steps are valid.
    """
    return _lstm_forward(reverse, kernel, carry, inputs, mask)[0]


def _lstm_forward(reverse, kernel, carry, inputs, mask):
    def step(carry, now):
        (c, h), (x, valid) = carry, now
        i, f, g, o = jnp.split(x + h @ kernel, 4, axis=-1)
        i, f, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o)
        g = jnp.tanh(g)
        new_c = f * c + i * g
        squashed = jnp.tanh(new_c)
        new = _held(valid, (new_c, o * squashed), carry)
        return new, (new[1], (i, f, g, o, c, squashed, h))

    carry, (outputs, kept) = jax.lax.scan(step, carry, (inputs, mask), reverse=reverse)
    return (carry, outputs), (kernel, kept, mask)


def _lstm_backward(reverse, saved, cotangents):
    kernel, kept, mask = saved
    # Else XLA transposes it again at every step.
    transposed = jax.lax.optimization_barrier(kernel.T)

    def step(d_carry, now):
        (i, f, g, o, c, squashed, _), d_output, valid = now
        d_carry = d_carry[0], d_carry[1] + d_output
        d_c, d_h = _held(valid, d_carry, (0.0, 0.0))
        d_c += d_h * o * (1 - squashed * squashed)
        d_gates = (
            d_c * g * i * (1 - i),
            d_c * c * f * (1 - f),
            d_c * i * (1 - g * g),
            d_h * squashed * o * (1 - o),
        )
        d_gates = jnp.concatenate(d_gates, axis=-1)
        return _held(valid, (d_c * f, d_gates @ transposed), d_carry), d_gates

    d_carry, d_outputs = cotangents
    d_carry, d_inputs = jax.lax.scan(
        step, d_carry, (kept, d_outputs, mask), reverse=not reverse
    )
    h = kept[-1]
    d_kernel = h.reshape(-1, h.shape[-1]).T @ d_inputs.reshape(-1, kernel.shape[-1])
    return d_kernel, d_carry, d_inputs, None


lstm_scan.defvjp(_lstm_forward, _lstm_backward)


def _held(valid: Array | None, new: PyTree, old: PyTree) -> PyTree:
    """Returns the new carry where a step is valid, else the old one."""
    if valid is None:
        return new
    return jax.tree.map(lambda n, o: jnp.where(valid, n, o), new, old)


def cudnn_lstm(
    x: Float[Array, "batch time inputs"],
    carry: LSTMCarry,
    weights: Float[Array, " weights"],
    lengths: Int[Array, " batch"],
    reverse: bool,
) -> tuple[LSTMCarry, Float[Array, "batch time features"]]:
    """Returns what `lstm_scan` does, from cuDNN, batch first; only on a GPU.

    It has neither forward-mode gradients nor any of second order, and vmapped ones run
    in turn. TF32 is never used.

    Args:
      x: the inputs.
      carry: before the first step.
      weights: `cudnn_lstm_weights`.
      lengths: valid steps of each sequence.
      reverse: whether to go from the last valid step to the first.
    """
    turned = functools.partial(_turn, lengths) if reverse else lambda x: x
    (c, h), lengths = carry, lengths.astype(jnp.int32)
    outputs, new_h, new_c = _cudnn(turned(x), h[None], c[None], weights, lengths)
    some = (lengths > 0)[:, None]
    return _held(some, (new_c[0], new_h[0]), carry), turned(outputs)


def cudnn_lstm_weights(
    kernel_i: Float[Array, "inputs gates"],
    kernel_h: Float[Array, "features gates"],
    bias: Float[Array, " gates"],
) -> Float[Array, " weights"]:
    """Returns the weights of one LSTM in cuDNN's layout (`jax.experimental.rnn`).

    cuDNN has two biases that are added; the first is 0.
    """
    parts = kernel_i.T, kernel_h.T, jnp.zeros_like(bias), bias
    return jnp.concatenate([part.ravel() for part in parts])


def _turn(lengths: Array, x: Array) -> Array:
    """Returns sequences with the order of their valid steps reversed."""
    steps, lengths = jnp.arange(x.shape[1]), lengths[:, None]
    source = jnp.where(steps < lengths, lengths - 1 - steps, steps)
    return jnp.take_along_axis(x, source[..., None], axis=1)


@jax.custom_vjp
def _cudnn(x, h, c, weights, lengths):
    return _cudnn_forward(x, h, c, weights, lengths)[0]


# cuDNN's primitives cannot be batched, nor can what `rnn.lstm` makes of them.
def _cudnn_forward(x, h, c, weights, lengths):
    sizes = x.shape[-1], h.shape[-1], 1, 0.0, False, jax.lax.Precision.HIGHEST

    def forward(*arrays):
        return rnn.lstm_fwd(*arrays, *sizes)

    return sequential_vmap(forward)(x, h, c, weights, lengths)


def _cudnn_backward(saved, cotangents):
    x, h = saved[:2]
    sizes = x.shape[-1], h.shape[-1], 1, 0.0, False, jax.lax.Precision.HIGHEST

    def backward(*arrays):
        return rnn.lstm_bwd(*sizes, *arrays)[:4]

    return *sequential_vmap(backward)(saved, cotangents), None


_cudnn.defvjp(_cudnn_forward, _cudnn_backward)
