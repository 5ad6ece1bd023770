"""The contract of an experiment: the names its module defines, and what they are.

    TOPIC               the module's docstring; its first line is the topic
    Config              a config (dl_core.config), a RunConfig
    PRESETS             {name: {dotted path: value}}; "smoke" and "paper" among them
    init                (config, key) -> state
    train_step          (config, state, batch, key) -> (state, metrics)
    eval_step           (config, state, batch) -> {name: Mean, Percentiles, …}
    data                (config, data_dir) -> Data
    observe (optional)  (config, state, key) -> {name: array}, kept at each evaluation;
                        with the examples that `data` shows as a fourth argument, if any
    score (optional)    (config, observed) -> {name: number}, on the host
    MAIN_METRIC         the metric shown in progress bars and tables
    SWEEPS              {name: points} (dl_core.sweep)
    FIGURES             {name: function decorated with dl_core.results.figure}
    summary             (runs) -> one sentence, the measured result
    assets (optional)   (config) -> {file name: bytes}, kept with the run: vocabularies
    detect (optional)   (config, state, batch) -> Detections, of a detector of objects
    TABLE (optional)    rows of a paper's table (dl_core.published), for launch.table

`init`, `train_step`, `eval_step` and `observe` are pure and traced; `state` is a pytree
of finite numbers with a `step`, and holds no function and no key. An evaluation writes
its metrics as set/name (test/accuracy); where one computes a mapping, as
`dl_core.metrics.generative.Generative` does, as set/key (test/frechet), without the
metric's name.

When a run goes on, what `assets` gives is compared with what was kept: a checkpoint is
of no use with another vocabulary.

An experiment of several trainings in sequence defines `STAGES`, a tuple of `Stage`,
instead of the functions above; each later stage's `init` takes the state that the stage
before it ended with: `init(config, key, previous)`.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any

from dl_core.config import replace
from dl_core.errors import UserError, nearest
from dl_core.published import Row
from dl_core.sweep import Points

_REQUIRED = ("Config", "PRESETS", "MAIN_METRIC", "SWEEPS", "FIGURES", "summary")


def _all_steps(config: Any) -> int:
    return config.steps


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training of an experiment: its pure functions and its number of steps."""

    init: Callable
    train_step: Callable
    eval_step: Callable
    data: Callable
    observe: Callable | None = None
    score: Callable | None = None
    name: str = "train"
    steps: Callable[[Any], int] = _all_steps


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment module, read and checked against the contract."""

    name: str
    doc: str
    config_class: type
    presets: Mapping[str, Mapping[str, Any]]
    stages: tuple[Stage, ...]
    main_metric: str
    sweeps: Mapping[str, Points]
    figures: Mapping[str, Callable]
    summary: Callable
    assets: Callable[[Any], Mapping[str, bytes]] | None = None
    table: tuple[Row, ...] = ()

    @classmethod
    def from_module(cls, name: str, module: types.ModuleType) -> "Experiment":
        """Reads an experiment from its module.

        Args:
          name: as on the command line: "classification.batch_norm".
          module: the imported module.

        Raises:
          TypeError: if the module breaks the contract.
        """
        needed = _REQUIRED
        if not hasattr(module, "STAGES"):
            needed += ("init", "train_step", "eval_step", "data")
        if missing := [n for n in needed if not hasattr(module, n)]:
            raise TypeError(f"{module.__name__} does not define {', '.join(missing)}")
        for figure_name, draw in module.FIGURES.items():
            if getattr(draw, "sweep", None) not in module.SWEEPS:
                raise TypeError(
                    f"{module.__name__}: {figure_name} draws no known sweep"
                )
        fields = [f.name for f in dataclasses.fields(Stage)]
        single = {n: getattr(module, n) for n in fields[:6] if hasattr(module, n)}
        return cls(
            name=name,
            doc=module.__doc__,
            config_class=module.Config,
            presets={"default": {}, **module.PRESETS},
            stages=getattr(module, "STAGES", None) or (Stage(**single),),
            main_metric=module.MAIN_METRIC,
            sweeps=module.SWEEPS,
            figures=module.FIGURES,
            summary=module.summary,
            assets=getattr(module, "assets", None),
            table=getattr(module, "TABLE", ()),
        )

    def preset(self, name: str) -> Any:
        """Returns the config of a preset.

        Raises:
          UserError: if there is no such preset.
        """
        if name not in self.presets:
            raise UserError(
                f"--preset={name}: {self.name} has the presets "
                f"{', '.join(self.presets)}{nearest(name, self.presets)}"
            )
        return replace(self.config_class(), self.presets[name])

    def steps(self, config: Any) -> tuple[int, ...]:
        """Returns the number of steps of each stage."""
        return tuple(stage.steps(config) for stage in self.stages)
