"""How many runs fit: held against the sizes of what they are made of."""

import collections

import jax
import numpy as np
import pytest
import tiny

from dl_core.config import replace
from dl_core.train import loop, memory
from dl_core.train.layout import make_layout

POINTS, WIDTH = 8, 256
STATE = 2 * 4 * WIDTH**2
"""Bytes of a run's weights and their momentum."""


def configs_of(count=POINTS, **changes):
    return [replace(tiny.Config(), {"seed": i} | changes) for i in range(count)]


def at_once(limit, experiment=tiny.TINY, **changes):
    configs = configs_of(**changes)
    return memory.points_at_once(experiment, configs, make_layout(), None, 1, limit)


def test_what_fits_follows_from_the_size_of_the_states():
    found = [at_once(n * STATE, width=WIDTH) for n in (1, 12, 20, 1_000)]
    assert found[0] == 1
    assert found[-1] == POINTS
    assert found == sorted(found)
    # A run takes its state at least twice, to be saved, and a few arrays besides.
    assert 1 <= found[1] <= 6
    assert found[1] < POINTS


def test_parts_are_of_one_size():
    sizes = {at_once(int(n * STATE), width=WIDTH) for n in np.arange(2, 40, 2.5)}
    assert sizes <= {1, 2, 3, 4, POINTS}
    assert len(sizes) > 2


@pytest.mark.parametrize("experiment", [tiny.TINY, tiny.IN_STAGES])
def test_all_stages_count_and_without_a_limit_small_runs_fit(experiment):
    configs = [experiment.config_class(seed=i) for i in range(4)]
    layout = make_layout()
    assert memory.points_at_once(experiment, configs, layout, None, 1) == 4
    assert memory.points_at_once(experiment, configs, layout, None, 1, 1) == 1


def test_training_finds_what_was_compiled(tmp_path):
    compiled = []

    def listen(event, seconds, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(about["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    configs, layout = configs_of(3, width=7), make_layout()
    runs = {tmp_path / str(i): config for i, config in enumerate(configs)}
    try:
        assert memory.points_at_once(tiny.TINY, configs, layout, None, 1) == 3
        outcomes = tiny.train(tiny.TINY, runs, layout=layout)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert {outcome.status for outcome in outcomes} == {loop.DONE}
    counts = collections.Counter(compiled)
    assert counts["jit(step_all)"] == counts["jit(observe)"] == 1, counts
    assert counts["jit(evaluate)"] == 2, counts  # Its two sets differ in size.


@pytest.mark.parametrize(("most", "found"), [(3, 2), (4, 4), (1, 1)])
def test_what_the_compiler_refuses_is_halved_until_it_does_not(
    monkeypatch, most, found
):
    compiled = jax.stages.Lowered.compile

    def compile_few(self, *args, **options):
        points = jax.tree.leaves(self.in_avals)[0].shape[0]
        if points > most:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return compiled(self, *args, **options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_few)
    assert at_once(2**40) == found


def test_main_memory_is_known():
    assert 2**20 < memory.available() < 2**50
