"""Evaluation of tasks by their metrics: every example is generated or scored exactly once."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.data_config import Data
from t5x_lite.data.prepare import Plan
from t5x_lite.decoding.generation import Generation
from t5x_lite.distributed import processes
from t5x_lite.errors import require_field
from t5x_lite.evaluation.eval_sets import EvaluationSet, evaluation_sets
from t5x_lite.inference.engine import Inference
from t5x_lite.metrics.glue_average import benchmark_averages
from t5x_lite.metrics.task_metrics import EvalExample, evaluate_task
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.transformer import Params
from t5x_lite.tokenizers.vocabularies import AnyVocabulary
from t5x_lite.training.callbacks import Callback, Report

KIND = "metrics"  # of the lines in metrics.jsonl: "metrics/glue_cola_v002" has that task's scores
AVERAGES = f"{KIND}/averages"
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskEvaluation:
    """Evaluation of a run by the metrics of its tasks, at the steps of `Evaluation.period`.

    Args:
        generation: How texts are generated. The default is greedy decoding.
        max_examples: The largest number of examples of a task. None, the default, uses the whole
            split, as published scores do.
    """

    generation: Generation = Generation()  # noqa: RUF009  (frozen)
    max_examples: int | None = None

    def __post_init__(self):
        valid = self.max_examples is None or self.max_examples >= 1
        require_field(self, "max_examples", valid, "None or at least 1")


class TaskPredictions(NamedTuple):
    """The results of one task.

    Attributes:
        scores: Scores by metric; empty if the task has no metrics or its labels are hidden.
        lines: For each example, in order, a dict of "inputs", "target" and, as far as they were
            computed, "text", "prediction" and "score".
    """

    scores: dict[str, float]
    lines: list[dict[str, Any]]


class TaskEvaluator:
    """Generates a text for, or scores, every example of some tasks, and computes their metrics.

    Every process computes its rows of each batch and receives all results. The last batch is
    padded and the results of the padding are dropped. Every example therefore counts once, for any
    number of processes.

    Args:
        inference: The model; its batch size is the number of examples computed at a time.
        sets: The examples and metrics of each task.
        vocabulary: Decodes generated tokens.
        max_examples: The largest number of examples of a task; None uses all.
    """

    def __init__(
        self,
        inference: Inference,
        sets: Sequence[EvaluationSet],
        vocabulary: AnyVocabulary,
        *,
        max_examples: int | None = None,
    ):
        self._inference, self._sets, self._vocabulary = inference, sets, vocabulary
        self._max_examples = max_examples

    def evaluate(self, params: Params) -> dict[str, TaskPredictions]:
        """Return the scores and predictions of each task, by the task's name."""
        return {
            evaluation_set.name: self._evaluate_set(params, evaluation_set)
            for evaluation_set in self._sets
        }

    def _evaluate_set(self, params: Params, evaluation_set: EvaluationSet) -> TaskPredictions:
        examples = evaluation_set.examples[: self._max_examples]
        task_metrics = evaluation_set.task_metrics
        texts = text_scores = scores = None
        # A task without metrics is in the list for its predictions.
        if task_metrics.needs("predictions") or not task_metrics.metrics:
            tokens, log_probs = self._run_batches(
                examples, lambda batch: self._generate(params, batch)
            )
            texts = [self._vocabulary.decode(row) for row in tokens.tolist()]
            text_scores = [float(score) for score in log_probs]
        if task_metrics.needs("scores"):
            (totals,) = self._run_batches(examples, lambda batch: self._score(params, batch))
            scores = [float(score) for score in totals]
        results, targets, predictions = evaluate_task(
            task_metrics,
            examples,
            decode=self._vocabulary.decode,
            texts=texts,
            text_scores=text_scores,
            scores=scores,
        )
        lines = []
        for i, example in enumerate(examples):
            line = {"inputs": self._vocabulary.decode(example.inputs), "target": targets[i]}
            line |= {} if texts is None else {"text": texts[i], "prediction": predictions[i]}
            line |= {} if scores is None else {"score": scores[i]}
            lines.append(line)
        # All processes use the scores of the first: a metric may draw random samples (the
        # bootstrap of ROUGE), and the processes must agree on the best checkpoint.
        return TaskPredictions(processes.broadcast(results), lines)

    def _generate(self, params: Params, batch: dict[str, NDArray]) -> tuple[NDArray, NDArray]:
        """Return the best text of each row, as tokens [rows, length], and its score [rows]."""
        tokens, scores = self._inference.generate(params, batch)
        return tokens[:, 0], scores[:, 0]

    def _score(self, params: Params, batch: dict[str, NDArray]) -> tuple[NDArray]:
        """Return the log-likelihood of each row's targets, [rows]."""
        return (self._inference.score(params, batch).totals,)

    def _run_batches(
        self,
        examples: Sequence[EvalExample],
        run: Callable[[dict[str, NDArray]], tuple[NDArray, ...]],
    ) -> list[NDArray]:
        """Return the arrays that `run` computes, concatenated over all examples, in their order."""
        size = self._inference.batch_size
        columns = {
            "inputs": _padded_rows([example.inputs for example in examples]),
            "targets": _padded_rows([example.targets for example in examples]),
            # Random draws depend on the number of the example, not on its batch.
            "numbers": np.arange(len(examples)),
        }
        results = [
            run({name: column[first : first + size] for name, column in columns.items()})
            for first in range(0, len(examples), size)
        ]
        return [np.concatenate(arrays) for arrays in zip(*results, strict=True)]


