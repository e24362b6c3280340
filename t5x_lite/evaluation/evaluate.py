"""`t5x_lite evaluate`: validation losses and task metrics of checkpoints."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from etils import epath

from t5x_lite.checkpoints.checkpointer import Checkpointer, chosen_step
from t5x_lite.checkpoints.run_directory import recorded_model
from t5x_lite.console import Console, logged_wait
from t5x_lite.data.data_config import Data
from t5x_lite.data.prepare import Plan, plan_path, prepare
from t5x_lite.decoding.generation import Generation
from t5x_lite.distributed import processes
from t5x_lite.errors import ConfigError, require
from t5x_lite.evaluation.eval_sets import Splits, evaluation_sets
from t5x_lite.evaluation.evaluation_report import (
    EVALUATIONS,
    LOSS,
    PREDICTIONS,
    show_evaluation,
    write_predictions,
    write_records,
)
from t5x_lite.evaluation.task_eval import TaskEvaluator, TaskPredictions, flat_scores
from t5x_lite.evaluation.validation_loss import Evaluation, Validator
from t5x_lite.inference.engine import Inference
from t5x_lite.metrics.glue_average import benchmark_averages, missing_tasks
from t5x_lite.metrics.published_t5 import PUBLISHED
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.transformer import Params, abstract_model
from t5x_lite.partitioning import check_divisible, make_mesh, named_sharding, tree_shardings
from t5x_lite.training.inputs import batch_settings, check_tasks, check_vocabulary

Steps = Literal["newest", "all"] | int | Sequence[int]
_LOG = logging.getLogger(__name__)


class _Request(NamedTuple):
    """What to compute for each checkpoint: the settings of `evaluate` with the same names."""

    splits: Splits
    losses: bool
    metrics: bool
    predictions: bool
    max_examples: int | None


class _Evaluators(NamedTuple):
    """What evaluates the weights of a checkpoint; None where nothing of the kind is requested."""

    validator: Validator | None
    tasks: TaskEvaluator | None


def evaluate(
    *,
    model_dir: str,
    data: Data,
    batch_size: int,
    mesh: Mapping[str, int],
    generation: Generation,
    steps: Steps = "newest",
    split: str | Mapping[str, str] = "validation",
    losses: bool = True,
    metrics: bool = True,
    max_examples: int | None = None,
    predictions: bool = True,
    published: Sequence[str] = (),
    dtype: str = "float32",
    ensemble: Sequence[str] = (),
    output_dir: str | None = None,
    cpu_devices: int | None = None,
    describe_config: Callable[[], str] = str,
) -> None:
    """Compute validation losses and task metrics of one, some or all checkpoints of a run.

    The results are lines of evaluations.jsonl, TensorBoard events, files of predictions
    (predictions/SPLIT/STEP/TASK.jsonl) and a printed table.

    Args:
        model_dir: Directory of the run or import.
        data: The mixture and where its token stores are. Without stores, only the validation split
            is tokenized.
        batch_size: Rows of a batch, over all devices.
        mesh: Sizes of the mesh axes by name; -1 takes the remaining devices.
        generation: How texts are generated for metrics and predictions.
        steps: "newest", "all", a step, or several steps.
        split: The split of all tasks, or a dict of splits by task; tasks that the dict does not
            name use "validation". Losses are computed only for tasks on "validation", the one
            evaluation split that is tokenized.
        losses: Whether to compute validation losses.
        metrics: Whether to compute the metrics of tasks.
        max_examples: The largest number of examples of each task; None uses all.
        predictions: Whether to write the generated text, prediction and score of every example,
            also of tasks without metrics or with hidden labels.
        published: Rows of the T5 paper to print beside the scores, such as "T5 base"; names of
            `metrics.published_t5.PUBLISHED`.
        dtype: Type of activations. The default, "float32", does not depend on the hardware.
        ensemble: Directories of further runs of the same model. The logits of their newest
            checkpoints are averaged with this run's. An ensemble has no validation losses.
        output_dir: Directory for the results; None uses `model_dir`.
        cpu_devices: Number of simulated CPU devices; None uses the real devices.
        describe_config: Not used.

    Raises:
        ConfigError: A setting is invalid, or no task has the split and metrics; raised before
            weights are read and before anything is compiled.
    """
    _check_settings(losses, metrics, max_examples, published, ensemble)
    request = _Request(Splits.of(split), losses, metrics, predictions, max_examples)
    results_dir = epath.Path(output_dir or model_dir)
    processes.simulate_devices(cpu_devices)
    model = dataclasses.replace(recorded_model(Path(model_dir)), dtype=dtype)
    device_mesh = make_mesh(mesh)
    with Checkpointer(epath.Path(model_dir)) as saved, jax.set_mesh(device_mesh):
        step_numbers = _step_numbers(saved, steps)
        if not plan_path(data).exists():
            # This data was never prepared. Do not tokenize a training split to evaluate.
            data = dataclasses.replace(data, splits=("validation",))
        plan = prepare(data)
        check_vocabulary(plan, model)
        inference = Inference(model, generation, mesh=device_mesh, batch_size=batch_size)
        _check_splits(request.splits, data, plan)
        weights = _abstract_weights(model, device_mesh)
        evaluators = _make_evaluators(model, data, plan, inference, request)
        other_params = tuple(_newest_weights(path, model, weights) for path in ensemble)
        results_dir.mkdir(parents=True, exist_ok=True)
        scores: dict[int, dict[str, float]] = {}
        for step in step_numbers:
            with logged_wait(_LOG, f"evaluating step {step:,}"):
                params: Any = saved.restore_weights(step, weights)
                params = (params, *other_params) if other_params else params
                scores[step] = _evaluate_checkpoint(evaluators, params, results_dir, request, step)
                # Free the memory: two checkpoints may not fit on the devices.
                del params
    console = Console(silent=not processes.is_first())
    show_evaluation(console, request.splits, scores, published)
    for benchmark, lacking in missing_tasks(
        scores[step_numbers[-1]], request.splits.default
    ).items():
        _LOG.info(f"no {benchmark} average: scores of {', '.join(lacking)} are missing")
    predictions_dir = f" and {results_dir / PREDICTIONS}" if predictions and metrics else ""
    _LOG.info(f"wrote {results_dir / EVALUATIONS}{predictions_dir}")


def _check_settings(
    losses: bool,
    metrics: bool,
    max_examples: int | None,
    published: Sequence[str],
    ensemble: Sequence[str],
) -> None:
    require(
        losses or metrics,
        "losses and metrics are both False; expected at least one to be True",
        "evaluate.losses",
        "evaluate.metrics",
    )
    require(
        not (ensemble and losses),
        "an ensemble has no validation losses; expected losses = False",
        "evaluate.ensemble",
        "evaluate.losses",
    )
    require(
        max_examples is None or max_examples >= 1,
        f"max_examples is {max_examples}; expected None or at least 1",
        "evaluate.max_examples",
    )
    require(
        not isinstance(published, str) and set(published) <= set(PUBLISHED),
        f"published is {published!r}; expected a sequence of {', '.join(PUBLISHED)}",
        "evaluate.published",
    )


def _step_numbers(saved: Checkpointer, steps: Steps) -> list[int]:
    """Return the steps to evaluate, in order; ConfigError if one has no checkpoint."""
    names = ("MODEL_DIR", "evaluate.steps")
    if steps == "newest":
        return [chosen_step(saved, None, *names)]
    if steps == "all":
        chosen_step(saved, None, *names)  # raises ConfigError if there is no checkpoint
        return saved.steps
    if isinstance(steps, str):
        raise ConfigError(
            f"steps is {steps!r}; expected 'newest', 'all', a step or several steps",
            "evaluate.steps",
        )
    numbers = [steps] if isinstance(steps, int) else sorted(set(steps))
    return [chosen_step(saved, step, *names) for step in numbers]


def _abstract_weights(model: TransformerConfig, mesh: jax.sharding.Mesh) -> Any:
    """Return the shapes and shardings of a model's weights, to restore them with."""
    _, shapes, axes = abstract_model(model)
    check_divisible(mesh, shapes, axes)
    return jax.tree.map(
        lambda leaf, sharding: leaf.update(sharding=sharding), shapes, tree_shardings(mesh, axes)
    )


