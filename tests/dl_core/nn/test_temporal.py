"""Causal networks against torch, by the support of gradients, and by parts."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.nn.utils import parametrizations

from dl_core.nn.temporal import (
    TCN,
    CausalConv,
    GatedBlock,
    ResidualBlock,
    WaveNet,
    receptive_field,
    upsample,
)
from dl_core.ops.receptive_field import Branches, Layer
from dl_core.ops.receptive_field import receptive_field as of_layers
from dl_core.ops.receptive_field_tracing import trace_receptive_fields

few = settings(max_examples=6, deadline=None, derandomize=True)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def drawn(model, *args, **kwargs):
    """Returns random parameters that are all of one size, biases too."""
    init = jax.eval_shape(lambda: model.init(jax.random.key(0), *args, **kwargs))
    leaves, tree = jax.tree.flatten(init)
    sizes = [max(np.prod(leaf.shape[:-1]), 4) for leaf in leaves]
    arrays = [
        normal(i, *leaf.shape) / n**0.5
        for i, (leaf, n) in enumerate(zip(leaves, sizes, strict=True))
    ]
    return jax.tree.unflatten(tree, arrays)


def close(ours, theirs):
    scale = max(1.0, np.abs(theirs).max())
    np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-5, rtol=1e-5)


def with_gradients(function, *args):
    """Returns a function's value and the gradients of its cosine's sum."""

    def loss(*args):
        y = function(*args)
        return jnp.cos(y).sum(), y

    numbers = tuple(range(len(args)))
    (_, y), gradients = jax.jit(
        jax.value_and_grad(loss, argnums=numbers, has_aux=True)
    )(*args)
    return y, *gradients


class TorchConv(torch.nn.Module):
    """Torch's convolution, padded on the left, with the parameters of ours."""

    def __init__(self, params, dilation=1):
        super().__init__()
        kernel = np.asarray(params["kernel"])
        self.conv = torch.nn.Conv1d(*kernel.shape[1:], len(kernel), dilation=dilation)
        self.pad = dilation * (len(kernel) - 1)
        self.conv.weight.data = torch.tensor(kernel.T.copy())
        self.conv.bias.data = torch.tensor(np.asarray(params["bias"]).copy())
        if "scale" in params:
            parametrizations.weight_norm(self.conv)
            scale = np.asarray(params["scale"]).copy()
            weight = self.conv.parametrizations.weight
            weight.original0.data = torch.tensor(scale)[:, None, None]

    def forward(self, x):
        return self.conv(functional.pad(x, (self.pad, 0)))

    def gradients(self):
        if torch.nn.utils.parametrize.is_parametrized(self.conv):
            weight = self.conv.parametrizations.weight
            more = {"scale": weight.original0.grad.flatten().numpy()}
            kernel = weight.original1
        else:
            more, kernel = {}, self.conv.weight
        bias = self.conv.bias.grad.numpy()
        return {"bias": bias, "kernel": kernel.grad.numpy().T, **more}


def to_torch(x):
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy(), requires_grad=True)


def from_torch(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


@given(
    time=st.integers(1, 20),
    taps=st.integers(1, 4),
    dilation=st.integers(1, 5),
    ins=st.integers(1, 3),
    weight_norm=st.booleans(),
)
@few
def test_causal_conv_equals_torchs_padded_on_the_left(
    time, taps, dilation, ins, weight_norm
):
    layer = CausalConv(3, taps, dilation=dilation, weight_norm=weight_norm)
    x = normal(9, 2, time, ins)
    params = drawn(layer, x)["params"]
    y, of_params, of_x = with_gradients(
        lambda params, x: layer.apply({"params": params}, x), params, x
    )
    theirs, tx = TorchConv(params, dilation), to_torch(x)
    expected = theirs(tx)
    torch.cos(expected).sum().backward()
    close(y, from_torch(expected))
    close(of_x, from_torch(tx.grad))
    jax.tree.map(close, of_params, theirs.gradients())


def test_causal_conv_is_flaxs_with_the_same_parameters():
    x = normal(0, 2, 9, 3)
    theirs = nn.Conv(4, 3, kernel_dilation=2, padding="CAUSAL")
    ours = CausalConv(4, 3, dilation=2)
    variables = theirs.init(jax.random.key(0), x)
    own = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, variables, own)
    close(ours.apply(variables, x), theirs.apply(variables, x))


