"""`--points` and `--extend`: points keep the numbers that they were given once."""

import json
import shutil

import processes
import pytest

from dl_core.errors import UserError
from launch.point_numbers import numbers_text, parse_numbers

NAME = "toy.tiny"


@pytest.fixture
def toy_of_mine(toy, tmp_path):
    """The environment of a toy.tiny whose sweep is edited, and the editing."""
    first, *others = toy["PYTHONPATH"].split(":")
    root = tmp_path / "toy"
    shutil.copytree(first, root, ignore=shutil.ignore_patterns("__pycache__"))
    module = root / "experiments" / "toy" / "tiny.py"
    text = module.read_text()

    def edit(rates):
        start = text.index('    "rates": product(')
        end = text.index("\n", start)
        line = f'    "rates": product(learning_rate={rates!r}, steps=(2,)),'
        module.write_text(text[:start] + line + text[end:])

    return {"PYTHONPATH": ":".join([str(root), *others])}, edit


def run(workdir, environment, *flags):
    given = (f"--experiment={NAME}", f"--workdir={workdir}", "--sweep=rates", *flags)
    # The module was edited: what was compiled of it in the same second may be old.
    once = {**environment, "PYTHONDONTWRITEBYTECODE": "1"}
    return processes.fork("launch.sweep", *given, **once).wait()


def rates_of(workdir):
    (path,) = (workdir / NAME / "sweeps").glob("*/sweep.json")
    points = json.loads(path.read_text())["points"]
    return {int(k): v["learning_rate"] for k, v in points.items()}


def done(workdir):
    paths = (workdir / NAME / "sweeps").glob("*/0*/DONE")
    return sorted(int(path.parent.name[:4]) for path in paths)


def config_of(workdir, number):
    (path,) = (workdir / NAME / "sweeps").glob(f"*/{number:04d}-*/config.json")
    return json.loads(path.read_text())["config"]


def test_points_that_are_added_renumber_none(toy_of_mine, tmp_path):
    environment, edit = toy_of_mine
    edit((0.1, 0.01))
    assert run(tmp_path, environment, "--executor=vmap").code == 0
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in tmp_path.glob(f"{NAME}/sweeps/*/0*/*")
        if path.is_file() and path.name != ".lock"
    }
    edit((0.2, 0.1, 0.05, 0.01))
    refused = run(tmp_path, environment, "--executor=vmap")
    assert refused.code == 2
    assert "add its 2 new points with --extend" in refused.stderr
    assert rates_of(tmp_path) == {0: 0.1, 1: 0.01}
    extended = run(tmp_path, environment, "--executor=vmap", "--extend")
    assert extended.code == 0, extended
    assert rates_of(tmp_path) == {0: 0.1, 1: 0.01, 2: 0.2, 3: 0.05}
    assert done(tmp_path) == [0, 1, 2, 3]
    for path, (time, content) in before.items():
        assert (path.stat().st_mtime_ns, path.read_bytes()) == (time, content)
    for number, rate in rates_of(tmp_path).items():
        assert config_of(tmp_path, number)["learning_rate"] == rate
    # A point is never taken away or changed.
    edit((0.2, 0.1, 0.05))
    fewer = run(tmp_path, environment, "--executor=vmap", "--extend")
    assert (fewer.code, "holds another sweep" in fewer.stderr) == (2, True)
    edit((0.2, 0.1, 0.05, 0.01))
    assert "4 done" in run(tmp_path, environment, "--executor=vmap").stdout


def test_points_chooses_by_number(toy, tmp_path):
    flags = ("--preset=smoke", "--executor=vmap", "--points=3,0-1")
    result = run(tmp_path, toy, *flags)
    assert result.code == 0, result
    assert [line.split()[0] for line in result.stdout.splitlines()[1:4]] == list("013")
    assert done(tmp_path) == [0, 1, 3]


def test_index_with_points_is_a_place_among_them(toy, tmp_path):
    flags = ("--preset=smoke", "--points=3,1")
    assert run(tmp_path, toy, *flags, "--index=1").code == 0
    assert done(tmp_path) == [3]
    refused = run(tmp_path, toy, *flags, "--index=2")
    assert refused.code == 2
    assert "--index=2" in refused.stderr


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0", [0]), ("3,1", [1, 3]), ("0-2,1", [0, 1, 2]), (" 1-2 , 4", [1, 2, 4])],
)
def test_numbers_are_read_in_order(text, numbers):
    assert parse_numbers("--points", text, range(5)) == numbers


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected numbers of points, such as 0-3,7"),
        ("-1", "expected numbers of points"),
        ("1,", "expected numbers of points"),
        ("3-1", "expected numbers of points"),
        ("1;2", "expected numbers of points"),
        ("$(id)", "expected numbers of points"),
        ("0-5", "there is no point 5; they are 0-4"),
        ("0-999999999999", "there is no point 5; they are 0-4"),
        ("7", "there is no point 7; they are 0-4"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused(text, words):
    with pytest.raises(UserError) as refused:
        parse_numbers("--points", text, range(5))
    assert str(refused.value).startswith(f"--points={text}: ")
    assert words in str(refused.value)


def test_numbers_are_written_as_they_are_read():
    numbers = [0, 1, 2, 3, 7, 9, 10]
    assert numbers_text(numbers) == "0-3,7,9-10"
    assert parse_numbers("--points", numbers_text(numbers), range(11)) == numbers
