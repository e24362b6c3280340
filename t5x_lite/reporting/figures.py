"""Curves of runs by step, distinguished by line and marker as well as by color."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from t5x_lite.reporting.drawing import new_figure, to_png
from t5x_lite.reporting.runs import RunRecord

_LINES = ("-", "--", "-.", ":")
_MARKERS = "osD^v<>pPX*h"
_MARKS = 8  # on a curve
_MAX_LEGEND_INSIDE = 6  # curves; a longer legend would cover them
PNG_COLORS, PNG_DPI = 64, 130  # of figures that a page embeds


class Figure(NamedTuple):
    """A figure of a report.

    Attributes:
        name: Name of its file.
        title: What it shows.
        png: The picture.
    """

    name: str
    title: str
    png: bytes


class _Curve(NamedTuple):
    """A curve of a figure: values at steps."""

    label: str
    steps: np.ndarray
    values: np.ndarray


def figures(runs: Sequence[RunRecord]) -> list[Figure]:
    """Draw a figure of every number that the runs have recorded at two or more steps.

    Args:
        runs: The runs, each of which is a curve. A single run also has figures with a curve for
            each task or part of the model.
    """
    tasks = list(dict.fromkeys(task for run in runs for task in run.validated))
    candidates = [
        (
            "training_loss",
            "Training loss",
            "nats per target token",
            _curves_of_runs(runs, "train", "loss"),
        ),
        *(
            (
                f"validation_{task}",
                f"Held-out loss, {task}",
                "nats per target token",
                _curves_of_runs(runs, f"validation/{task}", "loss"),
            )
            for task in tasks
        ),
        *_figures_of_single_run(runs),
        ("learning_rate", "Learning rate", "", _curves_of_runs(runs, "train", "learning_rate")),
        ("gradient_norm", "Gradient norm", "", _curves_of_runs(runs, "train", "grad_norm")),
        ("weight_norm", "Norm of the weights", "", _curves_of_runs(runs, "train", "param_norm")),
        (
            "speed",
            "Real tokens a second",
            "tokens/s",
            _curves_of_runs(runs, "train", "tokens_per_second"),
        ),
        (
            "mfu",
            "Model FLOPs utilization",
            "share of the peak",
            _curves_of_runs(runs, "train", "mfu"),
        ),
        ("padding", "Padding", "share of positions", _curves_of_runs(runs, "train", "padding")),
        (
            "data_wait",
            "Waiting for data",
            "share of the time",
            _curves_of_runs(runs, "train", "data_wait"),
        ),
    ]
    drawn = []
    for name, title, unit, curves in candidates:
        if curves := [curve for curve in curves if len(curve.steps) > 1]:
            drawn.append(Figure(_file_name(name), title, _draw(curves, unit)))
    return drawn


def _curves_of_runs(runs: Sequence[RunRecord], kind: str, number: str) -> list[_Curve]:
    """Return a curve for each run."""
    return [_Curve(run.name, *run.series(kind, number)) for run in runs]


def _figures_of_single_run(runs: Sequence[RunRecord]) -> list[tuple[str, str, str, list[_Curve]]]:
    """Return figures with a curve for each task or part of the model; none for several runs."""
    if len(runs) != 1:
        return []
    run = runs[0]
    by_task = [
        _Curve(kind.removeprefix("train/"), *run.series(kind, "loss"))
        for kind in run.records
        if kind.startswith("train/")
    ]
    numbers = sorted({n for r in run.records.get("train", ()) for n in r if "update_norm/" in n})
    by_part = [_Curve(n.removeprefix("update_norm/"), *run.series("train", n)) for n in numbers]
    return [
        ("task_loss", "Training loss by task", "nats per target token", by_task),
        ("update_norm", "Norm of the updates by part of the model", "", by_part),
    ]


def _draw(curves: Sequence[_Curve], unit: str) -> bytes:
    figure, axes = new_figure((6.4, 3.8))
    for i, curve in enumerate(curves):
        style: dict[str, Any] = dict(
            color=f"C{i % 10}",
            linestyle=_LINES[i % len(_LINES)],
            marker=_MARKERS[i % len(_MARKERS)],
            markevery=max(1, len(curve.steps) // _MARKS),
            markersize=4,
            linewidth=1.4,
        )
        axes.plot(curve.steps, curve.values, label=curve.label, **style)
    axes.set(xlabel="step", ylabel=unit)
    axes.grid(alpha=0.3)
    if len(curves) > _MAX_LEGEND_INSIDE:
        figure.legend(loc="outside right upper", fontsize="x-small")
    elif len(curves) > 1:
        axes.legend(fontsize="small")
    return to_png(figure, dpi=PNG_DPI, colors=PNG_COLORS)


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_-." else "_" for c in name) + ".png"
