"""Published numbers beside which an experiment's own can be printed.

An experiment that repeats cells of a paper's table defines `TABLE`, a tuple of these
rows; `python -m launch.table` prints them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Row:
    """One task of a table: which runs are it, and what was published for it."""

    task: str
    """What the row is called, with the setting that tells it from others."""
    sweep: str
    """The sweep whose runs are its cells, one for each network and seed."""
    metric: str
    """What is compared at the end: "test/loss"."""
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The paper's number by network; empty where the paper has no such row."""
    preset: str = "default"
    """The preset under which the sweep is this row."""
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Config fields that choose among the sweep's points."""
    better: Literal["lower", "higher"] = "lower"
    """Which numbers are better."""
    scale: float = 1.0
    """What the metric is multiplied by to be in the paper's unit."""
    unit: str = ""
    """The unit, with a space before it where one belongs."""
