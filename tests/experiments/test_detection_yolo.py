"""YOLO's tricks: what is taken away, how it is counted."""

import numpy as np

from dl_core.config import flatten, leaves, replace, to_dict
from dl_core.results import Run, Runs
from dl_core.train import detection
from experiments.detection import yolo as experiment


def run(value, **changes):
    config = flatten(to_dict(replace(experiment.Config(), changes)))
    return Run(config, [], {"status": "done", "metrics": {"test/ap50": value}})


def test_each_trick_changes_the_default_alone():
    default = leaves(experiment.Config())
    for name, point in experiment.TRICKS.items():
        assert all(default[path].value != value for path, value in point.items()), name
        replace(experiment.Config(), point).model.check()
    assert len(experiment.SWEEPS["tricks"]) == 5 * (1 + len(experiment.TRICKS))


def test_changes_are_from_the_mean_of_the_default():
    runs = Runs(
        [
            run(0.5, seed=0),
            run(0.7, seed=1),
            *(run(0.4, seed=seed, **{"model.priors": ()}) for seed in (0, 1)),
            run(0.9, **experiment.TRICKS["one predictor, not two"]),
        ]
    )
    assert len(experiment.with_all(runs)) == 2
    changes = experiment.changes(runs)
    assert set(changes) == {"without priors (v2)", "one predictor, not two"}
    np.testing.assert_allclose(changes["without priors (v2)"], [-0.2, -0.2])
    np.testing.assert_allclose(changes["one predictor, not two"], [0.3])
    assert detection.names_in(runs) == ("RBC", "WBC", "Platelets")
