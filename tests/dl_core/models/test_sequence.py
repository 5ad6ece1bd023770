"""The four networks: their sizes, and what their outputs depend on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl_core.models.sequence import (
    COLORS,
    NAMES,
    Network,
    SequenceModel,
    matched_hidden,
    parameters,
)

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
names = pytest.mark.parametrize("name", NAMES)
SMALL = Network(kernel_size=3, levels=2, channels=4, layers=2)


def of(name, **changes):
    return dataclasses.replace(SMALL, name=name, **changes)


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def number(network, inputs, outputs):
    """Returns the number of parameters of the real tree."""
    model = SequenceModel(network, outputs)
    init = functools.partial(model.init, train=False)
    x = jax.ShapeDtypeStruct((2, 3, inputs), jnp.float32)
    tree = jax.eval_shape(init, jax.random.key(0), x)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@names
@pytest.mark.parametrize(
    ("inputs", "outputs", "changes"),
    [
        (1, 10, {}),
        (4, 1, {"kernel_size": 7, "levels": 3, "layers": 1}),
        (88, 88, {"channels": 9, "weight_norm": False, "layers": 3, "hidden": 11}),
    ],
)
def test_parameters_are_those_of_the_tree(name, inputs, outputs, changes):
    network = of(name, **changes)
    hidden = matched_hidden(network, inputs, outputs)
    counted = parameters(network, inputs, outputs, hidden)
    assert counted == number(network, inputs, outputs)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("channels", [1, 10, 25])
def test_no_other_number_of_units_comes_nearer_to_the_size_of_the_tcn(name, channels):
    found = matched_hidden(of(name, channels=channels, layers=1), 2, 10)
    goal = number(of("tcn", channels=channels), 2, 10)

    def distance(hidden):
        return abs(number(of(name, layers=1, hidden=hidden), 2, 10) - goal)

    # The size grows with the units, so the neighbours stand for all others.
    assert distance(found) <= distance(found + 1)
    assert found == 1 or distance(found) <= distance(found - 1)
    assert matched_hidden(of(name, hidden=3), 2, 10) == 3


@names
def test_the_last_output_is_that_of_all(name):
    model = SequenceModel(of(name), 3)
    x = noise(0, 2, 13, 2)
    variables = model.init(jax.random.key(0), x, train=False)
    apply = jax.jit(model.apply, static_argnames=("train", "last_only"))
    every, _ = apply(variables, x, train=False)
    last, _ = apply(variables, x, train=False, last_only=True)
    assert every.shape == (2, 13, 3)
    close(last, every[:, -1])
    whole = SMALL.receptive_field
    assert whole == 13
    moved, _ = apply(variables, x.at[:, 0].add(1.0), train=False, last_only=True)
    assert np.all(moved != last)


def test_a_tcn_remembers_as_far_as_its_receptive_field():
    model = SequenceModel(SMALL, 3)
    x = noise(0, 1, SMALL.receptive_field + 1, 2)
    variables = model.init(jax.random.key(0), x, train=False)

    def last(x):
        return model.apply(variables, x, train=False)[0][0, -1].sum()

    seen = np.any(jax.grad(last)(x)[0] != 0, axis=-1)
    assert seen.tolist() == [False] + [True] * SMALL.receptive_field


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_two_halves_with_the_carry_are_the_whole(name):
    model = SequenceModel(of(name, hidden=5), 3)
    x = noise(0, 2, 8, 2)
    variables = model.init(jax.random.key(0), x, train=False)
    apply = jax.jit(functools.partial(model.apply, variables, train=False))
    whole, ends = apply(x)
    first, middle = apply(x[:, :5])
    second, last = apply(x[:, 5:], None, middle["carry"])
    close(jnp.concatenate([first, second], axis=1), whole)
    jax.tree.map(close, last["carry"], ends["carry"])
    # With lengths, the carry is that of the last valid step.
    _, short = apply(x, jnp.array([5, 5]))
    jax.tree.map(close, short["carry"], middle["carry"])
    assert ends["features"].shape == (2, 8, 5)
    close(ends["features"][:, -1], jax.tree.leaves(ends["carry"])[-1])


def test_the_forget_gates_begin_where_it_is_said():
    for bias in (0.0, 1.0, -2.5):
        model = SequenceModel(of("lstm", hidden=5, forget_bias=bias), 3)
        variables = model.init(jax.random.key(0), noise(0, 1, 2, 2), train=False)
        layers = variables["params"]["network"].values()
        assert len(layers) == 2
        for layer in layers:
            close(layer["hf"]["bias"], bias)
            close(layer["hi"]["bias"], 0)


@names
def test_dropout_is_in_training_only(name):
    model = SequenceModel(of(name, dropout=0.5, hidden=5), 3)
    x = noise(0, 2, 6, 2)
    variables = model.init(jax.random.key(0), x, train=False)

    def features(seed, *, train):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, x, train=train, rngs=rngs)[1]["features"]

    close(features(0, train=False), features(1, train=False))
    assert np.any(features(0, train=True) != features(1, train=True))


def test_every_network_has_a_label_and_a_colour_of_its_own():
    assert list(NAMES) == list(COLORS)
    assert len(set(COLORS.values())) == len(set(NAMES.values())) == 4
