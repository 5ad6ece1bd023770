"""Models of the next token of a text: an embedding, a network over time, logits."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from dl_core.config import config, static
from dl_core.models import sequence
from dl_core.models.sequence import Backbone, Network
from dl_core.models.transformer import Decoder, Transformer


@config
class Model(Network):
    """The network over time, and what stands before it."""

    embedding: int = static(
        32, "Numbers that stand for a character; for a word, the units.", at_least=1
    )
    embedding_dropout: float = static(
        0.0, "Share of them dropped in training.", at_least=0, below=1
    )


class LanguageModel(nn.Module):
    """An embedding, a network over time, and a logit for each token of a vocabulary.

    Words are many, so their embedding is the last layer, too, and as wide as the
    network (Press & Wolf, 2017).
    """

    model: Model
    vocabulary: int
    tied: bool
    """Whether the last layer's kernel is the embedding."""

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        initial: PyTree = None,
        *,
        train: bool,
        context: int = 0,
    ) -> tuple[Float[Array, "batch predicted {self.vocabulary}"], PyTree]:
        """Returns the logits after each token and, of a recurrent network, its carries.

        Args:
          tokens: the text.
          initial: carries to begin with.
          train: whether to drop (with the random numbers "dropout").
          context: first positions of which no logits are computed.
        """
        net, recurrent = self.model, self.model.name != "tcn"
        units = net.hidden or matched_units(net, self.vocabulary, self.tied)
        width = units if recurrent else net.channels
        uniform = nn.initializers.uniform(0.2)

        def init(*args):
            return uniform(*args) - 0.1

        def drop(x, share):
            return nn.Dropout(share, deterministic=not train)(x)

        size = width if self.tied else net.embedding
        embed = nn.Embed(self.vocabulary, size, embedding_init=init, name="embedding")
        x = drop(embed(tokens), net.embedding_dropout)
        backbone = Backbone(net, units, name="network")
        x, carry = backbone(x, None, initial, train=train)
        x = drop(x[:, context:], net.dropout if recurrent else 0.0)
        if not self.tied:
            return nn.Dense(self.vocabulary, kernel_init=init, name="head")(x), carry
        bias = self.param("bias", nn.initializers.zeros, self.vocabulary)
        return embed.attend(x) + bias, carry


class AttentionModel(nn.Module):
    """A Transformer's decoder, called as a `LanguageModel` is.

    It remembers what it has read where the collection "cache" is mutable.
    """

    transformer: Transformer
    vocabulary: int
    tied: bool = True
    """Whether the last layer's kernel is the embedding."""

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        initial: PyTree = None,
        *,
        train: bool,
        context: int = 0,
    ) -> tuple[Float[Array, "batch predicted {self.vocabulary}"], None]:
        """Returns the logits after each token, and None: it carries nothing.

        Args: as for `LanguageModel`.
        """
        decoder = Decoder(self.transformer, self.vocabulary, self.tied, name="decoder")
        decode = self.is_mutable_collection("cache") and not self.is_initializing()
        logits, _ = decoder(tokens, train=train, decode=decode, context=context)
        return logits, None


def attention_parameters(net: Transformer, vocabulary: int, tied: bool = True) -> int:
    """Returns the number of parameters of an `AttentionModel`."""
    model, tokens = AttentionModel(net, vocabulary, tied), jnp.zeros((1, 1), jnp.int32)
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), tokens)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def sized(model: Model, vocabulary: int, goal: int) -> Model:
    """Returns a network whose untied language model comes nearest to a size.

    Args:
      model: the network; channels of the TCN, or units, are replaced.
      vocabulary: number of different tokens.
      goal: number of parameters.
    """
    field = "channels" if model.name == "tcn" else "hidden"
    goal -= vocabulary * model.embedding

    def of(width):
        return dataclasses.replace(model, **{field: width})

    def count(width):
        return sequence.parameters(of(width), model.embedding, vocabulary)

    return of(sequence.nearest_width(count, goal))


def matched_units(model: Model, vocabulary: int, tied: bool) -> int:
    """Returns the units of a recurrent layer that come nearest to the TCN's size.

    Args:
      model: the network, and the TCN.
      vocabulary: number of different tokens.
      tied: whether an embedding as wide as the network is the last layer's kernel.
    """
    if not tied:
        return sequence.matched_hidden(model, model.embedding, vocabulary)
    as_tcn = {"kernel_size", "levels", "channels", "weight_norm"}
    tcn = Network(name="tcn", **{name: getattr(model, name) for name in as_tcn})
    goal = sequence.parameters(tcn, model.channels, vocabulary)
    return sequence.nearest_width(
        lambda h: sequence.parameters(model, h, vocabulary, h), goal
    )
