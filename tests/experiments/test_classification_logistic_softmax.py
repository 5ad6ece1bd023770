"""Heads and their losses against PyTorch and scikit-learn, and the binary identity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch.nn import functional

from dl_core.config import replace
from experiments.classification import logistic_softmax

init = jax.jit(logistic_softmax.init)
train_step = jax.jit(logistic_softmax.train_step)
eval_step = jax.jit(logistic_softmax.eval_step)


def close(ours, theirs, tolerance=1e-5):
    np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=tolerance)


def make(**changes):
    config = replace(logistic_softmax.Config(), changes)
    return config, init(config, jax.random.key(0))


def batch_of(task, size=40, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.random((size, 784)).astype(np.float32)
    digits = rng.choice(logistic_softmax.PAIR if task == "pair" else 10, size)
    labels = logistic_softmax.labels_of(task, jnp.asarray(digits))
    return {"image": jnp.asarray(pixels), "labels": labels}, digits


def logits_of(config, state, batch):
    network = logistic_softmax.make_network(config)
    return network.apply({"params": state.params}, batch["image"])


def torch_loss(head, task, logits, labels, digits):
    """The loss of the whole batch, as PyTorch has it."""
    if head == "sigmoid":
        mean = functional.binary_cross_entropy_with_logits(logits, labels)
        return mean * labels.shape[1]
    if task == "pair":
        classes = torch.tensor(np.asarray(digits) == logistic_softmax.PAIR[1])
        return functional.cross_entropy(logits, classes.long())
    if task == "digit":
        return functional.cross_entropy(logits, torch.tensor(np.asarray(digits)))
    shared = functional.normalize(labels, p=1, dim=1)
    return functional.cross_entropy(logits, shared)


@pytest.mark.parametrize("task", ["pair", "attributes", "digit"])
@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_two_steps_equal_torch(head, task):
    config, state = make(head=head, task=task, hidden=8, learning_rate=0.1)
    batch, digits = batch_of(task)
    params = {
        layer: [
            torch.tensor(np.asarray(parts["kernel"]).T, requires_grad=True),
            torch.tensor(np.asarray(parts["bias"]), requires_grad=True),
        ]
        for layer, parts in state.params.items()
    }
    optimizer = torch.optim.SGD([p for pair in params.values() for p in pair], lr=0.1)
    pixels, labels = (torch.tensor(np.asarray(batch[k])) for k in ("image", "labels"))
    for _ in range(2):
        hidden = torch.relu(functional.linear(pixels, *params["hidden"]))
        logits = functional.linear(hidden, *params["logits"])
        loss = torch_loss(head, task, logits, labels, digits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state, metrics = train_step(config, state, batch, jax.random.key(0))
        close(metrics["loss"], loss.detach())
    for layer, (weight, bias) in params.items():
        close(state.params[layer]["kernel"], weight.detach().T)
        close(state.params[layer]["bias"], bias.detach())


def train_pair(head, rate, steps=30):
    config, state = make(head=head, task="pair", learning_rate=rate)
    found = []
    for step in range(steps):
        batch, _ = batch_of("pair", seed=step)
        logits = logits_of(config, state, batch)
        found.append(logistic_softmax.probabilities(config, logits))
        state, _ = train_step(config, state, batch, jax.random.key(0))
    return np.array(found)


def test_a_sigmoid_at_twice_the_rate_trains_as_softmax_does():
    softmax = train_pair("softmax", 0.01)
    close(train_pair("sigmoid", 0.02), softmax)
    same_rate = train_pair("sigmoid", 0.01)
    close(same_rate[0], softmax[0])
    assert np.abs(same_rate[-1] - softmax[-1]).max() > 0.01


def test_the_observed_weights_are_those_of_the_difference_of_the_logits():
    seen = {}
    for head in ("softmax", "sigmoid"):
        config, state = make(head=head, task="pair")
        seen[head] = logistic_softmax.observe(config, state, jax.random.key(0))
    close(seen["softmax"]["weights"], seen["sigmoid"]["weights"])


def test_labels_say_what_holds_of_each_digit():
    digits = jnp.arange(10)
    attributes = np.asarray(logistic_softmax.labels_of("attributes", digits))
    even, large, prime, loop = attributes.T.astype(bool)
    numbers = np.arange(10)
    np.testing.assert_array_equal(even, numbers % 2 == 0)
    np.testing.assert_array_equal(large, numbers >= 5)
    np.testing.assert_array_equal(numbers[prime], [2, 3, 5, 7])
    np.testing.assert_array_equal(numbers[loop], [0, 6, 8, 9])
    close(logistic_softmax.labels_of("digit", digits), np.eye(10))
    pair = jnp.array(logistic_softmax.PAIR)
    close(logistic_softmax.labels_of("pair", pair), [[0], [1]])


def evaluate(config, state, batch):
    batch = {**batch, "mask": jnp.ones(len(batch["image"]))}
    found = eval_step(config, state, batch)
    return {name: value.compute() for name, value in found.items()}


def test_evaluation_of_digits_equals_scikit_learn_and_numpy():
    config, state = make()
    batch, digits = batch_of("digit", 200)
    found = evaluate(config, state, batch)
    logits = torch.tensor(np.asarray(logits_of(config, state, batch)))
    p = torch.softmax(logits.double(), -1).numpy()
    close(found["loss"], log_loss(digits, p, labels=range(10)))
    close(found["accuracy"], (p.argmax(1) == digits).mean())
    share, confidence, correct = found["diagram"]
    close([share.sum(), confidence.sum()], [1, p.max(1).mean()])
    close(correct.sum(), found["accuracy"])
    close(found["excess"], 0)


def test_evaluation_of_attributes_counts_all_right_at_each_threshold():
    config, state = make(task="attributes", head="sigmoid")
    batch, _ = batch_of("attributes", 200)
    found = evaluate(config, state, batch)
    logits = torch.tensor(np.asarray(logits_of(config, state, batch)))
    p, truth = torch.sigmoid(logits).numpy(), np.asarray(batch["labels"]) == 1
    expected = [((p > t) == truth).all(1).mean() for t in logistic_softmax.THRESHOLDS]
    close(found["exact"], expected)
    close(found["accuracy"], ((p > 0.5) == truth).all(1).mean())
    losses = [log_loss(truth[:, k], p[:, k].astype(float)) for k in range(4)]
    close(found["loss"], np.sum(losses))
    close(found["excess"], np.abs(p.sum(1) - 1).mean())
    close(found["diagram"].sum(1), [1, p.mean(), truth.mean()])


def test_a_pair_is_read_alone(data_dir):
    config, _ = make(task="pair")
    data = logistic_softmax.data(config, data_dir)
    for batches in (data.train, *data.evaluation.values()):
        assert set(np.unique(batches.resident["label"])) == set(logistic_softmax.PAIR)
