"""Every experiment trains two seeds all at once as it trains each alone."""

import pytest
import tiny

from dl_core.config import replace
from dl_core.train.records import read_rows
from launch import registry

QUICK = ("gans.features",)
"""A network of convolutions; transposed ones are in the tests of the lowerings."""


def experiments():
    for name in registry.names():
        marks = [] if name in QUICK else [pytest.mark.slow]
        yield pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", list(experiments()))
def test_two_seeds_at_once_are_each_alone(name, tmp_path, data_dir):
    experiment = registry.load(name)
    config = tiny.told_each_step(experiment)
    configs = [replace(config, {"seed": seed}) for seed in (0, 1)]
    together = {tmp_path / f"together{c.seed}": c for c in configs}
    outcomes = tiny.train(experiment, together, data_dir=data_dir)
    assert [outcome.status for outcome in outcomes] == ["done", "done"]
    alone = {tmp_path / "alone": configs[1]}
    tiny.train(experiment, alone, data_dir=data_dir)
    rows = [read_rows(p / "metrics.jsonl") for p in (tmp_path / "together1", *alone)]
    for found, wanted in zip(*rows, strict=True):
        assert found.keys() == wanted.keys()
        assert found["step"] == wanted["step"]
    tiny.assert_close_losses(tmp_path / "together1", *alone, 1e-5, 1e-3)
    other, found = (tiny.losses_of(tmp_path / f"together{i}", 3) for i in (0, 1))
    assert other != found
