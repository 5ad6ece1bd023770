"""Where arrays live: one mesh of devices with a `data` and a `model` axis.

Batches are split over `data`. A state is copied to every device, unless `fsdp` splits
its large arrays over `data` too, or a `model` axis longer than one splits their last
dimension; XLA inserts the communication, so the numbers are those of one device.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from dl_core.errors import UserError
from dl_core.train import processes

_SMALL = 4096  # Elements below which splitting an array costs more than it saves.


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and how states and batches are split over it."""

    mesh: Mesh
    fsdp: bool = False

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of what every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def state(self, abstract: PyTree, points: int | None) -> PyTree[NamedSharding]:
        """Returns the sharding of each leaf of a state.

        Args:
          abstract: the state's shapes.
          points: how many runs are stacked in the leading axis; None for one run.
        """
        if points is None:
            return jax.tree.map(lambda x: self._leaf(x.shape), abstract)
        return jax.tree.map(lambda x: self.points(points), abstract)

    def points(self, count: int) -> NamedSharding:
        """Returns the sharding of arrays whose leading axis is over stacked runs."""
        fits = count % self.mesh.shape["data"] == 0
        return NamedSharding(self.mesh, PartitionSpec("data" if fits else None))

    def place(self, tree: PyTree, sharding: NamedSharding) -> PyTree[jax.Array]:
        """Puts arrays that every process holds whole where they belong."""
        if processes.alone():
            return jax.device_put(tree, sharding)

        def put(x: Any) -> jax.Array:
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

        return jax.tree.map(put, tree)

    def split(self, tree: PyTree, batch_size: int, axis: int) -> PyTree[jax.Array]:
        """Splits host inputs over `data`.

        Args:
          tree: arrays with the examples of a batch in one axis, or a process's share of
            them, or without examples, which are then copied to every device.
          batch_size: examples in a batch, of all processes together.
          axis: of the examples.

        Raises:
          UserError: if the batch cannot be split so.
        """
        examples = NamedSharding(self.mesh, PartitionSpec(*[None] * axis, "data"))
        here = batch_size // jax.process_count()

        def put(x: Any) -> jax.Array:
            x = np.asarray(x)
            if x.ndim <= axis or x.shape[axis] not in (here, batch_size):
                return self.place(x, self.replicated)
            if x.shape[axis] == batch_size:
                return self.place(x, examples)
            self._require_shares()
            return jax.make_array_from_process_local_data(examples, x)

        return jax.tree.map(put, tree)

    def whole(self, tree: PyTree, batch_size: int, axis: int) -> PyTree[np.ndarray]:
        """Gathers host inputs of which each process may hold its share only.

        Args:
          tree: as for `split`.
          batch_size: examples in a batch, of all processes together.
          axis: of the examples.
        """
        if processes.alone():
            return tree
        here = batch_size // jax.process_count()

        def gather(x: Any) -> np.ndarray:
            x = np.asarray(x)
            if x.ndim <= axis or x.shape[axis] != here:
                return x
            return np.concatenate(multihost_utils.process_allgather(x), axis)

        return jax.tree.map(gather, tree)

    def divides(self, batch_size: int) -> bool:
        """Returns whether a batch can be split evenly over `data`."""
        return batch_size % self.mesh.shape["data"] == 0

    def require_divides(self, batch_size: int) -> None:
        """Checks that a batch can be split evenly over `data`.

        Raises:
          UserError: if it cannot.
        """
        count = self.mesh.shape["data"]
        if not self.divides(batch_size):
            raise UserError(
                f"a batch of {batch_size} examples cannot be split over {count} "
                f"devices; give --config.batch_size a multiple of {count}, or --devices"
            )

    def _require_shares(self) -> None:
        model, here = self.mesh.shape["model"], jax.local_device_count()
        if model > here:
            raise UserError(
                f"--model_axis={model}: examples that are read as they are needed are "
                f"split by process, which has {here} devices; give at most {here}"
            )

    def split_batch(self, batch: PyTree, batch_size: int) -> PyTree:
        """Inside a compiled step: splits the examples of a batch over `data`."""
        split = NamedSharding(self.mesh, PartitionSpec("data"))

        def constrain(x):
            if x.ndim and x.shape[0] == batch_size:
                return jax.lax.with_sharding_constraint(x, split)
            return x

        return jax.tree.map(constrain, batch)

    def _leaf(self, shape: tuple[int, ...]) -> NamedSharding:
        spec: list[str | None] = [None] * len(shape)
        if np.prod(shape) >= _SMALL:
            sizes = self.mesh.shape
            if sizes["model"] > 1 and shape[-1] % sizes["model"] == 0:
                spec[-1] = "model"
            if self.fsdp:
                free = [i for i, name in enumerate(spec) if name is None]
                fitting = [i for i in free if shape[i] % sizes["data"] == 0]
                if fitting:
                    spec[max(fitting, key=lambda i: shape[i])] = "data"
        return NamedSharding(self.mesh, PartitionSpec(*spec))


def make_layout(
    devices: int | None = None, model: int = 1, *, fsdp: bool = False
) -> Layout:
    """Returns a layout over the first `devices` devices (default: all).

    Args:
      devices: how many devices take part.
      model: length of the `model` axis.
      fsdp: split large arrays of the state over the `data` axis.

    Raises:
      UserError: if there are fewer devices, or `model` does not divide their number.
    """
    available = jax.devices()
    count = len(available) if devices is None else devices
    if not 0 < count <= len(available):
        raise UserError(f"--devices={devices}: there are {len(available)} devices")
    if count < len(available) and not processes.alone():
        raise UserError(
            f"--devices={devices}: many processes use all of their "
            f"{len(available)} devices"
        )
    if model < 1 or count % model:
        raise UserError(f"--model_axis={model} does not divide {count} devices")
    mesh = jax.make_mesh(
        (count // model, model),
        ("data", "model"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=available[:count],
    )
    return Layout(mesh, fsdp)
