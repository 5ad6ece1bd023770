"""Recurrent layers over whole sequences, with lengths: Flax modules, batch first.

RNN             Elman, 1990, with tanh: torch's `nn.RNN`
LSTM            Hochreiter & Schmidhuber, 1997, with forget gates (Gers et al., 2000)
                and no peepholes: torch's `nn.LSTM`
GRU             Cho et al., 2014 (arXiv:1406.1078): as torch and cuDNN have it, or as
                the paper has it
Bidirectional   a layer forwards and another backwards (Schuster & Paliwal, 1997)
Stack           layers one after another, with dropout between

All are called as `layer(x, lengths, initial)`, return `(outputs, carry)`, and treat
lengths as torch's packed sequences: outputs after the last valid step are 0, the carry
is the one after that step, and what is in the padding has no influence.

Their backward passes are written by hand (`dl_core.nn.recurrent_cells`), so they have
gradients of any order but none in forward mode.

Parameters are named and shaped as those of `flax.linen.SimpleCell`, `OptimizedLSTMCell`
and `GRUCell`, so those cells can take a step where a layer has stopped.
"""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from dl_core.nn import recurrent_cells as cells

Initializer = nn.initializers.Initializer
Outputs = tuple[Float[Array, "batch time features"], PyTree]


class Affine(nn.Module):
    """The kernel and the bias of a `flax.linen.Dense`, not applied to anything."""

    inputs: int
    features: int
    kernel_init: Initializer
    bias_init: Initializer | None

    @nn.compact
    def __call__(self):
        """Returns both; zeros for a bias that it does not have."""
        kernel = self.param("kernel", self.kernel_init, (self.inputs, self.features))
        if self.bias_init is None:
            return kernel, jnp.zeros(self.features, kernel.dtype)
        return kernel, self.param("bias", self.bias_init, (self.features,))


class _Layer(nn.Module, kw_only=True):
    """What the layers of one recurrence have in common."""

    kernel_init: Initializer = nn.linear.default_kernel_init
    recurrent_kernel_init: Initializer = nn.initializers.orthogonal()
    bias_init: Initializer = nn.initializers.zeros_init()

    def _affine(self, names, inputs, kernel_init, *, use_bias):
        """Returns the kernels and the biases of these names, side by side."""
        sizes = inputs, self.features, kernel_init
        biases = [self._bias_init(name) if use_bias else None for name in names]
        pairs = [
            Affine(*sizes, bias, name=name)()
            for name, bias in zip(names, biases, strict=True)
        ]
        kernels, biases = zip(*pairs, strict=True)
        return jnp.concatenate(kernels, axis=-1), jnp.concatenate(biases)

    def _bias_init(self, name):
        return self.bias_init

    def _from_inputs(self, names, x, *, use_bias):
        return self._affine(names, x.shape[-1], self.kernel_init, use_bias=use_bias)

    def _from_state(self, names, *, use_bias):
        init = self.recurrent_kernel_init
        return self._affine(names, self.features, init, use_bias=use_bias)

    def _prepared(self, x, lengths, initial, carries=None):
        """Returns `x` with zeros for padding, the mask, and the carry to begin with."""
        name = type(self).__name__
        if x.ndim != 3 or (lengths is not None and lengths.shape != x.shape[:1]):
            raise ValueError(
                f"{name}: expected x of (batch, time, features) and a length for each "
                f"sequence, got {x.shape} and {getattr(lengths, 'shape', None)}"
            )
        zeros = jnp.zeros((x.shape[0], self.features), x.dtype)
        zeros = zeros if carries is None else (zeros,) * carries
        initial = zeros if initial is None else initial
        if jax.tree.map(jnp.shape, initial) != jax.tree.map(jnp.shape, zeros):
            raise ValueError(
                f"{name}: expected an initial carry of shapes "
                f"{jax.tree.map(jnp.shape, zeros)} for x {x.shape}, got "
                f"{jax.tree.map(jnp.shape, initial)}"
            )
        if lengths is None:
            return x, None, initial
        mask = jnp.arange(x.shape[1])[:, None, None] < lengths[:, None]
        return jnp.where(mask.swapaxes(0, 1), x, 0), mask, initial


