"""Tasks judged in the loop and by `t5x_lite evaluate`: the same numbers, whoever computes them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from t5x_lite.checkpoints.checkpointer import Checkpointer, CheckpointPolicy
from t5x_lite.decoding.generation import Generation
from t5x_lite.errors import ConfigError
from t5x_lite.evaluation.evaluate import evaluate
from t5x_lite.evaluation.evaluation_report import best_of_each_task, show_evaluation, write_records
from t5x_lite.evaluation.task_eval import TaskEvaluation
from t5x_lite.evaluation.validation_loss import Evaluation
from t5x_lite.io.metric_writers import read_metrics

ROOT = Path(__file__).parents[2]
GREEDY = Generation(max_length=8)
NAME = "metrics/embedded_name/sequence_accuracy"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where one run is kept for all tests of this file."""
    return tmp_path_factory.mktemp("evaluated") / "run"


@pytest.fixture
def judged(place, train_small):
    """A run of four steps, judged after the second and the fourth."""
    if not place.exists():
        train_small(
            place,
            steps=4,
            mesh={"data": 8},
            evaluation=Evaluation(period=2, max_examples=11, samples=0),
            task_evaluation=TaskEvaluation(generation=GREEDY, max_examples=11),
            checkpoints=CheckpointPolicy(period=2, keep=1, keep_best={NAME: "higher"}),
        )
    return place


@pytest.fixture
def look(judged, small_data):
    """Evaluate that run's checkpoints."""

    def run(**changes):
        settings = dict(
            model_dir=str(judged),
            data=small_data(),
            batch_size=8,
            mesh={"data": 8},
            generation=GREEDY,
            max_examples=11,
        )
        evaluate(**{**settings, **changes})

    return run


def lines(model_dir):
    return [json.loads(x) for x in (model_dir / "evaluations.jsonl").read_text().splitlines()]


def numbers(line):
    return {name: value for name, value in line.items() if not isinstance(value, str)}


def test_a_run_records_its_tasks_scores_and_keeps_the_best_by_them(judged):
    kinds = {r["kind"]: r for r in read_metrics(judged) if r["step"] == 4}
    assert kinds["metrics/embedded_name"].keys() == {"step", "kind", "sequence_accuracy"}
    rouge = kinds["metrics/embedded_summarize"]
    assert {"rouge1", "rouge2", "rougeLsum"} <= rouge.keys()
    assert all(0 <= rouge[name] <= 100 for name in ("rouge1", "rouge2", "rougeLsum"))
    with Checkpointer(judged) as saved:
        assert saved.best_step(NAME, "higher") in saved.steps


def test_evaluating_a_checkpoint_gives_the_numbers_of_the_loop(judged, look, capsys, log_lines):
    look()
    said = capsys.readouterr().out
    assert not [line for line in log_lines if "importing seqio" in line]
    in_loop = {r["kind"]: r for r in read_metrics(judged) if r["step"] == 4}
    for line in lines(judged):
        task = line["task"]
        loss = in_loop[f"validation/{task}"]["loss"]
        assert line["loss"] == pytest.approx(loss, rel=1e-5), task
        for name, value in in_loop.get(f"metrics/{task}", {}).items():
            assert name in ("step", "kind") or line[name] == pytest.approx(value), name
    assert {line["task"] for line in lines(judged)} == {
        "embedded_text",
        "embedded_summarize",
        "embedded_name",
    }
    assert "embedded_summarize/rouge1" in said
    assert "not evaluated, no metrics or no split 'validation': embedded_text" in log_lines
    assert list((judged / "tensorboard" / "evaluation").glob("events*"))


@pytest.mark.parametrize("batch_size", [8, 24])
def test_the_batch_size_changes_no_number(batch_size, judged, look):
    look(batch_size=8)
    before = lines(judged)
    look(batch_size=batch_size, mesh={"data": 4, "tensor": 2})
    for one, other in zip(before, lines(judged), strict=True):
        assert numbers(one) == pytest.approx(numbers(other), rel=1e-5), one["task"]


def test_a_task_evaluated_again_keeps_one_line(judged, look):
    look()
    before = len(lines(judged))
    look()
    assert len(lines(judged)) == before


def test_of_many_checkpoints_the_best_of_each_task_is_shown(tmp_path, capsys):
    from etils import epath

    from t5x_lite.console import Console
    from t5x_lite.evaluation.eval_sets import Splits

    figures = {
        step: {"a/f1": 10.0 * (step % 4), "a/em": 1.0, "b/loss": abs(step - 2) + 0.5}
        for step in range(1, 7)
    }
    best = best_of_each_task(figures)
    assert best["a"] == (3, {"a/f1": 30.0, "a/em": 1.0})
    assert best["b"] == (2, {"b/loss": 0.5})
    show_evaluation(Console(), Splits(), figures)
    said = capsys.readouterr().out
    assert "best of each task" in said
    assert "step 6" in said
    row = next(text for text in said.splitlines() if "a/f1" in text).split()
    assert row == ["a/f1", "30.00", "20.00"]
    for step, scores in figures.items():
        write_records(epath.Path(tmp_path), Splits.of("test"), step, {"a": scores})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_model_dir_without_a_run_is_named(look, tmp_path):
    with pytest.raises(ConfigError, match="does not describe a model"):
        look(model_dir=str(tmp_path))


@pytest.mark.slow
def test_one_two_and_three_processes_give_the_same_numbers(judged, data_dir, tmp_path):
    found = []
    for count in (1, 2, 3):
        run = tmp_path / str(count)
        shutil.copytree(judged, run)
        shutil.rmtree(run / "predictions", ignore_errors=True)
        (run / "evaluations.jsonl").unlink(missing_ok=True)
        flags = {
            "MODEL_DIR": run,
            "DATA_DIR": data_dir,
            "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 16},
            "EmbeddedCorpus.vocab_size": 412,
            "EmbeddedCorpus.packages": ("gin", "beartype"),
            "BATCH_SIZE": 12,
            "MESH": {"data": 3, "tensor": 2},
            "Generation.max_length": 8,
            "evaluate.max_examples": 17,
        }
        command = [sys.executable, ROOT / "launch" / "local_pod.py", f"--processes={count}"]
        command += [f"--devices={6 // count}", "--", "t5x_lite", "evaluate"]
        files = ("objectives/span_corruption.gin", "tasks/embedded.gin", "runs/evaluate.gin")
        command += [f"--gin_file={name}" for name in files]
        command += [f"--gin.{name}={value}" for name, value in flags.items()]
        subprocess.run(command, check=True, cwd=ROOT, timeout=900)
        said = {
            path.name: path.read_text() for path in sorted((run / "predictions").rglob("*.jsonl"))
        }
        found.append((lines(run), said))
    assert len(found[0][1]) == 2
    for scores, said in found[1:]:
        assert said == found[0][1]
        for one, other in zip(scores, found[0][0], strict=True):
            assert numbers(one) == pytest.approx(numbers(other), rel=1e-6), one["task"]
