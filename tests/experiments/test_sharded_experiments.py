"""Every experiment, split over two devices in each way, is that of one device."""

import os
import sys

import processes
import pytest
import sharded_experiment
import tiny

from launch import registry

TWO = {
    "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=2"
}


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.names())
def test_split_over_devices_it_is_that_of_one(name, tmp_path, data_dir):
    paths = os.pathsep.join(filter(None, sys.path))
    script = sharded_experiment.__file__
    arguments = (script, name, tmp_path, data_dir)
    result = processes.start_python(*arguments, PYTHONPATH=paths, **TWO).wait(900)
    assert result.code == 0, result.stderr
    for layout in sharded_experiment.LAYOUTS:
        tiny.assert_close_losses(tmp_path / layout, tmp_path / "one", 1e-5, 1e-3)