def make_task_evaluator(
    task_evaluation: TaskEvaluation,
    data: Data,
    plan: Plan,
    model: TransformerConfig,
    mesh: jax.sharding.Mesh,
    batch_size: int,
) -> TaskEvaluator | None:
    """Return the task evaluator of a run; None, with a log line, if no task has metrics.

    Args:
        task_evaluation: Generation settings and number of examples.
        data: Data of the run.
        plan: Plan of `data`.
        model: The run's model; an encoder has no task metrics.
        mesh: The mesh that weights and batches are laid out over.
        batch_size: Rows of a batch, over all devices.
    """
    sets = processes.first_then_others(lambda: evaluation_sets(data, plan))
    if not sets or model.encoder_only:
        _LOG.info("no task has metrics; only validation losses are computed")
        return None
    inference = Inference(model, task_evaluation.generation, mesh=mesh, batch_size=batch_size)
    return TaskEvaluator(
        inference, sets, plan.vocabulary(), max_examples=task_evaluation.max_examples
    )


class TaskEvalCallback(Callback):
    """Evaluates a run's tasks whenever the run is evaluated.

    It reports "metrics/TASK" for each task, and "metrics/averages" with the averages of benchmarks.

    Args:
        evaluator: Computes the metrics.
    """

    def __init__(self, evaluator: TaskEvaluator):
        self._evaluator = evaluator

    def on_evaluate(self, step: int, state: Any, report: Report) -> None:
        """Evaluate the weights for evaluation (`state.eval_params`) and report all scores."""
        results = self._evaluator.evaluate(state.eval_params)
        for name, task in results.items():
            report(f"{KIND}/{name}", task.scores)
        if averages := benchmark_averages(flat_scores(results)):
            report(AVERAGES, averages)
        for name, task in results.items():
            scores = ", ".join(f"{metric} {value:.2f}" for metric, value in task.scores.items())
            _LOG.info(f"metrics of {name} at step {step:,}: {scores}")


def flat_scores(results: dict[str, TaskPredictions]) -> dict[str, float]:
    """Return all scores by "task/metric"."""
    return {f"{name}/{k}": v for name, task in results.items() for k, v in task.scores.items()}


def _padded_rows(tokens: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """Return token lists as rows [examples, length], padded with 0; at least one column."""
    rows = np.zeros((len(tokens), max((len(row) for row in tokens), default=0) or 1), np.int32)
    for i, row in enumerate(tokens):
        rows[i, : len(row)] = row
    return rows
