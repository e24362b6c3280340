"""How a run ended: held-out losses beside their baselines, samples, and the loss curves."""

import io
import logging
from collections.abc import Mapping
from typing import Any, TypedDict

from etils import epath

from t5x_lite.console import Console
from t5x_lite.io import atomic
from t5x_lite.io.metric_writers import read_metrics
from t5x_lite.io.safe_files import read_json_if_exists

_LOG = logging.getLogger(__name__)
RESULTS = "results.json"
CURVES = "loss_curves.png"


class TaskResult(TypedDict):
    """Nats per held-out target token of model and baselines, and the model's accuracy."""

    loss: float
    accuracy: float
    uniform: float
    unigram: float
    tokens: int


class Sample(TypedDict):
    """One decoded example."""

    task: str
    inputs: str
    target: str
    prediction: str


class Results(TypedDict):
    """What stands in results.json. goodput: seconds of all launches by purpose."""

    step: int
    seconds: float
    tasks: dict[str, TaskResult]
    samples: list[Sample]
    goodput: dict[str, float]


def write_results(model_dir: epath.Path, results: Results) -> None:
    """Write results.json and the curves."""
    atomic.write_json(model_dir / RESULTS, results)
    draw_curves(model_dir, {name: task["unigram"] for name, task in results["tasks"].items()})


def read_results(model_dir: epath.PathLike) -> Results | None:
    """The results of a finished run, or None."""
    return read_json_if_exists(epath.Path(model_dir) / RESULTS)


def show_results(console: Console, model_dir: epath.Path, results: Results) -> None:
    """Print the samples and the table of held-out losses."""
    if results["samples"]:
        entries = [{name: str(text) for name, text in s.items()} for s in results["samples"]]
        console.entries("Validation examples, decoded greedily", entries)
    rows = [
        (
            *(name, f"{task['loss']:.3f}", f"{task['unigram']:.3f}", f"{task['uniform']:.3f}"),
            *(f"{task['accuracy']:.1%}", f"{task['tokens']:,}"),
        )
        for name, task in results["tasks"].items()
    ]
    console.table(
        f"Validation loss at step {results['step']:,} (nats per target token)",
        ("task", "model", "unigram baseline", "uniform baseline", "accuracy", "target tokens"),
        rows,
    )
    _LOG.info(f"loss curves are in {model_dir / CURVES}")


def draw_curves(model_dir: epath.Path, unigram: Mapping[str, float]) -> None:
    """Draw training loss and each task's held-out loss over steps, with its unigram baseline."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = list(read_metrics(model_dir))
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    _plot(axes, records, "train", color="0.6", linewidth=1, label="training mixture")
    markers = "osD^v<>pPX*"
    for i, (name, baseline) in enumerate(unigram.items()):
        color, marker = f"C{i}", markers[i % len(markers)]
        _plot(axes, records, f"validation/{name}", color=color, marker=marker, label=name)
        axes.axhline(baseline, color=color, linestyle=":", linewidth=1, label=f"{name}, unigram")
    axes.set(xlabel="step", ylabel="loss (nats per target token)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120, format="png")
    atomic.write_bytes(model_dir / CURVES, drawn.getvalue())
    pyplot.close(figure)


def _plot(axes: Any, records: list[dict[str, Any]], kind: str, **style: Any) -> None:
    points = [(r["step"], r["loss"]) for r in records if r["kind"] == kind]
    if points:
        axes.plot(*zip(*points, strict=True), **style)
