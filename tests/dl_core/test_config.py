"""Configs: what is a leaf, what text and JSON they read, and what they refuse."""

import enum
import json
from typing import Literal

import jax
import numpy as np
import pytest

from dl_core.config import (
    RunConfig,
    check,
    config,
    differences,
    fingerprint,
    flatten,
    group_key,
    leaves,
    nested,
    parse,
    replace,
    stack,
    static,
    to_arrays,
    to_dict,
    traced,
    unknown_field,
)
from dl_core.errors import UserError
from launch import registry


class Color(enum.Enum):
    RED = 1
    GREEN = 2


@config
class Optimizer:
    """An update rule."""

    learning_rate: float = traced(1e-3, "Step size.", above=0, at_most=10)
    name: Literal["adam", "sgd"] = static("adam", "Update rule.")


@config
class Every(RunConfig):
    """A field of each kind."""

    weight: float | None = traced(None, "Weight of a loss.", at_least=0, below=1)
    gate: bool = traced(True, "Whether it is open.")
    on: bool = static(False, "Whether it is on.")
    title: str = static("a title", "What it is called.")
    color: Color = static(Color.RED, "Which color.")
    level: Literal[1, 2, 4] = static(2, "Which level.")
    limit: int | None = static(None, "How many at most.", at_least=1)
    shade: Literal["dark", "light"] | None = static(None, "Which shade.")
    widths: tuple[int, ...] = static((3, 4), "Layer widths.", at_least=1)
    size: tuple[int, int] = static((5, 6), "Height and width.", at_least=1)
    scales: tuple[float, ...] = traced((0.5, 1.0), "Scales.", above=0)
    optimizer: Optimizer = nested(Optimizer, learning_rate=0.5)


EVERY = Every()
LEAVES = leaves(EVERY)


def all_configs():
    """Each preset of each experiment, and each experiment's first and last points."""
    for name in registry.names():
        experiment = registry.load(name)
        for preset in experiment.presets:
            yield pytest.param(experiment.preset(preset), id=f"{name}-{preset}")
        for sweep, points in experiment.sweeps.items():
            last = replace(experiment.preset("default"), points[-1])
            yield pytest.param(last, id=f"{name}-{sweep}")


def test_traced_fields_are_the_leaves_of_the_tree():
    paths = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, _ in jax.tree_util.tree_leaves_with_path(EVERY)
    }
    assert paths == {"seed", "gate", "scales.0", "scales.1", "optimizer.learning_rate"}


def test_leaves_tells_every_field():
    assert set(LEAVES) == {
        *("seed", "steps", "batch_size", "log_every", "eval_every", "checkpoint_every"),
        *("weight", "gate", "on", "title", "color", "level", "limit", "shade"),
        *("widths", "size", "scales", "optimizer.learning_rate", "optimizer.name"),
    }
    leaf = LEAVES["optimizer.learning_rate"]
    assert (leaf.value, leaf.type, leaf.help) == (0.5, float, "Step size.")
    assert (leaf.traced, dict(leaf.bounds)) == (True, {"above": 0, "at_most": 10})
    assert not LEAVES["optimizer.name"].traced


def test_a_config_cannot_be_changed():
    with pytest.raises(AttributeError):
        EVERY.seed = 3


def test_a_field_without_its_kind_is_refused():
    with pytest.raises(TypeError, match=r"Bad\.width: use traced, static or nested"):

        @config
        class Bad:
            width: int = 3


def test_an_unknown_bound_is_refused():
    with pytest.raises(TypeError, match="unknown bounds"):
        static(3, "Width.", atleast=1)


def count_traces():
    traces = []

    @jax.jit
    def double(config):
        traces.append(config)
        return 2 * config.optimizer.learning_rate + config.seed + len(config.title)

    return double, traces


def test_a_traced_field_does_not_trace_again_and_a_static_one_does():
    double, traces = count_traces()
    assert float(double(to_arrays(EVERY))) == pytest.approx(2 * 0.5 + 0 + 7)
    changed = replace(EVERY, {"optimizer.learning_rate": 1.5, "seed": 2, "gate": False})
    assert float(double(to_arrays(changed))) == pytest.approx(2 * 1.5 + 2 + 7)
    assert len(traces) == 1
    double(to_arrays(replace(EVERY, {"title": "other"})))
    assert len(traces) == 2
    double(to_arrays(replace(EVERY, {"steps": 7})))
    assert len(traces) == 3


def test_a_whole_number_in_a_float_field_does_not_trace_again():
    double, traces = count_traces()
    double(to_arrays(replace(EVERY, {"optimizer.learning_rate": 1.5})))
    double(to_arrays(replace(EVERY, {"optimizer.learning_rate": 2})))
    assert len(traces) == 1


