"""Options, type checking, and the data every test shares."""

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import pathlib
import sys
import tempfile
import typing

import jaxtyping
import psutil
import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

# The folders beside this file are named like the packages, and would be taken for them.
sys.path.append(str(pathlib.Path(__file__).parents[1]))

# Read when JAX is imported, here and in every process that the tests start: what one
# of them has compiled, none compiles again.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="jax-cache-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# Nearly all of the time would go into optimising programs that run for milliseconds.
_FAST = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # A third of the time of compiling with the new emitters; later ones know no others.
    _FAST.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_FAST))

jaxtyping.install_import_hook(["dl_core", "experiments"], "typecheck.check")

import jax  # noqa: E402

from dl_core.data import prepare  # noqa: E402
from dl_core.data.batches import Batches  # noqa: E402
from dl_core.train import program  # noqa: E402

typing.runtime_checkable(Batches)  # Else beartype cannot check who takes one.


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


class _InGroups(LoadScopeScheduling):
    """Sends what shares slow fixtures to one process: a file, or an experiment.

    It reads test ids: `--dist=loadgroup` leaves every test alone, and says nothing,
    where pytest keeps ids in a way that pytest-xdist 3.8 does not know.
    """

    def _split_scope(self, nodeid):
        file, _, test = nodeid.partition("::")
        if not file.endswith("test_contract.py"):
            return file
        return test.rstrip("]").partition("[")[2].partition("-")[0] or file


@pytest.hookimpl(optionalhook=True)  # Without pytest-xdist there is none such.
def pytest_xdist_auto_num_workers(config):
    # Many tests wait for processes that they have started: one more fills the gaps.
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    cores = psutil.Process().cpu_affinity() if psutil.LINUX else None
    return (len(cores) if cores else os.cpu_count() or 1) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    config.option.loadscopereorder = False  # Else what has most tests comes first.
    return _InGroups(config, log)


_LONG = ("test_slurm_sweep", "test_processes", "test_hostile", "test_run_bad_values")
"""Files that come first, so that in the end no process works while others wait."""


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.stem not in _LONG)
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))


_ENOUGH = 3 * 2**30
"""Bytes of memory from which on a process lets go of its compiled programs."""


@pytest.fixture(autouse=True)
def bounded_memory():
    """Keeps the thousands of programs of a whole run from filling a small machine."""
    yield
    if psutil.Process().memory_info().rss > _ENOUGH:
        program._cached.cache_clear()
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # Else freed memory stays ours.


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """The root of the data sets, `mnist_subset` prepared in it; for reading only."""
    root = tmp_path_factory.mktemp("data")
    prepare("mnist_subset", root, log=lambda line: None)
    return root
