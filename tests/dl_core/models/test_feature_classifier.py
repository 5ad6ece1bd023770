"""The classifier against the same network written in torch."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from dl_core.models.feature_classifier import FEATURES, SIDE, FeatureClassifier

WIDTH, CLASSES = 2, 5


def network(channels, count=4):
    """Returns a model, its variables (the statistics too, random), and images."""
    random = np.random.default_rng(channels)
    images = jnp.float32(random.uniform(-1, 1, (count, SIDE, SIDE, channels)))
    model = FeatureClassifier(WIDTH, CLASSES)
    variables = model.init(jax.random.key(0), images, train=False)

    def drawn(path, x):
        values = random.normal(size=x.shape) * 0.3
        return jnp.float32(values**2 + 0.1 if "var" in str(path) else values)

    drawn_variables = jax.tree_util.tree_map_with_path(drawn, variables)
    return model, drawn_variables, images


def in_torch(variables, images, *, train):
    """Returns logits, features and the parameters as torch's tensors, by their path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    at = {
        "/".join(key.key for key in path): torch.tensor(
            np.array(x), requires_grad=path[0].key == "params"
        )
        for path, x in leaves
    }

    def normalized(x, number):
        name = f"BatchNorm_{number}"
        mean, var = (at[f"batch_stats/{name}/{n}"].clone() for n in ("mean", "var"))
        scale, bias = (at[f"params/{name}/{n}"] for n in ("scale", "bias"))
        return functional.batch_norm(x, mean, var, scale, bias, train, eps=1e-5)

    x = torch.tensor(np.array(images)).permute(0, 3, 1, 2)
    for number in range(3):
        kernel = at[f"params/Conv_{number}/kernel"].permute(3, 2, 0, 1)
        x = functional.conv2d(functional.pad(x, (0, 1, 0, 1)), kernel, stride=2)
        x = torch.relu(normalized(x, number))
    x = x.permute(0, 2, 3, 1).flatten(1) @ at["params/Dense_0/kernel"]
    features = normalized(x, 3)
    logits = torch.relu(features) @ at["params/Dense_1/kernel"]
    return logits + at["params/Dense_1/bias"], features, at


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("train", [False, True])
def test_values_and_gradients_are_torchs(channels, train):
    model, variables, images = network(channels)
    weights = np.random.default_rng(9).normal(size=(4, CLASSES)).astype(np.float32)

    def loss(params):
        (logits, endpoints), _ = model.apply(
            {**variables, "params": params}, images, train=train, mutable="batch_stats"
        )
        total = (logits * weights).sum() + jnp.sin(endpoints["features"]).sum()
        return total, (logits, endpoints["features"])

    gradients, (logits, features) = jax.jit(jax.grad(loss, has_aux=True))(
        variables["params"]
    )
    wanted_logits, wanted_features, at = in_torch(variables, images, train=train)
    total = (wanted_logits * torch.tensor(weights)).sum()
    (total + torch.sin(wanted_features).sum()).backward()
    bound = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(logits, wanted_logits.detach(), **bound)
    np.testing.assert_allclose(features, wanted_features.detach(), **bound)
    for path, gradient in jax.tree_util.tree_flatten_with_path(gradients)[0]:
        name = "/".join(["params", *(key.key for key in path)])
        wanted = at[name].grad.numpy()
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5 * scale)


def test_features_are_before_the_relu():
    model, variables, images = network(1)
    logits, endpoints = model.apply(variables, images, train=False)
    features, last = endpoints["features"], variables["params"]["Dense_1"]
    assert features.shape == (4, FEATURES)
    assert features.min() < 0 < features.max()
    wanted = np.maximum(features, 0) @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)


def test_an_evaluated_image_does_not_depend_on_the_others():
    model, variables, images = network(1)
    whole, _ = model.apply(variables, images, train=False)
    alone, _ = model.apply(variables, images[2:3], train=False)
    np.testing.assert_allclose(alone[0], whole[2], rtol=1e-5, atol=1e-5)


def test_images_of_another_size_are_refused():
    call = inspect.unwrap(FeatureClassifier.__call__)
    with pytest.raises(ValueError, match=r"32×32 pixels, got \(2, 28, 28, 1\)"):
        call(FeatureClassifier(WIDTH, CLASSES), jnp.zeros((2, 28, 28, 1)), train=False)
