r"""Sigmoids or softmax: one identity, two kinds of labels, and calibration.

For two classes softmax is a sigmoid: softmax(z)₁ = σ(z₁ − z₀). For more, softmax gives
probabilities of labels that exclude each other, and sigmoids those of labels that do
not. How far either can be believed is told by reliability diagrams and the expected
calibration error (Guo, Pleiss, Sun & Weinberger, "On calibration of modern neural
networks", ICML 2017, section 2; 15 bins). Three tasks on the same digits:

    pair        3 or 5: a softmax of two outputs, and one sigmoid that starts from the
                difference of the softmax's weights
    attributes  all that holds of a digit: even, at least 5, prime, with a closed loop
                (0, 6, 8, 9); of 1 nothing does, of 6 and 8 three things do
    digit       one of ten

    python -m launch.sweep --experiment=classification.logistic_softmax \
        --sweep=heads --executor=vmap
    python -m launch.figures --experiment=classification.logistic_softmax

Linear models, and perceptrons of one hidden layer that learn the training images by
heart; plain gradient descent. The wrong head is given its best case: softmax learns
attributes from targets that share the probability equally among what holds, and ten
sigmoids say the digit whose probability is largest.

Look for: a sigmoid at twice the rate trains as the softmax does, to rounding, since a
step moves z₁ − z₀ by both outputs. Sigmoids get all four attributes right in most
images; softmax at a half only where few hold, and at no threshold nearly as often, as
it cannot say "none". Ten sigmoids classify digits about as well as softmax, but their
probabilities sum to 1 only roughly and the largest is too small. The perceptron's
calibration error falls, then grows as it becomes certain of the training images, while
its accuracy still rises.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dl_core.config import RunConfig, config, nested, static, traced
from dl_core.data.batches import Data, InMemory
from dl_core.data.named import named_batches
from dl_core.ops.calibration import CalibratedError, CalibrationError, reliability
from dl_core.pictures import mean_and_range
from dl_core.results import Runs, figure, mean_and_spread
from dl_core.sweep import chain, product, zipped
from dl_core.train.metrics import Mean
from dl_core.train.state import TrainState

PAIR = (3, 5)
ATTRIBUTES = {
    "even": (0, 2, 4, 6, 8),
    "at least 5": (5, 6, 7, 8, 9),
    "prime": (2, 3, 5, 7),
    "closed loop": (0, 6, 8, 9),
}
THRESHOLDS = np.linspace(0.05, 0.95, 19)
"""Probabilities from which on a label is said to hold; the tenth is a half."""

Task = Literal["pair", "attributes", "digit"]


@config
class Dataset:
    """Which images."""

    name: str = static("mnist_subset", "TFDS data set of digits; mnist is all of it.")


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(3_000, "Training steps.", at_least=1)
    batch_size: int = static(100, "Examples in a training batch.", at_least=1)
    eval_every: int = static(150, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(3_000, "Steps between checkpoints.", at_least=1)
    task: Task = static("digit", "What is asked of an image.")
    head: Literal["softmax", "sigmoid"] = static("softmax", "Logits to probabilities.")
    hidden: int = static(0, "Hidden ReLU units; 0 is a linear model.", at_least=0)
    learning_rate: float = traced(0.5, "Step size.", above=0)
    data: Dataset = nested(Dataset)


PRESETS = {
    "smoke": {"steps": 12, "eval_every": 6, "checkpoint_every": 6, "batch_size": 8},
    "paper": {"steps": 60_000, "eval_every": 3_000, "data.name": "mnist"},
}


class Network(nn.Module):
    """Vectors to logits."""

    hidden: int
    outputs: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch pixels"]
    ) -> Float[Array, "batch outputs"]:
        """Returns the logits."""
        if self.hidden:
            x = nn.relu(nn.Dense(self.hidden, name="hidden")(x))
        return nn.Dense(self.outputs, name="logits")(x)


def make_network(config: Config) -> Network:
    """Returns the network; a pair of classes needs two outputs, or one sigmoid."""
    pair = 2 if config.head == "softmax" else 1
    outputs = {"digit": 10, "attributes": len(ATTRIBUTES), "pair": pair}
    return Network(config.hidden, outputs[config.task])


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns the update rule; the learning rate may be traced."""
    return optax.sgd(config.learning_rate)


