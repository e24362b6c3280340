"""Curves of runs, told apart by line and marker as well as by color: a grey printer will do."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from t5x_lite.reporting.runs import RunRecord

_LINES = ("-", "--", "-.", ":")
_MARKERS = "osD^v<>pPX*h"
_MARKS = 8  # on a curve
_IN_THE_PICTURE = 6  # curves whose names hide none of them


class Figure(NamedTuple):
    """A picture as PNG; `name` is its file's, `title` says what it shows."""

    name: str
    title: str
    png: bytes


class _Curve(NamedTuple):
    label: str
    steps: np.ndarray
    values: np.ndarray


def figures(runs: Sequence[RunRecord]) -> list[Figure]:
    """All that these runs recorded enough of: at least two points on a curve."""
    tasks = list(dict.fromkeys(task for run in runs for task in run.validated))
    wanted = [
        (
            "training_loss",
            "Training loss",
            "nats per target token",
            _of_runs(runs, "train", "loss"),
        ),
        *(
            (
                f"validation_{task}",
                f"Held-out loss, {task}",
                "nats per target token",
                _of_runs(runs, f"validation/{task}", "loss"),
            )
            for task in tasks
        ),
        *_single(runs),
        ("learning_rate", "Learning rate", "", _of_runs(runs, "train", "learning_rate")),
        ("gradient_norm", "Gradient norm", "", _of_runs(runs, "train", "grad_norm")),
        ("weight_norm", "Norm of the weights", "", _of_runs(runs, "train", "param_norm")),
        (
            "speed",
            "Real tokens a second",
            "tokens/s",
            _of_runs(runs, "train", "tokens_per_second"),
        ),
        ("mfu", "Model FLOPs utilization", "share of the peak", _of_runs(runs, "train", "mfu")),
        ("padding", "Padding", "share of positions", _of_runs(runs, "train", "padding")),
        (
            "data_wait",
            "Waiting for data",
            "share of the time",
            _of_runs(runs, "train", "data_wait"),
        ),
    ]
    found = []
    for name, title, unit, curves in wanted:
        if curves := [curve for curve in curves if len(curve.steps) > 1]:
            found.append(Figure(_file_name(name), title, _draw(curves, unit)))
    return found


def _of_runs(runs: Sequence[RunRecord], kind: str, number: str) -> list[_Curve]:
    return [_Curve(run.name, *run.series(kind, number)) for run in runs]


def _single(runs: Sequence[RunRecord]) -> list[tuple[str, str, str, list[_Curve]]]:
    """What has a curve for each task or part of the model, so that only one run fits."""
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
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
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
    if len(curves) > _IN_THE_PICTURE:
        figure.legend(loc="outside right upper", fontsize="x-small")
    elif len(curves) > 1:
        axes.legend(fontsize="small")
    return as_png(figure)


def as_png(figure: Any) -> bytes:
    """A drawing of matplotlib's as PNG of 64 colors, a third as large as with all; closes it."""
    from matplotlib import pyplot
    from PIL import Image

    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=130)
    pyplot.close(figure)
    Image.open(full).convert("RGB").quantize(64).save(small, format="png", optimize=True)
    return small.getvalue()


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_-." else "_" for c in name) + ".png"