def test_equal_static_fields_share_a_group():
    changed = replace(EVERY, {"optimizer.learning_rate": 1.0, "scales": (2.0, 3.0)})
    assert group_key(changed) == group_key(EVERY)
    for other in ({"on": True}, {"weight": 0.5}, {"scales": (1.0,)}, {"widths": (1,)}):
        assert group_key(replace(EVERY, other)) != group_key(EVERY)


def test_stack_is_a_row_a_config():
    configs = [replace(EVERY, {"seed": i, "scales": (1.0, 2.0 + i)}) for i in range(3)]
    stacked = stack(configs)
    np.testing.assert_array_equal(stacked.seed, [0, 1, 2])
    np.testing.assert_array_equal(stacked.scales[1], [2, 3, 4])
    assert stacked.title == "a title"
    with pytest.raises(ValueError):  # noqa: PT011
        stack([EVERY, replace(EVERY, {"on": True})])


def test_arrays_have_one_type_a_kind():
    arrays = to_arrays(replace(EVERY, {"weight": 0.25}))
    types = {name: getattr(arrays, name).dtype for name in ("seed", "gate", "weight")}
    assert types == {"seed": "int32", "gate": "bool", "weight": "float32"}
    assert arrays.weight == 0.25


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("seed", "12", 12),
        ("seed", " 12 ", 12),
        ("seed", str(2**31 - 1), 2**31 - 1),
        ("optimizer.learning_rate", "3e-2", 0.03),
        ("optimizer.learning_rate", "2", 2.0),
        ("optimizer.learning_rate", "10", 10.0),
        ("weight", "none", None),
        ("weight", "None", None),
        ("weight", "0", 0.0),
        ("on", "true", True),
        ("on", "True", True),
        ("on", "1", True),
        ("gate", "false", False),
        ("gate", "0", False),
        ("title", "some text, none", "some text, none"),
        ("title", "", ""),
        ("color", "GREEN", Color.GREEN),
        ("level", "4", 4),
        ("limit", "7", 7),
        ("limit", "none", None),
        ("shade", "dark", "dark"),
        ("shade", "none", None),
        ("widths", "1,2,3", (1, 2, 3)),
        ("widths", "(1, 2)", (1, 2)),
        ("widths", "[8]", (8,)),
        ("widths", "8,", (8,)),
        ("widths", "", ()),
        ("widths", "()", ()),
        ("size", "7,8", (7, 8)),
        ("scales", "1,2.5", (1.0, 2.5)),
        ("optimizer.name", "sgd", "sgd"),
    ],
)
def test_parse(path, text, value):
    found = parse(LEAVES[path], text)
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, tuple):
        assert [type(x) for x in found] == [type(x) for x in value]


BAD_TEXTS = {
    "seed": ("1.5", "x", "", "none", "1e3", "true", "-1", str(2**31), "0x10", "1,2"),
    "steps": ("0", "-5", "many"),
    "optimizer.learning_rate": ("0", "-1", "11", "nan", "inf", "fast", "", "1e999"),
    "weight": ("-0.1", "1", "nan", "nil"),
    "gate": ("yes", "2", "", "none"),
    "on": ("on", "tru"),
    "color": ("red", "BLUE", "1", ""),
    "level": ("3", "two", "2.0", ""),
    "limit": ("0", "1.5", "null"),
    "shade": ("gray", ""),
    "widths": ("1,x", "1,2.5", "0,1", "1;2", "none", "1,,x"),
    "size": ("1", "1,2,3", "", "1,0", "1,x"),
    "scales": ("0,1", "a", "1,nan"),
    "optimizer.name": ("adm", "Adam", ""),
}