def data(config: Config, data_dir: Any) -> Data:
    """Returns images for training and testing, and a part of those trained on."""

    def batches(split: str, size: int) -> InMemory:
        shapes = {"image": (28, 28, 1), "label": ()}
        arrays = named_batches(config.data.name, split, data_dir, size, shapes).resident
        if config.task == "pair":
            kept = np.isin(arrays["label"], PAIR)
            arrays = {field: array[kept] for field, array in arrays.items()}
        return InMemory(arrays, size, to_vectors)

    return Data(
        batches("train", config.batch_size),
        {"test": batches("test", 500), "trained": batches("train[:2000]", 500)},
    )


def to_vectors(
    config: Config, batch: dict[str, UInt8[Array, "batch ..."]], key: Any
) -> dict[str, Array]:
    """Turns images of bytes into vectors between 0 and 1, digits into labels."""
    images = batch["image"]
    pixels = images.reshape(len(images), -1).astype(jnp.float32) / 255
    return {"image": pixels, "labels": labels_of(config.task, batch["label"])}


def labels_of(
    task: Task, digits: Int[Array, " batch"] | UInt8[Array, " batch"]
) -> Float[Array, "batch labels"]:
    """Returns for each image which labels hold: 1 or 0."""
    holds = {
        "pair": [PAIR[1:]],
        "attributes": list(ATTRIBUTES.values()),
        "digit": [(digit,) for digit in range(10)],
    }[task]
    table = np.array([[digit in group for group in holds] for digit in range(10)])
    return jnp.asarray(table, jnp.float32)[digits]


def init(config: Config, key: jax.Array) -> TrainState:
    """Returns the network's state before training.

    The sigmoid of a pair starts from what the softmax would start from: the difference
    of the weights of its two outputs.
    """
    network, images = make_network(config), jnp.zeros((1, 28 * 28))
    several = Network(network.hidden, max(network.outputs, 2))
    params = several.init(key, images)["params"]
    if network.outputs == 1:
        last = jax.tree.map(lambda w: w[..., 1:] - w[..., :1], params["logits"])
        params = params | {"logits": last}
    return TrainState.create({"params": params}, make_optimizer(config))


def losses(
    config: Config, logits: Float[Array, "batch outputs"], labels: Array
) -> Float[Array, " batch"]:
    """Returns the cross-entropy of each image, summed over labels for sigmoids.

    Softmax is taught the labels that hold in equal parts, and nothing by an image of
    which none holds.
    """
    if config.head == "sigmoid":
        return optax.sigmoid_binary_cross_entropy(logits, labels).sum(-1)
    if config.task == "pair":
        labels = jnp.concatenate([1 - labels, labels], axis=-1)
    targets = labels / jnp.maximum(labels.sum(-1, keepdims=True), 1)
    return optax.softmax_cross_entropy(logits, targets)


def probabilities(
    config: Config, logits: Float[Array, "batch outputs"]
) -> Float[Array, "batch labels"]:
    """Returns the probability of each label."""
    if config.head == "sigmoid":
        return nn.sigmoid(logits)
    return nn.softmax(logits)[:, 1 if config.task == "pair" else 0 :]


