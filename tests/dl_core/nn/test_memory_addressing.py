"""Addressing against float64 NumPy, SciPy and a Turing machine's tape in Python."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from dl_core.nn import memory_addressing as tape

BATCH, WIDTH, SLOTS, HEADS = 3, 4, 7, 2


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def asked(seed, shifts=3, sharpness=3.0):
    """Returns a memory, weightings, what heads want, what they erase and add."""
    rng = np.random.default_rng(seed)
    memory = rng.normal(size=(BATCH, WIDTH, SLOTS))
    previous = softmax(rng.normal(size=(BATCH, HEADS, SLOTS)))
    wanted = tape.Address(
        rng.normal(size=(BATCH, HEADS, WIDTH)),
        rng.uniform(0, 20, size=(BATCH, HEADS)),
        rng.uniform(size=(BATCH, HEADS)),
        softmax(rng.normal(size=(BATCH, HEADS, shifts))),
        rng.uniform(1, sharpness, size=(BATCH, HEADS)),
    )
    erase = rng.uniform(size=(BATCH, HEADS, WIDTH))
    return memory, previous, wanted, erase, rng.normal(size=(BATCH, HEADS, WIDTH))


def numbers(tree):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


def addressed(memory, previous, wanted):
    """The paper's equations 5 to 9, head by head, slot by slot."""
    result = np.zeros_like(previous)
    for b, h in np.ndindex(previous.shape[:2]):
        key, strength, gate, steps, sharpness = (part[b, h] for part in wanted)
        rows = memory[b].T
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(key)
        content = softmax(strength * (rows @ key) / lengths)
        gated = gate * content + (1 - gate) * previous[b, h]
        moved = np.zeros(SLOTS)
        for i, (j, s) in itertools.product(range(SLOTS), enumerate(steps)):
            moved[i] += gated[(i - (j - len(steps) // 2)) % SLOTS] * s
        result[b, h] = moved**sharpness / (moved**sharpness).sum()
    return result


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([1, 3, 5]))
def test_addressing_is_the_papers(seed, shifts):
    memory, previous, wanted, *_ = asked(seed, shifts)
    ours = jax.jit(tape.address)(*numbers((memory, previous, wanted)))
    np.testing.assert_allclose(ours, addressed(memory, previous, wanted), atol=2e-5)


def test_shift_is_scipys():
    _, weighting, wanted, *_ = asked(0, shifts=5)
    ours = tape.shift(*numbers((weighting, wanted.shift)))
    for b, h in np.ndindex(BATCH, HEADS):
        theirs = scipy.ndimage.convolve1d(
            weighting[b, h], wanted.shift[b, h], mode="wrap"
        )
        np.testing.assert_allclose(ours[b, h], theirs, atol=1e-6)
    with pytest.raises(ValueError, match=r"odd number of steps, got \(1, 1, 2\)"):
        tape.shift(jnp.ones((1, 1, 3)), jnp.ones((1, 1, 2)))


@pytest.mark.parametrize("sharpness", [1.0, 7.5, 50.0, 1e3])
def test_sharpening_is_exact(sharpness):
    weighting = softmax(np.random.default_rng(1).normal(size=(BATCH, HEADS, 128)))
    weighting = weighting.astype(np.float32)
    ours = tape.sharpen(jnp.asarray(weighting), jnp.full((BATCH, HEADS), sharpness))
    np.testing.assert_allclose(ours.sum(-1), 1, atol=1e-5)
    wide = np.log(weighting.astype(np.float64))
    np.testing.assert_allclose(ours, softmax(sharpness * wide), atol=1e-6 * sharpness)


def test_only_the_published_form_has_gradients_that_are_not_numbers():
    weighting = jax.nn.softmax(jax.random.normal(jax.random.key(0), (1, 1, 128)))

    def published(w, sharpness):
        power = w ** sharpness[..., None]
        return power / power.sum(-1, keepdims=True)

    def gradients(form, w, sharpness):
        return jax.grad(lambda *args: form(*args)[..., 0].sum(), argnums=(0, 1))(
            w, jnp.full((1, 1), sharpness)
        )

    def finite(tree):
        return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))

    assert not finite(gradients(published, weighting, 50.0))
    nowhere = jnp.zeros_like(weighting).at[..., 0].set(1)
    for w, sharpness in itertools.product((weighting, nowhere), (1.0, 50.0, 1e3)):
        assert finite(gradients(tape.sharpen, w, sharpness))


@pytest.mark.parametrize("function", ["address", "read", "write"])
def test_gradients(function):
    memory, previous, wanted, erase, add = numbers(asked(2))
    arguments = {
        "address": (memory, previous, wanted),
        "read": (memory, previous),
        "write": (memory, previous, erase, add),
    }[function]
    call = jax.jit(getattr(tape, function))
    check_grads(call, arguments, order=1, modes=["rev"], rtol=3e-2, atol=3e-2)


def test_heads_write_in_turn():
    memory, weighting, _, erase, add = asked(3)
    wanted = memory.copy()
    for h, n in itertools.product(range(HEADS), range(SLOTS)):
        w = weighting[:, h, n, None]
        wanted[:, :, n] = wanted[:, :, n] * (1 - w * erase[:, h]) + w * add[:, h]
    ours = tape.write(*numbers((memory, weighting, erase, add)))
    np.testing.assert_allclose(ours, wanted, atol=1e-5)


def test_in_the_limit_it_is_a_tape():
    """Every pair of moves from every place, and every look-up, on three squares."""
    symbols = np.eye(3)
    cases = list(itertools.product(range(3), range(3), (-1, 0, 1), (-1, 0, 1), (0, 1)))
    squares, heads, wanted, expected = [], [], [], []
    for place, symbol, move, second, by_content in cases:
        squares.append(symbols)
        heads.append([np.eye(3)[place]])
        at = symbol if by_content else place
        steps = [np.eye(3)[1 + move], np.eye(3)[1 + second]]
        wanted.append((symbols[symbol], float(by_content), *steps))
        # The tape: write 9 where the head is after its first move, move again, read.
        content = [list(row) for row in np.eye(3)]
        at = (at + move) % 3
        content[at] = [9.0, 9.0, 9.0]
        at = (at + second) % 3
        expected.append((at, content[at], content))
    key, gate, first, second = (
        np.array(part)[:, None] for part in zip(*wanted, strict=True)
    )
    hard = jnp.full(gate.shape, 1e3)

    @jax.jit
    def run(memory, place, key, gate, first, second):
        at = tape.address(memory, place, tape.Address(key, hard, gate, first, hard))
        whole = jnp.ones(key.shape)
        memory = tape.write(memory, at, whole, 9 * whole)
        stay = jnp.zeros_like(gate)
        at = tape.address(memory, at, tape.Address(key, hard, stay, second, hard))
        return at, tape.read(memory, at), memory

    memory = np.array(squares).swapaxes(1, 2)
    at, seen, memory = run(
        *numbers((memory, np.array(heads), key, gate, first, second))
    )
    places, reads, contents = zip(*expected, strict=True)
    np.testing.assert_allclose(at[:, 0], np.eye(3)[list(places)], atol=1e-6)
    np.testing.assert_allclose(seen[:, 0], np.array(reads), atol=1e-5)
    np.testing.assert_allclose(memory.swapaxes(1, 2), np.array(contents), atol=1e-5)