@pytest.mark.parametrize(
    ("path", "text"), [(path, text) for path, ts in BAD_TEXTS.items() for text in ts]
)
def test_bad_text_is_one_sentence_with_flag_value_and_expectation(path, text):
    with pytest.raises(UserError) as error:
        parse(LEAVES[path], text)
    sentence = str(error.value)
    assert sentence.startswith(f"--config.{path}={text}: expected ")
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("seed", "1.5", "a whole number"),
        ("seed", "-1", "at least 0"),
        ("seed", str(2**31), f"below {2**31}"),
        ("optimizer.learning_rate", "fast", "a number"),
        ("optimizer.learning_rate", "0", "above 0"),
        ("optimizer.learning_rate", "11", "at most 10"),
        ("gate", "yes", "true or false"),
        ("color", "BLUE", "one of 'RED', 'GREEN'"),
        ("level", "3", "one of 1, 2, 4"),
        ("limit", "1.5", "a whole number, or none"),
        ("shade", "gray", "one of 'dark', 'light', or none"),
        ("widths", "1,x", "a comma-separated list, each a whole number"),
        ("size", "1", "2 comma-separated values, each a whole number"),
        ("optimizer.name", "adm", "one of 'adam', 'sgd'; did you mean 'adam'?"),
        ("color", "GREE", "did you mean 'GREEN'?"),
        ("shade", "drak", "did you mean 'dark'?"),
    ],
)
def test_bad_text_says_what_was_expected(path, text, words):
    with pytest.raises(UserError) as error:
        parse(LEAVES[path], text)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(("seed", value) for value in (1.5, "1", True, None, [1], {}, 2**40)),
        *(("optimizer.learning_rate", value) for value in ("1", True, None, [1.0])),
        *(("gate", value) for value in (1, "true", None)),
        *(("title", value) for value in (1, None, ["a"])),
        *(("color", value) for value in (1, "red", None, ["RED"], {})),
        *(("level", value) for value in (3, "1", True, 1.0, [1])),
        *(("limit", value) for value in (0, "none", [], 1.5)),
        *(("widths", value) for value in (3, [1.5], ["1"], [[1]], None, "1,2", {})),
        *(("size", value) for value in ([1], [1, 2, 3], [1, None], [])),
        *(("scales", value) for value in ([0.0], [True], 1.0)),
        *(("optimizer.name", value) for value in ("adm", 1, None, ["adam"])),
    ],
)
def test_bad_json_values_are_refused(path, value):
    with pytest.raises(UserError, match=f"--config.{path}=.*: expected ") as error:
        replace(EVERY, {path: value})
    assert "\n" not in str(error.value)


def test_json_values_become_the_fields_types():
    found = replace(
        EVERY, {"widths": [7], "weight": 0, "color": "GREEN", "size": [1, 2]}
    )
    assert found.widths == (7,)
    assert type(found.weight) is float
    assert found.color is Color.GREEN
    assert found.size == (1, 2)
    assert check(LEAVES["color"], Color.RED) is Color.RED


def test_replace_leaves_the_rest():
    changed = replace(EVERY, {"optimizer.name": "sgd", "on": True})
    assert changed.optimizer == Optimizer(learning_rate=0.5, name="sgd")
    assert EVERY.optimizer.name == "adam"
    assert replace(changed, {"optimizer.name": "adam", "on": False}) == EVERY


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("optimizer.learning_rat", "; did you mean 'optimizer.learning_rate'?"),
        ("step", "; did you mean 'steps'?"),
        ("learning_rate", "; did you mean 'optimizer.learning_rate'?"),
        ("qqqq", ""),
        ("optimizer", None),
    ],
)
def test_an_unknown_field_names_the_nearest(path, hint):
    with pytest.raises(UserError) as error:
        replace(EVERY, {path: 1})
    start = f"--config.{path}: there is no such field"
    assert str(error.value).startswith(start)
    if hint is not None:
        assert str(error.value) == start + hint
        assert unknown_field(path, LEAVES) == start + hint


def round_trip(value):
    return json.loads(json.dumps(to_dict(value), allow_nan=False))


@pytest.mark.parametrize("value", [EVERY, *all_configs()])
def test_json_round_trip(value):
    found = replace(type(value)(), flatten(round_trip(value)))
    assert found == value
    assert fingerprint(found) == fingerprint(value) == fingerprint(round_trip(value))
    for path, leaf in leaves(value).items():
        assert type(leaves(found)[path].value) is type(leaf.value), path


@pytest.mark.parametrize("value", list(all_configs()))
def test_every_field_has_help_and_a_default_that_fits(value):
    for leaf in leaves(value).values():
        assert leaf.help.strip().endswith("."), leaf.path
        assert check(leaf, leaf.value) == leaf.value


def test_json_round_trip_of_other_than_defaults():
    changes = {"weight": 0.1, "color": Color.GREEN, "widths": (), "limit": 3}
    changed = replace(EVERY, changes | {"shade": "light", "title": 'ü"\n'})
    assert replace(Every(), flatten(round_trip(changed))) == changed


def test_differences_name_path_old_and_new():
    changed = replace(EVERY, {"optimizer.name": "sgd", "widths": (3,)})
    assert differences(to_dict(EVERY), to_dict(changed)) == [
        "optimizer.name: 'adam', now 'sgd'",
        "widths: [3, 4], now [3]",
    ]
    assert differences(to_dict(EVERY), to_dict(EVERY)) == []
    assert differences({"a": 1}, {"b": {"c": 2}}) == [
        "a: 1, now 'nothing'",
        "b.c: 'nothing', now 2",
    ]


def test_fingerprints_are_stable_and_tell_configs_apart():
    assert fingerprint({"b": [1, 2.5], "a": None}) == "e57f5d37"
    assert fingerprint({"a": None, "b": [1, 2.5]}) == "e57f5d37"
    prints = {fingerprint(replace(EVERY, {"seed": seed})) for seed in range(50)}
    assert len(prints) == 50
    assert fingerprint(replace(EVERY, {"seed": 0})) == fingerprint(EVERY)