def test_weight_normalisation_changes_nothing_at_first_and_is_flaxs():
    x = normal(0, 2, 9, 3)
    plain, layer = CausalConv(4, 3), CausalConv(4, 3, weight_norm=True)
    variables = layer.init(jax.random.key(0), x)
    kernel, scale = (variables["params"][name] for name in ("kernel", "scale"))
    close(scale, jnp.linalg.norm(kernel.reshape(-1, 4), axis=0))
    close(layer.apply(variables, x), plain.init_with_output(jax.random.key(0), x)[0])
    params = drawn(layer, x)["params"]
    scale = {"layer_instance/kernel/scale": params["scale"]}
    inner = {name: params[name] for name in ("kernel", "bias")}
    theirs = nn.WeightNorm(plain).apply(
        {"params": {"layer_instance": inner, **scale}}, x
    )
    close(layer.apply({"params": params}, x), theirs)


@pytest.mark.parametrize(
    ("taps", "dilation", "stride", "time"),
    [(1, 1, 3, 8), (3, 1, 2, 7), (3, 1, 2, 8), (2, 3, 5, 4), (2, 3, 5, 10)],
)
def test_strided_outputs_are_counted_from_the_last(taps, dilation, stride, time):
    x = normal(0, 2, time, 3)
    layer = CausalConv(4, taps, dilation=dilation, stride=stride)
    variables = drawn(layer, x)
    full = layer.clone(stride=1).apply(variables, x)
    close(layer.apply(variables, x), full[:, (time - 1) % stride :: stride])


@pytest.mark.parametrize("weight_norm", [False, True])
def test_tcn_equals_torchs(weight_norm):
    model = TCN((4, 4, 3), 3, weight_norm=weight_norm)
    x = normal(9, 2, 21, 2)
    params = drawn(model, x, train=False)["params"]
    y, of_params, of_x = with_gradients(
        lambda params, x: model.apply({"params": params}, x, train=False), params, x
    )
    tx = to_torch(x)
    hidden, convolutions = tx, {}
    for level in range(3):
        block = params[f"ResidualBlock_{level}"]
        convs = [TorchConv(block[f"CausalConv_{i}"], 2**level) for i in range(2)]
        branch = torch.relu(convs[1](torch.relu(convs[0](hidden))))
        if "Dense_0" in block:
            dense = {**block["Dense_0"], "kernel": block["Dense_0"]["kernel"][None]}
            convs.append(TorchConv(dense))
            hidden = convs[-1](hidden)
        hidden = torch.relu(branch + hidden)
        convolutions[f"ResidualBlock_{level}"] = convs
    torch.cos(hidden).sum().backward()
    close(y, from_torch(hidden))
    close(of_x, from_torch(tx.grad))
    assert len(convolutions["ResidualBlock_1"]) == 2  # No width changes there.
    for name, convs in convolutions.items():
        for i, conv in enumerate(convs[:2]):
            jax.tree.map(close, of_params[name][f"CausalConv_{i}"], conv.gradients())
        if len(convs) > 2:
            expected = convs[2].gradients()
            close(of_params[name]["Dense_0"]["kernel"], expected["kernel"][0])
            close(of_params[name]["Dense_0"]["bias"], expected["bias"])


def test_a_tcn_begins_as_the_authors_does():
    x = jnp.zeros((1, 5, 100))
    block = ResidualBlock(400, 5).init(jax.random.key(0), x, train=False)["params"]
    ours = block["CausalConv_0"]["kernel"]
    theirs = torch.nn.Conv1d(100, 400, 5).weight.detach().numpy()
    np.testing.assert_allclose(ours.std(), theirs.std(), rtol=0.01)
    np.testing.assert_allclose(np.abs(ours).max(), np.abs(theirs).max(), rtol=0.01)
    np.testing.assert_allclose(block["Dense_0"]["kernel"].std(), 0.01, rtol=0.02)


def seen(function, x, position):
    """Returns the inputs on which an output's gradient is not exactly zero."""
    gradient = jax.jit(jax.grad(lambda x: function(x)[:, position].sum()))(x)
    return np.flatnonzero(np.abs(gradient).sum((0, 2)))


@pytest.mark.parametrize(("taps", "levels"), [(2, 3), (4, 2), (1, 2)])
def test_a_tcn_sees_its_receptive_field_and_nothing_else(taps, levels):
    size = receptive_field(taps, levels)
    model, x = TCN((4,) * levels, taps), normal(0, 8, size + 4, 2)
    # Positive weights: no path to the ends is closed by a rectifier.
    variables = jax.tree.map(jnp.abs, drawn(model, x, train=False))

    def function(x):
        return model.apply(variables, x, train=False)

    position = size + 1
    inputs = seen(function, jnp.abs(x), position)
    assert inputs.min() == position - size + 1
    assert inputs.max() == position
    ((traced,),) = trace_receptive_fields(lambda x: (function(x),), (1, size, 2))
    layers = [
        Branches(
            [], [Layer(taps, padding=((2**i * (taps - 1), 0),), dilation=2**i)] * 2
        )
        for i in range(levels)
    ]
    assert traced == of_layers(layers)
    assert (traced.size, traced.stride, traced.padding) == (size, 1, size - 1)


