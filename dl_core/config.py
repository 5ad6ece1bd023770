"""Configs: frozen dataclasses that are pytrees, read from text and saved as JSON.

A field is either *traced* (a number that may change without changing any shape:
learning rate, loss weight, seed; it is a leaf of the pytree, so changing it never
recompiles and a sweep over it is one `vmap`) or *static* (all that shapes the program:
widths, names, step counts; it is part of the tree's structure). The definition says
which:

    @config
    class Optimizer:
        learning_rate: float = traced(1e-3, "Step size.", above=0)
        name: Literal["adam", "sgd"] = static("adam", "Update rule.")

    @config
    class Config(RunConfig):
        optimizer: Optimizer = nested(Optimizer)

Fields are addressed by their dotted path: `optimizer.learning_rate`.
"""

import dataclasses
import enum
import hashlib
import json
import math
import operator
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp

from dl_core.errors import UserError, nearest

C = TypeVar("C")

_BOUNDS = {
    "at_least": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "at_most": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}


def traced(default: Any, help: str, **bounds: float) -> Any:
    """A field that is a leaf: it may vary without recompiling (numbers, or None).

    Args:
      default: its default value.
      help: one line that says what it is.
      **bounds: any of `at_least`, `above`, `at_most`, `below`.
    """
    return _field(default, help, bounds, is_traced=True)


def static(default: Any, help: str, **bounds: float) -> Any:
    """A field that shapes the program: changing it compiles a new one.

    Args: as for `traced`.
    """
    return _field(default, help, bounds, is_traced=False)


def nested(cls: type[C], **defaults: Any) -> C:
    """A field that is itself a config, with other defaults where they are given."""
    return dataclasses.field(
        default_factory=lambda: cls(**defaults), metadata={"nested": True}
    )


def _field(
    default: Any, help: str, bounds: Mapping[str, float], is_traced: bool
) -> Any:
    if unknown := set(bounds) - set(_BOUNDS):
        raise TypeError(f"unknown bounds {sorted(unknown)}")
    metadata = {"help": help, "bounds": dict(bounds), "traced": is_traced}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(traced, static, nested)
)
def config(cls: type[C]) -> type[C]:
    """Makes a class a frozen dataclass that is a pytree of its traced fields."""
    cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    names: dict[bool, list[str]] = {True: [], False: []}
    for field in dataclasses.fields(cls):
        if not field.metadata:
            raise TypeError(
                f"{cls.__name__}.{field.name}: use traced, static or nested"
            )
        is_leaf = bool(field.metadata.get("nested") or field.metadata["traced"])
        names[is_leaf].append(field.name)
    jax.tree_util.register_dataclass(
        cls, data_fields=names[True], meta_fields=names[False]
    )
    return cls


@config
class RunConfig:
    """What every experiment's config holds: the seed, the steps and the intervals."""

    seed: int = traced(
        0, "Seed of initialisation, data order and noise.", at_least=0, below=2**31
    )
    steps: int = static(1_000, "Training steps.", at_least=1)
    batch_size: int = static(100, "Examples in a training batch.", at_least=1)
    log_every: int = static(50, "Steps between rows of train metrics.", at_least=1)
    eval_every: int = static(200, "Steps between evaluations.", at_least=1)
    checkpoint_every: int = static(1_000, "Steps between checkpoints.", at_least=1)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One field of a config: where it is, its type, value, help, bounds and kind."""

    path: str
    type: Any
    value: Any
    help: str
    bounds: Mapping[str, float]
    traced: bool


def leaves(config: Any, prefix: str = "") -> dict[str, Leaf]:
    """Returns every field of a config, nested ones too, by dotted path."""
    hints = typing.get_type_hints(type(config))
    found = {}
    for field in dataclasses.fields(config):
        path, value = prefix + field.name, getattr(config, field.name)
        if field.metadata.get("nested"):
            found |= leaves(value, path + ".")
        else:
            found[path] = Leaf(path, hints[field.name], value, **field.metadata)
    return found


def describe(kind: Any) -> str:
    """Returns a type in a reader's words: "one of 'adam', 'sgd'", "a whole number"."""
    if _is_optional(kind):
        return f"{describe(_non_optional(kind))}, or none"
    if choices := _choices(kind):
        return "one of " + ", ".join(map(repr, choices))
    if typing.get_origin(kind) is tuple:
        items = typing.get_args(kind)
        if items[-1] is Ellipsis:
            return f"a comma-separated list, each {describe(items[0])}"
        return f"{len(items)} comma-separated values, each {describe(items[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(kind, "a text")


def parse(leaf: Leaf, text: str) -> Any:
    """Reads the value of a field from the command line.

    Raises:
      UserError: if the text is not a value of the field's type and bounds.
    """
    try:
        value = _parse(leaf.type, text.strip())
    except ValueError:
        raise _wrong(leaf, text) from None
    return check(leaf, value, text)


