"""The networks on rotated digits: symmetric as they claim, of the published sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from dl_core.config import replace, to_arrays
from dl_core.errors import UserError
from dl_core.ops.cost import parameter_count
from dl_core.ops.group_conv import transform
from experiments.convolution import equivariance

KINDS = ("z2", "p4_pooled", "p4", "p4m")


def trained(kind, **changes):
    """Returns a config and a state whose every number is random."""
    config = replace(equivariance.Config(), {"model.kind": kind, **changes})
    state = jax.jit(equivariance.init)(to_arrays(config), jax.random.key(0))
    leaves, tree = jax.tree.flatten((state.params, state.collections))
    generator = np.random.default_rng(0)
    values = [
        jnp.asarray(generator.uniform(0.1, 0.9, x.shape), x.dtype) for x in leaves
    ]
    values = [v - 0.5 if v.ndim > 1 else v for v in values]
    params, collections = jax.tree.unflatten(tree, values)
    return to_arrays(config), state.replace(params=params, collections=collections)


def images(count=3, size=14):
    shape = (count, size, size, 1)
    return jnp.asarray(np.random.default_rng(1).uniform(size=shape), jnp.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [14, 28])
def test_logits_stay_as_the_image_is_turned_or_reflected(kind, size):
    depth = {14: 3, 28: 6}[size]
    config, state = trained(kind, **{"data.size": size, "model.depth": depth})
    x = images(size=size)
    classify = jax.jit(equivariance.classify)
    upright = classify(config, state, x)
    for element in range(1, 8):
        other = classify(config, state, transform(x, element))
        change = float(jnp.abs(other - upright).max() / jnp.abs(upright).max())
        if kind == "p4m" or (kind != "z2" and element < 4):
            assert change < 1e-4
        else:
            assert change > 1e-3


def test_the_planar_network_is_torchs():
    config, state = trained("z2")
    weights = {**state.params, **state.collections["batch_stats"]}
    x = torch.tensor(np.asarray(images())).permute(0, 3, 1, 2)

    def conv(x, params):
        kernel = torch.tensor(np.asarray(params["kernel"])).permute(3, 2, 0, 1)
        bias = params.get("bias")
        return functional.conv2d(
            x, kernel, None if bias is None else torch.tensor(np.array(bias))
        )

    for layer in range(3):
        name = f"BatchNorm_{layer}"
        scale, bias = (state.params[name][f] for f in ("scale", "bias"))
        stats = state.collections["batch_stats"][name]
        numbers = (np.array(v) for v in (stats["mean"], stats["var"], scale, bias))
        x = conv(x, weights[f"Conv_{layer}"])
        x = functional.relu(functional.batch_norm(x, *map(torch.tensor, numbers)))
        x = functional.max_pool2d(x, 2) if layer == 1 else x
    theirs = conv(x, weights["Conv_3"]).amax((2, 3))
    ours = equivariance.classify(config, state, images())
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_published_networks_have_about_as_many_parameters():
    counts = {}
    for kind in KINDS:
        preset = equivariance.PRESETS["paper"] | {"model.kind": kind}
        config = to_arrays(replace(equivariance.Config(), preset))
        state = jax.eval_shape(equivariance.init, config, jax.random.key(0))
        kernels = [p["kernel"] for p in state.params.values() if "kernel" in p]
        counts[kind] = parameter_count(kernels)
    # The authors' P4CNN has 24,490 weights: 90 + 5 · 9 · 40 · 10 + 16 · 40 · 10.
    assert counts["p4"] == 24_490
    assert all(abs(n / counts["p4"] - 1) < 0.15 for n in counts.values())


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_for_the_planar_network_alone(kind):
    train_step, losses = jax.jit(equivariance.train_step), []
    for rate in (0.0, 0.5):
        config, state = trained(kind, **{"model.dropout": rate, "model.depth": 2})
        batch = {"image": images(), "label": jnp.arange(3)}
        _, metrics = train_step(config, state, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert (losses[0] != losses[1]) == (kind == "z2")


def test_a_share_of_the_examples_is_each_seen_as_often():
    resident = {"label": jnp.arange(200)}
    config = to_arrays(replace(equivariance.Config(), {"data.share": 0.05}))
    indices = jnp.asarray(np.random.default_rng(0).permutation(200))
    batch = equivariance.assemble_share(config, resident, {"indices": indices}, None)
    np.testing.assert_array_equal(np.bincount(batch["label"]), [20] * 10)


def test_all_shares_run_one_program():
    traces = []

    @jax.jit
    def assemble(config, resident, inputs):
        traces.append(1)
        return equivariance.assemble_share(config, resident, inputs, None)

    resident, inputs = {"label": jnp.arange(200)}, {"indices": jnp.arange(200)}
    for share in (0.05, 0.2, 1.0):
        config = to_arrays(replace(equivariance.Config(), {"data.share": share}))
        seen = assemble(config, resident, inputs)["label"]
        assert len(np.unique(seen)) == round(share * 200)
    assert len(traces) == 1


def test_turned_digits_are_compared_with_upright_ones():
    config, state = trained("p4")
    x = images()
    views = jnp.stack([x, transform(x, 1), x[:, ::-1]], axis=1)
    labels = equivariance.classify(config, state, x).argmax(-1)
    batch = {"views": views, "label": labels, "mask": jnp.ones(3)}
    metrics = jax.jit(equivariance.eval_step)(config, state, batch)
    change, error = (metrics[name].compute() for name in ("change", "error"))
    assert change[0] == 0
    assert change[1] < 1e-4 < change[2]
    assert error[0] == error[1] == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.size": 7}, r"data.size=7: nothing is left"),
        ({"data.size": 13}, r"data.size=13: expected a divisor"),
        ({"data.test": 90_000}, "90,000 are asked for"),
    ],
)
def test_what_cannot_be_is_told(changes, words, data_dir):
    with pytest.raises(UserError, match=words):
        equivariance.data(replace(equivariance.Config(), changes), data_dir)
