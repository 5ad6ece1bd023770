"""pix2pix's scores against scikit-learn and NumPy, and what each loss leaves out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import accuracy_score, balanced_accuracy_score, jaccard_score

from dl_core.config import replace
from dl_core.errors import UserError
from experiments.gans import pix2pix

SMALL = {**pix2pix.PRESETS["smoke"], "data.size": 16, "model.patch": 16}


def config(**changes):
    return replace(pix2pix.Config(), {**SMALL, **changes})


def drawn(seed, *shape):
    values = np.random.default_rng(seed).uniform(-1, 1, shape)
    return jnp.asarray(values, jnp.float32)


def batch_of(count=5):
    colors = jnp.broadcast_to(drawn(2, 3, 3), (count, 3, 3))
    return {
        "input": drawn(0, count, 16, 16, 1),
        "target": drawn(1, count, 16, 16, 3),
        "palette": colors,
        "mask": (jnp.arange(count) < count - 2).astype(jnp.float32),
    }


def test_scores_are_scikit_learns():
    settings = config()
    state = jax.jit(pix2pix.init)(settings, jax.random.key(0))
    batch = batch_of()
    metrics = jax.jit(pix2pix.eval_step)(settings, state, batch)
    counted = slice(0, 3)
    outputs = jax.jit(pix2pix.translate)(settings, state, batch["input"])[counted]
    targets, colors = np.asarray(batch["target"][counted]), batch["palette"][0]
    found, true = (
        np.linalg.norm(np.asarray(x)[..., None, :] - colors, axis=-1).argmin(-1).ravel()
        for x in (outputs, targets)
    )
    expected = {
        "error": np.abs(outputs - targets).mean() / 2,
        "accuracy": accuracy_score(true, found),
        "class_accuracy": balanced_accuracy_score(true, found),
        "iou": jaccard_score(true, found, average="macro"),
        "sharpness": energy(outputs) / energy(targets),
    }
    for name, value in expected.items():
        assert float(metrics[name].compute()) == pytest.approx(value, rel=1e-5), name


def energy(images):
    return sum((np.diff(images, axis=axis) ** 2).sum() for axis in (1, 2))


def test_scores_do_not_depend_on_the_batches():
    settings = config()
    state = jax.jit(pix2pix.init)(settings, jax.random.key(0))
    # With the same dropout in each batch, as it comes from its place in the batch.
    batch = jax.tree.map(lambda x: jnp.concatenate([x[:1], x[:1]]), batch_of())
    evaluate = jax.jit(pix2pix.eval_step)
    whole = evaluate(settings, state, batch)
    parts = [{**batch, "mask": jnp.eye(2)[i]} for i in range(2)]
    first, second = (evaluate(settings, state, part) for part in parts)
    for name, metric in whole.items():
        merged = first[name].merge(second[name]).compute()
        np.testing.assert_allclose(merged, metric.compute(), rtol=1e-5)


def test_a_class_that_never_occurs_is_left_out():
    ratio = pix2pix.Ratio(jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0]))
    assert ratio.compute() == 0.5


def test_palette_is_k_means():
    generator = np.random.default_rng(0)
    centres = np.array([[230, 230, 220], [180, 60, 60], [60, 40, 200]])
    kinds = generator.choice(3, size=2_000, p=[0.7, 0.27, 0.03])
    pixels = centres[kinds] + generator.normal(0, 8, (2_000, 3))
    images = np.clip(pixels, 0, 255).astype(np.uint8).reshape(2, 20, 50, 3)
    theirs = KMeans(3, n_init=10, random_state=0).fit(images.reshape(-1, 3) / 127.5 - 1)
    ours = pix2pix.palette(images, 3)
    expected = theirs.cluster_centers_[np.argsort(-theirs.cluster_centers_.sum(1))]
    np.testing.assert_allclose(ours, expected, atol=1e-3)


@pytest.mark.parametrize("objective", ["l1", "gan", "cgan", "l1+gan", "l1+cgan"])
def test_each_loss_has_its_terms(objective):
    settings = config(objective=objective)
    state = jax.jit(pix2pix.init)(settings, jax.random.key(0))
    batch = {name: x for name, x in batch_of(2).items() if name in ("input", "target")}
    new, metrics = jax.jit(pix2pix.train_step)(
        settings, state, batch, jax.random.key(1)
    )
    adversarial = {"critic_loss", "gan_loss"} if "gan" in objective else set()
    assert set(metrics) == adversarial | ({"l1"} if "l1" in objective else set())
    assert new.step == 1
    assert (state.critic is None) == (objective == "l1")
    if state.critic is not None:
        kernel = state.critic.params["layer_0"]["kernel"]
        assert kernel.shape[2] == (4 if "cgan" in objective else 3)
        moved = jax.tree.map(
            lambda a, b: a != b, state.critic.params, new.critic.params
        )
        assert moved["layer_0"]["kernel"].any()


def test_the_step_is_adams_on_the_whole_loss():
    """The generator's gradient, taken through the critic in one go, is the same."""
    settings = config(objective="l1+cgan", **{"optimizer.learning_rate": 1e-3})
    state = jax.jit(pix2pix.init)(settings, jax.random.key(0))
    batch = {name: batch_of(2)[name] for name in ("input", "target")}
    key = jax.random.key(1)
    new, metrics = jax.jit(pix2pix.train_step)(settings, state, batch, key)
    generator, critic = pix2pix.make_networks(settings)

    def loss(params):
        images, _ = generator.apply(
            {"params": params}, batch["input"], rngs={"dropout": key}
        )
        scores, _ = critic.apply({"params": new.critic.params}, images, batch["input"])
        l1 = jnp.abs(images - batch["target"]).mean()
        return 100 * l1 - jnp.log(jax.nn.sigmoid(scores)).mean(), l1

    gradients, l1 = jax.jit(jax.grad(loss, has_aux=True))(state.generator.params)
    assert float(metrics["l1"]) == pytest.approx(float(l1), rel=1e-6)
    expected = state.generator.updated(gradients, pix2pix.make_optimizer(settings), {})
    # The first moments are the gradients up to a factor.
    ours, theirs = (x.opt_state[0].mu for x in (new.generator, expected))
    scale = max(np.abs(x).max() for x in jax.tree.leaves(theirs))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a / scale, b / scale, atol=1e-5),
        ours,
        theirs,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.size": 48}, r"--config\.data\.size=48: expected a power of two"),
        (
            {"data.size": 16, "model.patch": 70},
            r"--config\.model\.patch=70: expected images of at least 24 pixels",
        ),
        ({"data.reduce": 300}, r"--config\.data\.size=64: the photographs have 0×1"),
    ],
)
def test_sizes_that_do_not_fit_are_told(changes, message):
    config = replace(pix2pix.Config(), changes)
    with pytest.raises(UserError, match=message):
        pix2pix.data(config, None)
