"""Recurrent layers against torch, Flax's cells, ONNX Runtime and JAX's cuDNN layout."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import rnn
from jax.test_util import check_grads

from dl_core.nn.recurrent import GRU, LSTM, RNN, Bidirectional, Stack

BATCH, TIME, INPUTS, FEATURES = 4, 6, 3, 5
LAYERS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
kinds = pytest.mark.parametrize("kind", LAYERS)
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def tensor(array):
    return torch.tensor(np.asarray(array), requires_grad=True)


def trees_close(ours, theirs):
    jax.tree.map(close, ours, theirs)


def in_torch(kind, layers=1, bidirectional=False):
    torch.manual_seed(layers)
    module = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind]
    sizes = {"num_layers": layers, "bidirectional": bidirectional}
    return module(INPUTS, FEATURES, batch_first=True, **sizes)


def as_flax(module, suffix, gradients=False):
    """Returns torch's weights, or their gradients, as the tree of Flax's cell."""

    def gates(name):
        weight = getattr(module, f"{name}_{suffix}")
        value = (weight.grad if gradients else weight.detach()).numpy()
        return np.split(value, len(value) // FEATURES)

    names = {1: [""], 3: ["r", "z", "n"], 4: ["i", "f", "g", "o"]}
    i, h, b_i, b_h = map(gates, ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    tree = {}
    for k, name in enumerate(names[len(i)]):
        tree["i" + name] = {"kernel": i[k].T}
        tree["h" + name] = {"kernel": h[k].T}
        # The gradient of a sum is that of both of its terms.
        total = b_i[k] if gradients else b_i[k] + b_h[k]
        if name == "n":
            tree["in"]["bias"], tree["hn"]["bias"] = b_i[k], b_h[k]
        else:
            tree[("h" if len(i) == 4 else "i") + name]["bias"] = total
    return tree


def stack(kind, layers=1, bidirectional=False):
    """Returns a stack, and what gives its parameters from torch's module."""
    one = functools.partial(LAYERS[kind], FEATURES)
    make = (lambda: Bidirectional(one(), one())) if bidirectional else one

    def params(module, **kwargs):
        def layer(k):
            ahead = as_flax(module, f"l{k}", **kwargs)
            if not bidirectional:
                return ahead
            back = as_flax(module, f"l{k}_reverse", **kwargs)
            return {"forward": ahead, "backward": back}

        return {f"layers_{k}": layer(k) for k in range(layers)}

    return Stack([make() for _ in range(layers)]), params


def by_layer(kind, states, layers, bidirectional):
    """Returns torch's states as carries: a tuple over layers."""
    h, c = states if kind == "lstm" else (states, states)
    carries = list(zip(c, h, strict=True)) if kind == "lstm" else list(h)
    if not bidirectional:
        return tuple(carries)
    return tuple((carries[2 * k], carries[2 * k + 1]) for k in range(layers))


def cotangents(tree):
    """Returns fixed weights for the sum of all numbers of a tree of these shapes."""
    leaves, structure = jax.tree.flatten(tree)
    parts = [noise(90 + k, *leaf.shape) for k, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, parts)


@functools.cache
def with_gradients(kind, layers, bidirectional):
    model, _ = stack(kind, layers, bidirectional)

    @jax.jit
    def run(params, x, lengths, initial):
        def function(params, x, initial):
            return model.apply({"params": params}, x, lengths, initial, train=False)

        results, pull = jax.vjp(function, params, x, initial)
        return results, pull(cotangents(results))

    return run


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(sorted(LAYERS)),
    deep=st.booleans(),
    lengths=st.lists(st.integers(1, TIME), min_size=BATCH, max_size=BATCH),
)
def test_values_and_gradients_are_those_of_packed_sequences(kind, deep, lengths):
    layers = 2 if deep else 1
    module = in_torch(kind, layers, deep)
    _, params = stack(kind, layers, deep)
    x = tensor(noise(0, BATCH, TIME, INPUTS))
    count = 2 if kind == "lstm" else 1
    states = [
        tensor(noise(k + 1, layers * (1 + deep), BATCH, FEATURES)) for k in range(count)
    ]
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        x, torch.tensor(lengths), batch_first=True, enforce_sorted=False
    )
    outputs, last = module(packed, tuple(states) if count == 2 else states[0])
    outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(
        outputs, batch_first=True, total_length=TIME
    )
    carries = functools.partial(by_layer, kind, layers=layers, bidirectional=bool(deep))
    results = (outputs, carries(last))
    weights = map(tensor, jax.tree.leaves(cotangents(results)))
    pairs = zip(jax.tree.leaves(results), weights, strict=True)
    sum((result * weight).sum() for result, weight in pairs).backward()

    def arrays(tree):
        return jax.tree.map(lambda leaf: jnp.asarray(leaf.detach().numpy()), tree)

    def initial(of):
        values = arrays([of(state) for state in states])
        return carries(values if count == 2 else values[0])

    ours, (d_params, d_x, d_initial) = with_gradients(kind, layers, deep)(
        params(module), arrays(x), jnp.array(lengths), initial(lambda s: s)
    )
    trees_close(ours, arrays(results))
    trees_close(d_params, params(module, gradients=True))
    close(d_x, x.grad.numpy())
    trees_close(d_initial, initial(lambda s: s.grad))


