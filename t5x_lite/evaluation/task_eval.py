"""Tasks judged by their metrics: every example said or scored once, by however many processes."""

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

KIND = "metrics"  # of the records: "metrics/glue_cola_v002" holds the task's scores
AVERAGES = f"{KIND}/averages"
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskEvaluation:
    """How a run's tasks are judged by their metrics, whenever its held-out losses are taken.

    generation: how texts are made. max_examples: of a task; None takes the whole split.
    """

    generation: Generation = Generation()  # noqa: RUF009  (frozen)
    max_examples: int | None = None

    def __post_init__(self):
        valid = self.max_examples is None or self.max_examples >= 1
        require_field(self, "max_examples", valid, "None or at least 1")


class TaskPredictions(NamedTuple):
    """What became of one task: scores by metric, and a line for each example, in order.

    A task without metrics, or with secret labels, has no scores.
    """

    scores: dict[str, float]
    lines: list[dict[str, Any]]


class TaskEvaluator:
    """Lets a model say or score every example of some sets, and computes the tasks' metrics.

    Every process computes its part of each batch and knows all results. The last batch is filled
    up, and what it was filled up with is left out again: every example counts once, however many
    processes there are.
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
        self._limit = max_examples

    def judge(self, params: Params) -> dict[str, TaskPredictions]:
        """The scores of every set's task."""
        return {each.name: self._judged(params, each) for each in self._sets}

    def _judged(self, params: Params, of: EvaluationSet) -> TaskPredictions:
        cases = of.cases[: self._limit]
        texts = text_scores = scores = None
        if of.how.needs("predictions") or not of.how.metrics:
            said = self._everywhere(cases, lambda batch: self._said(params, batch))
            texts = [self._vocabulary.decode(row) for row in said[0].tolist()]
            text_scores = [float(score) for score in said[1]]
        if of.how.needs("scores"):
            (found,) = self._everywhere(cases, lambda batch: self._scored(params, batch))
            scores = [float(score) for score in found]
        # The first process's numbers count: a metric may draw samples.
        numbers, targets, predictions = evaluate_task(
            of.how,
            cases,
            decode=self._vocabulary.decode,
            texts=texts,
            text_scores=text_scores,
            scores=scores,
        )
        lines = []
        for i, case in enumerate(cases):
            line = {"inputs": self._vocabulary.decode(case.inputs), "target": targets[i]}
            line |= {} if texts is None else {"text": texts[i], "prediction": predictions[i]}
            line |= {} if scores is None else {"score": scores[i]}
            lines.append(line)
        return TaskPredictions(processes.broadcast(numbers), lines)

    def _said(self, params: Params, batch: dict[str, NDArray]) -> tuple[NDArray, NDArray]:
        tokens, scores = self._inference.generate(params, batch)
        return tokens[:, 0], scores[:, 0]

    def _scored(self, params: Params, batch: dict[str, NDArray]) -> tuple[NDArray]:
        return (self._inference.score(params, batch).totals,)

    def _everywhere(
        self, cases: Sequence[EvalExample], run: Callable[[dict[str, NDArray]], tuple[NDArray, ...]]
    ) -> list[NDArray]:
        """What `run` gives of every case's row, in their order, on every process."""
        size = self._inference.batch_size
        inputs, targets = (
            _as_rows([getattr(c, name) for c in cases]) for name in EvalExample._fields[:2]
        )
        rows = {"inputs": inputs, "targets": targets, "numbers": np.arange(len(cases))}
        found = [
            run({name: column[first : first + size] for name, column in rows.items()})
            for first in range(0, len(cases), size)
        ]
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def make_task_evaluator(
    wanted: TaskEvaluation,
    data: Data,
    plan: Plan,
    model: TransformerConfig,
    mesh: jax.sharding.Mesh,
    batch_size: int,
) -> TaskEvaluator | None:
    """Return what evaluates a run's tasks; None, with a log line, where no task has metrics."""
    sets = processes.first_then_others(lambda: evaluation_sets(data, plan))
    if not sets or model.encoder_only:
        _LOG.info("no task has metrics; only validation losses are computed")
        return None
    inference = Inference(model, wanted.generation, mesh=mesh, batch_size=batch_size)
    return TaskEvaluator(inference, sets, plan.vocabulary(), max_examples=wanted.max_examples)


class TaskEvalCallback(Callback):
    """Judges a run's tasks whenever it is evaluated; reports "metrics/TASK" and the averages."""

    def __init__(self, judge: TaskEvaluator):
        self._judge = judge

    def on_evaluate(self, step: int, state: Any, report: Report) -> None:
        """Report every task's scores."""
        judged = self._judge.judge(state.eval_params)
        for name, task in judged.items():
            report(f"{KIND}/{name}", task.scores)
        if averages := benchmark_averages(flat_scores(judged)):
            report(AVERAGES, averages)
        for name, task in judged.items():
            shown = ", ".join(f"{metric} {value:.2f}" for metric, value in task.scores.items())
            _LOG.info(f"metrics of {name} at step {step:,}: {shown}")


def flat_scores(judged: dict[str, TaskPredictions]) -> dict[str, float]:
    """Scores by "task/metric"."""
    return {f"{name}/{k}": v for name, task in judged.items() for k, v in task.scores.items()}


def _as_rows(tokens: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """Token lists as rows, each filled up with 0; one column at least."""
    rows = np.zeros((len(tokens), max((len(row) for row in tokens), default=0) or 1), np.int32)
    for i, row in enumerate(tokens):
        rows[i, : len(row)] = row
    return rows
