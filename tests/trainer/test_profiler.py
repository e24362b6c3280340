"""Traces of steps, by configuration and by signal."""

import os
import signal

import pytest

from t5x_lite.errors import ConfigError
from t5x_lite.trainer.profiler import Profile, Profiler
from t5x_lite.training.callbacks import StepInfo

NOWHERE = {"format": 1, "window": 0, "row": 0, "drawn": {}}


@pytest.fixture
def traced(monkeypatch, tmp_path):
    """Run a profiler over nine steps; returns what was started and ended before which step."""
    import jax

    def run(profile, signal_at=None, steps=9):
        happened = []
        monkeypatch.setattr(jax.profiler, "start_trace", lambda _: happened.append(("start", step)))
        monkeypatch.setattr(jax.profiler, "stop_trace", lambda: happened.append(("end", step)))
        with Profiler(profile, tmp_path) as profiler:
            for step in range(1, steps + 1):
                if step == signal_at:
                    os.kill(os.getpid(), signal.SIGUSR1)
                profiler.before_step(step, ())
                profiler.after_step(StepInfo(step, (), {}, NOWHERE, NOWHERE, {}))
        return happened

    return run


def test_the_steps_asked_for_are_traced(traced):
    assert traced(Profile(first_step=3, steps=2)) == [("start", 3), ("end", 4)]


def test_without_a_wish_nothing_is_traced(traced):
    assert traced(Profile()) == []


def test_a_signal_traces_the_steps_that_follow(traced):
    assert traced(Profile(steps=3), signal_at=5) == [("start", 5), ("end", 7)]


def test_a_trace_that_the_run_outlives_not_is_ended_with_it(traced):
    assert traced(Profile(first_step=8, steps=5)) == [("start", 8), ("end", 9)]


@pytest.mark.parametrize("changes", [dict(first_step=0), dict(steps=0)])
def test_impossible_steps_are_refused(changes):
    with pytest.raises(ConfigError, match=r"must be .* got 0") as error:
        Profile(**changes)
    assert error.value.names == tuple(f"Profile.{name}" for name in changes)


def test_a_run_leaves_a_trace_that_tensorboard_reads(train_small, tmp_path, log_lines):
    train_small(tmp_path, steps=3, profile=Profile(first_step=2, steps=1))
    traces = list((tmp_path / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb"))
    assert len(traces) == 1
    assert traces[0].stat().st_size > 1000
    assert [line for line in log_lines if line.startswith("wrote a trace")]
