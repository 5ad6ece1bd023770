"""The layers of a Transformer, as `dl_core.models.transformer` puts them together."""

from typing import Any, Literal

import flax.linen as nn
from jaxtyping import Array, Float

from dl_core.config import config, static
from dl_core.nn.attention import MultiHeadAttention
from dl_core.ops.attention import Mask

Endpoints = dict[str, Any]
Projected = tuple[
    Float[Array, "batch source heads depth"], Float[Array, "batch source heads depth"]
]
"""The keys and the values of a memory."""


@config
class Transformer:
    """The size and the kind of a Transformer's layers."""

    features: int = static(128, "Numbers at a position.", at_least=1)
    heads: int = static(
        4, "Heads of an attention; they share the features.", at_least=1
    )
    layers: int = static(2, "Layers, of an encoder and of a decoder each.", at_least=1)
    hidden: int = static(
        0,
        "Units of the two-layer network at each position; 0 for 4 times the features.",
        at_least=0,
    )
    dropout: float = static(
        0.0,
        "Share dropped in training: of attention's weights, branches and embeddings.",
        at_least=0,
        below=1,
    )
    norm: Literal["pre", "post"] = static(
        "pre", "Normalisation before each branch, or after each sum."
    )
    activation: Literal["gelu", "relu"] = static("gelu", "Of the two-layer network.")
    positions: Literal["sinusoidal", "learned", "rotary"] = static(
        "sinusoidal", "How a layer knows where a token stands."
    )
    longest: int = static(
        512, "Positions of the longest sequence that it takes.", at_least=1
    )


class Layer(nn.Module):
    """Self-attention, attention to a memory if there is one, a two-layer network.

    A branch reads x and is added to it, with a layer normalisation before or after.
    """

    config: Transformer

    def setup(self):
        """Names the parts."""
        net = self.config
        size = {"heads": net.heads, "features": net.features, "dropout": net.dropout}
        self.self_attention = MultiHeadAttention(
            **size, rotary=net.positions == "rotary", longest=net.longest
        )
        self.memory_attention = MultiHeadAttention(**size)
        self.network = _Network(net)
        self.self_norm, self.memory_norm, self.network_norm = _norm(), _norm(), _norm()
        self.drop = nn.Dropout(net.dropout)

    def project(self, memory: Float[Array, "batch source features"]) -> Projected:
        """Returns the keys and values of a memory, which a call takes."""
        return self.memory_attention.project(memory)

    def __call__(
        self,
        x: Float[Array, "batch time features"],
        mask: Mask | None = None,
        memory: Projected | None = None,
        memory_mask: Mask | None = None,
        *,
        causal: bool,
        train: bool,
        decode: bool = False,
    ) -> Float[Array, "batch time features"]:
        """Returns the layer's outputs.

        Args:
          x: the inputs.
          mask: the positions of x that a position may see.
          memory: of the encoder's outputs, in a layer that attends to them.
          memory_mask: the positions of the memory that a position may see.
          causal: whether a position sees none after it.
          train: whether to drop (with the random numbers "dropout").
          decode: whether x is the one position after those in the cache.
        """

        def add(x, branch, norm):
            if self.config.norm == "pre":
                return x + self.drop(branch(norm(x)), deterministic=not train)
            return norm(x + self.drop(branch(x), deterministic=not train))

        def to_itself(x):
            how = {"causal": causal, "train": train, "decode": decode}
            return self.self_attention(x, mask=mask, **how)

        def to_memory(x):
            return self.memory_attention(x, memory, memory_mask, train=train)

        x = add(x, to_itself, self.self_norm)
        if memory is not None:
            x = add(x, to_memory, self.memory_norm)
        return add(x, lambda x: self.network(x, train=train), self.network_norm)


def _norm() -> nn.Module:
    return nn.LayerNorm(epsilon=1e-5)


class _Network(nn.Module):
    """A dense layer, the activation, and a dense layer back."""

    config: Transformer

    @nn.compact
    def __call__(self, x, *, train):
        net = self.config
        act = {"gelu": _gelu, "relu": nn.relu}[net.activation]
        x = act(nn.Dense(net.hidden or 4 * net.features, name="wide")(x))
        x = nn.Dropout(net.dropout, deterministic=not train)(x)
        return nn.Dense(net.features, name="narrow")(x)


def _gelu(x: Array) -> Array:
    # The Gaussian's own distribution function, as in torch, not its approximation.
    return nn.gelu(x, approximate=False)


class Stack(nn.Module):
    """Layers one after another, each over the outputs of the one before."""

    config: Transformer

    def setup(self):
        """Names the parts."""
        self.layers = [Layer(self.config) for _ in range(self.config.layers)]
        self.norm = _norm()

    def project(
        self, memory: Float[Array, "batch source features"]
    ) -> tuple[Projected, ...]:
        """Returns each layer's keys and values of a memory."""
        return tuple(layer.project(memory) for layer in self.layers)

    def __call__(
        self,
        x: Float[Array, "batch time features"],
        mask: Mask | None = None,
        memory: tuple[Projected, ...] | None = None,
        memory_mask: Mask | None = None,
        **how: bool,
    ) -> tuple[Float[Array, "batch time features"], Endpoints]:
        """Returns the outputs, also as "features", and "layers": those of each layer.

        Args: as for `Layer`, but for the memory, which is of every layer.
        """
        outputs = []
        for number, layer in enumerate(self.layers):
            seen = None if memory is None else memory[number]
            x = layer(x, mask, seen, memory_mask, **how)
            outputs.append(x)
        if self.config.norm == "pre":
            x = self.norm(x)
        return x, {"layers": tuple(outputs), "features": x}
