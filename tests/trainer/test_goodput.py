"""Time by purpose: every second once, over all launches, whatever became of their records."""

import json
from types import SimpleNamespace

import pytest

from t5x_lite.trainer import goodput as goodputs
from t5x_lite.trainer.goodput import Goodput, TimeLedger, read_launches
from t5x_lite.training.callbacks import StepInfo


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances only when it is called: clock(3.0)."""
    now = [1000.0]

    def advance(seconds):
        now[0] += seconds

    names = ("perf_counter", "monotonic", "time")
    monkeypatch.setattr(goodputs, "time", SimpleNamespace(**{n: lambda: now[0] for n in names}))
    advance.now = now
    return advance


def moment(step):
    return StepInfo(step, None, {}, {}, {}, {})


def test_every_second_goes_to_one_purpose(clock):
    ledger = TimeLedger(clock.now[0] - 5)
    ledger.charge_elapsed_to("restoring")
    clock(2)
    ledger.charge_elapsed_to("compiling")
    ledger.switch_to("steps")
    clock(3)
    with ledger.spending("evaluating"):
        clock(4)
        with ledger.spending("saving"):
            clock(1)
        clock(4)
    clock(6)
    assert ledger.current == ("steps", 6)
    items = ledger.timed_items((clock(7) for _ in range(2)), "waiting for data")
    for _ in items:
        clock(1)
    seconds = {name: each for name, each in ledger.seconds.items() if each}
    assert seconds == {
        "restoring": 5,
        "compiling": 2,
        "steps": 3 + 6 + 2,
        "evaluating": 8,
        "saving": 1,
        "waiting for data": 14,
    }


def take_steps(goodput, clock, steps, seconds=1.0):
    for step in steps:
        goodput.before_step(step, None)
        clock(seconds)
        goodput.after_step(moment(step))


def test_steps_that_were_lost_and_the_time_between_launches_are_losses(clock, tmp_path):
    with Goodput(tmp_path, TimeLedger(clock.now[0])) as first:
        take_steps(first, clock, range(1, 31))
    clock(100)
    second = Goodput(tmp_path, TimeLedger(clock.now[0]))
    with second:
        take_steps(second, clock, range(21, 41))
    spent = {name: each for name, each in second.seconds().items() if each}
    # The first step of a launch is part of its start-up.
    assert spent == {"steps": 29 + 10, "recomputed steps": 9, "start-up": 2, "down": 100}
    assert second.fractions()["steps"] == pytest.approx(39 / 150)
    assert second.line().startswith(
        "goodput 26.0%: 39.0 s of training steps in 2 min 30 s over 2 launches"
    )


def test_a_killed_launch_has_left_its_last_seconds_to_a_few(clock, tmp_path):
    killed = Goodput(tmp_path, TimeLedger(clock.now[0]))
    killed.__enter__()
    take_steps(killed, clock, range(1, 28))
    (record,) = read_launches(tmp_path)
    assert 17 <= record["step"] <= 27
    assert 17 <= sum(record["seconds"].values()) <= 27


@pytest.mark.parametrize("content", ["", "[]", '{"began": 1}', "\0"])
def test_a_record_that_cannot_be_read_is_left_out(content, clock, tmp_path):
    with Goodput(tmp_path, TimeLedger(clock.now[0])):
        pass
    (tmp_path / "goodput" / "1.json").write_text(content)
    assert len(read_launches(tmp_path)) == 1


def test_a_disk_that_is_full_ends_no_run(clock, tmp_path):
    (tmp_path / "goodput").write_text("a file where the folder would be")
    with Goodput(tmp_path, TimeLedger(clock.now[0])) as goodput:
        take_steps(goodput, clock, range(1, 31))
    assert goodput.seconds()["steps"] == 29


def test_numbers_of_purposes_are_reported_with_each_line(clock, tmp_path):
    reported = {}
    with Goodput(tmp_path, TimeLedger(clock.now[0])) as goodput:
        take_steps(goodput, clock, range(1, 5))
        goodput.on_log(4, {}, lambda kind, numbers: reported.update({kind: numbers}))
    assert reported["goodput"]["share"] == pytest.approx(3 / 4)
    assert json.loads(json.dumps(reported))["goodput"]["waiting_for_data"] == 0
