"""A search: a sampler proposes a point's values at the moment its process starts.

search/journal.log   Optuna's study: what was proposed, and what came of it

A process that starts a point asks the study, which all processes of a search share, and
tells it what came of the points that ended. So nothing else has to run: the local pool
and a cluster's job arrays do what they do for any sweep. A point keeps its values.

Optuna's CMA-ES is not offered: it keeps its state pickled in the journal.
"""

import contextlib
import dataclasses
import importlib.util
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags

from dl_core.config import differences, fingerprint, flatten, replace, to_dict
from dl_core.errors import UserError, nearest
from dl_core.files import inside, locked, read_json, write_json
from dl_core.train.records import read_result
from launch import flags as shared
from launch import processes
from launch.points import Point, Sweep, select
from launch.search_space import Range, Space, parse_space

FLAGS = flags.FLAGS
_NUMBER = "point"
"""The attribute of Optuna's trials that holds the number of the point."""


@dataclasses.dataclass(frozen=True)
class Trial(Point):
    """A point whose values are known once it has started."""

    fields: tuple[str, ...]

    @property
    def label(self) -> str:
        """The values that were proposed, for reading."""
        if not (self.path / "config.json").exists():
            return "(not proposed yet)"
        values = flatten(read_json(self.path / "config.json")["config"])
        return " ".join(f"{path}={values[path]}" for path in self.fields)


@dataclasses.dataclass(frozen=True)
class Search(Sweep):
    """A sweep whose points a sampler proposes."""

    space: Space
    sampler: str
    objective: str
    direction: str

    @property
    def metric(self) -> str:
        """The metric that is told of each point."""
        return self.objective

    def write(self, *, extend: bool = False) -> None:
        """Writes `sweep.json`; more trials than it has are added to it.

        Args:
          extend: without meaning here.

        Raises:
          UserError: if the folder holds another sweep.
        """
        with self._spec() as spec:
            points = spec["points"]
            for point in self.points:
                points.setdefault(str(point.number), {})

    def begin(self, point: Point) -> Point:
        """Returns a point with its values, which are proposed if they are not yet."""
        values = processes.by_first(lambda: self._propose(point.number))
        return dataclasses.replace(
            point, changes=values, config=replace(self.base, values)
        )

    def end(self) -> None:
        """Tells the study of the points that have ended."""
        with self._study(0) as study:
            self._tell(study)

    def best(self) -> tuple[Point, float] | None:
        """Returns the best point that is done and its value; None if none is done."""
        done = [point for point in self.points if point.status() == "done"]
        values = {point.number: self._value(point.path) for point in done}
        if not done:
            return None
        choose = max if self.direction == "maximize" else min
        best = choose(done, key=lambda point: values[point.number])
        proposed = read_json(self.folder / "sweep.json")["points"][str(best.number)]
        return dataclasses.replace(best, changes=proposed), values[best.number]

    def _propose(self, number: int) -> dict[str, Any]:
        with self._study(number) as study:
            self._tell(study)
            trials = {trial.user_attrs[_NUMBER]: trial for trial in _of_points(study)}
            trial = trials.get(number)
            if trial is None:
                trial = study.ask(_distributions(self.space))
                trial.set_user_attr(_NUMBER, number)
        with self._spec() as spec:
            spec["points"][str(number)] = trial.params
        return trial.params

    def _tell(self, study: Any) -> None:
        """Tells a study how the points ended of which it knows no end."""
        from optuna.trial import TrialState

        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in running:
            if _NUMBER not in trial.user_attrs:  # Its process was killed meanwhile.
                study.tell(trial.number, state=TrialState.FAIL)
                continue
            path = self._path(trial.user_attrs[_NUMBER])
            if not (path / "DONE").exists():
                continue
            if read_result(path / "DONE")["status"] == "diverged":
                study.tell(trial.number, state=TrialState.FAIL)
            else:
                study.tell(trial.number, self._value(path))

    def _value(self, path: pathlib.Path) -> float:
        metrics = read_result(path / "DONE")["metrics"]
        known = [name for name, value in metrics.items() if not isinstance(value, list)]
        if self.objective not in known:
            raise UserError(
                f"--objective={self.objective}: the metrics are {', '.join(known)}"
                f"{nearest(self.objective, known)}"
            )
        return metrics[self.objective]

    def _path(self, number: int) -> pathlib.Path:
        key = self.points[0].path.name.partition("-")[2]
        return self.folder / f"{number:04d}-{key}"

    def _about(self) -> dict[str, Any]:
        return _about(self.space, self.sampler, self.objective, self.direction)

    @contextlib.contextmanager
    def _spec(self) -> Iterator[dict[str, Any]]:
        """Gives what `sweep.json` holds, and writes what it is changed to."""
        path = self.folder / "sweep.json"
        new = {
            "experiment": self.experiment.name,
            "base": to_dict(self.base),
            "search": self._about(),
        }
        with locked(self.folder, wait=True):
            old = read_json(path) if path.exists() else {**new, "points": {}}
            points = old.get("points", {})
            if changed := differences({**old, "points": {}}, {**new, "points": {}}):
                shown = "; ".join(changed[:5]) + ("; …" if len(changed) > 5 else "")
                raise UserError(
                    f"{self.folder} holds another sweep: {shown}; give another --name, "
                    "or remove that folder"
                )
            before = {number: dict(values) for number, values in points.items()}
            yield old
            if before != points or not path.exists():
                write_json(path, old)

    @contextlib.contextmanager
    def _study(self, number: int) -> Iterator[Any]:
        """Gives the study to this process alone, with a sampler for a point."""
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        folder = self.folder / "search"
        with locked(folder, wait=True), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            journal = folder / "journal.log"
            _drop_torn_line(journal)
            backend = JournalFileBackend(str(journal), lock_obj=_Held())
            yield optuna.create_study(
                storage=JournalStorage(backend),
                sampler=_sampler(self.sampler, self.space, self.base.seed, number),
                study_name=self.experiment.name,
                direction=self.direction,
                load_if_exists=True,
            )


