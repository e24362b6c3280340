"""`t5x_lite evaluate`: checkpoints of a run, held against the tasks of a mixture."""

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
from t5x_lite.errors import ConfigError
from t5x_lite.evaluation.eval_sets import Splits, evaluation_sets
from t5x_lite.evaluation.evaluation_report import (
    EVALUATIONS,
    PREDICTIONS,
    show_evaluation,
    write_predictions,
    write_records,
)
from t5x_lite.evaluation.task_eval import TaskEvaluator, flat_scores
from t5x_lite.evaluation.validation_loss import Evaluation, Validator
from t5x_lite.inference.engine import Inference
from t5x_lite.metrics.glue_average import benchmark_averages, missing_tasks
from t5x_lite.metrics.published_t5 import PUBLISHED
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.transformer import abstract_model
from t5x_lite.partitioning import check_divisible, make_mesh, named_sharding, tree_shardings
from t5x_lite.training.inputs import batch_settings, check_tasks, check_vocabulary

Steps = Literal["newest", "all"] | int | Sequence[int]
_LOG = logging.getLogger(__name__)


class _Wanted(NamedTuple):
    """What is to be found out of which splits, on how many examples of a task."""

    splits: Splits
    losses: bool
    metrics: bool
    predictions: bool
    limit: int | None


class _Tools(NamedTuple):
    """What looks at a checkpoint's weights, and how they are laid out."""

    judge: TaskEvaluator | None
    held_out: Validator | None
    weights: Any  # shapes and shardings


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
    """Take held-out losses and the tasks' own metrics of one, some or all checkpoints.

    steps: "newest", "all", a step or several. split: of all tasks, or of some by their names (the
    others: "validation"); held-out losses are always those of "validation". max_examples: of each
    task, None takes all. predictions: write what the model said of every example, also of tasks
    that have no metrics or keep their labels secret. published: rows of the T5 paper to show beside
    (their names stand in evaluation/published.py). dtype: of activations.
    ensemble: directories of runs of the same model, whose newest checkpoints' logits are averaged
    with this one's, for texts and scores; there are no held-out losses then. output_dir: where
    results go in place of the run's directory.

    Results stand in the run's directory: evaluations.jsonl, TensorBoard's events, predictions/.
    Raises ConfigError, before anything expensive, where there is nothing to evaluate.
    """
    directory = epath.Path(model_dir)
    _check(losses, metrics, max_examples, published, ensemble)
    splits = Splits.of(split)
    place = epath.Path(output_dir or model_dir)
    processes.simulate_devices(cpu_devices)
    model = dataclasses.replace(recorded_model(Path(model_dir)), dtype=dtype)
    device_mesh = make_mesh(mesh)
    with Checkpointer(directory) as saved:
        chosen = _chosen(saved, steps)
        if not plan_path(data).exists():  # of a run that trains on it
            data = dataclasses.replace(data, splits=("validation",))
        plan = prepare(data)
        check_vocabulary(plan, model)
        with jax.set_mesh(device_mesh):
            inference = Inference(model, generation, mesh=device_mesh, batch_size=batch_size)
            wanted = _Wanted(splits, losses, metrics, predictions, max_examples)
            tools = _tools(model, data, plan, inference, wanted)
            figures: dict[int, dict[str, float]] = {}
            others = tuple(_newest(path, model, tools.weights) for path in ensemble)
            place.mkdir(parents=True, exist_ok=True)
            for step in chosen:
                with logged_wait(_LOG, f"evaluating step {step:,}"):
                    params = saved.restore_weights(step, tools.weights)
                    params = (params, *others) if others else params
                    figures[step] = _evaluate(tools, params, place, wanted, step)
                    del params
    console = Console(silent=not processes.is_first())
    show_evaluation(console, splits, figures, published)
    for benchmark, lacking in missing_tasks(figures[chosen[-1]], splits.default).items():
        _LOG.info(f"no {benchmark} average: scores of {', '.join(lacking)} are missing")
    more = f" and {place / PREDICTIONS}" if predictions and metrics else ""
    _LOG.info(f"wrote {place / EVALUATIONS}{more}")


def _check(
    losses: bool,
    metrics: bool,
    max_examples: int | None,
    published: Sequence[str],
    ensemble: Sequence[str],
) -> None:
    if not losses and not metrics:
        raise ConfigError(
            "neither losses nor metrics are asked for", "evaluate.losses", "evaluate.metrics"
        )
    if ensemble and losses:
        raise ConfigError(
            "an ensemble has no held-out losses; wanted losses = False",
            "evaluate.ensemble",
            "evaluate.losses",
        )
    if (max_examples or 1) < 1:
        raise ConfigError(
            f"max_examples is {max_examples}; wanted None or 1 or more", "evaluate.max_examples"
        )
    if isinstance(published, str) or set(published) - set(PUBLISHED):
        raise ConfigError(
            f"published is {published!r}; wanted rows out of {', '.join(PUBLISHED)}",
            "evaluate.published",
        )


def _chosen(saved: Checkpointer, steps: Steps) -> list[int]:
    """The steps to evaluate, in order; ConfigError if one is not there."""
    names = ("MODEL_DIR", "evaluate.steps")
    if steps == "newest":
        return [chosen_step(saved, None, *names)]
    if steps == "all":
        chosen_step(saved, None, *names)  # there is one
        return saved.steps
    if isinstance(steps, str):
        raise ConfigError(
            f"steps is {steps!r}; wanted 'newest', 'all', a step or several", "evaluate.steps"
        )
    wanted = [steps] if isinstance(steps, int) else sorted(set(steps))
    return [chosen_step(saved, step, *names) for step in wanted]


