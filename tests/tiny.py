"""The smallest experiments there are: a linear regression, alone and in two stages.

Noise in the batches, in the step and in what is observed shows that a run's random
numbers depend on nothing but its seed and its step. `TRACES` counts compilations.
"""

import collections
import contextlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import struct

from dl_core.config import RunConfig, config, replace, static, to_arrays, traced
from dl_core.data.batches import Data, InMemory
from dl_core.experiment import Experiment, Stage
from dl_core.results import figure
from dl_core.sweep import product
from dl_core.train import loop
from dl_core.train.checkpoints import Checkpoints
from dl_core.train.layout import make_layout
from dl_core.train.metrics import Mean, Percentiles
from dl_core.train.records import read_rows
from dl_core.train.run_directory import open_run
from dl_core.train.state import TrainState

TRACES: collections.Counter = collections.Counter()


@config
class Config(RunConfig):
    """Settings of the experiment."""

    steps: int = static(12, "Training steps.", at_least=1)
    batch_size: int = static(8, "Examples in a training batch.", at_least=1)
    log_every: int = static(2, "Steps between rows of train metrics.", at_least=1)
    eval_every: int = static(4, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(4, "Steps between checkpoints.", at_least=1)
    learning_rate: float = traced(0.05, "Step size.", above=0)
    nan_at: int = traced(-1, "Step at which the loss is not a number.")
    break_at: int = traced(-1, "Step at which the state, not the loss, breaks.")
    width: int = static(6, "Inputs, and outputs.", at_least=1)


PRESETS = {"smoke": {"steps": 4}, "paper": {"steps": 100}}


def make_optimizer(config: Config) -> optax.GradientTransformation:
    return optax.sgd(config.learning_rate, momentum=0.9)


def examples(count: int, width: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(count, width)).astype(np.float32)
    matrix = np.random.default_rng(0).normal(size=(width, width)).astype(np.float32)
    return {"inputs": inputs, "targets": inputs @ matrix}


def data(config: Config, data_dir: Any) -> Data:
    train = examples(50, config.width, 1)
    return Data(
        InMemory(train, config.batch_size, blur),
        {
            "test": InMemory(examples(20, config.width, 2), 8),
            "few": InMemory(examples(3, config.width, 3), 8),
        },
    )


def blur(config: Config, batch: Any, key: Any) -> Any:
    noise = jax.random.normal(key, batch["inputs"].shape)
    return {**batch, "inputs": batch["inputs"] + 0.01 * noise, "noise": noise}


def init(config: Config, key: jax.Array) -> TrainState:
    weights = jax.random.normal(key, (config.width, config.width))
    # Weakly typed, which it is no longer once it is saved and restored.
    statistics = {"total": jnp.asarray(0.0)}
    return TrainState.create(
        {"params": {"weights": weights}, "statistics": statistics},
        make_optimizer(config),
    )


def loss_of(weights: Any, batch: Any) -> jax.Array:
    return ((batch["inputs"] @ weights - batch["targets"]) ** 2).mean(1)


def train_step(config: Config, state: TrainState, batch: Any, key: jax.Array) -> Any:
    TRACES["train_step"] += 1
    weights = state.params["weights"]
    loss, gradient = jax.value_and_grad(lambda w: loss_of(w, batch).mean())(weights)
    noise = jax.random.normal(key, gradient.shape)
    total = state.collections["statistics"]["total"] + loss
    total = jnp.where(state.step == config.break_at, jnp.inf, total)
    loss = jnp.where(state.step == config.nan_at, jnp.nan, loss)
    state = state.apply_gradients(
        {"weights": gradient + 0.01 * noise},
        make_optimizer(config),
        {"statistics": {"total": total}},
    )
    chances = {"batch_noise": batch["noise"][0, 0], "step_noise": noise[0, 0]}
    return state, {"loss": loss, **chances}


def eval_step(config: Config, state: TrainState, batch: Any) -> dict[str, Any]:
    losses = loss_of(state.params["weights"], batch)
    return {
        "loss": Mean.of(losses, batch["mask"]),
        "losses": Percentiles(losses, batch["mask"], (25.0, 75.0)),
    }


def observe(config: Config, state: TrainState, key: jax.Array) -> dict[str, jax.Array]:
    return {"weights": state.params["weights"], "noise": jax.random.normal(key, (3,))}


def score(config: Config, observed: Any) -> dict[str, float]:
    return {"norm": float(np.linalg.norm(observed["weights"]))}


MAIN_METRIC = "test/loss"

SWEEPS = {
    "rates": product(width=(6, 5), learning_rate=(0.05, 0.01)),
    "failing": product(nan_at=(-1, 2)),
}


@figure(sweep="rates")
def rates(runs: Any) -> Any:
    fig, ax = plt.subplots()
    for run in runs:
        ax.plot(*run.series(MAIN_METRIC))
    return fig


FIGURES = {"rates": rates}


def summary(runs: Any) -> str:
    return f"The loss at the end is {runs.final(MAIN_METRIC).mean():.3g}."


@config
class StagesConfig(Config):
    """Settings of the experiment in two stages."""

    first_steps: int = static(6, "Steps of the first stage.", at_least=1)
    second_steps: int = static(5, "Steps of the second stage.", at_least=1)
    eval_every: int = static(3, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(3, "Steps between checkpoints.", at_least=1)


@struct.dataclass
class Scaled:
    """The second stage's state: a scale of what the first stage has learned."""

    step: Any
    frozen: Any
    scale: Any
    opt_state: Any


def init_second(config: StagesConfig, key: jax.Array, previous: TrainState) -> Scaled:
    scale = 1 + 0.5 * jax.random.normal(key, (config.width,))
    opt_state = optax.adam(config.learning_rate).init(scale)
    return Scaled(jnp.int32(0), previous.params["weights"], scale, opt_state)


def step_second(config: StagesConfig, state: Scaled, batch: Any, key: jax.Array) -> Any:
    def loss_fn(scale):
        return loss_of(state.frozen * scale, batch).mean()

    loss, gradient = jax.value_and_grad(loss_fn)(state.scale)
    chances = {
        "batch_noise": batch["noise"][0, 0],
        "step_noise": jax.random.normal(key),
    }
    optimizer = optax.adam(config.learning_rate)
    updates, opt_state = optimizer.update(gradient, state.opt_state)
    scale = optax.apply_updates(state.scale, updates)
    return Scaled(state.step + 1, state.frozen, scale, opt_state), {
        "loss": loss,
        **chances,
    }


def eval_second(config: StagesConfig, state: Scaled, batch: Any) -> dict[str, Mean]:
    losses = loss_of(state.frozen * state.scale, batch)
    return {"loss": Mean.of(losses, batch["mask"])}


def _experiment(name: str, config_class: type, *stages: Stage) -> Experiment:
    return Experiment(
        name, __doc__, config_class, {}, stages, MAIN_METRIC, SWEEPS, FIGURES, summary
    )


TINY = _experiment(
    "tests.tiny",
    Config,
    Stage(init, train_step, eval_step, data, observe, score),
)
IN_STAGES = _experiment(
    "tests.in_stages",
    StagesConfig,
    Stage(
        init,
        train_step,
        eval_step,
        data,
        observe,
        score,
        name="pretrain",
        steps=lambda config: config.first_steps,
    ),
    Stage(
        init_second,
        step_second,
        eval_second,
        data,
        name="finetune",
        steps=lambda config: config.second_steps,
    ),
)


class After:
    """Says "stop" when it is asked for the `count + 1`th time: after `count` steps."""

    def __init__(self, count: int):
        self.left = count

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def train(
    experiment: Experiment,
    runs: dict[pathlib.Path, Any],
    stop: Any = lambda: False,
    said: list[str] | None = None,
    steps_per_call: int = 1,
    layout: Any = None,
    data_dir: Any = None,
) -> list[loop.Outcome]:
    """Trains runs, {directory: config}, all at once."""
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(open_run(path, experiment.name, config))
            for path, config in runs.items()
        ]
        options = loop.Options(
            data_dir=data_dir,
            layout=layout or make_layout(),
            steps_per_call=steps_per_call,
            stop=stop,
            say=(said if said is not None else []).append,
        )
        return loop.train(experiment, opened, options)


def final_state(experiment: Experiment, folder: pathlib.Path, config: Any) -> Any:
    """Returns the last state that a run saved, as arrays by their path."""
    checkpoints = Checkpoints(folder / "checkpoints")
    step = checkpoints.steps()[-1]
    arrays, key, shapes = to_arrays(config), jax.random.key(0), ()
    ends = np.cumsum(experiment.steps(config)).tolist()
    for stage, end in zip(experiment.stages, ends, strict=True):
        shapes = (jax.eval_shape(stage.init, arrays, key, *shapes),)
        if step <= end:
            break
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes[0]
    )
    state, _ = checkpoints.restore(step, abstract)
    checkpoints.close()
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_bits(experiment: Experiment, folder: Any, other: Any, config: Any):
    """Checks that two runs of a config left the same metrics and the same state."""
    texts = [(path / "metrics.jsonl").read_bytes() for path in (folder, other)]
    assert texts[0] == texts[1]
    found, wanted = (final_state(experiment, path, config) for path in (folder, other))
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def assert_close(experiment: Experiment, folder: Any, other: Any, config: Any, **bound):
    """Checks that two runs left the same up to rounding."""
    bound = {"rtol": 1e-5, "atol": 1e-5} | bound
    rows, wanted_rows = (read_rows(path / "metrics.jsonl") for path in (folder, other))
    assert [(r["step"], r["stage"]) for r in rows] == [
        (r["step"], r["stage"]) for r in wanted_rows
    ]
    for row, wanted in zip(rows, wanted_rows, strict=True):
        assert row.keys() == wanted.keys()
        for name in row.keys() - {"stage"}:
            np.testing.assert_allclose(row[name], wanted[name], **bound, err_msg=name)
    found, wanted = (final_state(experiment, path, config) for path in (folder, other))
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, **bound, err_msg=name)