@pytest.mark.parametrize(
    ("layer", "cell"),
    [
        (RNN(FEATURES), nn.SimpleCell(FEATURES)),
        (LSTM(FEATURES), nn.OptimizedLSTMCell(FEATURES)),
        (GRU(FEATURES), nn.GRUCell(FEATURES)),
    ],
    ids=list(LAYERS),
)
def test_parameters_are_those_of_the_cell_of_flax(layer, cell):
    x = noise(0, BATCH, TIME, INPUTS)
    theirs = nn.RNN(cell, return_carry=True)
    params = theirs.init(jax.random.key(0), x)["params"]["cell"]
    params = jax.tree.map(lambda p: p + 0.1 * noise(1, *p.shape), params)
    own = layer.init(jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, params)
    outputs, carry = jax.jit(layer.apply)({"params": params}, x)
    their_carry, their_outputs = jax.jit(theirs.apply)({"params": {"cell": params}}, x)
    close(outputs, their_outputs)
    trees_close(carry, their_carry)


@pytest.mark.parametrize("kind", [*LAYERS, "gru_before", "cudnn"])
def test_padding_is_never_read(kind, request):
    layer = {"gru_before": GRU(FEATURES, reset="before")}.get(kind)
    if kind == "cudnn":
        request.getfixturevalue("reference_for_cudnn")
        layer = LSTM(FEATURES, lowering="cudnn")
    make = LAYERS[kind] if layer is None else lambda _: layer
    model = Bidirectional(make(FEATURES), make(FEATURES).clone())
    lengths = jnp.array([3, TIME, 1, 0])
    padding = np.arange(TIME)[None, :, None] >= np.asarray(lengths)[:, None, None]
    x = noise(0, BATCH, TIME, INPUTS)
    variables = model.init(jax.random.key(0), x)
    one = noise(1, BATCH, FEATURES)
    carry = (one, 2 * one) if kind in ("lstm", "cudnn") else one

    @jax.jit
    def run(variables, x):
        def function(variables, x):
            return model.apply(variables, x, lengths, (carry, carry))

        results, pull = jax.vjp(function, variables, x)
        return results, pull(jax.tree.map(jnp.ones_like, results))

    clean = run(variables, jnp.where(padding, 0, x))
    dirty = run(variables, jnp.where(padding, jnp.nan, x))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    (outputs, last), (_, d_x) = dirty
    assert not np.any(outputs[np.broadcast_to(padding, outputs.shape)])
    assert not np.any(d_x[np.broadcast_to(padding, d_x.shape)])
    assert np.all(d_x[0, :3] != 0)
    empty = jax.tree.map(lambda leaf: leaf[3], (last, (carry, carry)))
    jax.tree.map(np.testing.assert_array_equal, *empty)


