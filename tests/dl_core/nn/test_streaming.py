"""Position by position is all at once: for networks of ours and for made-up ones."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.nn.conv import Conv
from dl_core.nn.normalization import SpectralNorm
from dl_core.nn.streaming import init_stream, step
from dl_core.nn.temporal import TCN, CausalConv, WaveNet, receptive_field

few = settings(max_examples=5, deadline=None, derandomize=True)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def stream(model, variables, x, *args, **kwargs):
    """Returns the outputs of a scan of steps, and the states before and after."""
    start = init_stream(model, variables, x[:, 0], *args, **kwargs)
    advance = functools.partial(step, model, variables)

    def scanned(state, x):
        return advance(state, x, *args, **kwargs)

    end, y = jax.jit(lambda xs: jax.lax.scan(scanned, start, xs))(x.swapaxes(0, 1))
    return y.swapaxes(0, 1), start, end


def shapes(state):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)


@given(
    taps=st.integers(1, 4),
    levels=st.integers(1, 3),
    features=st.integers(1, 4),
    weight_norm=st.booleans(),
)
@few
def test_a_tcn_position_by_position(taps, levels, features, weight_norm):
    model = TCN((3, *(features,) * (levels - 1)), taps, weight_norm=weight_norm)
    x = normal(0, 2, 2 * receptive_field(taps, levels) + 3, features)
    variables = model.init(jax.random.key(0), x, train=False)
    y, start, end = stream(model, variables, x, train=False)
    expected = jax.jit(functools.partial(model.apply, train=False))(variables, x)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6)
    assert shapes(start) == shapes(end)
    sizes = {
        f"ResidualBlock_{level}/CausalConv_{i}": (2**level, 2, taps - 1)
        for level in range(levels)
        for i in range(2)
    }
    rings = {
        f"{block}/{conv}": memory["ring"].shape[:3]
        for block, convs in start.items()
        for conv, memory in convs.items()
    }
    assert rings == sizes


@pytest.mark.parametrize(("taps", "conditioned"), [(2, False), (3, True)])
def test_a_wavenet_position_by_position(taps, conditioned):
    model = WaveNet(5, 4, 6, (1, 2, 4, 1, 2, 4), taps)
    x = normal(0, 2, 40, 3)
    assert model.receptive_field < 40
    vector = normal(1, 2, 3) if conditioned else None
    frames = normal(2, 2, 8, 2) if conditioned else None
    variables = model.init(jax.random.key(0), x, vector, frames)
    expected = jax.jit(model.apply)(variables, x, vector, frames)

    def positions(sequence):
        return None if sequence is None else sequence.swapaxes(0, 1)

    def one(state, inputs):
        x, frame = inputs
        frame = None if frame is None else frame[:, None]
        return step(model, variables, state, x, vector, frame)

    each = None if frames is None else jnp.repeat(frames, 5, axis=1)
    first = None if frames is None else frames[:, :1]
    state = init_stream(model, variables, x[:, 0], vector, first)
    scan = jax.jit(functools.partial(jax.lax.scan, one))
    _, y = scan(state, (positions(x), positions(each)))
    np.testing.assert_allclose(y.swapaxes(0, 1), expected, rtol=0, atol=1e-6)


def test_any_stack_of_causal_layers_streams():
    model = nn.Sequential(
        [
            Conv(4, 1),
            CausalConv(5, 3, dilation=3),
            nn.LayerNorm(),
            nn.gelu,
            CausalConv(4, 2, dilation=5, use_bias=False),
            CausalConv(2, 4),
        ]
    )
    x = normal(0, 3, 31, 2)
    variables = model.init(jax.random.key(0), x)
    y, *_ = stream(model, variables, x)
    expected = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6)


def test_gradients_go_through_a_stream():
    model, x = TCN((3, 3), 3), normal(0, 2, 16, 2)
    variables = model.init(jax.random.key(0), x, train=False)

    def streamed(variables, x):
        return jnp.sin(stream(model, variables, x, train=False)[0]).sum()

    def at_once(variables, x):
        return jnp.sin(model.apply(variables, x, train=False)).sum()

    ours = jax.jit(jax.grad(streamed, (0, 1)))(variables, x)
    theirs = jax.jit(jax.grad(at_once, (0, 1)))(variables, x)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), ours, theirs)


def test_samples_fed_back_are_those_of_the_whole_network_run_each_time():
    model = WaveNet(6, 4, 5, (1, 2, 4))
    keys = jax.random.split(jax.random.key(1), 14)
    variables = model.init(jax.random.key(0), jnp.zeros((3, 1, 6)))
    variables = jax.tree.map(lambda leaf: 2 * leaf, variables)

    def sample(key, logits):
        return jax.nn.one_hot(jax.random.categorical(key, logits), 6)

    def one(carry, key):
        state, logits = step(model, variables, *carry)
        x = sample(key, logits)
        return (state, x), x

    start = jnp.zeros((3, 6))
    carry = init_stream(model, variables, start), start
    samples = jax.jit(lambda carry: jax.lax.scan(one, carry, keys)[1])(carry)

    whole = jnp.zeros((3, 15, 6))  # Causal: what is not yet sampled does not matter.
    apply = jax.jit(model.apply)
    for t, key in enumerate(keys):
        logits = apply(variables, whole)[:, t]
        whole = whole.at[:, t + 1].set(sample(key, logits))
    np.testing.assert_array_equal(samples.swapaxes(0, 1), whole[:, 1:])
    assert len(np.unique(samples.argmax(-1))) > 2


def test_a_step_is_pure_and_holds_no_convolution():
    model, x = TCN((3, 3), 2), normal(0, 2, 6, 2)
    variables = model.init(jax.random.key(0), x, train=False)
    advance = functools.partial(step, model, variables, train=False)
    state = init_stream(model, variables, x[:, 0], train=False)
    assert "conv_general" not in str(jax.make_jaxpr(advance)(state, x[:, 0]))
    advance = jax.jit(advance)
    for t in range(3):
        state, _ = advance(state, x[:, t])
    before = jax.tree.map(np.array, state)
    _, one = advance(state, x[:, 3])
    _, other = advance(state, x[:, 4])
    _, again = advance(state, x[:, 3])
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    jax.tree.map(np.testing.assert_array_equal, before, state)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Conv(3, 3, padding="CAUSAL"), "kernel_size 3 remembers nothing"),
        (
            nn.Sequential([Conv(3, 2, padding="causal")]),
            "Conv 'layers_0' with kernel_size 2",
        ),
        (
            nn.WeightNorm(CausalConv(3, 2)),
            "layer_instance' .* must be a CausalConv",
        ),
        (CausalConv(3, 2, stride=2), "with stride 2 there is no stream"),
    ],
)
def test_what_cannot_stream_is_refused(model, words):
    x = normal(0, 2, 6, 4)
    variables = model.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=words):
        init_stream(model, variables, x[:, 0])


def test_a_wrapper_that_hides_the_memory_is_refused():
    model, x = SpectralNorm(CausalConv(3, 2)), normal(0, 2, 6, 4)
    variables = model.init(jax.random.key(0), x, train=False)
    with pytest.raises(ValueError, match="no wrapper that keeps its variables"):
        init_stream(model, variables, x[:, 0], train=False)


def test_a_stream_takes_one_position_at_a_time(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    model, x = CausalConv(3, 2), normal(0, 2, 6, 4)
    variables = model.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=r"one position, got x of shape \(2, 6, 4\)"):
        model.apply(variables, x, mutable=["stream"])
