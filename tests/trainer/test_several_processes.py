"""Training in several processes: the same bits, stopped together, found dead, started again."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.io.metric_writers import read_metrics
from t5x_lite.reporting.results import read_results

ROOT = Path(__file__).parents[2]
SMALL = {
    "TRAIN_STEPS": 12,
    "BATCH_SIZE": 8,
    "TASK_FEATURE_LENGTHS": "{'inputs': 32, 'targets': 16}",
    "EmbeddedCorpus.vocab_size": 412,
    "EmbeddedCorpus.packages": "('gin', 'beartype')",
    "TransformerConfig.emb_dim": 32,
    "TransformerConfig.num_heads": 4,
    "TransformerConfig.head_dim": 8,
    "TransformerConfig.mlp_dim": 64,
    "TransformerConfig.vocab_size": 512,
    "TransformerConfig.dtype": "float32",
    "TransformerConfig.dropout_rate": 0.1,
    "CHECKPOINT_PERIOD": 4,
    "EVAL_PERIOD": 100,
    "Evaluation.max_examples": 16,
    "Evaluation.samples": 1,
    "train.log_every_steps": 1,
    "CheckpointPolicy.keep": None,
}


class Pod:
    """A simulated pod that trains; its lines as they come."""

    def __init__(self, model_dir, data_dir, *, processes, devices, flags=(), missing=8, **gin):
        settings = {**SMALL, "MODEL_DIR": model_dir, "DATA_DIR": data_dir, **gin}
        command = [
            *(sys.executable, "launch/local_pod.py"),
            *(f"--processes={processes}", f"--devices={devices}", "--no_doctor", *flags, "--"),
            *("t5x_lite", "train", "--gin_file=recipes/tiny_embedded.gin"),
            f"--missing_seconds={missing}",
            *(f"--gin.{name}={value}" for name, value in settings.items()),
        ]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        with self._process.stdout as said:
            for line in said:
                self._lines.put(line)
        self._lines.put(None)

    def until(self, pattern, seconds=400):
        """The first match in what is said from now on."""
        end = time.monotonic() + seconds
        while (line := self._lines.get(timeout=max(0.1, end - time.monotonic()))) is not None:
            self.said += line
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"never said {pattern!r}:\n{self.said}")

    def pids(self):
        return [
            int(n)
            for n in re.findall(r"\d is (\d+)", self.until(r"local_pod: process 0 is").string)
        ]

    def send(self, number):
        self._process.send_signal(number)

    def close(self):
        """Kill what still runs: the launcher's processes end with it."""
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def end(self, seconds=400):
        """The exit code."""
        end = time.monotonic() + seconds
        while (line := self._lines.get(timeout=max(0.1, end - time.monotonic()))) is not None:
            self.said += line
        return self._process.wait()


@pytest.fixture
def pod(data_dir, tmp_path, monkeypatch):
    """Start a pod in a directory: pod("run", processes=2, devices=4, TRAIN_STEPS=6)."""
    import jax

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    started = []

    def start(name, **settings):
        started.append(Pod(tmp_path / name, data_dir, **settings))
        return started[-1]

    yield start
    for each in started:
        each.close()


def losses(model_dir):
    return {r["step"]: r["loss"] for r in read_metrics(model_dir) if r["kind"] == "train"}


