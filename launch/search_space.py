"""What a search looks through: its flags, and the fields and values that they name.

    --search=optimizer.learning_rate=1e-4..1e-1:log   a range, on a logarithmic scale
    --search=width=16..128                            a range of whole numbers
    --search=optimizer.name=adam,sgd                  some values

`launch.search` proposes the points.
"""

import dataclasses
import enum
import re
from collections.abc import Mapping
from typing import Any

from absl import flags

from dl_core.errors import UserError, nearest

FLAGS = flags.FLAGS
flags.DEFINE_multi_string(
    "search",
    [],
    "Instead of --sweep: search this field, FIELD=LOW..HIGH, LOW..HIGH:log or A,B,C; "
    "once for each field.",
)
flags.DEFINE_enum(
    "sampler", "tpe", ["tpe", "random", "qmc"], "What proposes a search's points."
)
flags.DEFINE_integer(
    "trials", None, "How many points a search has; more may be added.", lower_bound=1
)
flags.DEFINE_string(
    "objective", None, "The metric that a search is after (default: the main metric)."
)
flags.DEFINE_enum(
    "direction", None, ["maximize", "minimize"], "What is better of a search's metric."
)


@dataclasses.dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool


Space = Mapping[str, "Range | tuple[Any, ...]"]
"""For each field a range, or some JSON values."""


def check_flags() -> None:
    """Checks that the flags of a search go together.

    Raises:
      UserError: if they do not.
    """
    if FLAGS.search:
        if FLAGS.sweep is not None:
            raise UserError("--search and --sweep exclude each other")
        for name in ("trials", "direction"):
            if FLAGS[name].value is None:
                what = FLAGS[name].help.rstrip(".").lower()
                raise UserError(f"--{name} is missing: {what}")
        return
    for name in ("sampler", "trials", "objective", "direction"):
        if FLAGS[name].present:
            raise UserError(f"--{name} needs --search=FIELD=LOW..HIGH")


def parse_space(base: Any, texts: list[str]) -> Space:
    """Reads the values of `--search`.

    Args:
      base: the config whose fields they name.
      texts: "FIELD=LOW..HIGH", "FIELD=LOW..HIGH:log" or "FIELD=A,B,C".

    Raises:
      UserError: for what is none of these, or does not fit its field.
    """
    from dl_core.config import leaves

    known = leaves(base)
    space: dict[str, Any] = {}
    for text in texts:
        path, equals, values = text.partition("=")
        if not equals:
            raise UserError(
                f"--search={text}: expected FIELD=LOW..HIGH, FIELD=LOW..HIGH:log or "
                "FIELD=A,B,C"
            )
        if path not in known:
            raise UserError(
                f"--search={text}: there is no such field{nearest(path, known)}"
            )
        if path in space:
            raise UserError(f"--search={text}: {path} is searched twice")
        try:
            space[path] = _parse(known[path], values)
        except UserError as error:
            raise UserError(f"--search={text}: {error}") from None
    return space


def _parse(leaf: Any, text: str) -> Range | tuple[Any, ...]:
    from dl_core.config import describe, parse

    if match := re.fullmatch(r"(.+?)\.\.(.+?)(:log)?", text):
        low, high = (parse(leaf, end) for end in match.group(1, 2))
        if type(low) not in (int, float) or type(low) is not type(high):
            raise UserError(f"{leaf.path} has no ranges; it is {describe(leaf.type)}")
        if low >= high:
            raise UserError(f"expected a range, and {low} is not less than {high}")
        if match[3] and low <= 0:
            raise UserError(f"a logarithmic range is above 0, and {low} is not")
        return Range(low, high, log=bool(match[3]))
    values = [parse(leaf, part) for part in text.split(",")]
    plain = tuple(v.name if isinstance(v, enum.Enum) else v for v in values)
    if any(isinstance(value, tuple) for value in plain):
        raise UserError(f"{leaf.path} is a list, which cannot be searched")
    if len(set(plain)) < max(2, len(plain)):
        raise UserError("expected a range or several values, each once")
    return plain