class RNN(_Layer):
    """A layer with the state h' = tanh(Wx + b + Uh), which is the output too."""

    features: int
    """Units."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time inputs"],
        lengths: Int[Array, " count"] | None = None,
        initial: PyTree = None,
        *,
        reverse: bool = False,
    ) -> Outputs:
        """Returns the outputs "batch time features" and the last state.

        Args:
          x: the sequences.
          lengths: valid steps of each; all where None.
          initial: the state before the first step, "batch features"; 0 where None.
          reverse: whether to begin at the last valid step and go to the first; the
            outputs stay where their inputs are.

        Raises:
          ValueError: if shapes do not fit each other.
        """
        x, mask, h = self._prepared(x, lengths, initial)
        kernel, bias = self._from_inputs(["i"], x, use_bias=True)
        recurrent = self._from_state(["h"], use_bias=False)
        inputs = _projected(x, kernel, bias)
        (h,), outputs = cells.scan(cells.RNN, reverse, *recurrent, (h,), inputs, mask)
        return _batch_first(outputs, mask), h


class LSTM(_Layer):
    """A layer of long short-term memory: input, forget, candidate and output gates.

    c' = σ(f) c + σ(i) tanh(g), h' = σ(o) tanh(c'); the carry is (c, h), as in Flax, the
    output is h.

    On a GPU, cuDNN runs it (`jax.experimental.rnn`, float32, never TF32), elsewhere a
    scan; cuDNN has no gradients of second order.
    """

    features: int
    """Units."""
    forget_bias: float = 0.0
    """Added to the forget gates' bias where it begins, so that it remembers at first
    (Jozefowicz et al., 2015)."""
    lowering: Literal["auto", "scan", "cudnn"] = "auto"
    """What runs it; "auto" is as said above."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time inputs"],
        lengths: Int[Array, " count"] | None = None,
        initial: PyTree = None,
        *,
        reverse: bool = False,
    ) -> Outputs:
        """Returns the outputs "batch time features" and the last carry (c, h).

        Args: as for `RNN`, but for the initial carry, which is a pair (c, h).

        Raises:
          ValueError: if shapes do not fit each other.
        """
        x, mask, carry = self._prepared(x, lengths, initial, carries=2)
        kernel, zeros = self._from_inputs(["ii", "if", "ig", "io"], x, use_bias=False)
        recurrent, bias = self._from_state(["hi", "hf", "hg", "ho"], use_bias=True)
        if self._on_cudnn(x):
            weights = cells.cudnn_lstm_weights(kernel, recurrent, bias)
            if lengths is None:
                lengths = jnp.full(len(x), x.shape[1])
            carry, outputs = cells.cudnn_lstm(x, carry, weights, lengths, reverse)
            outputs = outputs.swapaxes(0, 1)
        else:
            inputs = _projected(x, kernel, zeros)
            carry, outputs = cells.scan(
                cells.LSTM, reverse, recurrent, bias, carry, inputs, mask
            )
        return _batch_first(outputs, mask), carry

    def _bias_init(self, name):
        if name != "hf" or not self.forget_bias:
            return self.bias_init
        return lambda *args: self.bias_init(*args) + self.forget_bias

    def _on_cudnn(self, x: Array) -> bool:
        if self.lowering == "auto":
            return jax.default_backend() == "gpu" and x.dtype == jnp.float32
        return self.lowering == "cudnn"


