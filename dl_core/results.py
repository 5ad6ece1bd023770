"""Finished runs, as figures and summaries read them.

@figure(sweep="learning_rates")
def learning_rates(runs: Runs) -> Figure: ...
"""

import collections
import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int

from dl_core.config import flatten
from dl_core.files import read_json
from dl_core.train.records import Row, read_result, read_rows


def figure(sweep: str) -> Callable[[Callable], Callable]:
    """Marks a function from `Runs` to a matplotlib figure with the sweep it draws."""

    def mark(draw: Callable) -> Callable:
        draw.sweep = sweep
        return draw

    return mark


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run: its config, metrics and observed arrays."""

    config: Mapping[str, Any]
    """Every field by dotted path, as JSON values."""
    rows: Sequence[Row]
    result: Mapping[str, Any]
    folder: pathlib.Path | None = None

    @classmethod
    def read(cls, folder: pathlib.Path) -> Self:
        """Reads a finished run from its directory."""
        config = flatten(read_json(folder / "config.json")["config"])
        rows = read_rows(folder / "metrics.jsonl")
        return cls(config, rows, read_result(folder / "DONE"), folder)

    @property
    def diverged(self) -> bool:
        """Whether the run ended at a number that is not finite."""
        return self.result["status"] == "diverged"

    @property
    def seconds(self) -> float:
        """Its share of the time that it and those trained together with it took."""
        return self.result["seconds"] / self.result.get("trained_together", 1)

    def series(
        self, metric: str, stage: str | None = None
    ) -> tuple[Int[np.ndarray, " rows"], Float[np.ndarray, "rows ..."]]:
        """Returns the steps at which a metric was measured, and its values.

        Args:
          metric: "train/loss", "test/accuracy", …
          stage: of this stage alone.

        Raises:
          KeyError: if the run never measured it.
        """
        rows = [
            row for row in self.rows if metric in row and stage in (None, row["stage"])
        ]
        if not rows:
            raise KeyError(f"no {metric} in {self.folder}")
        steps = np.array([row["step"] for row in rows])
        return steps, np.array([row[metric] for row in rows], float)

    def final(self, metric: str) -> float | list:
        """Returns the last value of a metric, a list where it is an array of numbers.

        It is NaN for a run that diverged.
        """
        return np.nan if self.diverged else self.result["metrics"][metric]

    def artifacts(self) -> dict[int, Mapping[str, np.ndarray]]:
        """Returns the observed arrays by step (read when they are asked for)."""
        return {int(p.stem.rsplit("-", 1)[1]): _load(p) for p in self._artifacts()}

    def last_artifacts(self) -> Mapping[str, np.ndarray]:
        """Returns the arrays that were observed last; none where none were."""
        paths = self._artifacts()
        return _load(paths[-1]) if paths else {}

    def _artifacts(self) -> list[pathlib.Path]:
        return sorted((self.folder / "artifacts").glob("*.npz"))


@functools.lru_cache(maxsize=512)
def _load(path: pathlib.Path) -> Mapping[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


class Runs(tuple[Run, ...]):
    """The runs of a sweep."""

    def where(self, **fields: Any) -> "Runs":
        """Returns the runs whose fields have the given values.

        Args:
          **fields: dotted path (`**{"model.depth": 3}`) -> value.
        """
        wanted = json.loads(json.dumps(fields))
        return Runs(r for r in self if all(r.config[k] == v for k, v in wanted.items()))

    def values(self, field: str) -> list[Any]:
        """Returns the different values of a field, in the order of the sweep."""
        return list(dict.fromkeys(_hashable(run.config[field]) for run in self))

    def by(self, *fields: str) -> dict[Any, "Runs"]:
        """Returns the runs grouped by the values of some fields, in order."""
        groups: dict[Any, list[Run]] = collections.defaultdict(list)
        for run in self:
            values = tuple(_hashable(run.config[field]) for field in fields)
            groups[values if len(fields) > 1 else values[0]].append(run)
        return {key: Runs(runs) for key, runs in groups.items()}

    def final(self, metric: str) -> Float[np.ndarray, " runs"]:
        """Returns the last value of a metric in each run; NaN where one diverged."""
        return np.array([run.final(metric) for run in self], float)

    def curves(
        self, metric: str
    ) -> tuple[Int[np.ndarray, " rows"], Float[np.ndarray, "runs rows ..."]]:
        """Returns the steps and a metric's values in each run that did not diverge.

        There are no steps if every run diverged.

        Raises:
          KeyError: if a run never measured it.
        """
        series = [run.series(metric) for run in self if not run.diverged]
        if not series:
            return np.empty(0, int), np.empty((1, 0))
        return series[0][0], np.stack([values for _, values in series])


def mean_and_spread(
    values: Iterable[float], *, scale: float = 1, unit: str = ""
) -> str:
    """Returns "mean ± standard deviation" over seeds, and how many diverged.

    Both are rounded to the second digit of the deviation, one value alone to four.

    Args:
      values: one a seed; NaN where the run diverged.
      scale: multiplies the numbers: 100 for per cent.
      unit: follows them.
    """
    array = scale * np.asarray(list(values), float)
    finite = array[np.isfinite(array)]
    if not len(finite):
        return "diverged"
    mean, spread = finite.mean(), finite.std(ddof=1) if len(finite) > 1 else 0.0
    if spread:
        places = max(0, 1 - math.floor(math.log10(spread)))
        text = f"{mean:.{places}f} ± {spread:.{places}f}{unit}"
    else:
        text = f"{mean:.4g}{unit}"
    lost = len(array) - len(finite)
    return text + (f" ({lost} of {len(array)} diverged)" if lost else "")


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
