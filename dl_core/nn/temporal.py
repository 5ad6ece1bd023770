"""Networks over time that see no future: causal convolutions, TCN and WaveNet.

    CausalConv      a dilated window whose last tap is at its output's position
    ResidualBlock   two of these and a shortcut
    TCN             a stack of such blocks, the dilation doubling: Bai, Kolter & Koltun,
                    "An empirical evaluation of generic convolutional and recurrent
                    networks for sequence modeling", 2018 (arXiv:1803.01271)
    GatedBlock      tanh times sigmoid, a residual and a skip connection, conditions
    WaveNet         a stack of such blocks: van den Oord et al., "WaveNet: a generative
                    model for raw audio", 2016 (arXiv:1609.03499)

Each is also computed position by position, from the same parameters, by
`dl_core.nn.streaming`.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dl_core.nn.conv import ConvLayer
from dl_core.nn.streaming import in_stream, last_inputs
from dl_core.ops.conv import conv

# Torch's default, uniform up to ±1/√fan_in: what the TCN's authors' code begins with.
_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class CausalConv(ConvLayer):
    """A convolution over time whose output at t depends on inputs up to t alone.

    The parameters are named and shaped as those of `flax.linen.Conv`, whatever the
    dilation and the stride.
    """

    features: int
    """Output channels."""
    kernel_size: int
    """Taps of the window."""
    _: KW_ONLY
    dilation: int = 1
    """Positions from one tap to the next."""
    stride: int = 1
    """Outputs are at every `stride`-th position, counted back from the last."""
    weight_norm: bool = False
    """Whether the kernel has for each output channel a norm of its own, the parameter
    "scale" (Salimans & Kingma, 2016), which begins at the kernel's, as in torch."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time in"]
    ) -> Float[Array, "batch outputs features"]:
        """Returns the convolution of `x`, zeros before its start, plus the bias.

        Raises:
          ValueError: if the shapes and numbers do not fit each other.
        """
        taps, reach = self.kernel_size, self.dilation * (self.kernel_size - 1)
        if x.ndim != 3 or min(taps, self.dilation, self.stride) < 1:
            raise ValueError(
                f"CausalConv: expected x as (batch, time, channels) and numbers of at "
                f"least 1, got {x.shape}, {taps} taps, dilation {self.dilation} and "
                f"stride {self.stride}"
            )
        shape = (taps, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        if self.weight_norm:
            squares = (kernel**2).sum((0, 1))
            scale = self.param("scale", lambda key: jnp.sqrt(squares))
            kernel *= scale * jax.lax.rsqrt(squares + 1e-12)
        if in_stream(self):
            if self.stride > 1:
                raise ValueError(
                    f"CausalConv: with stride {self.stride} there is no stream of "
                    f"outputs, one for each position; got {x.shape}"
                )
            window = last_inputs(self, x, taps, self.dilation)
            rows = window.reshape(len(x), 1, -1)
            return self.biased(rows @ kernel.reshape(-1, self.features))
        # The first window, one of those that end at the last position, may begin late.
        start = (x.shape[1] - 1) % self.stride - reach
        pads = ((max(-start, 0), 0),)
        return self.biased(
            self.convolve(conv, x[:, max(start, 0) :], kernel, padding=pads)
        )


def receptive_field(kernel_size: int, levels: int) -> int:
    """Returns how many inputs an output of a TCN depends on: 1 + 2 (k − 1) (2^L − 1).

    Each of the two convolutions of the block with dilation 2^i adds (k − 1) 2^i.
    """
    return 1 + 2 * (kernel_size - 1) * (2**levels - 1)


class ResidualBlock(nn.Module):
    """Two causal convolutions, and a shortcut: section 3.3 of the TCN's paper.

    Each has weight normalisation, is rectified, and loses whole channels to dropout;
    the sum with the shortcut is rectified, too. The kernels begin as in the authors'
    code, those of the windows at torch's default, that of the shortcut at N(0, 0.01²);
    the biases begin at zero.
    """

    features: int
    """Output channels; where the input has others the shortcut is a 1×1 convolution."""
    kernel_size: int
    """Taps of each window."""
    dilation: int = 1
    """Positions from one tap to the next."""
    _: KW_ONLY
    dropout: float = 0.0
    """The probability with which a channel of a sequence is zeroed in training."""
    weight_norm: bool = True
    """As for `CausalConv`."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time in"], *, train: bool, halve: bool = False
    ) -> Float[Array, "batch outputs features"]:
        """Returns the block's output.

        Args:
          x: the input; with `halve` only every `dilation`-th position of it, counted
            back from the last.
          train: whether to drop channels (with the random numbers "dropout").
          halve: whether to return every second position of the output that belongs to
            `x`, counted back from the last: what a block with twice the dilation reads.
        """
        y = x
        for stride in (1, 2 if halve else 1):
            layer = CausalConv(
                self.features,
                self.kernel_size,
                dilation=1 if halve else self.dilation,
                stride=stride,
                weight_norm=self.weight_norm,
                kernel_init=_UNIFORM,
            )
            dropout = nn.Dropout(self.dropout, broadcast_dims=(1,))
            y = dropout(nn.relu(layer(y)), deterministic=not train)
        if halve:
            x = x[:, (x.shape[1] - 1) % 2 :: 2]
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, kernel_init=nn.initializers.normal(0.01))(x)
        return nn.relu(x + y)


class TCN(nn.Module):
    """A stack of residual blocks, block i with dilation 2^i.

    Where the last output alone is wanted, block i is read only at the positions T − 1,
    T − 1 − 2^(i+1), T − 1 − 2 · 2^(i+1), …: half of those at which its own input is.
    With `last_only` it is computed only there, as a convolution of these positions
    without dilation: O(T) for all blocks, where the full stack is O(T) for each. It is
    the same function of the same parameters, with the same gradients.
    """

    features: Sequence[int]
    """Channels of each block."""
    kernel_size: int
    """Taps of each window."""
    _: KW_ONLY
    dropout: float = 0.0
    """The probability with which a channel of a sequence is zeroed in training."""
    weight_norm: bool = True
    """As for `CausalConv`."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time in"], *, train: bool, last_only: bool = False
    ) -> Float[Array, "batch *time features"]:
        """Returns the output at all positions, or at the last alone.

        Args:
          x: sequences that end at the last position.
          train: whether to drop channels (with the random numbers "dropout").
          last_only: whether to return, and to compute, the last output alone.
        """
        if last_only:
            x = x[:, -receptive_field(self.kernel_size, len(self.features)) :]
        for level, features in enumerate(self.features):
            x = ResidualBlock(
                features,
                self.kernel_size,
                2**level,
                dropout=self.dropout,
                weight_norm=self.weight_norm,
            )(x, train=train, halve=last_only)
        return x[:, -1] if last_only else x


