"""Transformers against torch's layers, and what a position can depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from dl_core.data.buckets import pack
from dl_core.models.language import attention_parameters
from dl_core.models.transformer import Decoder, EncoderDecoder
from dl_core.models.transformer_layers import Layer, Stack, Transformer
from dl_core.ops.attention import padding_mask

SIZE = {"features": 16, "heads": 4, "layers": 2, "hidden": 24, "longest": 7}
LENGTHS = jnp.array([5, 2, 7])
RANDOM = np.random.default_rng(0)
X = jnp.asarray(RANDOM.normal(size=(3, 7, 16)), jnp.float32)
MEMORY = jnp.asarray(RANDOM.normal(size=(3, 5, 16)), jnp.float32)
TOKENS = jnp.asarray(RANDOM.integers(0, 11, (3, 7)))


def begin(model, *args, **kwargs):
    init = functools.partial(model.init, train=False, **kwargs)
    return jax.jit(init)(jax.random.key(0), *args)


def dense(layer):
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    return {"kernel": weight.T, "bias": bias}


def norm(layer):
    return {"scale": layer.weight.detach().numpy(), "bias": layer.bias.detach().numpy()}


def attention(layer):
    weights = np.split(layer.in_proj_weight.detach().numpy(), 3)
    biases = np.split(layer.in_proj_bias.detach().numpy(), 3)
    kernels = zip(("query", "key", "value"), weights, biases, strict=True)
    inner = {name: {"kernel": w.T, "bias": b} for name, w, b in kernels}
    return inner | {"out": dense(layer.out_proj)}


def random_biases(layer):
    """Gives torch's layer biases and scales that are not 0 or 1."""
    with torch.no_grad():
        for weight in layer.parameters():
            if weight.ndim == 1:
                weight += 0.1 * torch.randn_like(weight)
    return layer


