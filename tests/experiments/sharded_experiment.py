"""Trains an experiment's smoke preset on one device and split over two, for a test."""

import pathlib
import sys

import jax
import tiny

from dl_core.config import replace
from dl_core.train.layout import make_layout
from launch import registry

LAYOUTS = {
    "one": {"devices": 1},
    "data": {},
    "fsdp": {"fsdp": True},
    "model": {"model": 2},
}


def main(name: str, out: pathlib.Path, data_dir: pathlib.Path) -> None:
    """Trains it under every layout."""
    assert jax.device_count() == 2
    experiment = registry.load(name)
    config = tiny.told_each_step(experiment)
    config = replace(config, {"batch_size": config.batch_size + config.batch_size % 2})
    for layout, options in LAYOUTS.items():
        runs = {out / layout: config}
        tiny.train(experiment, runs, layout=make_layout(**options), data_dir=data_dir)


if __name__ == "__main__":
    main(sys.argv[1], *map(pathlib.Path, sys.argv[2:]))