def test_gru_with_reset_before_the_product_is_the_one_of_onnx():
    layer = GRU(FEATURES, reset="before")
    x, lengths = noise(0, BATCH, TIME, INPUTS), jnp.array([6, 2, 4, 1])
    initial = noise(1, BATCH, FEATURES)
    params = layer.init(jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda p: p + 0.1 * noise(2, *p.shape), params)
    assert "bias" not in params["hn"]

    def gates(side, leaf):
        parts = [np.asarray(params[side + gate][leaf]).T for gate in "zrn"]
        return np.concatenate(parts)[None]

    bias = gates("i", "bias")
    feeds = {
        "X": np.asarray(x.swapaxes(0, 1)),
        "W": gates("i", "kernel"),
        "R": gates("h", "kernel"),
        "B": np.concatenate([bias, np.zeros_like(bias)], axis=1),
        "lengths": np.asarray(lengths),
        "initial": np.asarray(initial[None]),
    }
    kinds = {np.dtype("float32"): 1, np.dtype("int32"): 6}
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node(
                "GRU",
                list(feeds),
                ["Y", "last"],
                hidden_size=FEATURES,
                linear_before_reset=0,
            )
        ],
        "gru",
        [info(name, kinds[v.dtype], v.shape) for name, v in feeds.items()],
        [info(name, 1, None) for name in ("Y", "last")],
    )
    opset = [onnx.helper.make_opsetid("", 14)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    outputs, last = session.run(None, feeds)

    ours, carry = layer.apply({"params": params}, x, lengths, initial)
    close(ours, outputs[:, 0].swapaxes(0, 1))
    close(carry, last[0])


def test_gradients_of_second_order_and_of_the_reset_before_the_product():
    x, short = noise(0, 2, 3, 2), jnp.array([2, 3])
    for layer, order in (
        (LSTM(2), 2),
        (GRU(2), 2),
        (GRU(2, reset="before"), 1),
    ):
        variables = layer.init(jax.random.key(0), x)
        function = jax.jit(lambda v, x, layer=layer: layer.apply(v, x, short))
        check_grads(
            function, (variables, x), order, modes=["rev"], rtol=2e-2, atol=2e-2
        )


@pytest.fixture
def reference_for_cudnn(monkeypatch):
    """JAX's own reference of cuDNN's LSTM in the place of cuDNN, which needs a GPU."""

    def reference(x, h, c, weights, lengths, *sizes):
        *sizes, precision = sizes
        assert precision == jax.lax.Precision.HIGHEST
        arrays = rnn.unpack_lstm_weights(weights, *sizes[:3], sizes[4])
        return rnn.lstm_ref(x, h, c, *arrays, lengths, *sizes)

    def forward(*args):
        assert args[4].dtype == jnp.int32
        return reference(*args), args[:5]

    def backward(*args):
        sizes, (saved, cotangents) = args[:6], args[6:]
        *arrays, lengths = saved

        def function(*arrays):
            return reference(*arrays, lengths, *sizes)

        return *jax.vjp(function, *arrays)[1](cotangents), jnp.zeros_like(lengths)

    monkeypatch.setattr(rnn, "lstm_fwd", forward)
    monkeypatch.setattr(rnn, "lstm_bwd", backward)


def test_what_cudnn_is_given_makes_the_same_lstm(reference_for_cudnn):
    x, lengths = noise(0, BATCH, TIME, INPUTS), jnp.array([3, TIME, 1, 5])
    carry = noise(1, BATCH, FEATURES), noise(2, BATCH, FEATURES)
    one = LSTM(FEATURES).init(jax.random.key(0), x)["params"]
    # Two networks at once, as in a sweep over seeds.
    params = jax.tree.map(lambda p: p + 0.1 * noise(3, 2, *p.shape), one)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def run(lowering, reverse, params):
        layer = LSTM(FEATURES, lowering=lowering)

        def function(params, x, carry):
            return layer.apply({"params": params}, x, lengths, carry, reverse=reverse)

        def one(params):
            results, pull = jax.vjp(function, params, x, carry)
            return results, pull(cotangents(results))

        return jax.vmap(one)(params)

    for reverse in (False, True):
        trees_close(run("cudnn", reverse, params), run("scan", reverse, params))
    whole = LSTM(FEATURES, lowering="cudnn").apply({"params": one}, x)
    trees_close(whole, LSTM(FEATURES).apply({"params": one}, x))


def test_dropout_is_between_layers_and_in_training_only():
    first, second = RNN(FEATURES), RNN(FEATURES)
    model = Stack([first, second], dropout=1.0)
    x = noise(0, BATCH, TIME, INPUTS)
    params = model.init(jax.random.key(0), x, train=False)["params"]
    params = jax.tree.map(lambda p: p + 0.1, params)
    rngs = {"dropout": jax.random.key(1)}
    dropped, _ = model.apply({"params": params}, x, train=True, rngs=rngs)
    kept, _ = model.apply({"params": params}, x, train=False)
    between, _ = first.apply({"params": params["layers_0"]}, x)
    for outputs, inputs in ((dropped, jnp.zeros_like(between)), (kept, between)):
        expected, _ = second.apply({"params": params["layers_1"]}, inputs)
        close(outputs, expected)
    assert np.any(dropped)


def test_shapes_that_do_not_fit_are_told():
    x = noise(0, BATCH, TIME, INPUTS)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"a length for each sequence.*\(3,\)"):
        RNN(FEATURES).init(key, x, jnp.array([1, 2, 3]))
    with pytest.raises(ValueError, match=r"LSTM: expected an initial carry.*\(4, 5\)"):
        LSTM(FEATURES).init(key, x, None, noise(0, BATCH, FEATURES))
    with pytest.raises(ValueError, match=r"GRU: expected an initial carry.*\(4, 4\)"):
        GRU(FEATURES).init(key, x, None, noise(0, BATCH, 4))
    with pytest.raises(ValueError, match="2 initial carries for 1 layers"):
        Stack([RNN(FEATURES)]).init(key, x, None, (None, None), train=False)
