"""What evaluations leave behind: JSON lines, TensorBoard, predictions, and a table to look at."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter

from t5x_lite.console import Console
from t5x_lite.evaluation.eval_sets import Splits
from t5x_lite.io.json_lines import read_json_lines, write_json_lines
from t5x_lite.io.metric_writers import EVENTS
from t5x_lite.metrics.glue_average import benchmark_averages
from t5x_lite.metrics.published_t5 import PUBLISHED

EVALUATIONS = "evaluations.jsonl"
PREDICTIONS = "predictions"
LOSS = "loss"
_MOST_COLUMNS = 4  # checkpoints side by side; of more, the best and the newest

Figures = Mapping[int, Mapping[str, float]]  # by step: scores by "task/metric"


def write_records(
    model_dir: epath.Path, splits: Splits, step: int, tasks: Mapping[str, Mapping[str, float]]
) -> None:
    """Write a line for each task into evaluations.jsonl, in the place of one of the same place.

    The same numbers go to TensorBoard, as "evaluation/SPLIT/TASK/METRIC".
    """
    path = model_dir / EVALUATIONS
    new = [{"step": step, "split": splits[t], "task": t, **n} for t, n in tasks.items()]
    known = {_place(line) for line in new}
    kept = [line for line in read_json_lines(path) if _place(line) not in known]
    lines = sorted([*kept, *new], key=_place)
    write_json_lines(path, lines)
    with SummaryWriter(str(model_dir / EVENTS / "evaluation")) as events:
        for task, numbers in tasks.items():
            for name, value in numbers.items():
                events.add_scalar(f"evaluation/{splits[task]}/{task}/{name}", value, step)


def write_predictions(
    model_dir: epath.Path, split: str, step: int, task: str, lines: Sequence[Mapping[str, Any]]
) -> epath.Path:
    """Write what a model said of every example: predictions/SPLIT/STEP/TASK.jsonl."""
    path = model_dir / PREDICTIONS / split / str(step) / f"{task}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_lines(path, lines, default=_plain)
    return path


def show_evaluation(
    console: Console, splits: Splits, figures: Figures, published: Sequence[str] = ()
) -> None:
    """Print a table: a row for each metric, a column for each checkpoint, the paper's beside them.

    Of many checkpoints it shows, for each task, the one with the best mean of its metrics (the
    lowest loss where it has no others), as the T5 study chose them, and the newest. Nothing is
    shown where nothing has a score.
    """
    if not any(figures.values()):
        return
    tasks = dict.fromkeys(name.split("/")[0] for scores in figures.values() for name in scores)
    order = {task: number for number, task in enumerate(tasks)}
    found = dict.fromkeys(name for scores in figures.values() for name in scores)
    names = sorted(found, key=lambda name: order[name.split("/")[0]])
    columns = _columns(figures)
    rows = [
        (
            name
            if (split := splits[name.split("/")[0]]) == splits.default
            else f"{name} ({split})",
            *(_shown(name, column.get(name)) for column in columns.values()),
            *(_shown(name, PUBLISHED[row].scores.get(name)) for row in published),
        )
        for name in [*names, *_averages_of(columns, splits.default)]
    ]
    heads = [f"{row} ({PUBLISHED[row].split})" for row in published]
    console.table(f"Evaluation on {splits.default}", ("task / metric", *columns, *heads), rows)


def best_of_each_task(figures: Figures) -> dict[str, tuple[int, dict[str, float]]]:
    """By task: the step whose metrics have the highest mean, or the lowest loss, and its scores."""
    found: dict[str, tuple[int, dict[str, float]]] = {}
    tasks = dict.fromkeys(name.split("/")[0] for scores in figures.values() for name in scores)
    for task in tasks:
        of_task = {
            step: {name: value for name, value in scores.items() if name.split("/")[0] == task}
            for step, scores in sorted(figures.items())
        }
        best = max(of_task, key=lambda step, of=of_task: _merit(of[step]))
        found[task] = (best, of_task[best])
    return found


def _columns(figures: Figures) -> dict[str, dict[str, float]]:
    """Scores by the heads of their columns, with the benchmarks' averages still to come."""
    if len(figures) <= _MOST_COLUMNS:
        return {f"step {step:,}": dict(scores) for step, scores in sorted(figures.items())}
    newest = max(figures)
    best: dict[str, float] = {}
    for _, scores in best_of_each_task(figures).values():
        best |= scores
    return {"best of each task": best, f"step {newest:,}": dict(figures[newest])}


def _averages_of(columns: dict[str, dict[str, float]], split: str) -> list[str]:
    """Add the benchmarks' averages to every column; the names of those there are."""
    names: dict[str, None] = {}
    for scores in columns.values():
        for benchmark, value in benchmark_averages(scores, split).items():
            scores[f"{benchmark}/average"] = value
            names[f"{benchmark}/average"] = None
    return list(names)


def _merit(scores: Mapping[str, float]) -> float:
    metrics = [value for name, value in scores.items() if not name.endswith(f"/{LOSS}")]
    if metrics:
        return sum(metrics) / len(metrics)
    return -next(iter(scores.values()), float("inf"))


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if name.endswith(f"/{LOSS}") else f"{value:.2f}"


def _place(line: Mapping[str, Any]) -> tuple[int, str, str]:
    return line["step"], line["split"], line["task"]


def _plain(value: Any) -> Any:
    """What a postprocessor made, as JSON."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.tolist() if hasattr(value, "tolist") else str(value)
