"""Linear recurrences and truncated gradients against torch, clipping, orthogonality."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_core.nn.recurrent import RNN
from dl_core.ops.recurrence import linear_recurrence, truncated

BATCH, TIME, FEATURES = 3, 7, 2
LOWERINGS = ("sequential", "associative")
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def tensor(array):
    return torch.tensor(np.asarray(array), requires_grad=True)


SEQUENCES = noise(0, BATCH, TIME, FEATURES), noise(1, BATCH, TIME, FEATURES)
INITIAL = noise(2, BATCH, FEATURES)
WEIGHTS = noise(3, BATCH, TIME, FEATURES), noise(4, BATCH, FEATURES)


@functools.cache
def with_gradients(lowering):
    @jax.jit
    def run(a, b, initial, lengths):
        def function(a, b, initial):
            return linear_recurrence(a, b, initial, lengths, lowering=lowering)

        results, pull = jax.vjp(function, a, b, initial)
        return results, pull(WEIGHTS)

    return run


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, TIME), min_size=BATCH, max_size=BATCH))
def test_both_ways_and_their_gradients_are_those_of_a_loop_in_torch(lengths):
    a, b, initial = map(tensor, (*SEQUENCES, INITIAL))
    outputs, lasts = [], []
    for n, length in enumerate(lengths):
        h = initial[n]
        for t in range(TIME):
            if t < length:
                h = a[n, t] * h + b[n, t]
            outputs.append(h if t < length else torch.zeros_like(h))
        lasts.append(h)
    results = torch.stack(outputs).reshape(a.shape), torch.stack(lasts)
    weights = map(tensor, WEIGHTS)
    total = sum((r * w).sum() for r, w in zip(results, weights, strict=True))
    # Where all lengths are 0, a and b are not used.
    expected_gradients = torch.autograd.grad(
        total, (a, b, initial), allow_unused=True, materialize_grads=True
    )

    padding = np.arange(TIME) >= np.array(lengths)[:, None]
    for lowering in LOWERINGS:
        run = with_gradients(lowering)
        ours, gradients = run(*SEQUENCES, INITIAL, jnp.array(lengths))
        for result, expected in zip(ours, results, strict=True):
            close(result, expected.detach().numpy())
        for gradient, expected in zip(gradients, expected_gradients, strict=True):
            close(gradient, expected.numpy())
        dirty = (jnp.where(padding[..., None], jnp.nan, x) for x in SEQUENCES)
        again = run(*dirty, INITIAL, jnp.array(lengths))
        jax.tree.map(np.testing.assert_array_equal, again, (ours, gradients))
        assert not np.any(np.asarray(gradients[0])[padding])
        assert not np.any(np.asarray(gradients[1])[padding])


@pytest.mark.parametrize("lowering", ["auto", *LOWERINGS])
def test_a_constant_recurrence_is_the_filter_of_scipy(lowering):
    kept = 0.9
    b = noise(0, 2, 50, 1)
    h, last = linear_recurrence(jnp.full_like(b, kept), b, lowering=lowering)
    close(h[..., 0], scipy.signal.lfilter([1], [1, -kept], b[..., 0]))
    np.testing.assert_array_equal(last, h[:, -1])


def test_shapes_that_do_not_fit_are_told():
    a, b = SEQUENCES
    with pytest.raises(ValueError, match=r"\(3, 0, 2\)"):
        linear_recurrence(a[:, :0], b[:, :0])
    with pytest.raises(ValueError, match="at least one step"):
        truncated(lambda carry, x: (carry, x), INITIAL, a, 0)
    with pytest.raises(ValueError, match="one time"):
        truncated(lambda carry, x: (carry, x), INITIAL, (a, b[:, 1:]), 2)


@pytest.mark.parametrize("steps", [1, 3, 7, 10])
def test_truncated_gradients_are_those_of_detached_states_in_torch(steps):
    module = torch.nn.RNN(FEATURES, FEATURES, batch_first=True)
    x, h = tensor(SEQUENCES[0]), torch.tensor(np.asarray(INITIAL))[None]
    outputs = []
    for part in x.split(steps, dim=1):
        out, h = module(part, h.detach())
        outputs.append(out)
    results = torch.cat(outputs, dim=1), h[0]
    weights = map(tensor, WEIGHTS)
    sum((r * w).sum() for r, w in zip(results, weights, strict=True)).backward()

    def kernel(name, of=lambda weight: weight):
        return jnp.asarray(of(getattr(module, name)).detach().numpy().T)

    layer = RNN(FEATURES)
    params = {
        "i": {
            "kernel": kernel("weight_ih_l0"),
            "bias": kernel("bias_ih_l0") + kernel("bias_hh_l0"),
        },
        "h": {"kernel": kernel("weight_hh_l0")},
    }

    @jax.jit
    def run(params, x, carry):
        def function(params, x, carry):
            def chunk(carry, x):
                return layer.apply({"params": params}, x, None, carry)[::-1]

            last, outputs = truncated(chunk, carry, x, steps)
            return outputs, last

        results, pull = jax.vjp(function, params, x, carry)
        return results, pull(WEIGHTS)

    ours, (d_params, d_x, d_carry) = run(params, SEQUENCES[0], INITIAL)
    for result, expected in zip(ours, results, strict=True):
        close(result, expected.detach().numpy())
    whole = layer.apply({"params": params}, SEQUENCES[0], None, INITIAL)
    jax.tree.map(close, ours, whole)
    close(d_x, x.grad.numpy())
    close(d_params["h"]["kernel"], kernel("weight_hh_l0", lambda w: w.grad))
    close(d_params["i"]["kernel"], kernel("weight_ih_l0", lambda w: w.grad))
    close(d_params["i"]["bias"], kernel("bias_ih_l0", lambda w: w.grad))
    assert not np.any(d_carry)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    scale=st.sampled_from([0.0, 1e-2, 1.0, 1e2]), limit=st.sampled_from([0.25, 1, 5])
)
def test_clipping_is_that_of_the_notes_and_of_torch(scale, limit):
    gradients = [scale * noise(0, 4, 3), scale * noise(1, 5)]
    parameters = [torch.zeros(g.shape, requires_grad=True) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(np.asarray(gradient))
    torch.nn.utils.clip_grad_norm_(parameters, limit)
    clip = optax.clip_by_global_norm(limit)
    clipped, _ = clip.update(gradients, clip.init(gradients))
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in gradients))
    for ours, parameter, g in zip(clipped, parameters, gradients, strict=True):
        close(ours, parameter.grad.numpy())
        if norm:
            close(ours, min(norm, limit) * np.asarray(g) / norm)


@pytest.mark.parametrize("shape", [(6, 6), (3, 8), (8, 3)])
def test_orthogonal_initialisation_keeps_lengths(shape):
    matrix = jax.nn.initializers.orthogonal()(jax.random.key(0), shape)
    small = min(shape)
    product = matrix @ matrix.T if shape[0] == small else matrix.T @ matrix
    close(product, np.eye(small))