def check(leaf: Leaf, value: Any, shown: Any = None) -> Any:
    """Returns a Python or JSON value as the field's type (list to tuple, int to float).

    Args:
      leaf: the field.
      value: the value.
      shown: how the user wrote the value, where that differs.

    Raises:
      UserError: if it is not a value of the field's type and bounds.
    """
    shown = value if shown is None else shown
    try:
        value = _coerce(leaf.type, value)
    except ValueError:
        raise _wrong(leaf, shown) from None
    for bound, limit in leaf.bounds.items():
        holds, words = _BOUNDS[bound]
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not holds(number, limit):
                raise UserError(
                    f"--config.{leaf.path}={_show(shown)}: expected "
                    f"{describe(leaf.type)} {words} {limit}"
                )
    return value


def replace(config: C, changes: Mapping[str, Any]) -> C:
    """Returns the config with the fields at the given dotted paths changed.

    Raises:
      UserError: for an unknown path or a value that does not fit.
    """
    known = leaves(config)
    values = {}
    for path, value in changes.items():
        if path not in known:
            raise UserError(unknown_field(path, known))
        values[path] = check(known[path], value)
    return _rebuild(config, values)


def unknown_field(path: str, known: Mapping[str, Leaf]) -> str:
    """Returns the sentence for a path that no field has."""
    return f"--config.{path}: there is no such field{nearest(path, known)}"


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the config as nested JSON values."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return to_dict(value)
        if isinstance(value, enum.Enum):
            return value.name
        return list(value) if isinstance(value, tuple) else value

    return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested JSON values as {dotted path: value}."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def fingerprint(values: Any) -> str:
    """Returns 8 hexadecimal digits that stand for a config or other JSON values."""
    if dataclasses.is_dataclass(values):
        values = to_dict(values)
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns "path: old, now new" for each field in which two JSON configs differ."""
    old, new = flatten(old), flatten(new)
    missing = "nothing"
    return [
        f"{path}: {old.get(path, missing)!r}, now {new.get(path, missing)!r}"
        for path in sorted(old.keys() | new.keys())
        if old.get(path, missing) != new.get(path, missing)
    ]


def to_arrays(config: C) -> C:
    """Returns the config with traced fields as arrays of float32, int32 or bool."""
    dtypes = {bool: jnp.bool_, int: jnp.int32, float: jnp.float32}
    return jax.tree.map(lambda x: jnp.asarray(x, dtypes[type(x)]), config)


def stack(configs: Sequence[C]) -> C:
    """Returns one config whose traced fields hold those of all configs, stacked.

    The configs must agree in every static field (`group_key`).
    """
    return jax.tree.map(lambda *xs: jnp.stack(xs), *map(to_arrays, configs))


def group_key(config: Any) -> jax.tree_util.PyTreeDef:
    """Returns what configs share that one compiled program can run."""
    return jax.tree.structure(config)


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _wrong(leaf: Leaf, shown: Any) -> UserError:
    text = _show(shown)
    return UserError(
        f"--config.{leaf.path}={text}: expected {describe(leaf.type)}"
        f"{nearest(text, map(str, _choices(leaf.type) or ()))}"
    )


def _is_optional(kind: Any) -> bool:
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return is_union and type(None) in typing.get_args(kind)


def _non_optional(kind: Any) -> Any:
    (inner,) = (k for k in typing.get_args(kind) if k is not type(None))
    return inner


def _choices(kind: Any) -> tuple[Any, ...] | None:
    if _is_optional(kind):
        return _choices(_non_optional(kind))
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return tuple(kind.__members__)
    return None


def _parse(kind: Any, text: str) -> Any:
    """Turns text into the JSON value of a type; raises ValueError."""
    if _is_optional(kind):
        return None if text.lower() == "none" else _parse(_non_optional(kind), text)
    if choices := _choices(kind):
        return next((c for c in choices if str(c) == text), text)
    if typing.get_origin(kind) is tuple:
        texts = [t for t in text.strip("()[]").split(",") if t.strip()]
        items = typing.get_args(kind)
        kinds = [items[0]] * len(texts) if items[-1] is Ellipsis else items
        if len(texts) != len(kinds):
            raise ValueError
        return [_parse(k, t.strip()) for k, t in zip(kinds, texts, strict=True)]
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(
            text.lower(), text
        )
    return kind(text) if kind in (int, float) else text


def _coerce(kind: Any, value: Any) -> Any:
    """Turns a Python or JSON value into a value of the type; raises ValueError."""
    if _is_optional(kind):
        return None if value is None else _coerce(_non_optional(kind), value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        if isinstance(value, kind):
            return value
        if isinstance(value, str) and value in kind.__members__:
            return kind[value]
    elif choices := _choices(kind):
        if any(value == c and type(value) is type(c) for c in choices):
            return value
    elif typing.get_origin(kind) is tuple:
        items = typing.get_args(kind)
        if isinstance(value, list | tuple):
            kinds = [items[0]] * len(value) if items[-1] is Ellipsis else items
            if len(kinds) == len(value):
                return tuple(_coerce(k, v) for k, v in zip(kinds, value, strict=True))
    elif kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and math.isfinite(value):
            return float(value)
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(value, kind):
        return value
    raise ValueError


def _rebuild(config: C, values: Mapping[str, Any], prefix: str = "") -> C:
    changed = {}
    for field in dataclasses.fields(config):
        path = prefix + field.name
        if field.metadata.get("nested"):
            changed[field.name] = _rebuild(
                getattr(config, field.name), values, path + "."
            )
        elif path in values:
            changed[field.name] = values[path]
    return dataclasses.replace(config, **changed)