def told_each_step(experiment: Experiment) -> Any:
    """The smoke preset, with the metrics of each step, for `assert_close_losses`."""
    changes: dict[str, Any] = {"log_every": 1}
    if experiment.name == "gans.conditional":
        # With respect to the critic's last bias the hinge's gradient is 0, but for
        # rounding, of which Adam makes a whole step.
        changes["objective"] = "non_saturating"
    return replace(experiment.preset("smoke"), changes)


def losses_of(folder: pathlib.Path, step: int) -> dict[str, Any]:
    """The metrics of a step of training."""
    for row in read_rows(folder / "metrics.jsonl"):
        found = {name: value for name, value in row.items() if "/" in name}
        # Evaluation, too, may be of a set called train, but not of it alone.
        if row["step"] == step and all(name.startswith("train/") for name in found):
            return found
    raise LookupError(f"no row of step {step} in {folder}")


def assert_close_losses(
    folder: pathlib.Path, other: pathlib.Path, first: float, third: float
) -> None:
    """Compares steps 1 and 3, in which what an optimiser does to rounding is seen."""
    for step, tolerance in ((1, first), (3, third)):
        found, wanted = losses_of(folder, step), losses_of(other, step)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            message = f"{folder.name}: {name} at step {step}"
            np.testing.assert_allclose(
                found[name], value, tolerance, tolerance / 10, err_msg=message
            )
