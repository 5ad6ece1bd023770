"""TensorBoard's events hold the metrics of the rows, each once, also after a resume."""

import itertools
import struct
import types

import numpy as np
import pytest
import tiny
from tensorboardX.proto.event_pb2 import Event
from tiny import TINY, After, train

from dl_core.train.records import read_rows


@pytest.fixture
def clock(monkeypatch):
    """Sets the clock of the events: to go on at each look, or to stand still."""

    def set_clock(*, goes):
        times = itertools.count(10**9) if goes else itertools.repeat(10**9)
        fake = types.SimpleNamespace(time=lambda: float(next(times)))
        monkeypatch.setattr("tensorboardX.event_file_writer.time", fake)

    return set_clock


def events(path):
    """The events of a file: each a length, its checksum, the data, its checksum."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def shown(folder):
    """What TensorBoard shows: a session replaces all from the step it begins at."""
    points = []
    for path in sorted(folder.glob("events.out.*")):
        for event in events(path):
            if event.HasField("session_log"):
                points = [point for point in points if point[1] < event.step]
            for value in event.summary.value:
                points.append((value.tag, event.step, value.simple_value))
    return sorted(points)


def wanted(folder):
    points = []
    for row in read_rows(folder / "metrics.jsonl"):
        for name in row.keys() - {"step", "stage"}:
            if isinstance(row[name], list):
                parts = [(f"{name}/{i}", v) for i, v in enumerate(row[name])]
            else:
                parts = [(name, row[name])]
            points += [(part, row["step"], np.float32(v)) for part, v in parts]
    return sorted(points)


def test_events_are_the_rows(tmp_path):
    train(TINY, {tmp_path: tiny.Config()})
    assert shown(tmp_path) == wanted(tmp_path)
    assert len(shown(tmp_path)) > 20


@pytest.mark.parametrize("goes", [True, False], ids=["later", "in the same second"])
def test_events_of_a_resumed_run_are_the_rows(tmp_path, clock, goes):
    clock(goes=goes)
    train(TINY, {tmp_path: tiny.Config()}, After(6))
    train(TINY, {tmp_path: tiny.Config()}, After(1))
    train(TINY, {tmp_path: tiny.Config()})
    assert shown(tmp_path) == wanted(tmp_path)


def test_events_of_a_run_that_went_back_are_the_rows(tmp_path, clock):
    clock(goes=True)
    train(TINY, {tmp_path: tiny.Config()}, After(10))
    (tmp_path / "checkpoints/10/state/manifest.ocdbt").write_bytes(b"")
    train(TINY, {tmp_path: tiny.Config()})
    assert shown(tmp_path) == wanted(tmp_path)
