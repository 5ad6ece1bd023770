"""The compiled programs of a stage: initialise, take k steps, evaluate, observe.

Everything here is a function of (config, state, …), with the config's traced fields as
arrays, so one program serves every point of a sweep that shares the static fields:
one after another, or all at once under `vmap`.
"""

import dataclasses
import functools
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from dl_core.experiment import Stage
from dl_core.ops.conv_lowerings import stacked
from dl_core.train import processes
from dl_core.train.layout import Layout


@dataclasses.dataclass(frozen=True)
class Program:
    """A stage's functions, compiled once for each set of static fields."""

    stage: Stage
    index: int
    layout: Layout
    points: int | None
    """How many runs are stacked in the leading axis; None for one run, unstacked."""
    batch_size: int
    assemble: Hashable

    def init(self, config: Any, previous: PyTree | None = None) -> PyTree:
        """Returns the state at the stage's start, on its devices.

        Args:
          config: with traced fields as arrays (stacked, where points are).
          previous: the state the stage before ended with; None in the first.
        """
        return self._init(config, *([] if previous is None else [previous]))

    def step(
        self, config: Any, state: PyTree, resident: PyTree, inputs: PyTree
    ) -> tuple[PyTree, PyTree]:
        """Takes as many steps as `inputs` has rows; gives up `state`.

        Returns:
          The new state, and the metrics of each step, stacked.
        """
        return self._step(config, state, resident, inputs)

    def place_shapes(self, shapes: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
        """Returns the shapes with the shardings that this program uses."""
        shardings = self.layout.state(shapes, self.points)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            shardings,
        )

    def lower_step(
        self, config: Any, state: PyTree, resident: PyTree, inputs: PyTree
    ) -> jax.stages.Lowered:
        """Returns what `step` compiles; shapes with shardings do as arguments."""
        return self._step.lower(config, state, resident, inputs)

    @functools.cached_property
    def _init(self):
        def init(config, *previous):
            state = self._over_points(self._init_one)(config, *previous)
            shardings = self.layout.state(state, self.points)
            return jax.lax.with_sharding_constraint(state, shardings)

        return jax.jit(init)

    @functools.cached_property
    def _step(self):
        def steps(config, state, resident, inputs):
            step = functools.partial(self._step_one, config, resident)
            if jax.tree.leaves(inputs)[0].shape[0] > 1:
                return jax.lax.scan(step, state, inputs)
            # Not a scan: XLA's CPU backend runs convolutions in loops far slower
            # (jax#12868).
            state, metrics = step(state, jax.tree.map(lambda x: x[0], inputs))
            return state, jax.tree.map(lambda x: jnp.asarray(x)[None], metrics)

        def step_all(config, state, resident, inputs):
            new, metrics = self._over_points(steps, shared=(2,))(
                config, state, resident, inputs
            )
            shardings = self.layout.state(new, self.points)
            new = jax.lax.with_sharding_constraint(new, shardings)
            return new, self._replicate(metrics)

        return jax.jit(step_all, donate_argnums=1)

    @functools.cached_property
    def evaluate(self):
        """Compiled `(config, state, assemble, resident, inputs) -> metrics`."""

        def evaluate(config, state, assemble, resident, inputs):
            def one(config, state, resident, inputs):
                batch = assemble(config, resident, inputs, None)
                return self.stage.eval_step(config, state, batch)

            over_points = self._over_points(one, shared=(2, 3))
            return self._replicate(over_points(config, state, resident, inputs))

        return jax.jit(evaluate, static_argnums=2)

    @functools.cached_property
    def observe(self):
        """Compiled `(config, state, *shown) -> {name: array}`, or None.

        `shown` is what the stage's data shows, or left out.
        """
        if self.stage.observe is None:
            return None

        def observe(config, state, *shown):
            def one(config, state):
                key = jax.random.fold_in(self._run_key(config), 2)
                key = jax.random.fold_in(key, state.step)
                return self.stage.observe(config, state, key, *shown)

            return self._replicate(self._over_points(one)(config, state))

        return jax.jit(observe)

    @functools.cached_property
    def snapshot(self):
        """Compiled `state -> (a copy, whether it is finite)`, a flag for each point."""

        def one(state: PyTree) -> Bool[Array, ""]:
            floats = [
                x
                for x in jax.tree.leaves(state)
                if jnp.issubdtype(x.dtype, jnp.inexact)
            ]
            return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in floats]))

        def snapshot(state):
            copy = jax.tree.map(jnp.copy, state)
            if self.points is not None and not processes.alone():
                copy = self._replicate(copy)  # Each process takes it apart by itself.
            return copy, self._replicate(self._over_points(one)(state))

        return jax.jit(snapshot)

    def _init_one(self, config, *previous):
        key = jax.random.fold_in(self._run_key(config), 0)
        return _strongly_typed(self.stage.init(config, key, *previous))

    def _step_one(self, config, resident, state, inputs):
        key = jax.random.fold_in(self._run_key(config), 1)
        batch_key, step_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = self.assemble(config, resident, inputs, batch_key)
        if self.points is None:
            batch = self.layout.split_batch(batch, self.batch_size)
        state, metrics = self.stage.train_step(config, state, batch, step_key)
        return _strongly_typed(state), metrics

    def _run_key(self, config):
        return jax.random.fold_in(jax.random.key(config.seed), self.index)

    def _over_points(self, function, shared: tuple[int, ...] = ()):
        """Maps a function over stacked runs; the arguments `shared` are not stacked."""
        if self.points is None:
            return function

        def mapped(*args):
            axes = tuple(None if i in shared else 0 for i in range(len(args)))
            with stacked():
                return jax.vmap(function, in_axes=axes)(*args)

        return mapped

    def _replicate(self, tree):
        return jax.lax.with_sharding_constraint(tree, self.layout.replicated)


def _strongly_typed(tree: PyTree) -> PyTree:
    """Drops weak types, so that a restored state runs the same program."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), tree)


_cached = functools.lru_cache(maxsize=256)(Program)


def program(
    stage: Stage,
    index: int,
    layout: Layout,
    points: int | None,
    batches: Any,
) -> Program:
    """Returns the program of a stage, the same object for the same arguments.

    Args:
      stage: the stage.
      index: its place in the experiment, which its random keys depend on.
      layout: the devices.
      points: how many runs are stacked; None for one run, unstacked.
      batches: the stage's training batches.
    """
    size, assemble = batches.batch_size, batches.assemble
    return _cached(stage, index, layout, points, size, assemble)