def assert_same(weights, one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
    assert losses(one) == losses(other)


def test_a_signal_to_one_of_two_stops_both_and_one_alone_goes_on_to_the_bit(pod, tmp_path, weights):
    mesh = "{'data': 2, 'tensor': 2}"
    stopped = pod("run", processes=2, devices=2, missing=60, MESH=mesh)
    pids = stopped.pids()
    stopped.until(r"\[0\] step 2/12")
    os.kill(pids[1], signal.SIGTERM)
    assert stopped.end() == 75
    after = re.search(r"\[0\] stopped after step (\d+) \(SIGTERM to process 1 on", stopped.said)
    assert 2 <= int(after[1]) < 12
    assert stopped.said.count("ended with code 75") == 2
    assert "[1] step" not in stopped.said
    going_on = pod("run", processes=1, devices=4, MESH=mesh)
    assert going_on.end() == 0, going_on.said
    assert f"resuming from step {after[1]} of 12" in going_on.said
    assert re.search(r"goodput \d+\.\d%: .* over 2 launches", going_on.said)
    assert read_results(tmp_path / "run")["goodput"]["steps"] > 0
    undisturbed = pod("undisturbed", processes=1, devices=4, MESH=mesh)
    assert undisturbed.end() == 0, undisturbed.said
    assert_same(weights, tmp_path / "run", tmp_path / "undisturbed")


@pytest.mark.slow
def test_the_number_of_processes_changes_no_bit(pod, tmp_path, weights):
    for processes in (1, 2, 4):
        run = pod(str(processes), processes=processes, devices=8 // processes, TRAIN_STEPS=6)
        assert run.end() == 0, run.said
    assert_same(weights, tmp_path / "1", tmp_path / "2")
    assert_same(weights, tmp_path / "1", tmp_path / "4")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_others_end_and_all_start_again_to_the_same_end(
    victim, pod, tmp_path, weights
):
    run = pod("run", processes=2, devices=4, flags=["--restarts=1"])
    pids = run.pids()
    run.until(r"\[0\] step 6/12")
    os.kill(pids[victim], signal.SIGKILL)
    assert run.end() == 0, run.said
    assert f"process {victim} was killed by SIGKILL" in run.said
    if victim == 1:  # without process 0 jax ends the others itself
        assert re.search(r"\[0\] t5x_lite: process 1 on .*: no heartbeat for 8 s", run.said)
    assert "restarting all processes (1 of 1)" in run.said
    assert "resuming from step 4 of 12" in run.said
    undisturbed = pod("undisturbed", processes=2, devices=4)
    assert undisturbed.end() == 0, undisturbed.said
    assert_same(weights, tmp_path / "run", tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_stands_still_is_named_killed_and_started_again(victim, pod, tmp_path):
    run = pod("run", processes=2, devices=4, flags=["--restarts=1", "--grace=5"])
    pids = run.pids()
    run.until(r"\[0\] step 6/12")
    os.kill(pids[victim], signal.SIGSTOP)
    assert run.end() == 0, run.said
    other = 1 - victim
    assert re.search(rf"\[{other}\] t5x_lite: process {victim} on .* for 8 s; .* code 75", run.said)
    assert f"killing process {victim}, still running" in run.said
    assert len(losses(tmp_path / "run")) == 12


@pytest.mark.slow
def test_processes_agree_on_what_time_alone_makes_them_save(pod, tmp_path):
    """Were each to ask its own clock, one would save a step that the other does not."""
    policy = {"CheckpointPolicy.every_minutes": 0.005, "CHECKPOINT_PERIOD": 10_000}
    run = pod("run", processes=2, devices=2, TRAIN_STEPS=40, MESH="{'data': -1}", **policy)
    assert run.end() == 0, run.said
    saved = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert 40 in saved
    assert len(saved) > 1


@pytest.mark.slow
def test_all_killed_at_once_go_on_from_the_last_checkpoint(pod, tmp_path, weights):
    run = pod("run", processes=2, devices=4)
    run.until(r"\[0\] step 9/12")
    run.send(signal.SIGKILL)  # and with it both
    run.end()
    again = pod("run", processes=4, devices=2)
    assert again.end() == 0, again.said
    assert "resuming from step 8 of 12" in again.said
    undisturbed = pod("undisturbed", processes=2, devices=4)
    assert undisturbed.end() == 0, undisturbed.said
    assert_same(weights, tmp_path / "run", tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_run_that_does_not_come_on_leaves_its_stacks_and_ends_to_be_started_again(pod):
    run = pod("run", processes=1, devices=8, **{"HangTimeouts.step_seconds": 0.001})
    assert run.end() == 75
    assert re.search(r"watchdog: .* without progress; the stacks of all threads", run.said)
    assert "Current thread" in run.said or "most recent call first" in run.said
