"""Every field of every experiment refuses bad values in one sentence."""

import enum
import re
import types
import typing

import processes
import pytest

from dl_core.config import RunConfig, leaves, parse
from dl_core.errors import UserError
from launch import registry


def bad_texts(leaf) -> list[str]:
    """Returns texts that are not values of a field, by its type and bounds."""
    kind, optional = leaf.type, False
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (kind,) = (k for k in typing.get_args(kind) if k is not type(None))
        optional = True
    nothing = [] if optional else ["none"]
    if typing.get_origin(kind) is tuple:
        return ["?", "1;2", "1,?", *nothing]
    if typing.get_origin(kind) is typing.Literal:
        choices = [str(choice) for choice in typing.get_args(kind)]
        return [choices[0] + "x", "?", "", *(n for n in nothing if n not in choices)]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return ["?", ""]
    if kind is bool:
        return ["yes", "2", "", *nothing]
    if kind in (int, float):
        texts = ["ten", "", "1,2", "nan", "inf", "1e400", "--1", *nothing]
        if kind is int:
            texts += ["1.5", "1e3", "0x10", "true"]
        return texts + [str(number) for number in out_of_bounds(leaf, kind)]
    assert kind is str, f"{leaf.path}: no bad values are known of {kind}"
    return []


def out_of_bounds(leaf, kind):
    step = 1 if kind is int else 1e-3
    for bound, limit in leaf.bounds.items():
        limit = kind(limit)
        yield {
            "at_least": limit - step,
            "above": limit,
            "at_most": limit + step,
            "below": limit,
        }[bound]
    # What holds for every experiment, whatever its own definition says.
    if leaf.path in leaves(RunConfig()):
        yield -1
        if leaf.path != "seed":
            yield 0


def assert_refused(result, path, text):
    assert result.code == 2, (path, text, result)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: --config.{path}={text}: expected "), (path, line)


def fields_of(name):
    return leaves(registry.load(name).preset("default")).values()


@pytest.mark.parametrize("name", registry.names())
def test_every_bad_value_is_refused(name):
    cases = [(leaf, text) for leaf in fields_of(name) for text in bad_texts(leaf)]
    assert len(cases) > 40
    for leaf, text in cases:
        words = re.escape(f"--config.{leaf.path}={text}: expected ")
        with pytest.raises(UserError, match=f"^{words}"):
            parse(leaf, text)


@pytest.mark.parametrize("name", registry.names())
def test_the_command_refuses_a_bad_value_of_each_field(name, tmp_path):
    fields = [(leaf.path, bad_texts(leaf)) for leaf in fields_of(name)]
    # Of one field this kind of bad value, of the next another.
    cases = [
        (path, texts[i % len(texts)]) for i, (path, texts) in enumerate(fields) if texts
    ]
    start = [f"--experiment={name}", f"--workdir={tmp_path}", "--dry_run"]
    commands = [[*start, f"--config.{path}={text}"] for path, text in cases]
    results = processes.fork_many("launch.run", commands, f"experiments.{name}")
    wrong = []
    for (path, text), result in zip(cases, results, strict=True):
        try:
            assert_refused(result, path, text)
        except (AssertionError, ValueError) as error:
            wrong.append(f"--config.{path}={text}: {error}")
    assert not wrong, "\n".join(wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", registry.names())
def test_an_unknown_field_near_each_field(name, tmp_path):
    paths = list(leaves(registry.load(name).preset("default")))
    start = [f"--experiment={name}", f"--workdir={tmp_path}", "--dry_run"]
    commands = [[*start, f"--config.{path}_=1"] for path in paths]
    results = processes.fork_many("launch.run", commands, f"experiments.{name}")
    for path, result in zip(paths, results, strict=True):
        assert result.code == 2
        assert result.stderr == (
            f"error: --config.{path}_: there is no such field; did you mean {path!r}?\n"
        )


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("optimizer.learning_rate", "0"),
        ("model.normalization", "bacth"),
        ("steps", "1.5"),
    ],
)
def test_a_real_command_refuses_alike(tmp_path, path, text):
    name = "classification.batch_norm"
    flags = (f"--experiment={name}", f"--config.{path}={text}")
    result = processes.run("launch.run", *flags, f"--workdir={tmp_path}")
    assert_refused(result, path, text)
    assert not list(tmp_path.iterdir())