def chosen_search() -> Search:
    """Returns the search that the flags choose, whether or not it has run.

    Raises:
      UserError: for flags that do not fit, or if Optuna is missing.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError("--search needs Optuna: pip install -e .[search]")
    experiment, base, overrides = shared.chosen()
    space = parse_space(base, FLAGS.search)
    if twice := overrides.keys() & space.keys():
        raise UserError(f"--config.{min(twice)} is a field that --search looks through")
    objective = FLAGS.objective or experiment.main_metric
    about = _about(space, FLAGS.sampler, objective, FLAGS.direction)
    name = FLAGS.name or f"search-{fingerprint({'base': to_dict(base), **about})}"
    folder = inside(pathlib.Path(FLAGS.workdir), experiment.name, "sweeps", name)
    key, fields = fingerprint(about), tuple(space)
    points = [
        Trial(number, {}, base, folder / f"{number:04d}-{key}", fields)
        for number in range(FLAGS.trials)
    ]
    return Search(
        experiment,
        name,
        folder,
        base,
        points,
        select(points),
        space,
        FLAGS.sampler,
        objective,
        FLAGS.direction,
    )


def _about(
    space: Space, sampler: str, objective: str, direction: str
) -> dict[str, Any]:
    """Returns what a search is, as JSON values."""
    plain = {
        path: dataclasses.asdict(values) if isinstance(values, Range) else list(values)
        for path, values in space.items()
    }
    return {
        "space": plain,
        "sampler": sampler,
        "objective": objective,
        "direction": direction,
    }


def _distributions(space: Space) -> dict[str, Any]:
    from optuna import distributions as optuna

    found: dict[str, Any] = {}
    for path, values in space.items():
        if isinstance(values, Range):
            whole = isinstance(values.low, int)
            kind = optuna.IntDistribution if whole else optuna.FloatDistribution
            found[path] = kind(values.low, values.high, log=values.log)
        else:
            found[path] = optuna.CategoricalDistribution(values)
    return found


def _sampler(name: str, space: Space, seed: int, number: int) -> Any:
    """Returns a sampler that proposes one point, and the same one given the same study.

    Each point has a process of its own, so the seed of what is drawn depends on its
    number; a sequence (qmc) has one seed, and the study counts how far it is.
    """
    from optuna import samplers

    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    if name == "random":
        return samplers.RandomSampler(seed=own)
    if name == "tpe":
        # Points that run count as bad ones, so that others look elsewhere meanwhile.
        return samplers.TPESampler(seed=own, constant_liar=True)

    class Sequence(samplers.QMCSampler):
        """Knows the space, which it would else learn from the first point."""

        def infer_relative_search_space(self, study, trial):
            ranges = {k: v for k, v in space.items() if isinstance(v, Range)}
            return _distributions(ranges)

    independent = samplers.RandomSampler(seed=own)
    return Sequence(scramble=True, seed=seed, independent_sampler=independent)


def _of_points(study: Any) -> list[Any]:
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if _NUMBER in trial.user_attrs]


def _drop_torn_line(journal: pathlib.Path) -> None:
    """Removes the end of a line that a full disk or a crash has cut short."""
    content = journal.read_bytes() if journal.exists() else b""
    if content and not content.endswith(b"\n"):
        with journal.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


class _Held:
    """The journal's lock, for who holds the folder: a killed process leaves no lock."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass
