"""What the seeds of a setting learned on tapes, read and drawn."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from dl_core.pictures_tapes import Seeds, amount, compared, learned
from dl_core.results import Run, Runs


def run(status, steps, wrong):
    config = {"task.name": "copy", "task.longest": 0, "batch_size": 4, "longer": [9]}
    rows = [{"step": step, "test/bits": 8.0 - step / 500} for step in steps]
    rows.insert(1, {"step": 250, "train/bits": 1.0})
    metrics = {"longer/error_bits_9": wrong}
    return Run(config, rows, {"status": status, "metrics": metrics})


@pytest.fixture
def seeds():
    runs = Runs([run("diverged", (0, 500), 1.0), run("done", (0, 500, 1_000), 36.0)])
    return Seeds.of(runs, "test/bits")


def test_a_run_that_diverged_is_read_up_to_there(seeds):
    np.testing.assert_array_equal(seeds.seen, [0, 2, 4])
    np.testing.assert_array_equal(seeds.bits, [[8, 7, np.nan], [8, 7, 6]])
    np.testing.assert_array_equal(seeds.wrong, [[np.nan], [36]])
    assert (seeds.said, seeds.longest) == ([8 * 9], 20)


def test_its_end_is_marked_and_its_wrong_bits_are_not_hidden(seeds):
    fig = learned({"copy": seeds}, threshold=0.3)
    above, below = fig.axes
    (end,) = (line for line in above.lines if line.get_marker() == "x")
    assert end.get_xydata().tolist() == [[2, 7]]
    assert below.get_title() == "wrong of the 72 bits of size 9:\n36, diverged"
    plt.close(fig)
    fig, ax = plt.subplots()
    compared(ax, {"copy": seeds}, optimum=5.0)
    assert ax.get_yscale() == "linear"
    plt.close(fig)


def test_an_amount_is_0_only_without_any_wrong_bit():
    assert [amount(x) for x in (0, 0.1, 9.96, 480.3)] == ["0", "0.1", "10.0", "480"]