def _newest_weights(model_dir: str, model: TransformerConfig, weights: Any) -> Params:
    """Return the newest weights of another run of the same model.

    Args:
        model_dir: The other run.
        model: The model that it must have, but for the type of activations.
        weights: Shapes and shardings.
    """
    other = dataclasses.replace(recorded_model(Path(model_dir)), dtype=model.dtype)
    if other != model:
        raise ConfigError(
            f"{model_dir} has another model; expected runs of the model of MODEL_DIR",
            "evaluate.ensemble",
        )
    with Checkpointer(epath.Path(model_dir)) as saved:
        return saved.restore_weights(chosen_step(saved, None, "evaluate.ensemble"), weights)


def _check_splits(splits: Splits, data: Data, plan: Plan) -> None:
    """Raise ConfigError for a split of a task that the mixture does not have."""
    if unknown := sorted(set(splits.named) - {task.name for task in plan.tasks}):
        raise ConfigError(
            f"a split is given for {', '.join(unknown)}; the tasks of "
            f"{data.mixture_or_task_name!r}: {', '.join(task.name for task in plan.tasks)}",
            "SPLIT",
            "evaluate.split",
        )


def _make_evaluators(
    model: TransformerConfig, data: Data, plan: Plan, inference: Inference, request: _Request
) -> _Evaluators:
    """Return what evaluates the requested losses and metrics.

    Raises:
        ConfigError: No task has any of them.
    """
    tasks = _make_task_evaluator(data, plan, inference, request)
    validator = _make_validator(model, data, plan, inference, request)
    if tasks is None and validator is None:
        raise ConfigError(
            f"no task of {data.mixture_or_task_name!r} has "
            f"{'metrics and a' if request.metrics else 'a'} split {request.splits.default!r} to be "
            f"evaluated on",
            "MIXTURE_OR_TASK_NAME",
            "evaluate.split",
        )
    return _Evaluators(validator, tasks)


