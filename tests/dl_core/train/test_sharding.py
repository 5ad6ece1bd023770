"""Eight simulated devices give the numbers of one, however the state is split."""

import json
import os
import sys

import processes
import pytest
import sharded
import tiny

from dl_core.config import replace

EIGHT = {
    "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """The folder in which `sharded` trained its cases on eight devices."""
    out = tmp_path_factory.mktemp("sharded")
    paths = os.pathsep.join(filter(None, sys.path))
    result = processes.start_python(
        sharded.__file__, out, data_dir, PYTHONPATH=paths, **EIGHT
    ).wait(600)
    assert result.code == 0, result.stderr
    return out


@pytest.mark.parametrize("layout", ["two", "replicated", "fsdp", "model"])
def test_the_tiny_model_is_that_of_one_device(trained, layout):
    folder = trained / "tiny"
    tiny.assert_close(sharded.EXPERIMENT, folder / layout, folder / "one", sharded.TINY)


@pytest.mark.parametrize("layout", ["replicated", "fsdp", "model"])
def test_batch_norm_is_that_of_one_device(trained, layout):
    folder = trained / "batch_norm"
    experiment, config = sharded.batch_norm()
    tiny.assert_close(experiment, folder / layout, folder / "one", config)


def test_large_arrays_are_split_and_small_ones_are_not(trained):
    parts = json.loads((trained / "layouts.json").read_text())
    weights = {name: leaves[".params['weights']"] for name, leaves in parts.items()}
    assert weights == {
        **{"one": 1, "two": 1, "replicated": 1},
        **{"fsdp": 8, "model": 2},
    }
    for leaves in parts.values():
        assert leaves[".step"] == 1
        momentum = next(n for path, n in leaves.items() if "trace" in path)
        assert momentum == leaves[".params['weights']"]


@pytest.mark.parametrize("move", sharded.MOVES, ids="-".join)
def test_a_run_goes_on_with_another_number_of_devices(trained, move):
    moved = trained / "moved" / "-".join(move)
    tiny.assert_close(sharded.EXPERIMENT, moved, trained / "tiny" / "one", sharded.TINY)


@pytest.mark.parametrize("count", [8, 3])
def test_runs_together_are_those_of_one_device(trained, count):
    for i in (0, count - 1):
        config = replace(sharded.TINY, {"seed": i})
        folder = trained / "together" / f"{count}-{i}"
        other = trained / "tiny" / "one"
        if i:
            other = trained / f"seed-{i}"
            if not other.exists():
                tiny.train(sharded.EXPERIMENT, {other: config})
        tiny.assert_close(sharded.EXPERIMENT, folder, other, config)


def launch(data_dir, workdir, *flags):
    return processes.fork(
        "launch.run",
        *("--experiment=classification.batch_norm", "--preset=smoke"),
        *(f"--data_dir={data_dir}", f"--workdir={workdir}", *flags),
        **EIGHT,
    ).wait()


def test_the_command_trains_on_all_devices(trained, tmp_path, data_dir):
    flags = ("--config.batch_size=64", "--fsdp", "--model_axis=2", "--name=eight")
    result = launch(data_dir, tmp_path, *flags)
    assert result.code == 0, result.stderr
    assert "on 8 × CPU" in result.stderr
    experiment, config = sharded.batch_norm()
    folder = tmp_path / "classification.batch_norm/runs/eight"
    tiny.assert_close(experiment, folder, trained / "batch_norm/one", config)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            (),
            "a batch of 60 examples cannot be split over 8 devices; give "
            "--config.batch_size a multiple of 8",
        ),
        (("--devices=9",), "--devices=9: there are 8 devices"),
        (("--devices=0",), "--devices=0: there are 8 devices"),
        (("--model_axis=3",), "--model_axis=3 does not divide 8 devices"),
        (("--model_axis=0",), "--model_axis=0 does not divide 8 devices"),
    ],
)
def test_what_does_not_fit_the_devices_is_one_sentence(
    tmp_path, data_dir, flags, words
):
    result = launch(data_dir, tmp_path, *flags)
    assert result.code == 2
    errors = [line for line in result.stderr.splitlines() if "error" in line.lower()]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert words in errors[0]
    assert "Traceback" not in result.stderr
