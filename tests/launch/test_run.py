"""`python -m launch.run` as its user meets it."""

import json
import signal

import processes
import pytest

NAME = "toy.tiny"


@pytest.fixture
def launch(toy, tmp_path):
    """Runs the toy experiment under a workdir of its own, to its end."""

    def run(*flags, module="launch.run", wait=True):
        flags = (f"--experiment={NAME}", f"--workdir={tmp_path / 'runs'}", *flags)
        command = processes.fork(module, *flags, **toy)
        return command.wait() if wait else command

    return run


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs" / NAME / "runs"


def contents(folder):
    """Every file and when it was last written, but for the mark of who holds it."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def assert_refused(result, *words, code=2):
    """Checks that a command told one sentence, which holds the words, and no more."""
    assert result.code == code, result
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_a_finished_run_says_so_and_changes_nothing(launch, runs):
    first = launch("--preset=smoke")
    assert first.code == 0, first.stderr
    assert f"{runs / 'smoke'}: finished 4 steps in" in first.stderr
    assert "test/loss" in first.stderr
    before = contents(runs)
    again = launch("--preset=smoke")
    assert again.code == 0
    assert again.stderr == (
        f"{runs / 'smoke'}: finished 4 steps before; nothing to do\n"
    )
    assert contents(runs) == before


def test_done_tells_what_made_it(launch, runs):
    launch("--preset=smoke", "--name=it's")
    assert not runs.exists()
    launch("--preset=smoke", "--config.seed=3", "--name=mine")
    result = json.loads((runs / "mine/DONE").read_text())
    assert result["command"].startswith("python -m launch.run --experiment=toy.tiny ")
    assert result["command"].endswith("--preset=smoke --config.seed=3 --name=mine")
    assert result["device"].startswith("1 × CPU")
    assert {"python", "jax", "jaxlib", "flax"} <= result["versions"].keys()
    saved = json.loads((runs / "mine/config.json").read_text())
    assert saved["experiment"] == NAME
    assert (saved["config"]["seed"], saved["config"]["steps"]) == (3, 4)


def test_each_config_has_a_directory(launch, runs):
    said = {}
    for flags in ((), ("--preset=smoke",), ("--config.seed=1",), ("--config.seed=2",)):
        result = launch(*flags, "--dry_run")
        assert result.code == 0
        said[flags] = result.stdout.splitlines()[0].split(" in ")[1].rstrip(":")
    assert len(set(said.values())) == 4
    assert said[()] == str(runs / "default")
    assert said["--preset=smoke",] == str(runs / "smoke")
    same = launch("--config.seed=0", "--dry_run").stdout.splitlines()[0]
    assert said[()] in same


def test_another_config_under_the_same_name_is_refused(launch, runs):
    launch("--preset=smoke", "--name=mine")
    before = contents(runs)
    result = launch("--preset=smoke", "--name=mine", "--config.learning_rate=0.5")
    assert_refused(
        result, "config.learning_rate: 0.05, now 0.5", "--name", str(runs / "mine")
    )
    assert contents(runs) == before


def test_a_run_that_diverged_is_told_and_is_not_run_again(launch, runs):
    result = launch("--preset=smoke", "--config.nan_at=1", "--name=bad")
    assert result.code == 1
    assert "train/loss is not finite at step 2; none saved" in result.stderr
    before = contents(runs)
    again = launch("--preset=smoke", "--config.nan_at=1", "--name=bad")
    assert again.code == 1
    assert "train/loss is not finite at step 2" in again.stderr
    assert "nothing to do" in again.stderr
    assert contents(runs) == before


def test_two_processes_in_one_directory(launch, runs):
    flags = ("--config.steps=1000000", "--config.checkpoint_every=1000000")
    first = launch(*flags, "--name=mine", wait=False)
    try:
        metrics = runs / "mine/metrics.jsonl"
        processes.until(lambda: metrics.exists() and metrics.stat().st_size, first)
        second = launch(*flags, "--name=mine")
        holder = f"in use by another process (process {first.pid})"
        assert_refused(second, str(runs / "mine"), holder, code=76)
    finally:
        first.send(signal.SIGKILL)
        first.wait()
    third = launch(*flags, "--name=mine", wait=False)
    try:
        metrics.unlink()
        processes.until(metrics.exists, third)
    finally:
        third.send(signal.SIGKILL)
        third.wait()


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "a/../../x", "/tmp/x", "a/b", "..", ".", ".hidden", "-x", "~"),
        *("a b", "a\nb", "ä", "x" * 65, "a*"),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(launch, tmp_path, name):
    before = set(tmp_path.rglob("*"))
    result = launch(f"--name={name}")
    assert result.code == 2
    assert_refused(result, f"the name {name!r} cannot be used")
    assert set(tmp_path.rglob("*")) == before


def test_a_link_that_leads_elsewhere_is_refused(launch, runs, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    runs.mkdir(parents=True)
    (runs / "mine").symlink_to(elsewhere)
    assert_refused(launch("--name=mine"), "leads out of")
    assert not list(elsewhere.iterdir())


def test_dry_run_touches_nothing(launch, tmp_path):
    result = launch("--dry_run", "--preset=smoke", "--config.learning_rate=0.5")
    assert result.code == 0
    assert "  learning_rate = 0.5\n" in result.stdout
    assert "  steps = 4\n" in result.stdout
    assert not list(tmp_path.iterdir())


def test_a_run_starts_from_a_saved_config(launch, runs):
    launch("--preset=smoke", "--config.learning_rate=0.02", "--name=first")
    saved = runs / "first/config.json"
    result = launch(f"--config={saved}", "--name=second")
    assert result.code == 0, result.stderr
    for file in ("config.json", "metrics.jsonl"):
        first, second = ((runs / n / file).read_bytes() for n in ("first", "second"))
        assert first == second
    result = launch(f"--config={saved}", "--config.seed=5", "--dry_run")
    assert "  learning_rate = 0.02\n" in result.stdout
    assert "  seed = 5\n" in result.stdout


def test_the_saved_config_says_which_experiment(launch, runs, tmp_path, toy):
    launch("--preset=smoke", "--name=first")
    flags = (
        f"--config={runs / 'first/config.json'}",
        f"--workdir={tmp_path / 'other'}",
    )
    result = processes.fork("launch.run", *flags, **toy).wait()
    assert result.code == 0, result.stderr
    assert len(list((tmp_path / "other" / NAME / "runs").iterdir())) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist"),
        ("", "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ("\x00\xff", "cannot be read as JSON"),
        ("[]", "does not hold a config"),
        ("3", "does not hold a config"),
        ('{"experiment": "toy.tiny", "config": 3}', "does not hold a config"),
        ('{"experiment": "toy.tiny", "config": []}', "does not hold a config"),
        ('{"experiment": 5, "config": {}}', "--config="),
        ('{"experiment": ["toy.tiny"], "config": {}}', "--config="),
        (
            '{"experiment": "toy.other", "config": {}}',
            "is of toy.other, not of toy.tiny",
        ),
        ('{"config": {"learning_rat": 1}}', "did you mean 'learning_rate'?"),
        ('{"config": {"learning_rate": "x"}}', "--config.learning_rate=x: expected"),
        ('{"config": {"learning_rate": NaN}}', "--config.learning_rate=NaN: expected"),
        ('{"config": {"learning_rate": {"a": 1}}}', "--config.learning_rate"),
    ],
)
def test_a_bad_config_file_is_one_sentence(launch, tmp_path, text, words):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    assert_refused(launch(f"--config={path}", "--dry_run"), words)


def test_a_config_that_is_a_folder_is_one_sentence(launch, tmp_path):
    assert_refused(launch(f"--config={tmp_path}", "--dry_run"), str(tmp_path))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--experiment=toy.tyni",), "did you mean 'toy.tiny'?"),
        (("--experiment=zzzzz",), "there are toy.tiny"),
        (("--experiment=",), "toy.tiny"),
        (("--experiment=../toy.tiny",), "there is no such experiment"),
        (("--preset=smok",), "did you mean 'smoke'?"),
        (("--preset=smok",), "toy.tiny has the presets default, smoke, paper"),
        (("--config.learning_rat=1",), "did you mean 'learning_rate'?"),
        (("--config.step=1",), "did you mean 'steps'?"),
        (("--config.steps=many",), "--config.steps=many: expected a whole number"),
        (("--config.steps",), "--config.steps"),
        (("--confg.steps=1",), "confg.steps"),
        (("--wrkdir=x",), "workdir"),
        (("--devices=some",), "--devices"),
        (("--steps_per_call=0",), "--steps_per_call"),
        (("smoke",), "'smoke' is not a flag"),
        (("--", "smoke"), "'smoke' is not a flag"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(launch, flags, words):
    assert_refused(launch("--dry_run", *flags), words)


def test_a_field_without_an_experiment_is_one_sentence(toy):
    for flags in (["--config.steps=3"], [], ["--preset=smoke"]):
        result = processes.fork("launch.run", *flags, **toy).wait()
        assert_refused(result, "--experiment")


def test_flags_from_a_file(launch, tmp_path):
    file = tmp_path / "flags"
    file.write_text("--preset=smoke\n--config.seed=4\n")
    result = launch(f"--flagfile={file}", "--dry_run")
    assert result.code == 0, result.stderr
    assert "  seed = 4\n" in result.stdout
    assert "  steps = 4\n" in result.stdout


def test_the_experiment_from_a_file_of_flags(toy, tmp_path):
    file = tmp_path / "flags"
    file.write_text(f"--experiment={NAME}\n--dry_run\n--workdir={tmp_path}\n")
    result = processes.fork("launch.run", f"--flagfile={file}", **toy).wait()
    if result.code:
        assert_refused(result, "--experiment")
    else:
        assert f"would run {NAME}" in result.stdout


def test_flags_and_values_may_be_apart(launch, runs):
    flags = ("--preset", "smoke", "--config.seed", "7", "--name", "mine")
    result = launch(*flags, "--dry_run")
    assert result.code == 0, result.stderr
    assert f"would run toy.tiny in {runs / 'mine'}:" in result.stdout
    assert "  seed = 7\n" in result.stdout
    assert "  steps = 4\n" in result.stdout


def test_the_last_of_a_repeated_flag_counts(launch):
    flags = ("--preset=paper", "--preset=smoke", "--config.seed=1", "--config.seed=2")
    said = launch(*flags, "--dry_run").stdout
    assert "  steps = 4\n" in said
    assert "  seed = 2\n" in said


def test_a_workdir_that_cannot_be_made_is_one_sentence(toy, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    flags = (f"--experiment={NAME}", f"--workdir={file}")
    result = processes.fork("launch.run", *flags, **toy).wait()
    assert_refused(result, str(file), code=result.code)
    assert result.code in (1, 2)


@pytest.mark.parametrize("file", ["config.json", "DONE"])
@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "3"])
def test_a_damaged_file_in_the_run_directory_is_one_sentence(launch, runs, file, text):
    launch("--preset=smoke", "--name=mine")
    (runs / "mine" / file).write_text(text)
    result = launch("--preset=smoke", "--name=mine")
    assert_refused(result, str(runs / "mine"), code=result.code)
    assert result.code in (1, 2)


def test_a_damaged_checkpoint_is_told_in_one_sentence(launch, runs):
    flags = ("--config.steps=8", "--config.checkpoint_every=4", "--name=mine")
    assert launch(*flags).code == 0
    (runs / "mine/DONE").unlink()
    for path in (runs / "mine/checkpoints/8").rglob("manifest.ocdbt"):
        path.write_bytes(b"")
    result = launch(*flags)
    assert result.code == 0
    assert "going back before step 8" in result.stderr
    assert "resuming at step 4 (train)" in result.stderr
    assert "Traceback" not in result.stderr
    assert max(map(len, result.stderr.splitlines())) < 500


def test_a_data_set_that_is_not_there_is_one_sentence(data_dir, tmp_path):
    result = processes.fork(
        "launch.run",
        *("--experiment=classification.batch_norm", "--config.data.name=mnist_subste"),
        *(f"--data_dir={data_dir}", f"--workdir={tmp_path}"),
    ).wait()
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "mnist_subset" in errors[0]
    assert "Traceback" not in result.stderr
    assert result.code in (1, 2)


def test_sweeps_and_figures_refuse_alike(launch):
    for module in ("launch.sweep", "launch.figures"):
        result = launch("--config.learning_rat=1", module=module)
        assert_refused(result, "did you mean 'learning_rate'?")
        result = launch("extra", module=module)
        assert_refused(result, "'extra' is not a flag")
