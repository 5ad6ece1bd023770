"""The loop on a linear regression: whatever interrupts a run, it ends the same."""

import dataclasses
import errno
import json
import os
import shutil
import threading

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tiny
from tiny import IN_STAGES, TINY, After, StagesConfig, train

from dl_core.config import replace
from dl_core.data.batches import Data, Streamed
from dl_core.errors import UserError
from dl_core.train import loop
from dl_core.train.records import read_rows

CONFIGS = {"one stage": (TINY, tiny.Config()), "stages": (IN_STAGES, StagesConfig())}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Finished, never interrupted runs: {name: directory}."""
    folder = tmp_path_factory.mktemp("finished")
    for name, (experiment, config) in CONFIGS.items():
        (outcome,) = train(experiment, {folder / name: config})
        assert outcome.status == loop.DONE
    return {name: folder / name for name in CONFIGS}


def steps_of(folder, stage, metric):
    rows = read_rows(folder / "metrics.jsonl")
    return [r["step"] for r in rows if r["stage"] == stage and metric in r]


def test_a_finished_run_leaves_all_its_files(finished):
    folder = finished["one stage"]
    names = {path.name.split(".tfevents")[0] for path in folder.iterdir()}
    assert names == {
        *("config.json", "metrics.jsonl", "events.out", "DONE"),
        *("checkpoints", "artifacts", ".lock"),
    }
    assert {p.name for p in (folder / "artifacts").iterdir()} == {
        f"train-{step:08d}.npz" for step in (0, 4, 8, 12)
    }
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"8", "12"}
    result = json.loads((folder / "DONE").read_text())
    assert (result["status"], result["step"]) == ("done", 12)
    last_eval = read_rows(folder / "metrics.jsonl")[-1]
    for name in ("test/loss", "test/losses", "few/loss", "observed/norm"):
        assert result["metrics"][name] == last_eval[name]


def test_rows_are_at_the_intervals(finished):
    folder = finished["one stage"]
    assert steps_of(folder, "train", "train/loss") == [2, 4, 6, 8, 10, 12]
    assert steps_of(folder, "train", "test/loss") == [0, 4, 8, 12]
    assert steps_of(folder, "train", "few/loss") == [0, 4, 8, 12]


def test_training_learns(finished):
    rows = read_rows(finished["one stage"] / "metrics.jsonl")
    losses = [row["test/loss"] for row in rows if "test/loss" in row]
    assert losses[-1] < 0.5 * losses[0]


def test_evaluation_is_that_of_the_state_saved_with_it(finished):
    state = tiny.final_state(TINY, finished["one stage"], tiny.Config())
    weights = state[".params['weights']"]
    last = read_rows(finished["one stage"] / "metrics.jsonl")[-1]
    for name, (count, seed) in {"test": (20, 2), "few": (3, 3)}.items():
        examples = tiny.examples(count, 6, seed)
        errors = examples["inputs"] @ weights - examples["targets"]
        losses = (errors**2).mean(1)
        np.testing.assert_allclose(last[f"{name}/loss"], losses.mean(), rtol=1e-5)
        quartiles = np.percentile(losses, (25, 75))
        np.testing.assert_allclose(last[f"{name}/losses"], quartiles, rtol=1e-5)
    np.testing.assert_allclose(last["observed/norm"], np.linalg.norm(weights), 1e-6)


def test_rows_of_two_stages(finished):
    folder = finished["stages"]
    found = [
        (row["step"], row["stage"], "train" if "train/loss" in row else "eval")
        for row in read_rows(folder / "metrics.jsonl")
    ]
    assert found == [
        (0, "pretrain", "eval"),
        (2, "pretrain", "train"),
        (3, "pretrain", "eval"),
        (4, "pretrain", "train"),
        (6, "pretrain", "train"),
        (6, "pretrain", "eval"),
        (6, "finetune", "eval"),
        (8, "finetune", "train"),
        (9, "finetune", "eval"),
        (10, "finetune", "train"),
        (11, "finetune", "train"),
        (11, "finetune", "eval"),
    ]


def test_the_second_stage_begins_with_what_the_first_learned(tmp_path):
    config = StagesConfig()
    train(IN_STAGES, {tmp_path: config}, After(6))
    first = tiny.final_state(IN_STAGES, tmp_path, config)
    train(IN_STAGES, {tmp_path: config})
    last = tiny.final_state(IN_STAGES, tmp_path, config)
    np.testing.assert_array_equal(last[".frozen"], first[".params['weights']"])


@pytest.mark.parametrize(
    ("name", "after"),
    [("one stage", n) for n in (0, 1, 3, 4, 5, 11)]
    + [("stages", n) for n in range(11)],
)
def test_stopped_after_any_step_and_resumed(finished, tmp_path, name, after):
    experiment, config = CONFIGS[name]
    (outcome,) = train(experiment, {tmp_path: config}, After(after))
    assert (outcome.status, outcome.step) == (loop.STOPPED, after)
    assert not (tmp_path / "DONE").exists()
    said = []
    (outcome,) = train(experiment, {tmp_path: config}, said=said)
    assert outcome.status == loop.DONE
    if after:
        assert [s.split(" (")[0] for s in said] == [f"resuming at step {after}"]
    tiny.assert_same_bits(experiment, tmp_path, finished[name], config)


def test_what_is_observed_is_the_same_after_a_stop(finished, tmp_path):
    train(TINY, {tmp_path: tiny.Config()}, After(6))
    train(TINY, {tmp_path: tiny.Config()})
    for path in (finished["one stage"] / "artifacts").iterdir():
        assert (tmp_path / "artifacts" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", CONFIGS)
def test_stopped_after_every_step(finished, tmp_path, name):
    experiment, config = CONFIGS[name]
    statuses = []
    while not statuses or statuses[-1] == loop.STOPPED:
        (outcome,) = train(experiment, {tmp_path: config}, After(1))
        statuses.append(outcome.status)
    assert len(statuses) == sum(experiment.steps(config))
    tiny.assert_same_bits(experiment, tmp_path, finished[name], config)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("steps_per_call", [3, 4])
def test_several_steps_in_a_dispatch(finished, tmp_path, name, steps_per_call):
    experiment, config = CONFIGS[name]
    everything = {tmp_path: config}
    train(experiment, everything, steps_per_call=steps_per_call)
    tiny.assert_close(experiment, tmp_path, finished[name], config)


def test_five_steps_in_a_dispatch_are_one_at_a_time(tmp_path):
    changes = {"steps": 23, "log_every": 5, "eval_every": 10, "checkpoint_every": 10}
    config = replace(tiny.Config(), changes)
    one, five = tmp_path / "one", tmp_path / "five"
    train(TINY, {one: config}, steps_per_call=1)
    asked = After(100)
    train(TINY, {five: config}, asked, steps_per_call=5)
    assert 100 - asked.left == 5  # Dispatches of 5, 5, 5, 5 and 3 steps.
    assert steps_of(five, "train", "train/loss") == [5, 10, 15, 20, 23]
    tiny.assert_close(TINY, five, one, config)


def test_dispatches_of_several_steps_resume_to_the_same_bits(tmp_path):
    changes = {"steps": 20, "log_every": 5, "eval_every": 10, "checkpoint_every": 10}
    config = replace(tiny.Config(), changes)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(TINY, {whole: config}, steps_per_call=5)
    (outcome,) = train(TINY, {stopped: config}, After(3), steps_per_call=5)
    assert outcome.step == 15
    train(TINY, {stopped: config}, steps_per_call=5)
    tiny.assert_same_bits(TINY, stopped, whole, config)


def test_seed_and_rate_change_the_numbers(finished, tmp_path):
    for name, changes in {"seed": {"seed": 1}, "rate": {"learning_rate": 0.02}}.items():
        train(TINY, {tmp_path / name: replace(tiny.Config(), changes)})
    texts = {
        (path / "metrics.jsonl").read_text()
        for path in (finished["one stage"], tmp_path / "seed", tmp_path / "rate")
    }
    assert len(texts) == 3


def test_no_two_steps_draw_the_same_numbers(tmp_path):
    drawn = []
    for seed in range(2):
        changes = {"seed": seed, "log_every": 1}
        config = replace(StagesConfig(), changes)
        train(IN_STAGES, {tmp_path / str(seed): config})
        for row in read_rows(tmp_path / str(seed) / "metrics.jsonl"):
            if "train/loss" in row:
                drawn += [row["train/batch_noise"], row["train/step_noise"]]
    assert len(set(drawn)) == len(drawn) == 2 * 2 * 11


def test_a_program_is_not_compiled_again_for_another_point(tmp_path):
    config = replace(tiny.Config(), {"width": 3})
    before = tiny.TRACES["train_step"]
    train(TINY, {tmp_path / "first": config})
    after_first = tiny.TRACES["train_step"]
    assert after_first == before + 1
    for number in range(3):
        changes = {"seed": number + 1, "learning_rate": 0.01 * (number + 1)}
        train(TINY, {tmp_path / str(number): replace(config, changes)})
    assert tiny.TRACES["train_step"] == after_first
    train(TINY, {tmp_path / "wider": replace(config, {"width": 4})})
    assert tiny.TRACES["train_step"] > after_first


def test_resuming_compiles_no_other_program(tmp_path):
    config = replace(tiny.Config(), {"width": 7})
    train(TINY, {tmp_path: config}, After(6))
    before = tiny.TRACES["train_step"]
    train(TINY, {tmp_path: config})
    assert tiny.TRACES["train_step"] == before


# Several runs at once.


def points(folder, count=3, **changes):
    base = replace(tiny.Config(), {"steps": 20, **changes})
    return {
        folder / str(i): replace(base, {"seed": i, "learning_rate": 0.02 * (i + 1)})
        for i in range(count)
    }


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """The runs of `points`, trained one by one."""
    folder = tmp_path_factory.mktemp("apart")
    for path, config in points(folder).items():
        train(TINY, {path: config})
    return folder


def assert_all_close(folder, apart):
    for path, config in points(folder).items():
        result = json.loads((path / "DONE").read_text())
        assert (result["status"], result["step"]) == ("done", 20)
        tiny.assert_close(TINY, path, apart / path.name, config)
        files = {p.relative_to(path) for p in path.rglob("*.npz")}
        other = apart / path.name
        assert files == {p.relative_to(other) for p in other.rglob("*.npz")}


def test_runs_trained_together_equal_runs_apart(tmp_path, apart):
    outcomes = train(TINY, points(tmp_path))
    assert [outcome.status for outcome in outcomes] == [loop.DONE] * 3
    assert_all_close(tmp_path, apart)


def test_several_steps_in_a_dispatch_of_runs_together(tmp_path, apart):
    train(TINY, points(tmp_path), steps_per_call=2)
    assert_all_close(tmp_path, apart)


@pytest.mark.parametrize("after", [2, 8, 13])
def test_runs_together_stopped_and_resumed_together(tmp_path, apart, after):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(TINY, points(whole))
    outcomes = train(TINY, points(stopped), After(after))
    assert [(o.status, o.step) for o in outcomes] == [(loop.STOPPED, after)] * 3
    train(TINY, points(stopped))
    for path, config in points(stopped).items():
        tiny.assert_same_bits(TINY, path, whole / path.name, config)


def test_runs_together_stopped_and_resumed_one_by_one(tmp_path, apart):
    train(TINY, points(tmp_path), After(7))
    for path, config in points(tmp_path).items():
        said = []
        train(TINY, {path: config}, said=said)
        assert said == ["resuming at step 7 (train)"]
    assert_all_close(tmp_path, apart)


def test_runs_stopped_one_by_one_go_on_together(tmp_path, apart):
    for after, (path, config) in zip((9, 5, 14), points(tmp_path).items(), strict=True):
        train(TINY, {path: config}, After(after))
    train(TINY, points(tmp_path))
    assert_all_close(tmp_path, apart)


def test_stages_together(tmp_path):
    together, apart = tmp_path / "together", tmp_path / "apart"
    configs = {str(i): replace(StagesConfig(), {"seed": i}) for i in range(2)}
    train(IN_STAGES, {together / n: c for n, c in configs.items()}, After(8))
    train(IN_STAGES, {together / n: c for n, c in configs.items()})
    for name, config in configs.items():
        train(IN_STAGES, {apart / name: config})
        tiny.assert_close(IN_STAGES, together / name, apart / name, config)


# Numbers that are not finite.


def test_a_run_that_diverges_says_where(tmp_path):
    config = replace(tiny.Config(), {"nan_at": 9})
    (outcome,) = train(TINY, {tmp_path: config})
    assert outcome.status == loop.DIVERGED
    assert outcome.step == 10
    assert "train/loss is not finite at step 10" in outcome.text
    assert "last good checkpoint is step 8" in outcome.text
    result = json.loads((tmp_path / "DONE").read_text())
    assert (result["status"], result["step"]) == ("diverged", 10)
    assert result["metric"] == "train/loss"
    assert result["text"] == outcome.text
    assert max(steps_of(tmp_path, "train", "train/loss")) < 10
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_run_that_diverges_before_any_checkpoint(tmp_path):
    (outcome,) = train(TINY, {tmp_path: replace(tiny.Config(), {"nan_at": 1})})
    assert outcome.status == loop.DIVERGED
    assert "train/loss is not finite at step 2; none saved" in outcome.text


def test_divergence_between_rows_is_noticed(tmp_path):
    changes = {"nan_at": 2, "log_every": 6, "eval_every": 6, "checkpoint_every": 6}
    (outcome,) = train(TINY, {tmp_path: replace(tiny.Config(), changes)})
    assert (outcome.status, outcome.step) == (loop.DIVERGED, 3)


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    changes = {"break_at": 5, "checkpoint_every": 3, "eval_every": 12}
    (outcome,) = train(TINY, {tmp_path: replace(tiny.Config(), changes)})
    assert (outcome.status, outcome.step) == (loop.DIVERGED, 6)
    assert "state is not finite at step 6" in outcome.text
    assert "last good checkpoint is step 3" in outcome.text
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"3"}


def test_of_runs_together_only_the_diverging_one_ends(tmp_path, apart):
    runs = points(tmp_path)
    path = tmp_path / "1"
    bad = replace(runs[path], {"nan_at": 9})
    first, second, third = train(TINY, runs | {path: bad})
    assert (first.status, second.status, third.status) == ("done", "diverged", "done")
    assert (second.step, json.loads((path / "DONE").read_text())["step"]) == (10, 10)
    for name in ("0", "2"):
        config = runs[tmp_path / name]
        tiny.assert_close(TINY, tmp_path / name, apart / name, config)


def test_runs_that_all_diverge_end_all(tmp_path):
    runs = {
        path: replace(config, {"nan_at": 2 + int(path.name)})
        for path, config in points(tmp_path).items()
    }
    outcomes = train(TINY, runs)
    assert [(o.status, o.step) for o in outcomes] == [
        ("diverged", 3),
        ("diverged", 4),
        ("diverged", 5),
    ]


# Damaged files.


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped at step 10: it has the checkpoints 8 and 10."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    train(TINY, {folder: tiny.Config()}, After(10))
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"8", "10"}
    return folder


def finish(folder, source, damage):
    shutil.copytree(source, folder)
    damage(folder)
    said = []
    (outcome,) = train(TINY, {folder: tiny.Config()}, said=said)
    assert outcome.status == loop.DONE
    return said


def lines_left(count):
    def damage(folder):
        path = folder / "metrics.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:count]))

    return damage


def torn(folder):
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])


def garbled(folder):
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\xff\x00{]\n", *lines[3:]]))


def more(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "stage": "train", "train/loss": 3.0}\n{"step": 1')


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (torn, "resuming at step 8"),
        (lines_left(6), None),
        (lines_left(1), None),
        (lines_left(0), None),
        (garbled, None),
        (lambda folder: (folder / "metrics.jsonl").unlink(), None),
        (more, "resuming at step 10"),
    ],
)
def test_damaged_metrics_are_survived(finished, stopped, tmp_path, damage, where):
    folder = tmp_path / "run"
    said = finish(folder, stopped, damage)
    if where:
        assert where in said[-1]
    tiny.assert_same_bits(TINY, folder, finished["one stage"], tiny.Config())


def test_a_missing_newline_is_survived(finished, stopped, tmp_path):
    def damage(folder):
        path = folder / "metrics.jsonl"
        path.write_bytes(path.read_bytes().rstrip(b"\n"))

    finish(tmp_path / "run", stopped, damage)
    tiny.assert_same_bits(TINY, tmp_path / "run", finished["one stage"], tiny.Config())


def files_of_a_checkpoint():
    """The kinds of files in a checkpoint, by patterns of their paths."""
    return [
        "_CHECKPOINT_METADATA",
        "about/metadata",
        "state/_METADATA",
        "state/_sharding",
        "state/manifest.ocdbt",
        "state/d/*",
        "state/array_metadatas/*",
        "state/ocdbt.process_0/manifest.ocdbt",
        "state/ocdbt.process_0/d/*",
    ]


def test_the_kinds_of_files_are_all_there_are(stopped):
    newest = stopped / "checkpoints" / "10"
    known = {p for pattern in files_of_a_checkpoint() for p in newest.glob(pattern)}
    files = {p for p in newest.rglob("*") if p.is_file()}
    assert {p.name for p in files - known} <= {"commit_success.txt"}


# Orbax abandons the other reads when one fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("pattern", files_of_a_checkpoint())
@pytest.mark.parametrize("kept", [0, 0.5])
def test_a_truncated_checkpoint_is_survived(finished, stopped, tmp_path, pattern, kept):
    def damage(folder):
        for path in (folder / "checkpoints" / "10").glob(pattern):
            data = path.read_bytes()
            path.write_bytes(data[: int(kept * len(data))])

    finish(tmp_path / "run", stopped, damage)
    tiny.assert_same_bits(TINY, tmp_path / "run", finished["one stage"], tiny.Config())


@pytest.mark.parametrize("part", ["", "state", "about", "state/d"])
def test_a_checkpoint_without_some_of_its_folders_is_survived(
    finished, stopped, tmp_path, part
):
    def damage(folder):
        path = folder / "checkpoints" / "10" / part
        shutil.rmtree(path)
        if not part:
            path.mkdir()

    finish(tmp_path / "run", stopped, damage)
    tiny.assert_same_bits(TINY, tmp_path / "run", finished["one stage"], tiny.Config())


def test_all_checkpoints_damaged_starts_again(finished, stopped, tmp_path):
    def damage(folder):
        for path in (folder / "checkpoints").rglob("manifest.ocdbt"):
            path.write_bytes(b"")

    said = finish(tmp_path / "run", stopped, damage)
    assert ["before step 10" in said[0], "before step 8" in said[1]] == [True, True]
    tiny.assert_same_bits(TINY, tmp_path / "run", finished["one stage"], tiny.Config())


def test_going_back_is_told_in_one_sentence(stopped, tmp_path):
    def damage(folder):
        (folder / "checkpoints/10/state/manifest.ocdbt").write_bytes(b"")

    told, resumed = finish(tmp_path / "run", stopped, damage)
    assert told.startswith("going back before step 10: checkpoint 10 cannot be read: ")
    assert len(told) < 400
    assert "\n" not in told
    assert resumed == "resuming at step 8 (train)"
    assert (tmp_path / "run/unreadable/10/state/manifest.ocdbt").exists()


def kept(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"),
    ],
)
def test_what_cannot_be_read_now_is_left_for_later(
    stopped, finished, tmp_path, monkeypatch, error
):
    def refuse(self, *args, **options):
        raise error

    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "restore", refuse)
        with pytest.raises(OSError, match="10 cannot be read now: "):
            train(TINY, {folder: tiny.Config()})
    assert kept(folder) == ["10", "8"]
    train(TINY, {folder: tiny.Config()})
    tiny.assert_same_bits(TINY, folder, finished["one stage"], tiny.Config())


def without_momentum(config, key):
    state = tiny.init(config, key)
    plain = optax.sgd(config.learning_rate)
    return state.replace(opt_state=plain.init(state.params))


def with_an_empty_part(config, key):
    state = tiny.init(config, key)
    return state.replace(opt_state=(*state.opt_state, optax.EmptyState()))


def wider(config, key):
    return tiny.init(replace(config, {"width": config.width + 1}), key)


# Orbax abandons the other reads when one fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("init", [without_momentum, with_an_empty_part, wider])
def test_a_checkpoint_of_other_code_is_refused_and_kept(
    stopped, finished, tmp_path, init
):
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    before = (folder / "metrics.jsonl").read_bytes()
    (stage,) = TINY.stages
    edited = dataclasses.replace(TINY, stages=(dataclasses.replace(stage, init=init),))
    with pytest.raises(UserError, match="go back to the code that saved it"):
        train(edited, {folder: tiny.Config()})
    assert kept(folder) == ["10", "8"]
    assert (folder / "metrics.jsonl").read_bytes() == before
    train(TINY, {folder: tiny.Config()})
    tiny.assert_same_bits(TINY, folder, finished["one stage"], tiny.Config())


def test_a_damaged_checkpoint_is_replaced(finished, stopped, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    (folder / "checkpoints/10/state/manifest.ocdbt").write_bytes(b"")
    (outcome,) = train(TINY, {folder: tiny.Config()}, After(2))
    assert outcome.step == 10
    said = []
    train(TINY, {folder: tiny.Config()}, said=said)
    assert said == ["resuming at step 10 (train)"]
    tiny.assert_same_bits(TINY, folder, finished["one stage"], tiny.Config())


def test_a_damaged_checkpoint_of_one_of_several_runs(tmp_path, apart):
    train(TINY, points(tmp_path), After(9))
    for path in (tmp_path / "1/checkpoints/9").rglob("manifest.ocdbt"):
        path.write_bytes(b"")
    said = []
    train(TINY, points(tmp_path), said=said)
    assert said[-1] == "resuming at step 8 (train)"
    assert_all_close(tmp_path, apart)


# Data that is streamed.


class Source:
    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples["inputs"])

    def read(self, indices):
        return {name: x[indices] for name, x in self.examples.items()}


OPENED = []


def streamed_data(config, data_dir):
    def stream(examples, batch_size, prepare=None):
        OPENED.append(Streamed(Source(examples), batch_size, prepare, workers=2))
        return OPENED[-1]

    return Data(
        stream(tiny.examples(50, config.width, 1), config.batch_size, tiny.blur),
        {
            "test": stream(tiny.examples(20, config.width, 2), 8),
            "few": stream(tiny.examples(3, config.width, 3), 8),
        },
    )


STREAMING = dataclasses.replace(
    TINY, stages=(dataclasses.replace(TINY.stages[0], data=streamed_data),)
)


def test_streamed_data_trains_to_the_same_bits(finished, tmp_path):
    train(STREAMING, {tmp_path: tiny.Config()}, After(5))
    train(STREAMING, {tmp_path: tiny.Config()})
    tiny.assert_same_bits(TINY, tmp_path, finished["one stage"], tiny.Config())


@pytest.mark.parametrize("end", ["done", "stopped", "diverged"])
def test_streamed_data_is_closed_when_training_ends(tmp_path, end):
    before = set(threading.enumerate())
    config = replace(tiny.Config(), {"nan_at": 3 if end == "diverged" else -1})
    stop = After(3) if end == "stopped" else lambda: False
    (outcome,) = train(STREAMING, {tmp_path: config}, stop)
    assert outcome.status == end
    readers = {
        thread
        for thread in set(threading.enumerate()) - before
        if thread.name.startswith("ThreadPoolExecutor")
    }
    try:
        assert not any(thread.is_alive() for thread in readers)
    finally:
        while OPENED:
            OPENED.pop().close()


# Files that belong to the parameters.


def with_words(words):
    return dataclasses.replace(TINY, assets=lambda config: {"words.txt": words})


def test_a_run_keeps_its_assets_and_goes_on_with_no_others(tmp_path):
    run = {tmp_path / "run": tiny.Config()}
    train(with_words(b"one two"), run, After(4))
    kept = tmp_path / "run/assets/words.txt"
    assert kept.read_bytes() == b"one two"
    with pytest.raises(UserError, match=r"words\.txt is not what the data give now"):
        train(with_words(b"one three"), run)
    assert kept.read_bytes() == b"one two"
    (outcome,) = train(with_words(b"one two"), run)
    assert outcome.status == loop.DONE


def test_keys_and_functions_are_not_in_a_state(finished):
    state = tiny.final_state(TINY, finished["one stage"], tiny.Config())
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(state))
    assert int(state[".step"]) == 12


def observe_shown(config, state, key, shown):
    return {"sums": shown["rows"].sum(1), "weights": state.params["weights"]}


def data_with_shown(config, data_dir):
    rows = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    return dataclasses.replace(tiny.data(config, data_dir), shown={"rows": rows})


@pytest.mark.parametrize("points", [1, 2])
def test_what_is_observed_sees_the_examples_that_are_shown(tmp_path, points):
    stage = dataclasses.replace(
        TINY.stages[0], data=data_with_shown, observe=observe_shown, score=None
    )
    experiment = dataclasses.replace(TINY, stages=(stage,))
    runs = {tmp_path / str(s): tiny.Config(seed=s, steps=4) for s in range(points)}
    train(experiment, runs)
    for path in runs:
        with np.load(path / "artifacts/train-00000004.npz") as seen:
            np.testing.assert_array_equal(seen["sums"], [3, 12])
            assert seen["weights"].shape == (6, 6)