def test_a_wavenet_sees_its_receptive_field_and_nothing_else():
    model, x = WaveNet(3, 4, 5, (1, 2, 4, 1), kernel_size=3), normal(0, 4, 25, 2)
    conditions = normal(1, 4, 2), normal(2, 4, 5, 3)
    variables = drawn(model, x, *conditions)
    assert model.receptive_field == 19
    inputs = seen(lambda x: model.apply(variables, x, *conditions), x, 20)
    assert (inputs.min(), inputs.max(), len(inputs)) == (2, 20, 19)


@given(
    taps=st.integers(2, 8),
    levels=st.integers(1, 4),
    time=st.integers(1, 64),
    weight_norm=st.booleans(),
)
@few
def test_the_pyramid_is_the_full_stacks_last_output(taps, levels, time, weight_norm):
    compare_pyramid(taps, levels, time, weight_norm)


@pytest.mark.parametrize(("taps", "more"), [(3, -1), (3, 0), (3, 1), (3, 6), (1, 5)])
def test_the_pyramid_is_exact_at_the_edge_of_the_receptive_field(taps, more):
    compare_pyramid(taps, 2, receptive_field(taps, 2) + more, False)


def compare_pyramid(taps, levels, time, weight_norm):
    model = TCN((3, *(4,) * (levels - 1)), taps, weight_norm=weight_norm)
    x = normal(9, 2, time, 2)
    variables = drawn(model, x, train=False)

    def last(variables, x):
        return model.apply(variables, x, train=False, last_only=True)

    def of_all(variables, x):
        return model.apply(variables, x, train=False)[:, -1]

    ours = with_gradients(last, variables, x)
    jax.tree.map(close, ours, with_gradients(of_all, variables, x))


def test_the_pyramid_drops_the_same_channels():
    model, x = TCN((6, 6, 6), 3, dropout=0.5), normal(0, 3, 22, 2)
    variables, rngs = drawn(model, x, train=False), {"dropout": jax.random.key(1)}
    full = model.apply(variables, x, train=True, rngs=rngs)[:, -1]
    last = model.apply(variables, x, train=True, last_only=True, rngs=rngs)
    close(last, full)
    assert np.abs(full - model.apply(variables, x, train=False)[:, -1]).max() > 0.1


def test_the_pyramid_halves_its_work_from_block_to_block():
    model, x = TCN((2,) * 4, 3), jnp.zeros((1, 16, 2))
    variables = model.init(jax.random.key(0), x, train=False)
    _, state = model.apply(
        variables, x, train=False, last_only=True, capture_intermediates=True
    )
    blocks = [state["intermediates"][f"ResidualBlock_{i}"] for i in range(4)]
    assert [b["__call__"][0].shape[1] for b in blocks] == [8, 4, 2, 1]
    assert [b["CausalConv_0"]["__call__"][0].shape[1] for b in blocks] == [16, 8, 4, 2]


def test_dropout_drops_whole_channels_of_a_sequence():
    block, x = ResidualBlock(50, 3, dropout=0.2), normal(0, 40, 6, 2)
    variables = block.init(jax.random.key(0), x, train=False)

    @functools.partial(jax.jit, static_argnums=0)
    def rectified(train, key):
        _, state = block.apply(
            variables,
            x,
            capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
            train=train,
            rngs={"dropout": key},
        )
        return state["intermediates"]["Dropout_0"]["__call__"][0]

    kept, dropped = (rectified(train, jax.random.key(1)) for train in (False, True))
    gone = (dropped == 0).all(1, keepdims=True)
    close(dropped, jnp.where(gone, 0, kept / 0.8))
    alive = (kept > 0).any(1)
    assert abs(gone[:, 0][alive].mean() - 0.2) < 0.04


