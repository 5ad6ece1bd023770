"""Recurrent encoder-decoders against torch, and what a user relies on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from scipy import special

from dl_core.models import seq2seq, transformer
from dl_core.models.seq2seq import EncoderDecoder, Seq2Seq

VOCABULARY, FEATURES, EMBEDDING = 11, 4, 3
LENGTHS = jnp.array([5, 2, 3])
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def tokens(seed, time):
    random = np.random.default_rng(seed)
    return jnp.asarray(random.integers(0, VOCABULARY, (3, time)), jnp.int32)


SOURCE, TARGET = tokens(0, 5), tokens(1, 4)


@functools.cache
def trained(score, cell="lstm", layers=1):
    """Returns a model, its parameters and what it makes of the pairs."""
    net = Seq2Seq(
        score=score,
        cell=cell,
        layers=layers,
        features=FEATURES,
        embedding=EMBEDDING,
        longest=8,
    )
    model = EncoderDecoder(net, VOCABULARY, VOCABULARY)
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), SOURCE, LENGTHS, TARGET)
    random = np.random.default_rng(3)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype),
        shapes["params"],
    )
    apply = jax.jit(functools.partial(model.apply, train=False))
    return (
        model,
        params,
        lambda source: apply({"params": params}, source, LENGTHS, TARGET),
    )


scores = pytest.mark.parametrize(
    ("score", "cell", "layers"),
    [
        ("none", "lstm", 2),
        ("dot", "lstm", 2),
        ("additive", "gru", 1),
        ("location", "gru", 1),
    ],
)


@scores
def test_one_step_after_the_other_gives_what_the_whole_target_gives(
    score, cell, layers
):
    model, params, apply = trained(score, cell, layers)
    wanted, endpoints = apply(SOURCE)
    attends = score != "none"

    @jax.jit
    def written():
        step, state = seq2seq.decoding(
            model, params, SOURCE, LENGTHS, attention=attends
        )

        def on(state, now):
            logits, state = step(state, now)
            return state, (logits, seq2seq.attention_of(state) if attends else 0)

        return jax.lax.scan(on, state, TARGET.T)[1]

    logits, weights = written()
    close(logits.swapaxes(0, 1), wanted)
    if attends:
        close(weights.swapaxes(0, 1), endpoints["weights"])


def test_only_recurrent_attention_can_be_kept():
    model, params, _ = trained("none", "lstm", 2)
    other = transformer.EncoderDecoder(transformer.Transformer(), 11, 11)
    for each in (model, other):
        with pytest.raises(ValueError, match="only a recurrent network with attention"):
            seq2seq.decoding(each, params, SOURCE, LENGTHS, attention=True)


def test_luongs_steps_are_those_of_the_paper():
    model, params, apply = trained("general")
    wanted, endpoints = apply(SOURCE)
    memory = jax.jit(functools.partial(model.apply, train=False, method="encode"))(
        {"params": params}, SOURCE, LENGTHS
    )
    p, memory = jax.tree.map(np.float64, (params, memory))
    cell, embedded = p["step"]["cells_0"], p["target"]["embedding"][np.asarray(TARGET)]

    def gate(name, x, h):
        return x @ cell[f"i{name}"]["kernel"] + dense(cell[f"h{name}"], h)

    def dense(part, x):
        return x @ part["kernel"] + part.get("bias", 0)

    c, h = memory["carries"][0]
    fed = np.zeros((3, FEATURES))
    for t in range(4):
        x = np.concatenate([embedded[:, t], fed], axis=1)
        i, f, o = (special.expit(gate(name, x, h)) for name in "ifo")
        c = f * c + i * np.tanh(gate("g", x, h))
        h = o * np.tanh(c)
        keys = memory["outputs"] @ p["step"]["score"]["memory"]["kernel"]
        scores = np.einsum("bf,bsf->bs", h, keys)
        scores[np.arange(5) >= np.asarray(LENGTHS)[:, None]] = -np.inf
        weights = special.softmax(scores, axis=1)
        context = np.einsum("bs,bsm->bm", weights, memory["outputs"])
        both = np.concatenate([context, h], axis=1)
        fed = np.tanh(both @ p["step"]["attentional"]["kernel"])
        close(endpoints["weights"][:, t], weights)
        close(wanted[:, t], dense(p["head"], fed))


@scores
def test_what_stands_in_the_padding_has_no_influence(score, cell, layers):
    _, _, apply = trained(score, cell, layers)
    other = SOURCE.at[1, 2:].set(7).at[2, 3:].set(9)
    logits, endpoints = apply(SOURCE)
    changed, _ = apply(other)
    np.testing.assert_array_equal(changed, logits)
    if score == "none":
        assert "weights" not in endpoints
        return
    weights = endpoints["weights"]
    assert weights.shape == (3, 4, 5)
    close(weights.sum(-1), 1)
    valid = np.arange(5) < np.asarray(LENGTHS)[:, None, None]
    assert (np.where(valid, 0, weights) == 0).all()


def test_a_step_of_the_lstm_is_that_of_torch():
    model, params, _ = trained("additive")
    labels = tokens(2, 4)

    def loss(params):
        logits, _ = model.apply(
            {"params": params}, SOURCE, LENGTHS, TARGET, train=False
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    ours, gradients = jax.jit(jax.value_and_grad(loss))(params)
    leaves = jax.tree.map(
        lambda leaf: torch.tensor(np.asarray(leaf), requires_grad=True), params
    )
    theirs = torch_loss(leaves, labels)
    theirs.backward()
    close(ours, theirs.item())
    jax.tree.map(lambda g, leaf: close(g, leaf.grad), gradients, leaves)


def torch_loss(p, labels):
    """Bahdanau's network, with its own encoder and cell in torch."""

    def dense(part, x):
        y = x @ part["kernel"]
        return y + part["bias"] if "bias" in part else y

    def gates(part, side):
        kernel = torch.cat([part[f"{side}{gate}"]["kernel"] for gate in "ifgo"], 1)
        if side == "i":
            return kernel.T
        bias = torch.cat([part[f"h{gate}"]["bias"] for gate in "ifgo"])
        return kernel.T, bias

    def lstm(part, x, state):
        """Takes the step of torch's own cell with these weights."""
        recurrent, bias = gates(part, "h")
        return torch.lstm_cell(
            x, state, gates(part, "i"), recurrent, torch.zeros_like(bias), bias
        )

    def long(x):
        return torch.tensor(np.asarray(x)).long()

    source = p["source"]["embedding"][long(SOURCE)]
    target = p["target"]["embedding"][long(TARGET)]
    layer = p["encoder"]["layers_0"]
    losses = []
    for b, length in enumerate(LENGTHS.tolist()):
        sides = []
        for side, order in (("forward", 1), ("backward", -1)):
            h = c = torch.zeros(1, FEATURES // 2)
            outputs = []
            for t in range(length)[::order]:
                h, c = lstm(layer[side], source[b, t][None], (h, c))
                outputs.append(h)
            sides.append((torch.cat(outputs[::order]), c, h))
        memory = torch.cat([sides[0][0], sides[1][0]], 1)
        cell, state = (
            torch.tanh(
                dense(
                    p[f"bridge_{i}"], torch.cat([sides[0][1 + i], sides[1][1 + i]], 1)
                )
            )
            for i in range(2)
        )
        step = p["step"]
        for t in range(4):
            x = target[b, t][None]
            score = step["score"]
            hidden = torch.tanh(
                dense(score["query"], state) + dense(score["memory"], memory)
            )
            weights = torch.softmax(hidden @ score["out"], 0)
            context = (weights @ memory)[None]
            state, cell = lstm(
                step["cells_0"], torch.cat([x, context], 1), (state, cell)
            )
            read = dense(p["hidden"], torch.cat([state, context, x], 1))
            logits = dense(p["head"], read.reshape(1, -1, 2).max(-1).values)
            losses.append(
                torch.nn.functional.cross_entropy(logits, long(labels[b, t])[None])
            )
    return torch.stack(losses).mean()
