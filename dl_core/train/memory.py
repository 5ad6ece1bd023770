"""How many runs fit the memory at once: estimated before any of them starts.

The compiler says how many bytes a program holds. Each program of a group is compiled
for the whole group, and asked; what fits is compiled for good, the training finds it.
Where it does not fit, what one run adds says how many would.
"""

import math
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from dl_core.config import stack
from dl_core.data.batches import Batches, Data
from dl_core.experiment import Experiment
from dl_core.train import processes
from dl_core.train.layout import Layout
from dl_core.train.loop import dispatch_length
from dl_core.train.program import Program, program

_USED = 0.9
"""Of the memory, what may be planned for: allocators leave gaps."""


def available() -> int:
    """Returns the bytes that are free on the device that has least."""
    free = []
    for device in jax.local_devices():
        found = device.memory_stats() or {}
        if "bytes_limit" in found:
            free.append(found["bytes_limit"] - found["bytes_in_use"])
    return min(free) if free else _available_ram()


def points_at_once(
    experiment: Experiment,
    configs: Sequence[Any],
    layout: Layout,
    data_dir: Any,
    steps_per_call: int,
    limit: int | None = None,
) -> int:
    """Returns how many of the runs to train at once, at least one.

    Where not all fit they are as many as make parts of one size.

    Args:
      experiment: what to train.
      configs: of the runs; they differ in traced fields alone.
      layout: the devices.
      data_dir: folder of the data sets.
      steps_per_call: most steps in one dispatch.
      limit: bytes of a device that may be used (default: nearly all that are free).
    """
    limit = int(_USED * available()) if limit is None else limit
    count = len(configs)
    while count > 1:
        group = _Group(experiment, configs[:count], layout, data_dir, steps_per_call)
        needed, shared = group.needed()
        fits = count if needed <= limit else 1
        if math.isinf(needed):
            fits = count // 2
        elif limit > shared and needed > limit:
            fits = int((limit - shared) / (needed - shared) * count)
        fits = processes.agreed(max(1, min(fits, count)))
        if fits == count:
            break
        count = math.ceil(len(configs) / math.ceil(len(configs) / fits))
    return count


class _Group:
    """Runs that would be trained at once, as shapes."""

    def __init__(self, experiment, configs, layout, data_dir, steps_per_call):
        self.experiment: Experiment = experiment
        self.configs: Sequence[Any] = configs
        self.layout: Layout = layout
        self.data_dir = data_dir
        self.steps = dispatch_length(configs[0], steps_per_call)
        self.config = layout.place(stack(configs), layout.points(len(configs)))

    def needed(self) -> tuple[float, int]:
        """Returns the bytes that the group takes, and those that all runs share."""
        most, shared, shapes = 0.0, 0, None
        for index, stage in enumerate(self.experiment.stages):
            data = stage.data(self.configs[0], self.data_dir)
            sets = (data.train, *data.evaluation.values())
            try:
                points = len(self.configs)
                compiled = program(stage, index, self.layout, points, data.train)
                before = () if shapes is None else (shapes,)
                shapes = jax.eval_shape(compiled.init, self.config, *before)
                resident = sum(_size(batches.resident) for batches in sets)
                shared = max(shared, resident)
                most = max(most, resident + self._stage(compiled, shapes, data))
            finally:
                for batches in sets:
                    batches.close()
        return most, shared

    def _stage(self, compiled: Program, shapes: PyTree, data: Data) -> float:
        """Returns the bytes of a stage beside those of its resident arrays."""
        state = compiled.place_shapes(shapes)
        # While a copy is saved there are two.
        most = 2.0 * _on_one_device(state)
        for lowered, resident in self._programs(compiled, state, data):
            try:
                found = lowered.compile().memory_analysis()
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" in str(error):
                    return math.inf
                raise
            held = (
                found.argument_size_in_bytes
                + found.output_size_in_bytes
                - found.alias_size_in_bytes
                + found.temp_size_in_bytes
            )
            most = max(most, held - _size(resident))
        return most

    def _programs(
        self, compiled: Program, state: PyTree, data: Data
    ) -> Iterator[tuple[jax.stages.Lowered, PyTree]]:
        """Yields a stage's programs, as the loop calls them, and what is resident."""
        seed, copies = self.configs[0].seed, len(self.configs)
        inputs = data.train.train_inputs(seed, 0, self.steps)
        inputs = self.layout.whole(inputs, data.train.batch_size, axis=1)
        inputs = jax.tree.map(lambda x: np.stack([x] * copies), inputs)
        if self.layout.mesh.size > 1:
            inputs = self.layout.place(inputs, self.layout.points(copies))
        resident = self._resident(data.train)
        yield compiled.lower_step(self.config, state, resident, inputs), resident
        for batches in data.evaluation.values():
            resident = self._resident(batches)
            for inputs in batches.eval_inputs():
                inputs = self.layout.whole(inputs, batches.batch_size, axis=0)
                yield (
                    compiled.evaluate.lower(
                        self.config, state, batches.assemble, resident, inputs
                    ),
                    resident,
                )
                break
        if compiled.observe is not None:
            shown = [] if data.shown is None else [data.shown]
            yield compiled.observe.lower(self.config, state, *shown), ()

    def _resident(self, batches: Batches) -> PyTree[jax.ShapeDtypeStruct]:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=self.layout.replicated
            ),
            batches.resident,
        )


def _size(tree: PyTree) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in leaves)


def _on_one_device(tree: PyTree[jax.ShapeDtypeStruct]) -> int:
    """Returns the bytes of what one device holds of sharded arrays."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(tree)
    )


def _available_ram() -> int:
    """Returns the bytes of main memory that are free or can be freed."""
    path = pathlib.Path("/proc/meminfo")
    if path.exists():
        found = re.search(r"MemAvailable:\s*(\d+) kB", path.read_text())
        if found:
            return 1024 * int(found[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