class GatedBlock(nn.Module):
    """A gated causal convolution: equations 2 and 3 and figure 4 of WaveNet's paper.

    z = tanh(W ∗ x + V h) σ(W' ∗ x + V' h), h being the conditions; the block's outputs
    are x plus a 1×1 convolution of z, and another one of z, the skip connection.
    """

    skip_features: int
    """Channels of the skip connection."""
    kernel_size: int = 2
    """Taps of the window."""
    dilation: int = 1
    """Positions from one tap to the next."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time channels"],
        global_condition: Float[Array, "batch conditions"] | None = None,
        local_condition: Float[Array, "batch frames local_conditions"] | None = None,
    ) -> tuple[
        Float[Array, "batch time channels"], Float[Array, "batch time skip_features"]
    ]:
        """Returns the residual and the skip output.

        Args:
          x: the input.
          global_condition: a vector for each sequence.
          local_condition: a sequence, each frame of which holds for as many positions
            as there are to a frame. Frames hold for the future, too, if they tell it.

        Raises:
          ValueError: if a condition does not fit the input.
        """
        channels = x.shape[-1]
        gates = CausalConv(2 * channels, self.kernel_size, dilation=self.dilation)(x)
        if global_condition is not None:
            _check("global", global_condition, 2, x)
            weights = nn.Dense(2 * channels, use_bias=False, name="global_condition")
            gates += weights(global_condition)[:, None]
        if local_condition is not None:
            _check("local", local_condition, 3, x)
            weights = nn.Dense(2 * channels, use_bias=False, name="local_condition")
            gates += upsample(weights(local_condition), x.shape[1])
        filtered, gate = jnp.split(gates, 2, axis=-1)
        z = jnp.tanh(filtered) * nn.sigmoid(gate)
        residual = nn.Dense(channels, name="residual")(z)
        return x + residual, nn.Dense(self.skip_features, name="skip")(z)


class WaveNet(nn.Module):
    """A causal convolution, gated blocks, and two 1×1 convolutions of their skips' sum.

    Its output at t depends on the input at t: to predict it, shift it by one before.
    The residual output of the last block goes nowhere.
    """

    features: int
    """Output channels."""
    channels: int
    """Channels from block to block."""
    skip_features: int
    """Channels of the skip connections."""
    dilations: Sequence[int]
    """Of each block: in the paper 1, 2, 4, …, 512, several times over."""
    kernel_size: int = 2
    """Taps of each window."""

    @property
    def receptive_field(self) -> int:
        """How many inputs an output depends on."""
        return 1 + (self.kernel_size - 1) * (1 + sum(self.dilations))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time in"],
        global_condition: Float[Array, "batch conditions"] | None = None,
        local_condition: Float[Array, "batch frames local_conditions"] | None = None,
    ) -> Float[Array, "batch time features"]:
        """Returns the output, such as logits, at each position.

        Args:
          x: the input.
          global_condition: as for `GatedBlock`, whose every instance gets it.
          local_condition: likewise.
        """
        x = CausalConv(self.channels, self.kernel_size)(x)
        skips = 0
        for dilation in self.dilations:
            block = GatedBlock(self.skip_features, self.kernel_size, dilation)
            x, skip = block(x, global_condition, local_condition)
            skips += skip
        hidden = nn.Dense(self.skip_features)(nn.relu(skips))
        return nn.Dense(self.features)(nn.relu(hidden))


def upsample(
    frames: Float[Array, "batch frames features"], time: int
) -> Float[Array, "batch {time} features"]:
    """Returns each frame as often as there are positions to a frame.

    The paper's other way is learned: `dl_core.nn.conv.ConvTranspose`.

    Raises:
      ValueError: if the frames do not divide the positions.
    """
    if not frames.shape[1] or time % frames.shape[1]:
        raise ValueError(
            f"upsample: the frames of {frames.shape} do not divide {time} positions"
        )
    return jnp.repeat(frames, time // frames.shape[1], axis=1)


def _check(name: str, condition: Array, rank: int, x: Array) -> None:
    if condition.ndim != rank or len(condition) != len(x):
        what = "(batch, features)" if rank == 2 else "(batch, frames, features)"
        raise ValueError(
            f"GatedBlock: expected the {name} condition as {what} for x of shape "
            f"{x.shape}, got {condition.shape}"
        )