class GRU(_Layer):
    """A layer of gated recurrent units: h' = (1 - z) n + z h.

    The gate r resets the state in the candidate n. With reset "after", as in torch and
    cuDNN, n = tanh(Wx + b + r (Uh + c)); "before", as in Cho et al., 2014, n =
    tanh(Wx + b + U(r h)), which has no bias c and costs a second product a step.
    """

    features: int
    """Units."""
    reset: Literal["after", "before"] = "after"
    """Where r acts: on the state before it is multiplied by U, or on the product."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time inputs"],
        lengths: Int[Array, " count"] | None = None,
        initial: PyTree = None,
        *,
        reverse: bool = False,
    ) -> Outputs:
        """Returns the outputs "batch time features" and the last state.

        Args: as for `RNN`.

        Raises:
          ValueError: if shapes do not fit each other.
        """
        x, mask, h = self._prepared(x, lengths, initial)
        kernel, bias = self._from_inputs(["ir", "iz", "in"], x, use_bias=True)
        gates, zeros = self._from_state(["hr", "hz"], use_bias=False)
        after = self.reset == "after"
        candidate, inner_bias = self._from_state(["hn"], use_bias=after)
        recurrent = jnp.concatenate([gates, candidate], axis=-1)
        inputs = _projected(x, kernel, bias)
        if after:
            inner_bias = jnp.concatenate([zeros, inner_bias])
            (h,), outputs = cells.scan(
                cells.GRU, reverse, recurrent, inner_bias, (h,), inputs, mask
            )
        else:
            h, outputs = cells.gru_before_scan(reverse, recurrent, h, inputs, mask)
        return _batch_first(outputs, mask), h


class Bidirectional(nn.Module):
    """A layer that reads forwards and one that reads backwards, from the last step.

    The outputs of both are side by side, forwards first.
    """

    forward: nn.Module
    backward: nn.Module

    def __call__(
        self,
        x: Float[Array, "batch time inputs"],
        lengths: Int[Array, " count"] | None = None,
        initial: tuple[PyTree, PyTree] | None = None,
    ) -> Outputs:
        """Returns the outputs and the pair of the layers' last carries.

        Args: as for the layers, but for the initial carry, which is a pair of theirs.
        """
        first, second = initial or (None, None)
        forwards, carry = self.forward(x, lengths, first)
        backwards, back_carry = self.backward(x, lengths, second, reverse=True)
        outputs = jnp.concatenate([forwards, backwards], axis=-1)
        return outputs, (carry, back_carry)


class Stack(nn.Module):
    """Layers, each over the outputs of the one before, with dropout between."""

    layers: Sequence[nn.Module]
    """Of this module; `Bidirectional` too."""
    dropout: float = 0.0
    """The part of each layer's outputs, but the last one's, set to 0 in training."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time inputs"],
        lengths: Int[Array, " count"] | None = None,
        initial: Sequence[Any] | None = None,
        *,
        train: bool,
    ) -> Outputs:
        """Returns the outputs of the last layer and a tuple of all last carries.

        Args:
          x: the sequences.
          lengths: as for the layers.
          initial: a carry for each layer.
          train: whether to drop (the random numbers "dropout" are then needed).

        Raises:
          ValueError: if there is not one initial carry for each layer.
        """
        initial = [None] * len(self.layers) if initial is None else initial
        if len(initial) != len(self.layers):
            raise ValueError(
                f"Stack: {len(initial)} initial carries for {len(self.layers)} layers; "
                f"the input is {x.shape}"
            )
        carries = []
        for layer, carry in zip(self.layers, initial, strict=True):
            if carries:
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x, carry = layer(x, lengths, carry)
            carries.append(carry)
        return x, tuple(carries)


def _projected(x: Array, kernel: Array, bias: Array) -> Array:
    """Returns the inputs' part of all steps, time first, as one product of matrices."""
    batch, time, inputs = x.shape
    # On CPUs XLA is slower at the product of an array of three axes.
    rows = x.swapaxes(0, 1).reshape(time * batch, inputs)
    return (rows @ kernel + bias).reshape(time, batch, -1)


def _batch_first(outputs: Array, mask: Array | None) -> Array:
    if mask is not None:
        outputs = jnp.where(mask, outputs, 0)
    return outputs.swapaxes(0, 1)
