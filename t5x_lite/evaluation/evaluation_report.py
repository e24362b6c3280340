"""Results of `t5x_lite evaluate`: JSON lines, TensorBoard events, predictions, printed tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter

from t5x_lite.console import Console
from t5x_lite.evaluation.eval_sets import Splits
from t5x_lite.io.metric_writers import EVENTS
from t5x_lite.io.run_records import read_json_lines, write_json_lines
from t5x_lite.metrics.glue_average import benchmark_averages
from t5x_lite.metrics.published_t5 import PUBLISHED

EVALUATIONS = "evaluations.jsonl"
PREDICTIONS = "predictions"
LOSS = "loss"
_MOST_COLUMNS = 4  # of more checkpoints, the table has the best and the newest

Scores = Mapping[str, float]  # by "task/metric"
Figures = Mapping[int, Scores]  # scores of each checkpoint, by its step


def write_records(
    model_dir: epath.Path, splits: Splits, step: int, tasks: Mapping[str, Mapping[str, float]]
) -> None:
    """Write the results of a checkpoint to evaluations.jsonl and TensorBoard.

    A line of evaluations.jsonl is the record of one task:
    {"step": 1000, "split": "test", "task": "glue_cola_v002", "examples": 1043, "accuracy": 80.1}.
    It replaces an earlier line of the same step, split and task. In TensorBoard the names are
    "evaluation/SPLIT/TASK/METRIC".

    Args:
        model_dir: Directory of the results.
        splits: The split of each task.
        step: The step of the checkpoint.
        tasks: By task, its numbers by name.
    """
    path = model_dir / EVALUATIONS
    new = [{"step": step, "split": splits[t], "task": t, **n} for t, n in tasks.items()]
    replaced = {_key(line) for line in new}
    kept = [line for line in read_json_lines(path) if _key(line) not in replaced]
    lines = sorted([*kept, *new], key=_key)
    write_json_lines(path, lines)
    with SummaryWriter(str(model_dir / EVENTS / "evaluation")) as events:
        for task, numbers in tasks.items():
            for name, value in numbers.items():
                events.add_scalar(f"evaluation/{splits[task]}/{task}/{name}", value, step)


def write_predictions(
    model_dir: epath.Path, split: str, step: int, task: str, lines: Sequence[Mapping[str, Any]]
) -> epath.Path:
    """Write the predictions of a task to predictions/SPLIT/STEP/TASK.jsonl and return the path.

    Args:
        model_dir: Directory of the results.
        split: The split of the examples.
        step: The step of the checkpoint.
        task: The name of the task.
        lines: One object for each example (`TaskPredictions.lines`).
    """
    path = model_dir / PREDICTIONS / split / str(step) / f"{task}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_lines(path, lines, default=_jsonable)
    return path


def show_evaluation(
    console: Console, splits: Splits, figures: Figures, published: Sequence[str] = ()
) -> None:
    """Print a table of scores: a row for each metric and a column for each checkpoint.

    Of more than four checkpoints it shows two columns. The first has, for each task, the scores of
    its best checkpoint, as the T5 paper reports them: the one with the highest mean of its metrics,
    or with the lowest loss for a task that has a loss only. The second has those of the newest.
    Prints nothing if there are no scores.

    Args:
        console: Where to print.
        splits: The split of each task; rows of other splits than the default show theirs.
        figures: Scores of each checkpoint.
        published: Rows of the T5 paper (`PUBLISHED`) to add as columns.
    """
    if not any(figures.values()):
        return
    names = dict.fromkeys(name for scores in figures.values() for name in scores)
    # All metrics of a task in successive rows. "task/loss" precedes the metrics of all tasks.
    order = {task: number for number, task in enumerate(dict.fromkeys(map(_task_of, names)))}
    columns = _columns(figures)
    rows = []
    for name in [*sorted(names, key=lambda n: order[_task_of(n)]), *_add_averages(columns, splits)]:
        split = splits[_task_of(name)]
        rows.append(
            (
                name if split == splits.default else f"{name} ({split})",
                *(_formatted(name, column.get(name)) for column in columns.values()),
                *(_formatted(name, PUBLISHED[row].scores.get(name)) for row in published),
            )
        )
    heads = [f"{row} ({PUBLISHED[row].split})" for row in published]
    console.table(f"Evaluation on {splits.default}", ("task / metric", *columns, *heads), rows)


def best_of_each_task(figures: Figures) -> dict[str, tuple[int, dict[str, float]]]:
    """Choose the best checkpoint of each task.

    The best has the highest mean of the task's metrics; for a task that has a loss only, it has the
    lowest loss. The earliest of equal ones is chosen.

    Returns:
        By task, the step and the task's scores at that step by "task/metric".
    """
    best: dict[str, tuple[int, dict[str, float]]] = {}
    for task in dict.fromkeys(_task_of(name) for scores in figures.values() for name in scores):
        scores_by_step = {
            step: {name: value for name, value in scores.items() if _task_of(name) == task}
            for step, scores in sorted(figures.items())
        }
        step = max(scores_by_step, key=lambda step, by_step=scores_by_step: _merit(by_step[step]))
        best[task] = (step, scores_by_step[step])
    return best


def _columns(figures: Figures) -> dict[str, dict[str, float]]:
    """Return the scores of each column of the table, by the head of the column."""
    if len(figures) <= _MOST_COLUMNS:
        return {f"step {step:,}": dict(scores) for step, scores in sorted(figures.items())}
    newest = max(figures)
    best: dict[str, float] = {}
    for _, scores in best_of_each_task(figures).values():
        best |= scores
    return {"best of each task": best, f"step {newest:,}": dict(figures[newest])}


def _add_averages(columns: dict[str, dict[str, float]], splits: Splits) -> list[str]:
    """Add the averages of benchmarks to each column and return the names of their rows."""
    names: dict[str, None] = {}
    for scores in columns.values():
        for benchmark, value in benchmark_averages(scores, splits.default).items():
            scores[f"{benchmark}/average"] = value
            names[f"{benchmark}/average"] = None
    return list(names)


def _task_of(name: str) -> str:
    """Return the task of "task/metric"."""
    return name.split("/")[0]


def _merit(scores: Scores) -> float:
    """Return what is higher for a better checkpoint, from the scores of one task."""
    metrics = [value for name, value in scores.items() if not name.endswith(f"/{LOSS}")]
    if metrics:
        return sum(metrics) / len(metrics)
    return -next(iter(scores.values()), float("inf"))


def _formatted(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if name.endswith(f"/{LOSS}") else f"{value:.2f}"


def _key(line: Mapping[str, Any]) -> tuple[int, str, str]:
    """Return what identifies a line of evaluations.jsonl."""
    return line["step"], line["split"], line["task"]


def _jsonable(value: Any) -> Any:
    """Convert a prediction that JSON does not know: bytes, NumPy values, objects."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.tolist() if hasattr(value, "tolist") else str(value)