def _make_task_evaluator(
    data: Data, plan: Plan, inference: Inference, request: _Request
) -> TaskEvaluator | None:
    """Return what evaluates the tasks that have their split and metrics; log the other tasks."""
    if not request.metrics or inference.config.encoder_only:
        return None
    splits = request.splits
    sets = processes.first_then_others(
        lambda: evaluation_sets(data, plan, splits=splits, without_metrics=request.predictions)
    )
    evaluated = {evaluation_set.name for evaluation_set in sets}
    if rest := [task.name for task in plan.tasks if task.name not in evaluated]:
        split = f"split {splits.default!r}" if not splits.named else "requested split"
        _LOG.info(f"not evaluated, no metrics or no {split}: {', '.join(rest)}")
    if predictions_only := [
        evaluation_set.name
        for evaluation_set in sets
        if not evaluation_set.task_metrics.metrics or evaluation_set.has_hidden_labels
    ]:
        _LOG.info(f"predictions only, no labels or no metrics: {', '.join(predictions_only)}")
    if not sets:
        return None
    return TaskEvaluator(inference, sets, plan.vocabulary(), max_examples=request.max_examples)


def _make_validator(
    model: TransformerConfig, data: Data, plan: Plan, inference: Inference, request: _Request
) -> Validator | None:
    """Return what computes the losses of the tasks that are evaluated on "validation".

    It uses the run's model, so that losses are those of training. The model of `inference` differs
    from it in mixture-of-experts layers, which have no capacity limit there.
    """
    if not request.losses:
        return None
    tasks = [t for t in plan.validation_tasks() if request.splits[t.name] == "validation"]
    if not tasks:
        return None
    mesh = inference.mesh
    check_tasks(plan, model)
    return Validator(
        abstract_model(model)[0],
        tasks,
        plan.vocabulary(),
        Evaluation(max_examples=request.max_examples, samples=0),
        inference,
        batch_sharding=named_sharding(mesh, ("batch", "length")),
        replicated=named_sharding(mesh, ()),
        stream_settings=batch_settings(data, plan, model, batch_size=inference.batch_size),
    )


def _evaluate_checkpoint(
    evaluators: _Evaluators, params: Any, results_dir: epath.Path, request: _Request, step: int
) -> dict[str, float]:
    """Evaluate the weights of one checkpoint and write the results of each task.

    All processes compute, and only the first writes. `params` are the weights, or a tuple of the
    weights of the models of an ensemble.

    Returns:
        Scores by "task/metric": validation losses as "task/loss", and the metrics of tasks.
    """
    losses = {} if evaluators.validator is None else evaluators.validator.losses(params)
    results = {} if evaluators.tasks is None else evaluators.tasks.evaluate(params)
    scores = {f"{name}/{LOSS}": numbers["loss"] for name, numbers in losses.items()}
    scores |= flat_scores(results)
    if processes.is_first():
        splits = request.splits
        records = _records(losses, results)
        if averages := benchmark_averages(scores, splits.default):
            records["averages"] = averages
        write_records(results_dir, splits, step, records)
        for name, task in results.items() if request.predictions else ():
            write_predictions(results_dir, splits[name], step, name, task.lines)
    return scores


def _records(
    losses: Mapping[str, Mapping[str, float]], results: Mapping[str, TaskPredictions]
) -> dict[str, dict[str, float]]:
    """Merge losses and metrics into one record for each task, as evaluations.jsonl has them."""
    records: dict[str, dict[str, float]] = {
        name: {LOSS: numbers["loss"], "target_tokens": numbers["tokens"]}
        for name, numbers in losses.items()
    }
    for name, task in results.items():
        records[name] = {**records.get(name, {}), "examples": len(task.lines), **task.scores}
    return records
