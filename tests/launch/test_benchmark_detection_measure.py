"""The benchmark of the measure of detection, on a small set."""

from launch.benchmark_detection_measure import evaluation


def test_both_measure_the_same_and_take_some_time():
    assert min(evaluation(images=20)) > 0
