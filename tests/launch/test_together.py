"""`--executor=vmap --vmap_mode=together`: memory, resuming, divergence."""

import json
import shutil

import processes
import pytest
import tiny

from dl_core.config import replace
from dl_core.train.records import read_rows

NAME = "toy.tiny"
TOGETHER = ("--executor=vmap", "--vmap_mode=together")


@pytest.fixture(scope="module")
def sweep(toy):
    """Runs a sweep of the toy experiment under a workdir."""

    def run(workdir, *flags, name="failing", how=TOGETHER):
        given = [f"--experiment={NAME}", f"--workdir={workdir}", f"--sweep={name}"]
        return processes.fork("launch.sweep", *given, *how, *flags, **toy).wait()

    return run


def points_of(workdir):
    (folder,) = (workdir / NAME / "sweeps").iterdir()
    return sorted(folder.glob("0*"))


def trained_together(point):
    return json.loads((point / "DONE").read_text())["trained_together"]


def test_a_group_that_does_not_fit_the_memory_is_split(sweep, tmp_path):
    workdirs = [tmp_path / "whole", tmp_path / "split"]
    whole = sweep(workdirs[0], name="rates")
    split = sweep(workdirs[1], "--memory_gib=1e-6", name="rates")
    assert (whole.code, split.code) == (0, 0), split
    assert "do not fit" not in whole.stderr
    lines = [line for line in split.stderr.splitlines() if "do not fit" in line]
    # Two groups, as `width` is static.
    assert lines == 2 * [
        "2 points at once do not fit 1e-06 GiB of memory: 2 groups of at most 1, one "
        "after another"
    ]
    pairs = zip(*(points_of(w) for w in workdirs), strict=True)
    for number, (one, other) in enumerate(pairs):
        assert (trained_together(one), trained_together(other)) == (2, 1)
        config = replace(tiny.Config(), tiny.SWEEPS["rates"][number])
        tiny.assert_close(tiny.TINY, one, other, config)


def test_points_that_were_stopped_at_different_steps_lose_nothing(sweep, tmp_path):
    long = ("--config.steps=40", "--config.checkpoint_every=10")
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert sweep(whole, *long, name="rates").code == 0
    assert sweep(parted, *long, name="rates").code == 0
    folders = points_of(parted)
    for folder, last in zip(folders, (40, 30, 40, 30), strict=True):
        (folder / "DONE").unlink()
        for path in (folder / "checkpoints").iterdir():
            if path.name.isdigit() and int(path.name) > last:
                shutil.rmtree(path)
    again = sweep(parted, *long, name="rates")
    assert again.code == 0, again
    for step in (40, 30):
        assert again.stderr.count(f"resuming at step {step}") == 2
    for one, other in zip(points_of(whole), folders, strict=True):
        wanted, found = (read_rows(p / "metrics.jsonl") for p in (one, other))
        assert [r["step"] for r in found] == [r["step"] for r in wanted]
        assert found[-1]["test/loss"] == pytest.approx(wanted[-1]["test/loss"], 1e-4)


def test_a_point_that_diverges_changes_nothing_for_the_others(sweep, tmp_path):
    together, alone = tmp_path / "together", tmp_path / "alone"
    assert sweep(together).code == 0
    assert sweep(alone, "--index=0", how=()).code == 0
    healthy, diverged = points_of(together)
    assert json.loads((diverged / "DONE").read_text())["status"] == "diverged"
    config = replace(tiny.Config(), tiny.SWEEPS["failing"][0])
    tiny.assert_close(tiny.TINY, healthy, points_of(alone)[0], config)
