"""The watchdog: which limit holds when, and that it aborts."""

import threading
import time

import pytest

from t5x_lite.errors import ConfigError
from t5x_lite.trainer import watchdog
from t5x_lite.trainer.goodput import TimeLedger
from t5x_lite.trainer.watchdog import HangTimeouts, Watchdog


@pytest.fixture
def aborted(monkeypatch):
    """Why the watchdog aborted: waits until it does."""
    reasons, called = [], threading.Event()

    def abort(what):
        reasons.append(what)
        called.set()

    monkeypatch.setattr(watchdog, "abort", abort)
    return lambda: called.wait(30) and reasons[0]


@pytest.mark.parametrize(
    ("limit", "purpose"),
    [
        ("start_seconds", "start-up"),
        ("step_seconds", "steps"),
        ("step_seconds", "waiting for data"),
        ("other_seconds", "saving"),
    ],
)
def test_what_takes_longer_than_its_limit_is_aborted(limit, purpose, aborted):
    ledger = TimeLedger(time.perf_counter())
    with Watchdog(HangTimeouts(**{limit: 0.01}), ledger):
        ledger.switch_to(purpose)
        assert repr(purpose) in aborted()


def test_what_went_before_is_not_held_against_the_start():
    """The data of a run may have taken days to make."""
    ledger = TimeLedger(time.perf_counter() - 1e6)
    with Watchdog(HangTimeouts(), ledger):
        purpose, seconds = ledger.current
    assert purpose == "start-up"
    assert seconds < 1e5
    assert ledger.seconds["start-up"] > 1e5


def test_limits_that_make_no_sense_are_named():
    with pytest.raises(
        ConfigError, match=r"start_seconds must be None or positive; got -1.0"
    ) as error:
        HangTimeouts(start_seconds=-1.0)
    assert "HangTimeouts.start_seconds" in error.value.names
