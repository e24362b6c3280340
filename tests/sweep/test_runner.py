"""Runs of a study with a trainer that only counts: done once, gone on with, failing alone."""

import dataclasses
import json
import random
import re
import sys
import threading
import time

import pytest

from t5x_lite.sweep.runner import Runs, SweepJob, result_of, state_of
from t5x_lite.sweep.stages import Stage

# Counts its steps in a file, goes on where it stood, and ends with 75 when it is told to stop.
TRAINER = """
import json, pathlib, re, signal, sys, time
text = pathlib.Path(sys.argv[2].partition("=")[2]).read_text()
value = lambda name: json.loads(re.search(rf"^{name} = (.*)$", text, re.M)[1])
place = pathlib.Path(value("MODEL_DIR"))
with open(place.parent.parent / "starts", "a") as file:
    file.write(f"{place.name} {sys.argv[3:]}\\n")
if "FAIL" in text:
    print("Traceback ...\\nValueError: there is no such thing\\nat the end")
    sys.exit(1)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
count = place / "count"
step = int(count.read_text()) if count.exists() else 0
while step < value("STEPS"):
    time.sleep(0.01)
    step += 1
    count.write_text(str(step))
    if stopped:
        sys.exit(75)
loss = value("train.train.seed") + step
if "INITIAL_CHECKPOINT_PATH" in text:
    loss += int((pathlib.Path(value("INITIAL_CHECKPOINT_PATH")) / "count").read_text())
record = {"step": step, "kind": "validation/t", "loss": loss}
(place / "metrics.jsonl").write_text(json.dumps(record) + "\\n")
"""


def chain(row, seed, *lines):
    """Pretraining and fine-tuning of a row, the first of which rows "a" and "b" share."""
    first = Stage("train", f"{row}.s{seed}.pretrain", ("STEPS = 5",), seed, f"{seed:04d}")
    tuned = ("STEPS = 3", *lines)
    key = f"{row}{seed:03d}"
    return SweepJob(
        row,
        seed,
        [first, Stage("train", f"{row}.s{seed}.tuned", tuned, seed, key, "t", (first.key,))],
    )


GRID = [chain(row, seed) for seed in (0, 1) for row in ("a", "b")]


@pytest.fixture
def runs(tmp_path):
    """A function that gives new `Runs` over a directory."""
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)

    def make(name, **changes):
        return Runs(tmp_path / name, command=[sys.executable, str(script)], **changes)

    return make


def table(made):
    """What is left of the grid: a pair of figures for each job."""
    return {
        (job.row, job.seed): [result_of(made.folder(stage))["figures"] for stage in job.stages]
        for job in GRID
    }


def test_a_grid_is_done_once_and_what_rows_share_is_shared(runs, tmp_path):
    made = runs("grid", flags=["--gin_imports=x"])
    ended = []
    made.run_all(GRID, at_once=2, on_end=ended.append)
    assert sorted(ended) == sorted(GRID)
    starts = (tmp_path / "grid" / "starts").read_text().splitlines()
    assert len(starts) == 6  # two pretrainings, four fine-tunings
    assert all(start.endswith("['--gin_imports=x']") for start in starts)
    assert table(made)["a", 1] == [{5: {"t/loss": 6.0}}, {3: {"t/loss": 9.0}}]
    again = runs("grid")
    again.run_all(GRID, at_once=1, on_end=ended.append)
    assert len((tmp_path / "grid" / "starts").read_text().splitlines()) == 6


def test_a_row_that_fails_stops_no_other_and_is_tried_again(runs, log_lines):
    made = runs("grid")
    broken = chain("c", 0, "FAIL = 1")
    made.run_all([broken, *GRID], at_once=1, on_end=lambda job: None)
    ended = state_of(made.folder(broken.stages[1]))
    assert ended == ("failed", "exit code 1: ValueError: there is no such thing")
    assert "c, seed 0: c.s0.tuned failed: exit code 1" in log_lines[0]
    assert len(table(made)) == 4
    second = dataclasses.replace(broken.stages[1], lines=("STEPS = 3",))
    mended = SweepJob("c", 0, [broken.stages[0], second])
    made.run_all([mended], at_once=1, on_end=lambda job: None)
    assert state_of(made.folder(mended.stages[1])).state == "done"


@pytest.mark.parametrize("seed", range(3))
def test_a_grid_stopped_at_random_ends_as_if_undisturbed(runs, seed):
    undisturbed = runs("undisturbed")
    undisturbed.run_all(GRID, at_once=2, on_end=lambda job: None)
    chance, stops = random.Random(seed), 0
    while True:
        made = runs("stopped")
        timer = threading.Timer(chance.uniform(0.05, 0.4), made.stop.set)
        timer.start()
        made.run_all(GRID, at_once=chance.choice((1, 2)), on_end=lambda job: None)
        timer.cancel()
        if all(state_of(made.folder(s)).state == "done" for job in GRID for s in job.stages):
            break
        stops += 1
    assert stops
    assert table(made) == table(undisturbed)


def test_a_budget_that_is_spent_stops_in_good_order(runs, log_lines):
    made = runs("grid", stop_time=time.monotonic())
    made.run_all(GRID, at_once=1, on_end=lambda job: pytest.fail("nothing was to be done"))
    assert not log_lines


def test_the_configuration_of_a_run_can_be_given_to_the_command_again(runs):
    made = runs("grid", everywhere=["DATA_DIR = 'd'"])
    made.run_all(GRID[:1], at_once=1, on_end=lambda job: None)
    text = (made.folder(GRID[0].stages[1]) / "run.gin").read_text()
    assert text.index("STEPS = 3") < text.index("DATA_DIR") < text.index("MODEL_DIR")
    found = re.search(r'^INITIAL_CHECKPOINT_PATH = "(.*)"', text, re.MULTILINE)
    assert found
    assert json.loads(f'"{found[1]}"') == str(made.folder(GRID[0].stages[0]))
