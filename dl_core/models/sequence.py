"""TCN, LSTM, GRU and RNN behind one call and one config, of one size if wanted.

What Bai, Kolter & Koltun, "An empirical evaluation of generic convolutional and
recurrent networks for sequence modeling", 2018 (arXiv:1803.01271), compare: a network
over time from `dl_core.nn`, and a linear layer on its outputs.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
from jaxtyping import Array, Float, Int, PyTree

from dl_core.config import config, static
from dl_core.nn import recurrent, temporal

NAMES = {"tcn": "TCN", "lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
"""How the networks are called in figures and sentences."""
COLORS = {"tcn": "C0", "lstm": "C3", "gru": "C2", "rnn": "C1"}
"""How they are drawn."""
_GATES = {"lstm": 4, "gru": 3, "rnn": 1}


@config
class Network:
    """A network over time."""

    name: Literal["tcn", "lstm", "gru", "rnn"] = static("tcn", "Which network.")
    kernel_size: int = static(6, "Taps of a convolution of the TCN.", at_least=1)
    levels: int = static(8, "Blocks of the TCN; the dilation doubles.", at_least=1)
    channels: int = static(10, "Channels of the TCN.", at_least=1)
    weight_norm: bool = static(True, "Whether the TCN has weight normalisation.")
    layers: int = static(1, "Layers of an LSTM, GRU or RNN.", at_least=1)
    hidden: int = static(
        0,
        "Units of such a layer; 0 for as many as come nearest to the TCN's size.",
        at_least=0,
    )
    forget_bias: float = static(1.0, "Where the LSTM's forget gates' bias begins.")
    dropout: float = static(
        0.0,
        "Share dropped in training: whole channels of the TCN, outputs between layers.",
        at_least=0,
        below=1,
    )

    @property
    def receptive_field(self) -> int:
        """How many inputs an output of the TCN depends on."""
        return temporal.receptive_field(self.kernel_size, self.levels)


class Backbone(nn.Module):
    """The network over time, without a layer on top."""

    network: Network
    hidden: int
    """Units of a recurrent layer."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time inputs"],
        lengths: Int[Array, " batch"] | None = None,
        initial: PyTree = None,
        *,
        train: bool,
        last_only: bool = False,
    ) -> tuple[Float[Array, "batch *time features"], PyTree]:
        """Returns the outputs and, of a recurrent network, its last carries.

        Args:
          x: the sequences.
          lengths: valid steps of each; all where None. A causal network needs them for
            the carry alone.
          initial: carries to begin with, of a recurrent network.
          train: whether to drop (with the random numbers "dropout").
          last_only: whether to return the output at the last step alone; the TCN then
            computes no more than that needs.
        """
        net = self.network
        if net.name == "tcn":
            stack = temporal.TCN(
                (net.channels,) * net.levels,
                net.kernel_size,
                dropout=net.dropout,
                weight_norm=net.weight_norm,
            )
            return stack(x, train=train, last_only=last_only), None
        layers = [_layer(net, self.hidden) for _ in range(net.layers)]
        stack = recurrent.Stack(layers, dropout=net.dropout)
        outputs, carries = stack(x, lengths, initial, train=train)
        return (outputs[:, -1] if last_only else outputs), carries


class SequenceModel(nn.Module):
    """A network over time and a linear layer on its outputs.

    The linear layer begins at N(0, 0.01²), as in the authors' code.
    """

    network: Network
    outputs: int
    """Numbers, such as logits, at a step."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch time inputs"],
        lengths: Int[Array, " batch"] | None = None,
        initial: PyTree = None,
        *,
        train: bool,
        last_only: bool = False,
    ) -> tuple[Float[Array, "batch *time outputs"], dict[str, Any]]:
        """Returns what the linear layer makes of the outputs, and the endpoints.

        These are "features", the outputs of the network over time, and "carry".

        Args: as for `Backbone`.
        """
        hidden = matched_hidden(self.network, x.shape[-1], self.outputs)
        backbone = Backbone(self.network, hidden, name="network")
        features, carry = backbone(
            x, lengths, initial, train=train, last_only=last_only
        )
        head = nn.Dense(
            self.outputs, kernel_init=nn.initializers.normal(0.01), name="head"
        )
        return head(features), {"features": features, "carry": carry}


def parameters(network: Network, inputs: int, outputs: int, hidden: int = 0) -> int:
    """Returns the number of parameters of a `SequenceModel`.

    Args:
      network: which; where it has no number of units itself, `hidden` is taken.
      inputs: numbers at a step of its input.
      outputs: numbers at a step of its output.
      hidden: units of a recurrent layer.
    """
    if network.name == "tcn":
        width = network.channels
        norms = width if network.weight_norm else 0
        widths = [inputs] + [width] * (2 * network.levels - 1)
        total = sum(network.kernel_size * n * width + width + norms for n in widths)
        if inputs != width:
            total += inputs * width + width
    else:
        width, gates = network.hidden or hidden, _GATES[network.name]
        widths = [inputs] + [width] * (network.layers - 1)
        total = sum(gates * width * (n + width + 1) for n in widths)
        if network.name == "gru":
            total += network.layers * width
    return total + width * outputs + outputs


def matched_hidden(network: Network, inputs: int, outputs: int) -> int:
    """Returns the units of a recurrent layer: those asked for, or as many as fit.

    Where the network says 0 these are as many as bring the number of parameters
    nearest to that of the TCN of the same config.

    Args: as for `parameters`.
    """
    if network.hidden or network.name == "tcn":
        return network.hidden
    goal = parameters(_as_tcn(network), inputs, outputs)
    return nearest_width(lambda h: parameters(network, inputs, outputs, h), goal)


def nearest_width(count: Callable[[int], int], goal: int) -> int:
    """Returns the width of a layer that brings a network nearest to a size.

    Args:
      count: the number of parameters by width n, more than n².
      goal: number of parameters.
    """
    widths = range(1, math.isqrt(goal) + 2)
    return min(widths, key=lambda n: abs(count(n) - goal))


def _as_tcn(network: Network) -> Network:
    return dataclasses.replace(network, name="tcn")


def _layer(network: Network, hidden: int) -> nn.Module:
    if network.name == "lstm":
        return recurrent.LSTM(hidden, forget_bias=network.forget_bias)
    return {"gru": recurrent.GRU, "rnn": recurrent.RNN}[network.name](hidden)