@pytest.mark.parametrize(
    ("norm_first", "activation"), [(True, "gelu"), (False, "relu")]
)
def test_a_layer_of_the_encoder_is_torchs(norm_first, activation):
    theirs = random_biases(
        torch.nn.TransformerEncoderLayer(
            16, 4, 24, 0.0, activation, batch_first=True, norm_first=norm_first
        )
    )
    params = {
        "self_attention": attention(theirs.self_attn),
        "self_norm": norm(theirs.norm1),
        "network": {"wide": dense(theirs.linear1), "narrow": dense(theirs.linear2)},
        "network_norm": norm(theirs.norm2),
    }
    kind = "pre" if norm_first else "post"
    ours = Layer(Transformer(**SIZE, norm=kind, activation=activation))
    mask = padding_mask(LENGTHS, 7)
    unseen = torch.from_numpy(~np.asarray(mask[:, 0, 0]))
    wanted = theirs(torch.tensor(np.asarray(X)), src_key_padding_mask=unseen)
    apply = jax.jit(functools.partial(ours.apply, causal=False, train=False))
    found = apply({"params": params}, X, mask)
    np.testing.assert_allclose(found, wanted.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_layer_of_the_decoder_is_torchs(norm_first):
    theirs = random_biases(
        torch.nn.TransformerDecoderLayer(
            16, 4, 24, 0.0, "gelu", batch_first=True, norm_first=norm_first
        )
    )
    params = {
        "self_attention": attention(theirs.self_attn),
        "memory_attention": attention(theirs.multihead_attn),
        "self_norm": norm(theirs.norm1),
        "memory_norm": norm(theirs.norm2),
        "network": {"wide": dense(theirs.linear1), "narrow": dense(theirs.linear2)},
        "network_norm": norm(theirs.norm3),
    }
    ours = Layer(Transformer(**SIZE, norm="pre" if norm_first else "post"))
    mask = padding_mask(jnp.array([5, 1, 3]), 5)
    wanted = theirs(
        torch.tensor(np.asarray(X)),
        torch.tensor(np.asarray(MEMORY)),
        tgt_mask=torch.triu(torch.ones(7, 7, dtype=torch.bool), diagonal=1),
        memory_key_padding_mask=torch.from_numpy(~np.asarray(mask[:, 0, 0])),
    )

    @jax.jit
    def apply(params):
        layer = ours.bind({"params": params})
        memory = layer.project(MEMORY)
        return layer(X, None, memory, mask, causal=True, train=False)

    np.testing.assert_allclose(apply(params), wanted.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_there_are_as_many_parameters_as_in_torch(norm):
    net = Transformer(**SIZE, norm=norm)
    theirs = torch.nn.Transformer(16, 4, 2, 2, 24, batch_first=True)
    count = sum(weight.numel() for weight in theirs.parameters())
    if norm == "post":
        # torch has the two normalisations at the end also where the paper has none.
        count -= 2 * 2 * 16
    model = EncoderDecoder(net, 11, 13)
    shapes = jax.eval_shape(
        functools.partial(model.init, train=False),
        jax.random.key(0),
        TOKENS,
        LENGTHS,
        TOKENS,
    )
    found = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert found == count + (11 + 13) * 16 + 13
    one = sum(
        w.numel() for w in torch.nn.TransformerEncoderLayer(16, 4, 24).parameters()
    )
    end = 2 * 16 if norm == "pre" else 0
    assert attention_parameters(net, 11) == 2 * one + end + 11 * 16 + 11
    assert (
        attention_parameters(net, 11, tied=False)
        == attention_parameters(net, 11) + 11 * 16
    )


@pytest.mark.parametrize(
    ("positions", "norm"),
    [("sinusoidal", "post"), ("learned", "pre"), ("rotary", "pre")],
)
def test_a_position_at_a_time_gives_the_logits_of_the_whole(positions, norm):
    net = Transformer(**SIZE, norm=norm, positions=positions)
    model = Decoder(net, 11)
    variables = begin(model, TOKENS)
    whole, _ = jax.jit(functools.partial(model.apply, train=False))(variables, TOKENS)

    @jax.jit
    def step(cache, tokens):
        return model.apply(
            variables | cache, tokens, train=False, decode=True, mutable=["cache"]
        )

    cache, logits = {}, []
    for place in range(7):
        (here, _), cache = step(cache, TOKENS[:, place : place + 1])
        logits.append(here)
    np.testing.assert_allclose(jnp.concatenate(logits, 1), whole, atol=1e-5)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(cache)} == {3}
    # There is no eighth position.
    (past, _), _ = step(cache, TOKENS[:, :1])
    assert np.isnan(past).all()


def test_a_step_of_the_translation_gives_the_logits_of_the_whole():
    model = EncoderDecoder(Transformer(**SIZE), 11, 11)
    variables = begin(model, TOKENS, LENGTHS, TOKENS)
    apply = jax.jit(
        functools.partial(model.apply, train=False), static_argnames="method"
    )
    whole, _ = apply(variables, TOKENS, LENGTHS, TOKENS)
    memory = apply(variables, TOKENS, LENGTHS, method="encode")

    @jax.jit
    def step(cache, tokens):
        return model.apply(
            variables | cache,
            memory,
            LENGTHS,
            tokens,
            method="decode",
            mutable=["cache"],
        )

    cache, logits = {}, []
    for place in range(7):
        (here, _), cache = step(cache, TOKENS[:, place : place + 1])
        logits.append(here)
    np.testing.assert_allclose(jnp.concatenate(logits, 1), whole, atol=1e-5)


@pytest.mark.parametrize(
    ("positions", "norm"), [("sinusoidal", "post"), ("rotary", "pre")]
)
def test_no_gradient_comes_from_later_positions(norm, positions):
    stack = Stack(Transformer(**SIZE, norm=norm, positions=positions))
    x = X[:1]
    variables = begin(stack, x, causal=True)

    @jax.jit
    @jax.jacrev
    def jacobian(x):
        y, _ = stack.apply(variables, x, causal=True, train=False)
        return (y[0] ** 3).sum(-1)

    found = np.abs(jacobian(x)[:, 0]).max(-1)
    assert (found[np.triu_indices(7, 1)] == 0).all()
    assert (found[np.tril_indices(7)] > 0).all()


def test_the_padding_has_no_influence():
    model = EncoderDecoder(Transformer(**SIZE), 11, 11)
    variables = begin(model, TOKENS, LENGTHS, TOKENS)
    apply = jax.jit(functools.partial(model.apply, train=False))
    logits, _ = apply(variables, TOKENS, LENGTHS, TOKENS)
    padding = jnp.arange(7) >= LENGTHS[:, None]
    other, _ = apply(variables, (TOKENS + 3 * padding) % 11, LENGTHS, TOKENS)
    np.testing.assert_array_equal(logits, other)
    short, _ = apply(variables, TOKENS[1:2, :2], LENGTHS[1:2], TOKENS[1:2])
    np.testing.assert_allclose(short, logits[1:2], atol=1e-5)
    seen, _ = apply(variables, (TOKENS + 3 * ~padding) % 11, LENGTHS, TOKENS)
    assert (np.abs(seen - logits) > 1e-3).any(axis=(1, 2)).all()


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary"])
def test_packed_sequences_have_the_losses_that_they_have_alone(positions):
    sequences = [TOKENS[0, :4], TOKENS[1, :3], TOKENS[2, :6], TOKENS[2, 2:4]]
    packed = pack([row.tolist() for row in sequences], 9)
    assert len(packed.tokens) == 2
    model = Decoder(Transformer(**SIZE | {"longest": 9}, positions=positions), 11)
    variables = begin(model, packed.tokens)

    @jax.jit
    def losses(tokens, segments=None):
        logits, _ = model.apply(variables, tokens, train=False, segments=segments)
        return optax.softmax_cross_entropy_with_integer_labels(
            logits[:, :-1], tokens[:, 1:]
        )

    together = losses(packed.tokens, packed.segments)
    alone = np.zeros((4, 9), np.int32)
    for row, sequence in zip(alone, sequences, strict=True):
        row[: len(sequence)] = sequence
    alone = [x[: len(s) - 1] for x, s in zip(losses(alone), sequences, strict=True)]
    same = (packed.segments[:, 1:] == packed.segments[:, :-1]) & (
        packed.segments[:, 1:] > 0
    )
    # The longest first, each in the row where it fits best.
    wanted = np.concatenate([alone[i] for i in (2, 1, 0, 3)])
    np.testing.assert_allclose(together[same], wanted, atol=1e-5)


def test_what_does_not_fit_is_refused():
    model = Decoder(Transformer(**SIZE), 11)
    long = jnp.zeros((1, 8), jnp.int32)
    with pytest.raises(ValueError, match="at most 7 positions"):
        model.init(jax.random.key(0), long, train=False)
    with pytest.raises(ValueError, match="at most 1 positions"):
        model.init(jax.random.key(0), long[:, :2], train=False, decode=True)
    how = {"train": False, "decode": True, "segments": long[:, :1]}
    with pytest.raises(ValueError, match="packed rows cannot go on"):
        model.init(jax.random.key(0), long[:, :1], **how)
