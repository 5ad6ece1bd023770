"""The recurrences of `dl_core.nn.recurrent` as functions of time-major arrays.

The inputs' part of every pre-activation is computed before, for all steps at once, and
the gates of a cell lie side by side. Where a mask is given, a carry stays as it is at
steps that are not valid: so sequences may end before the last step, and a reversed
recurrence begins at the last valid one.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.experimental import rnn
from jaxtyping import Array, Bool, Float, Int, PyTree

Mask = Bool[Array, "time batch 1"] | None
LSTMCarry = tuple[Float[Array, "batch features"], Float[Array, "batch features"]]
"""The cell's state and the output, as in Flax."""


class Cell(NamedTuple):
    """What a step does but for the product of state and kernel, and its derivative."""

    forward: Callable
    """Makes of a carry, the inputs' part and that product the next carry, and what the
    other function needs."""
    backward: Callable
    """Makes of the next carry's gradient, and of what was kept, those of the carry, of
    the product, and of the inputs' part (None where it is the product's)."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def scan(
    cell: Cell,
    reverse: bool,
    kernel: Float[Array, "features gates"],
    bias: Float[Array, " gates"],
    carry: tuple[Float[Array, "batch features"], ...],
    inputs: Float[Array, "time batch gates"],
    mask: Mask,
) -> tuple[
    tuple[Float[Array, "batch features"], ...], Float[Array, "time batch features"]
]:
    """Returns the last carry of a cell, and its state after each step.

    The gradient of the kernel is one product over all steps, where that of `lax.scan`
    adds a matrix at every step, and a cell keeps each number once. It has gradients of
    any order, but no forward-mode ones.

    Args:
      cell: `RNN`, `LSTM` or `GRU`.
      reverse: whether to go from the last step to the first.
      kernel: of the gates, times which the state goes into each step.
      bias: what is added to that product.
      carry: before the first step; the last of it is the state.
      inputs: the inputs' part of the gates.
      mask: which steps are valid.
    """
    return _scan_forward(cell, reverse, kernel, bias, carry, inputs, mask)[0]


def _scan_forward(cell, reverse, kernel, bias, carry, inputs, mask):
    def step(carry, now):
        x, valid = now
        state = carry[-1]
        new, kept = cell.forward(carry, x, state @ kernel + bias)
        new = _held(valid, new, carry)
        return new, (new[-1], state, kept)

    carry, (outputs, *kept) = jax.lax.scan(step, carry, (inputs, mask), reverse=reverse)
    return (carry, outputs), (kernel, kept, mask)


def _scan_backward(cell, reverse, saved, cotangents):
    kernel, (states, kept), mask = saved
    # Else XLA transposes it again at every step.
    transposed = jax.lax.optimization_barrier(kernel.T)

    def step(d_carry, now):
        kept, d_output, valid = now
        *d_others, d_state = d_carry
        d_carry = *d_others, d_state + d_output
        d_new = _held(valid, d_carry, (0.0,) * len(d_carry))
        (*d_others, d_state), d_product, d_x = cell.backward(d_new, kept)
        new = *d_others, d_state + d_product @ transposed
        return _held(valid, new, d_carry), (d_product, d_x)

    d_carry, d_outputs = cotangents
    d_carry, (d_products, d_inputs) = jax.lax.scan(
        step, d_carry, (kept, d_outputs, mask), reverse=not reverse
    )
    rows = d_products.reshape(-1, kernel.shape[-1])
    d_kernel = states.reshape(-1, len(kernel)).T @ rows
    d_inputs = d_products if d_inputs is None else d_inputs
    return d_kernel, rows.sum(0), d_carry, d_inputs, None


scan.defvjp(_scan_forward, _scan_backward)


def _rnn_forward(carry, x, product):
    h = jnp.tanh(x + product)
    return (h,), h


def _rnn_backward(d_new, h):
    (d_h,) = d_new
    return (0.0,), d_h * (1 - h * h), None


def _lstm_forward(carry, x, product):
    c, _ = carry
    i, f, g, o = jnp.split(x + product, 4, axis=-1)
    i, f, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o)
    g = jnp.tanh(g)
    new_c = f * c + i * g
    squashed = jnp.tanh(new_c)
    return (new_c, o * squashed), (i, f, g, o, c, squashed)


def _lstm_backward(d_new, kept):
    (d_c, d_h), (i, f, g, o, c, squashed) = d_new, kept
    d_c += d_h * o * (1 - squashed * squashed)
    d_gates = (
        d_c * g * i * (1 - i),
        d_c * c * f * (1 - f),
        d_c * i * (1 - g * g),
        d_h * squashed * o * (1 - o),
    )
    return (d_c * f, 0.0), jnp.concatenate(d_gates, axis=-1), None


def _gru_forward(carry, x, product):
    (h,) = carry
    x_r, x_z, x_n = jnp.split(x, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(product, 3, axis=-1)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * h_n)
    return (n + z * (h - n),), (r, z, n, h, h_n)


def _gru_backward(d_new, kept):
    (d_h,), (r, z, n, h, h_n) = d_new, kept
    d_n = d_h * (1 - z) * (1 - n * n)
    gates = d_n * h_n * r * (1 - r), d_h * (h - n) * z * (1 - z)
    d_product = jnp.concatenate((*gates, d_n * r), axis=-1)
    return (d_h * z,), d_product, jnp.concatenate((*gates, d_n), axis=-1)


RNN = Cell(_rnn_forward, _rnn_backward)
"""Elman's network, h' = tanh(x + Uh)."""
LSTM = Cell(_lstm_forward, _lstm_backward)
"""The gates i, f, g and o; the carry is an `LSTMCarry`."""
GRU = Cell(_gru_forward, _gru_backward)
"""The gates r, z and n, reset after the product (torch, cuDNN)."""


def gru_before_scan(
    reverse: bool,
    kernel: Float[Array, "features gates"],
    h: Float[Array, "batch features"],
    inputs: Float[Array, "time batch gates"],
    mask: Mask,
) -> tuple[Float[Array, "batch features"], Float[Array, "time batch features"]]:
    """Returns what `scan` does, of a GRU that resets before the product (Cho et al.).

    A step has two products, one after the other.

    Args:
      reverse: as for `scan`.
      kernel: of the gates r, z and n.
      h: the state before the first step.
      inputs: as for `scan`.
      mask: as for `scan`.
    """
    size = len(kernel)

    def step(h, now):
        x, valid = now
        x_r, x_z, x_n = jnp.split(x, 3, axis=-1)
        h_r, h_z = jnp.split(h @ kernel[:, : 2 * size], 2, axis=-1)
        r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + (r * h) @ kernel[:, 2 * size :])
        new = _held(valid, n + z * (h - n), h)
        return new, new

    return jax.lax.scan(step, h, (inputs, mask), reverse=reverse)


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
    """Returns what an LSTM's `scan` does, from cuDNN, batch first; only on a GPU.

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
