"""Trains on several simulated devices, for test_sharding: python sharded.py OUT DATA

Each case is a run under OUT; `layouts.json` says how its state was split.
"""

import dataclasses
import json
import pathlib
import sys

import jax
import tiny

from dl_core.config import replace, to_arrays
from dl_core.train.layout import make_layout
from launch import registry

LAYOUTS = {
    "one": {"devices": 1},
    "two": {"devices": 2},
    "replicated": {"devices": 8},
    "fsdp": {"devices": 8, "fsdp": True},
    "model": {"devices": 8, "model": 2},
}
# What is observed is not split, and takes longest to compile.
EXPERIMENT = dataclasses.replace(
    tiny.TINY, stages=(dataclasses.replace(tiny.TINY.stages[0], observe=None),)
)
# Saved under the first, finished under the second.
MOVES = [("fsdp", "one"), ("model", "two"), ("one", "fsdp"), ("two", "model")]
# 64 × 64 weights are just large enough to be split.
TINY = replace(tiny.Config(), {"width": 64, "batch_size": 16, "learning_rate": 0.01})


def batch_norm():
    """The experiment and its smoke config with a batch that 8 divides."""
    experiment = registry.load("classification.batch_norm")
    return experiment, replace(experiment.preset("smoke"), {"batch_size": 64})


def main(out: pathlib.Path, data_dir: pathlib.Path) -> None:
    """Trains every case."""
    layouts = {name: make_layout(**options) for name, options in LAYOUTS.items()}
    split = {}
    for name, layout in layouts.items():
        tiny.train(EXPERIMENT, {out / "tiny" / name: TINY}, layout=layout)
        split[name] = parts(layout)
        if name != "two":
            experiment, config = batch_norm()
            runs = {out / "batch_norm" / name: config}
            tiny.train(experiment, runs, layout=layout, data_dir=data_dir)
    for first, second in MOVES:
        runs = {out / "moved" / f"{first}-{second}": TINY}
        tiny.train(EXPERIMENT, runs, tiny.After(6), layout=layouts[first])
        said: list[str] = []
        tiny.train(EXPERIMENT, runs, said=said, layout=layouts[second])
        assert said == ["resuming at step 6 (train)"]
    for count in (8, 3):  # Runs are split over the devices where their number divides.
        runs = {
            out / "together" / f"{count}-{i}": replace(TINY, {"seed": i})
            for i in range(count)
        }
        tiny.train(EXPERIMENT, runs, layout=layouts["replicated"])
    (out / "layouts.json").write_text(json.dumps(split))


def parts(layout) -> dict[str, int]:
    """Returns how many different parts each leaf of the state is split into."""
    shapes = jax.eval_shape(tiny.init, to_arrays(TINY), jax.random.key(0))
    shardings = layout.state(shapes, None)
    placed = jax.tree.map(
        lambda x, s: jax.device_put(jax.numpy.zeros(x.shape, x.dtype), s),
        shapes,
        shardings,
    )
    return {
        jax.tree_util.keystr(path): len({str(s.index) for s in x.addressable_shards})
        for path, x in jax.tree_util.tree_leaves_with_path(placed)
    }


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
