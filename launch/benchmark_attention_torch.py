"""The networks and steps of `launch.benchmark_attention` once more, in torch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dl_core.nn.positions import sinusoidal
from launch.benchmark_attention import RATE, Batch, Training

Parameters = Mapping[str, Any]


class Transformer(nn.Module):
    """Torch's own layers between embeddings, with the parameters of ours."""

    def __init__(self, case: Training, params: Parameters):
        super().__init__()
        net = case.network
        table = sinusoidal(net.longest, net.features)
        self.register_buffer("positions", _tensor(table), persistent=False)
        self.scale = net.features**0.5
        options = {
            "d_model": net.features,
            "nhead": net.heads,
            "dim_feedforward": net.hidden or 4 * net.features,
            "dropout": 0.0,
            "activation": net.activation,
            "batch_first": True,
            "norm_first": net.norm == "pre",
        }
        # Our decoder without a memory is torch's encoder, with a causal mask.
        encoder = nn.TransformerEncoderLayer(**options)
        self.encoder = nn.TransformerEncoder(
            encoder, net.layers, nn.LayerNorm(net.features), enable_nested_tensor=False
        )
        _copy(self.encoder, params["encoder" if case.encoder else "stack"])
        self.decoder = None
        embedding = params["target" if case.encoder else "embedding"]
        self.target = _parameter(embedding["table"]["embedding"])
        if case.encoder:
            decoder = nn.TransformerDecoderLayer(**options)
            self.decoder = nn.TransformerDecoder(
                decoder, net.layers, nn.LayerNorm(net.features)
            )
            _copy(self.decoder, params["decoder"])
            self.source = _parameter(params["source"]["table"]["embedding"])
        self.bias = _parameter(params["head"]["bias"])

    def forward(
        self, inputs: torch.Tensor, source: torch.Tensor, padding: torch.Tensor
    ) -> torch.Tensor:
        """Returns the logits.

        Args:
          inputs: tokens, "batch time".
          source: tokens, "batch source", which only an encoder reads.
          padding: True where these are none.
        """
        x = self._embed(inputs, self.target)
        shape = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        if self.decoder is None:
            x = self.encoder(x, mask=shape, is_causal=True)
        else:
            seen = self._embed(source, self.source)
            memory = self.encoder(seen, src_key_padding_mask=padding)
            x = self.decoder(
                x,
                memory,
                tgt_mask=shape,
                tgt_is_causal=True,
                memory_key_padding_mask=padding,
            )
        return functional.linear(x, self.target, self.bias)

    def _embed(self, tokens, table):
        places = self.positions[: tokens.shape[1]]
        return functional.embedding(tokens, table) * self.scale + places


def _tensor(values: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(values))


def _parameter(values: Any) -> nn.Parameter:
    return nn.Parameter(_tensor(values))


def _copy(stack: nn.Module, params: Parameters) -> None:
    """Writes the parameters of our layers into torch's."""
    for number, layer in enumerate(stack.layers):
        ours = params[f"layers_{number}"]
        _copy_attention(layer.self_attn, ours["self_attention"])
        norms = ["self_norm", "network_norm"]
        if "memory_attention" in ours:
            _copy_attention(layer.multihead_attn, ours["memory_attention"])
            norms.insert(1, "memory_norm")
        for place, name in enumerate(norms, 1):
            _copy_norm(getattr(layer, f"norm{place}"), ours[name])
        _copy_linear(layer.linear1, ours["network"]["wide"])
        _copy_linear(layer.linear2, ours["network"]["narrow"])
    _copy_norm(stack.norm, params["norm"])


def _copy_attention(attention: nn.MultiheadAttention, ours: Parameters) -> None:
    maps = [ours[name] for name in ("query", "key", "value")]
    weight = np.concatenate([np.asarray(m["kernel"]).T for m in maps])
    attention.in_proj_weight.data.copy_(_tensor(weight))
    bias = np.concatenate([np.asarray(m["bias"]) for m in maps])
    attention.in_proj_bias.data.copy_(_tensor(bias))
    _copy_linear(attention.out_proj, ours["out"])


def _copy_linear(linear: nn.Linear, ours: Parameters) -> None:
    linear.weight.data.copy_(_tensor(ours["kernel"]).T)
    linear.bias.data.copy_(_tensor(ours["bias"]))


def _copy_norm(norm: nn.LayerNorm, ours: Parameters) -> None:
    norm.weight.data.copy_(_tensor(ours["scale"]))
    norm.bias.data.copy_(_tensor(ours["bias"]))


def step(
    case: Training, variables: Mapping[str, Any], batch: Batch
) -> Callable[[], float]:
    """Returns a call that takes one more step, and returns the loss before it.

    Args:
      case: the network.
      variables: with which it begins, of our network.
      batch: as `launch.benchmark_attention.batch` has it.
    """
    network = Transformer(case, variables["params"])
    optimizer = torch.optim.Adam(network.parameters(), RATE, fused=True)
    inputs, source, targets = (
        _tensor(batch[name]).long() for name in ("inputs", "source", "targets")
    )
    padding = torch.arange(case.time) >= _tensor(batch["source_lengths"])[:, None]

    def call():
        logits = network(inputs, source, padding)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return call


def attention(
    arrays: Sequence[np.ndarray],
) -> Callable[[], tuple[torch.Tensor, ...]]:
    """Returns a call that gives causal attention and its gradients.

    Args:
      arrays: queries, keys, values and the gradient of the result, "batch time heads
        depth"; the results are "batch heads time depth".
    """
    *given, gradient = (_tensor(x).transpose(1, 2).contiguous() for x in arrays)
    for x in given:
        x.requires_grad_()

    def call():
        y = functional.scaled_dot_product_attention(*given, is_causal=True)
        return y, *torch.autograd.grad(y, given, gradient)

    return call