@given(
    taps=st.integers(1, 3),
    dilation=st.integers(1, 4),
    frames=st.sampled_from([1, 3, 12]),
)
@few
def test_a_gated_block_equals_torchs(taps, dilation, frames):
    block, x = GatedBlock(5, taps, dilation), normal(9, 2, 12, 3)
    conditions = normal(8, 2, 2), normal(7, 2, frames, 4)
    params = drawn(block, x, *conditions)["params"]
    y, *gradients = with_gradients(
        lambda *args: jnp.concatenate(block.apply({"params": args[0]}, *args[1:]), -1),
        params,
        x,
        *conditions,
    )
    tensors = {
        name: {
            key: torch.tensor(np.asarray(value).copy(), requires_grad=True)
            for key, value in layer.items()
        }
        for name, layer in params.items()
    }

    def dense(name, x):
        return functional.conv1d(
            x, tensors[name]["kernel"].T[..., None], tensors[name].get("bias")
        )

    tx, local = to_torch(x), to_torch(conditions[1])
    everywhere = torch.tensor(np.asarray(conditions[0]).copy(), requires_grad=True)
    conv = tensors["CausalConv_0"]
    gates = functional.conv1d(
        functional.pad(tx, (dilation * (taps - 1), 0)),
        conv["kernel"].permute(2, 1, 0),
        conv["bias"],
        dilation=dilation,
    )
    gates = gates + dense("global_condition", everywhere[..., None])
    upsampled = functional.interpolate(local, scale_factor=12 // frames)
    gates = gates + dense("local_condition", upsampled)
    z = torch.tanh(gates[:, :3]) * torch.sigmoid(gates[:, 3:])
    expected = torch.cat([tx + dense("residual", z), dense("skip", z)], 1)
    torch.cos(expected).sum().backward()
    close(y, from_torch(expected))
    of_tensors = jax.tree.map(lambda t: t.grad.numpy(), tensors)
    jax.tree.map(close, gradients[0], of_tensors)
    close(gradients[1], from_torch(tx.grad))
    close(gradients[2], everywhere.grad.numpy())
    close(gradients[3], from_torch(local.grad))


def test_a_wavenet_sums_the_skips_of_its_blocks():
    model, x = WaveNet(7, 4, 5, (1, 2)), normal(0, 2, 9, 3)
    params = drawn(model, x)["params"]

    def call(layer, name, *args):
        return layer.apply({"params": params[name]}, *args)

    hidden, skips = call(CausalConv(4, 2), "CausalConv_0", x), []
    for i in range(2):
        hidden, skip = call(GatedBlock(5, 2, 2**i), f"GatedBlock_{i}", hidden)
        skips.append(skip)
    hidden = call(nn.Dense(5), "Dense_0", nn.relu(skips[0] + skips[1]))
    expected = call(nn.Dense(7), "Dense_1", nn.relu(hidden))
    close(model.apply({"params": params}, x), expected)


def test_a_local_condition_holds_for_its_frame():
    frames = normal(0, 2, 3, 4)
    np.testing.assert_array_equal(upsample(frames, 6), np.repeat(frames, 2, axis=1))
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) do not divide 7 positions"):
        upsample(frames, 7)


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        (
            {"global_condition": (3, 4)},
            r"global condition as \(batch, features\).*\(3, 4\)",
        ),
        ({"global_condition": (2, 6, 4)}, r"x of shape \(2, 6, 3\), got \(2, 6, 4\)"),
        (
            {"local_condition": (2, 4)},
            r"local condition as \(batch, frames, features\)",
        ),
        ({"local_condition": (1, 6, 4)}, r"x of shape \(2, 6, 3\), got \(1, 6, 4\)"),
        ({"local_condition": (2, 4, 4)}, r"frames of \(2, 4, 6\) do not divide 6"),
    ],
)
def test_conditions_that_do_not_fit_are_told_with_the_shapes(
    conditions, words, monkeypatch
):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    arrays = {name: jnp.zeros(shape) for name, shape in conditions.items()}
    with pytest.raises(ValueError, match=words):
        GatedBlock(5).init(jax.random.key(0), jnp.zeros((2, 6, 3)), **arrays)


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (CausalConv(4, 3), (2, 6, 6, 3), r"\(batch, time, channels\).*\(2, 6, 6, 3\)"),
        (CausalConv(4, 0), (2, 6, 3), r"at least 1, got \(2, 6, 3\), 0 taps"),
        (CausalConv(4, 3, dilation=0), (2, 6, 3), "dilation 0"),
        (CausalConv(4, 3), (2, 0, 3), r"does not fit the input \(2, 0, 3\)"),
    ],
)
def test_what_does_not_fit_is_told_with_the_shapes(layer, shape, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=words):
        layer.init(jax.random.key(0), jnp.zeros(shape))