def _newest(model_dir: str, model: TransformerConfig, weights: Any) -> Any:
    """The newest weights of another run of the same model."""
    other = dataclasses.replace(recorded_model(Path(model_dir)), dtype=model.dtype)
    if other != model:
        raise ConfigError(
            f"{model_dir} holds another model; wanted runs of the same", "evaluate.ensemble"
        )
    with Checkpointer(epath.Path(model_dir)) as saved:
        return saved.restore_weights(chosen_step(saved, None, "evaluate.ensemble"), weights)


def _tools(
    model: TransformerConfig,
    data: Data,
    plan: Plan,
    inference: Inference,
    wanted: _Wanted,
) -> _Tools:
    """Get ready what is asked for; ConfigError where no task has anything of it."""
    _check_splits(wanted.splits, data, plan)
    mesh, (_, shapes, axes) = inference.mesh, abstract_model(model)
    check_divisible(mesh, shapes, axes)
    weights = jax.tree.map(
        lambda leaf, place: leaf.update(sharding=place), shapes, tree_shardings(mesh, axes)
    )
    judge = _make_judge(data, plan, inference, wanted)
    held_out = _make_held_out(model, data, plan, inference, wanted)
    if judge is None and held_out is None:
        raise ConfigError(
            f"no task of {data.mixture_or_task_name!r} has "
            f"{'metrics and a' if wanted.metrics else 'a'} split {wanted.splits.default!r} to be "
            f"evaluated on",
            "MIXTURE_OR_TASK_NAME",
            "evaluate.split",
        )
    return _Tools(judge, held_out, weights)


def _check_splits(splits: Splits, data: Data, plan: Plan) -> None:
    """Raise ConfigError where a split is given for what is no task of the mixture."""
    if unknown := sorted(set(splits.named) - {task.name for task in plan.tasks}):
        raise ConfigError(
            f"a split is given for {', '.join(unknown)}; the tasks of "
            f"{data.mixture_or_task_name!r}: {', '.join(task.name for task in plan.tasks)}",
            "SPLIT",
            "evaluate.split",
        )


def _make_judge(
    data: Data, plan: Plan, inference: Inference, wanted: _Wanted
) -> TaskEvaluator | None:
    """Return what evaluates the tasks that have their split and metrics; log the others."""
    if not wanted.metrics or inference.config.encoder_only:
        return None
    splits = wanted.splits
    sets = processes.first_then_others(
        lambda: evaluation_sets(data, plan, splits=splits, without_metrics=wanted.predictions)
    )
    named = {each.name for each in sets}
    if rest := [task.name for task in plan.tasks if task.name not in named]:
        split = f"split {splits.default!r}" if not splits.named else "requested split"
        _LOG.info(f"not evaluated, no metrics or no {split}: {', '.join(rest)}")
    if secret := [each.name for each in sets if not each.how.metrics or each.secret]:
        _LOG.info(f"predictions only, no labels or no metrics: {', '.join(secret)}")
    if not sets:
        return None
    return TaskEvaluator(inference, sets, plan.vocabulary(), max_examples=wanted.limit)


def _make_held_out(
    model: TransformerConfig, data: Data, plan: Plan, inference: Inference, wanted: _Wanted
) -> Validator | None:
    """What takes the losses of the tasks that are looked at on "validation".

    The model is the run's own: an `Inference`'s has experts with room for every token.
    """
    if not wanted.losses:
        return None
    tasks = [t for t in plan.validation_tasks() if wanted.splits[t.name] == "validation"]
    if not tasks:
        return None
    mesh = inference.mesh
    check_tasks(plan, model)
    return Validator(
        abstract_model(model)[0],
        tasks,
        plan.vocabulary(),
        Evaluation(max_examples=wanted.limit, samples=0),
        inference,
        batch_sharding=named_sharding(mesh, ("batch", "length")),
        replicated=named_sharding(mesh, ()),
        stream_settings=batch_settings(data, plan, model, batch_size=inference.batch_size),
    )


def _evaluate(
    tools: _Tools, params: Any, directory: epath.Path, wanted: _Wanted, step: int
) -> dict[str, float]:
    """Evaluate one checkpoint and write what came of it; scores by "task/metric"."""
    tasks: dict[str, dict[str, float]] = {}
    splits = wanted.splits
    if tools.held_out is not None:
        for name, numbers in tools.held_out.losses(params).items():
            tasks[name] = {"loss": numbers["loss"], "target_tokens": numbers["tokens"]}
    found = {f"{name}/loss": numbers["loss"] for name, numbers in tasks.items()}
    judged = {} if tools.judge is None else tools.judge.judge(params)
    for name, task in judged.items():
        tasks[name] = {**tasks.get(name, {}), "examples": len(task.lines), **task.scores}
    found |= flat_scores(judged)
    if averages := benchmark_averages(found, splits.default):
        tasks["averages"] = averages
    if processes.is_first():
        write_records(directory, splits, step, tasks)
        for name, task in judged.items() if wanted.predictions else ():
            write_predictions(directory, splits[name], step, name, task.lines)
    return found
