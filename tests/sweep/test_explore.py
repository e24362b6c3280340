"""`t5x_lite explore` as a person runs it: a grid of two rows and seeds, killed, gone on with."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUDY = """
include "explore/base.gin"

Sweep.name = "grid"
Sweep.baseline = "spans"
Sweep.rows = {
    "spans": [],
    "deshuffling": [
        "objectives/deshuffling.gin",
        "LENGTHS_OF_512 = {'inputs': 512, 'targets': 512}",
    ],
}
Sweep.pretrain = %SHORT
Sweep.finetune = %SHORT
SHORT = ["TRAIN_STEPS = 4", "CHECKPOINT_PERIOD = 2", "EVAL_PERIOD = 2", "BATCH_SIZE = 4"]
SHARED_BINDINGS = [
    "EmbeddedCorpus.packages = ('gin', 'beartype')",
    "EmbeddedCorpus.vocab_size = 412",
    "TransformerConfig.vocab_size = 512",
    "Evaluation.max_examples = 8",
]
SEEDS = 2
tiny/Scale.tasks = {"name": ["MIXTURE_OR_TASK_NAME = 'embedded_name'"]}
tiny/Scale.columns = {"name loss": ("name", "embedded_name/loss")}
"""


@pytest.fixture
def start(tmp_path):
    """Start the command over an output: start("one", "--jobs=2")."""
    (tmp_path / "grid.gin").write_text(STUDY)
    started = []

    def run(output, *flags):
        command = [sys.executable, "-m", "t5x_lite", "explore", f"--gin_file={tmp_path}/grid.gin"]
        process = subprocess.Popen(
            [*command, f"--output={tmp_path / output}", *flags],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in (each for each in started if each.poll() is None):
        process.kill()
        process.communicate()


def end(process, code):
    text, _ = process.communicate()
    assert process.returncode == code, text
    return text


def results(directory):
    """All that a study says of its rows, but for the time they took."""
    found = json.loads((directory / "tiny" / "grid.json").read_text())
    for row in found["rows"]:
        for seed in row["seeds"]:
            del seed["seconds"]
    return found


def test_mistakes_are_told_with_the_flag_before_anything_runs(start):
    text = end(start("one", "--only=shuffling"), 2)
    assert "only is 'shuffling'; expected one of the rows spans, deshuffling" in text
    assert "explore.only is set by flag --gin.explore.only=shuffling" in text


def test_rows_are_handed_off_with_the_flags_they_were_given(start, tmp_path):
    assert "sbatch --array=1-4" in end(start("one", "--write_jobs=slurm", "--jobs=2"), 0)
    rows = (tmp_path / "one" / "tiny" / "grid.rows").read_text().splitlines()
    assert rows[1].startswith(f"explore --gin_file={tmp_path}/grid.gin --output={tmp_path}/one ")
    assert rows[1].endswith("--only=deshuffling --seed=0")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_grid_killed_at_random_ends_in_the_table_of_the_undisturbed_one(start, tmp_path):
    end(start("undisturbed", "--jobs=2"), 0)
    chance, killed = random.Random(0), 0
    for _ in range(4):
        process = start("killed", f"--jobs={chance.choice((1, 2))}")
        try:
            process.communicate(timeout=chance.uniform(15, 45))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
    end(start("killed"), 0)
    assert killed
    expected = results(tmp_path / "undisturbed")
    assert results(tmp_path / "killed") == expected
    states = [seed["state"] for row in expected["rows"] for seed in row["seeds"]]
    assert states == ["done"] * 4
    scores = {seed["scores"]["name loss"] for row in expected["rows"] for seed in row["seeds"]}
    assert len(scores) == 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_budget_stops_in_good_order_and_the_next_call_goes_on(start, tmp_path):
    text = end(start("one", "--budget=0.3", "--only=spans", "--seed=0"), 75)
    assert "the same command runs the remaining jobs" in text
    end(start("one", "--only=spans", "--seed=0"), 0)
    (row, other) = results(tmp_path / "one")["rows"]
    assert [seed["state"] for seed in row["seeds"]] == ["done", "unfinished"]
    assert {seed["state"] for seed in other["seeds"]} == {"unfinished"}
