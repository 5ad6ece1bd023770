"""Checkpoints of one run, by Orbax: asynchronous, atomic, pruned.

A step counts as saved only once all of it is on the disk; what a killed or failed save
left behind is ignored and cleaned up. What cannot be read is set aside, not removed.
"""

import contextlib
import errno
import hashlib
import os
import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from dl_core.errors import UserError
from dl_core.train import processes

ASIDE = "unreadable"
"""The folder beside the checkpoints for those that could not be read."""

_NUMBERS = ["EACCES", "EPERM", "EIO", "EMFILE", "ENFILE", "ENOMEM", "ESTALE"]
_PASSING = (
    *("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED"),
    *(os.strerror(getattr(errno, name)) for name in _NUMBERS),
)
"""What is said where a file may be whole, and cannot be read now."""


class SaveError(Exception):
    """A checkpoint could not be written; its text says which one and what remains."""


class OtherStateError(UserError):
    """A checkpoint is whole, and of a state of another structure than was asked for."""


class _Manager(ocp.CheckpointManager):
    """Leaves it to the loop to stop at a signal.

    Else it would tell JAX's watch of signals the training step, where the loop counts
    dispatches, and the processes of a run would stop at neither.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of a run, in a folder of their own."""

    def __init__(self, folder: pathlib.Path, keep: int = 2):
        """Args:
        folder: where they are; need not exist.
        keep: how many of the latest are kept.
        """
        self._folder = folder
        self._keep = keep
        self._opened: ocp.CheckpointManager | None = None

    @property
    def _manager(self) -> ocp.CheckpointManager:
        if self._opened is None:
            folder = self._folder.resolve()
            # Processes that save several runs at once wait for each other run by run.
            name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    barrier_sync_key_prefix=name
                ),
            )
            self._opened = _Manager(folder, options=options)
        return self._opened

    def steps(self) -> list[int]:
        """Returns the steps that are saved whole, in order."""
        if processes.alone() and not self._folder.exists():
            return []
        return processes.agreed(sorted(self._manager.all_steps()))

    def save(self, step: int, state: PyTree, about: dict[str, Any]) -> None:
        """Starts saving a state; returns once it may be changed.

        Args:
          step: the step it belongs to.
          state: the state.
          about: JSON values saved beside it.

        Raises:
          SaveError: if this save, or the one before it, fails.
        """
        try:
            if step not in self._manager.all_steps():
                self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(state),
                        about=ocp.args.JsonSave(about),
                    ),
                )
        except Exception as error:
            raise self._failed(error) from error

    def restore(self, step: int, abstract: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """Reads a checkpoint.

        Args:
          step: one of `steps()`.
          abstract: the shapes, types and shardings of the state, wherever it was saved.

        Returns:
          The state, and the JSON values saved beside it.

        Raises:
          ValueError: if the files are damaged.
          OtherStateError: if they are whole, and of a state of another structure.
          OSError: if they cannot be read now, and perhaps later.
        """
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract),
                    about=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:
            reason = _first_words(error)
            if self._differs(step, abstract):
                raise OtherStateError(
                    f"{self._folder / str(step)} holds another state than this code "
                    f"makes ({reason}): go back to the code that saved it, or give "
                    "another --name"
                ) from error
            if any(words in str(error) for words in _PASSING):
                raise OSError(
                    f"{self._folder / str(step)} cannot be read now: {reason}"
                ) from error
            raise ValueError(f"checkpoint {step} cannot be read: {reason}") from error
        state = jax.block_until_ready(restored["state"])
        return state, restored["about"]

    def discard(self, step: int, *, keep: bool = False) -> None:
        """Removes a checkpoint, or sets it aside.

        Args:
          step: one of `steps()`.
          keep: move it to the folder `ASIDE` beside this one.
        """
        self.close()
        if processes.is_first():
            path = self._folder / str(step)
            if keep:
                aside = self._folder.with_name(ASIDE)
                aside.mkdir(exist_ok=True)
                shutil.rmtree(aside / path.name, ignore_errors=True)
                path.rename(aside / path.name)
            else:
                shutil.rmtree(path)
        processes.meet(f"discarded {step}")

    def wait(self) -> None:
        """Waits until what was saved is on the disk.

        Raises:
          SaveError: if it could not be written.
        """
        if self._opened is not None:
            try:
                self._opened.wait_until_finished()
            except Exception as error:
                raise self._failed(error) from error

    def close(self) -> None:
        """Waits for the last save and lets go of the folder."""
        opened, self._opened = self._opened, None
        if opened is not None:
            try:
                opened.wait_until_finished()
            except Exception as error:
                raise self._failed(error) from error
            finally:
                # Lets its threads end; what failed has been said.
                with contextlib.suppress(Exception):
                    opened.close()

    def _differs(self, step: int, abstract: PyTree) -> bool:
        """Returns whether a checkpoint says that it is of another structure."""
        try:
            saved = self._manager.item_metadata(step)["state"].tree
            return _shapes(saved) != _shapes(abstract)
        except Exception:  # It is too damaged to say so.
            return False

    def _failed(self, error: Exception) -> SaveError:
        kept = [int(p.name) for p in self._folder.glob("*") if p.name.isdigit()]
        last = f"that of step {max(kept)}" if kept else "none"
        return SaveError(
            f"a checkpoint in {self._folder} could not be written "
            f"({_first_words(error)}); the last good one is {last}"
        )


def _shapes(tree: PyTree) -> dict[tuple[str, ...], tuple[int, ...] | None]:
    """Returns shapes by their places in a tree; None where a node is empty."""
    flat = ocp.tree.to_flat_dict(tree, keep_empty_nodes=True)
    # Saved arrays are told of by what has a shape and is no array.
    return {path: getattr(leaf, "shape", None) for path, leaf in flat.items()}


def _first_words(error: Exception) -> str:
    """Returns the beginning of an error's text; Orbax's can be very long."""
    full = os.strerror(errno.ENOSPC)
    if full in str(error):
        return full
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else line[:200] + "…"