def train_step(
    config: Config, state: TrainState, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step down the gradient of the mean loss."""

    def loss_fn(params):
        logits = make_network(config).apply({"params": params}, batch["image"])
        return losses(config, logits, batch["labels"]).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(gradients, make_optimizer(config)), {"loss": loss}


def eval_step(config: Config, state: TrainState, batch: dict[str, Array]) -> dict:
    """Measures how good the predictions are, and how much they can be believed.

    `accuracy`: the likeliest digit is right; in the other tasks, all labels are right
    at a half. `exact`: all labels are right, at each threshold. `excess`: how far
    from 1 an image's probabilities sum up. `diagram` and the errors it gives: of the
    largest probability for a digit, of every label's in the other tasks.
    """
    labels, mask = batch["labels"], batch["mask"]
    logits = make_network(config).apply({"params": state.params}, batch["image"])
    p = probabilities(config, logits)
    right = (p[..., None] > THRESHOLDS) == labels[..., None].astype(bool)
    exact = right.all(1).astype(jnp.float32)
    if config.task == "digit":
        confidence = p.max(-1, keepdims=True)
        correct = jnp.take_along_axis(labels, p.argmax(-1, keepdims=True), axis=-1)
        accuracy = correct[:, 0]
    else:
        confidence, correct, accuracy = p, labels, exact[:, len(THRESHOLDS) // 2]
    diagram = reliability(confidence.ravel(), correct.ravel())
    counted = diagram, jnp.repeat(mask, confidence.shape[1])
    return {
        "loss": Mean.of(losses(config, logits, labels), mask),
        "accuracy": Mean.of(accuracy, mask),
        "exact": Mean.of(exact, mask),
        "excess": Mean.of(jnp.abs(p.sum(-1) - 1), mask),
        "diagram": Mean.of(*counted),
        "calibration_error": CalibrationError.of(*counted),
        "calibrated_error": CalibratedError.of(*counted),
    }


def observe(config: Config, state: TrainState, key: jax.Array) -> dict[str, Array]:
    """Returns the last layer's weights for the last output against the first."""
    first, *others = state.params["logits"]["kernel"].T
    return {"weights": others[-1] - first if others else first}


MAIN_METRIC = "test/accuracy"
_HEADS = ("softmax", "sigmoid")

SWEEPS = {
    "heads": chain(
        product(task=("digit",), hidden=(0, 300), head=_HEADS, seed=range(3)),
        product(task=("attributes",), hidden=(300,), head=_HEADS, seed=range(3)),
        product(
            zipped(head=(*_HEADS, "sigmoid"), learning_rate=(0.05, 0.1, 0.05)),
            task=("pair",),
            seed=range(3),
        ),
    ),
}

_LOOKS = {
    ("softmax", 0): ("softmax, linear", "C0", "--"),
    ("sigmoid", 0): ("sigmoids, linear", "C3", "--"),
    ("softmax", 300): ("softmax, perceptron", "C0", "-"),
    ("sigmoid", 300): ("sigmoids, perceptron", "C3", "-"),
}


def _curve(ax: Axes, runs: Runs, metric: str, style: str = "-", **looks: Any) -> None:
    """Draws a metric over training: the mean over seeds and the range."""
    steps, values = runs.curves(metric)
    mean_and_range(ax, steps, values, style, alpha=0.15, **looks)


def _finals(runs: Runs, metric: str) -> np.ndarray:
    """Returns an array metric at the end of the runs that did not diverge."""
    kept = (run.result["metrics"] for run in runs if not run.diverged)
    return np.array([metrics[metric] for metrics in kept])


def _diagram(ax: Axes, runs: Runs, style: str = "-", **looks: Any) -> None:
    """Draws the reliability diagram at the end, over all seeds."""
    diagrams = _finals(runs, "test/diagram")
    if len(diagrams):
        share, confidence, correct = diagrams.mean(0)
        filled = share > 0
        x, y = confidence[filled] / share[filled], correct[filled] / share[filled]
        ax.plot(x, y, style, marker="o", ms=3, **looks)
    ax.plot([0, 1], [0, 1], color="grey", lw=0.8)
    ax.set(xlabel="probability given", ylabel="share of cases in which it is so")


@figure(sweep="heads")
def identity(runs: Runs) -> Figure:
    """Weights of softmax and sigmoid, and how far they are apart over training."""
    softmax, twice, same = runs.where(task="pair").by("head", "learning_rate").values()
    fig, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    titles = ("softmax: second output less first", "sigmoid at twice the rate")
    for ax, group, title in zip(axes, (softmax, twice), titles, strict=False):
        ax.set(title=title, xticks=[], yticks=[])
        if not group[0].diverged:
            image = group[0].last_artifacts()["weights"].reshape(28, 28)
            shown = ax.imshow(image, cmap="RdBu", vmin=-1, vmax=1)
            fig.colorbar(shown, ax=ax, label="weight")
    for group, color, words in ((twice, "C3", "twice the"), (same, "C1", "the same")):
        axes[2].plot([], color=color, label=f"sigmoid at {words} rate")
        for both in zip(softmax, group, strict=True):
            if not any(run.diverged for run in both):
                one, other = (run.artifacts() for run in both)
                gaps = [abs(one[s]["weights"] - other[s]["weights"]).max() for s in one]
                axes[2].plot(list(one), gaps, color=color)
    axes[2].set(xlabel="step", ylabel="largest difference of a weight")
    axes[2].set_yscale("symlog", linthresh=1e-7)
    axes[2].set_title("from softmax, a line a seed")
    axes[2].legend()
    return fig


@figure(sweep="heads")
def labels(runs: Runs) -> Figure:
    """The right and the wrong head: attributes by softmax, digits by sigmoids."""
    fig, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for head, group in runs.where(task="attributes").by("head").items():
        looks = {"color": _LOOKS[head, 300][1], "label": head}
        if len(exact := _finals(group, "test/exact")):
            axes[0].plot(THRESHOLDS, 100 * exact.mean(0), "o-", ms=3, **looks)
        _diagram(axes[1], group, **looks)
    for key, group in runs.where(task="digit").by("head", "hidden").items():
        label, color, style = _LOOKS[key]
        _curve(axes[2], group, "test/excess", style, color=color, label=label)
    axes[0].set(xlabel="threshold", ylabel="all attributes right, % of test images")
    axes[0].set(title="attributes", ylim=(0, 100))
    axes[1].set_title("attributes: each label's probability")
    axes[2].set(xlabel="step", ylabel="|sum of the ten probabilities − 1|")
    axes[2].set(ylim=(-0.02, 0.5), title="digits: mean over the test images")
    for ax in axes:
        ax.legend()
    return fig


@figure(sweep="heads")
def calibration(runs: Runs) -> Figure:
    """Digits: reliability at the end; calibration error and accuracy over training."""
    fig, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for key, group in runs.where(task="digit").by("head", "hidden").items():
        label, color, style = _LOOKS[key]
        _diagram(axes[0], group, style, color=color, label=label)
        _curve(axes[1], group, "test/calibration_error", style, color=color)
        steps, least = group.curves("test/calibrated_error")
        axes[1].plot(steps, least.mean(0), style, color=color, lw=0.6)
        _curve(axes[2], group, "test/accuracy", style, color=color)
        _curve(axes[2], group, "trained/accuracy", style, color=color, lw=0.6)
    axes[0].set_title(f"test images, after {runs[0].config['steps']:,} steps")
    axes[1].set(xlabel="step", ylabel="expected calibration error", yscale="log")
    axes[1].set_title("thin: what calibrated predictions would give")
    axes[2].set(xlabel="step", ylabel="accuracy", ylim=(0.8, 1.01))
    axes[2].set_title("thin: training images")
    axes[0].legend()
    return fig


FIGURES = {"identity": identity, "labels": labels, "calibration": calibration}


def summary(runs: Runs) -> str:
    """Returns how alike the pair's heads end, and what the other tasks' heads give."""
    pair = runs.where(task="pair").by("head", "learning_rate").values()
    softmax, twice, same = (group.final("test/loss") for group in pair)

    def per_cent(runs: Runs, metric: str = MAIN_METRIC) -> str:
        return mean_and_spread(runs.final(metric), scale=100, unit=" %")

    attributes = runs.where(task="attributes").by("head")
    exact = _finals(attributes["softmax"], "test/exact")
    best = f"{100 * exact.mean(0).max():.1f} %" if len(exact) else "diverged"
    digits = [
        f"{_LOOKS[key][0]} {per_cent(group)} and "
        f"{per_cent(group, 'test/calibration_error')}"
        for key, group in runs.where(task="digit").by("head", "hidden").items()
    ]
    return (
        f"After {runs[0].config['steps']:,} steps, {len(runs.values('seed'))} seeds: "
        "3 or 5, the test losses of softmax and sigmoid differ by at most "
        f"{abs(twice - softmax).max():.1e} at twice the rate, "
        f"{abs(same - softmax).max():.1e} at the same; all attributes right: "
        f"sigmoids {per_cent(attributes['sigmoid'])}, softmax "
        f"{per_cent(attributes['softmax'])} ({best} at its best threshold instead of a "
        "half); digits, accuracy and "
        f"calibration error: {'; '.join(digits)}."
    )
