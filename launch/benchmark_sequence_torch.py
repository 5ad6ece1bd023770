"""The networks and the step of `launch.benchmark_sequence` once more, in torch."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from dl_core.models.sequence import Network
from launch.benchmark_sequence import RATE, Case

Parameters = Mapping[str, Any]


class ResidualBlock(nn.Module):
    """Two causal convolutions and a shortcut, as in the code of the TCN's authors."""

    def __init__(self, ins: int, outs: int, window: int, dilation: int):
        super().__init__()
        self.padding = (window - 1) * dilation
        sizes = {"padding": self.padding, "dilation": dilation}
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv1d(n, outs, window, **sizes)) for n in (ins, outs)
        )
        self.shortcut = nn.Conv1d(ins, outs, 1) if ins != outs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the output, "batch channels time" as the input."""
        y = x
        for conv in self.convs:
            y = torch.relu(conv(y)[..., : -self.padding].contiguous())
        return torch.relu(self.shortcut(x) + y)


class SequenceModel(nn.Module):
    """A network over time and a linear layer, with the parameters of ours."""

    def __init__(self, case: Case, params: Parameters):
        super().__init__()
        net, ins = case.network, case.inputs
        self.last_only = case.last_only
        self.convolutional = net.name == "tcn"
        if self.convolutional:
            widths = [ins] + [net.channels] * net.levels
            self.network = nn.Sequential(
                *(
                    ResidualBlock(widths[i], widths[i + 1], net.kernel_size, 2**i)
                    for i in range(net.levels)
                )
            )
        else:
            kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[net.name]
            self.network = kind(ins, net.hidden, net.layers, batch_first=True)
        width = net.channels if self.convolutional else net.hidden
        self.head = nn.Linear(width, case.outputs)
        _copy(net, params["network"], self.network)
        _write(self.head.weight, params["head"]["kernel"].T)
        _write(self.head.bias, params["head"]["bias"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits of all steps or of the last.

        Args:
          x: "batch channels time" for a TCN, else "batch time features".
        """
        features = self.network(x)
        features = features.mT if self.convolutional else features[0]
        return self.head(features[:, -1] if self.last_only else features)


def _write(target: torch.Tensor, values: Any) -> None:
    target.data.copy_(torch.tensor(np.asarray(values)))


def _copy(net: Network, params: Parameters, network: nn.Module) -> None:
    """Writes our parameters into torch's network."""
    if net.name != "tcn":
        for i in range(net.layers):
            _copy_layer(params[f"{net.name.upper()}_{i}"], network, f"l{i}")
        return
    for i, block in enumerate(network):
        ours = params["TCN_0"][f"ResidualBlock_{i}"]
        for j, conv in enumerate(block.convs):
            layer = ours[f"CausalConv_{j}"]
            norm = conv.parametrizations.weight
            _write(norm.original0, layer["scale"][:, None, None])
            _write(norm.original1, layer["kernel"].transpose(2, 1, 0))
            _write(conv.bias, layer["bias"])
        if "Dense_0" in ours:
            _write(block.shortcut.weight, ours["Dense_0"]["kernel"].T[..., None])
            _write(block.shortcut.bias, ours["Dense_0"]["bias"])


def _copy_layer(ours: Parameters, network: nn.Module, suffix: str) -> None:
    """Writes a recurrent layer; torch's second bias is 0 where ours has only one."""
    gates = {1: [""], 3: ["r", "z", "n"], 4: ["i", "f", "g", "o"]}[len(ours) // 2]
    for side in "ih":
        layers = [ours[side + gate] for gate in gates]
        width = layers[0]["kernel"].shape[1]
        kernel = np.concatenate([layer["kernel"].T for layer in layers])
        bias = [layer.get("bias", np.zeros(width)) for layer in layers]
        _write(getattr(network, f"weight_{side}h_{suffix}"), kernel)
        _write(getattr(network, f"bias_{side}h_{suffix}"), np.concatenate(bias))


def step(
    case: Case, variables: Mapping[str, Any], batch: tuple[np.ndarray, np.ndarray]
) -> Callable[[], float]:
    """Returns a call that takes one more step, and returns the loss before it.

    Args:
      case: the network and its batch.
      variables: with which it begins, of our network.
      batch: sequences, and the classes.
    """
    network = SequenceModel(case, variables["params"])
    optimizer = torch.optim.Adam(network.parameters(), RATE, fused=True)
    x, labels = map(torch.tensor, batch)
    x = x.mT.contiguous() if network.convolutional else x

    def call():
        logits = network(x)
        loss = functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return call
