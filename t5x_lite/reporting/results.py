"""Results of a finished run: validation losses with baselines, samples, and loss curves."""

import logging
from collections.abc import Mapping
from typing import Any, TypedDict

from etils import epath

from t5x_lite.console import Console
from t5x_lite.io import atomic
from t5x_lite.io.metric_writers import read_metrics
from t5x_lite.io.safe_files import read_json_if_exists
from t5x_lite.reporting.drawing import new_figure, to_png

_LOG = logging.getLogger(__name__)
RESULTS = "results.json"
CURVES = "loss_curves.png"


class TaskResult(TypedDict):
    """The validation loss of a task, in nats per target token, with baselines.

    Attributes:
        loss: The model's loss.
        accuracy: Fraction of target tokens to which the model gives the highest probability.
        uniform: Loss of a uniform distribution over the vocabulary.
        unigram: Loss of the distribution of tokens in the training targets.
        tokens: Number of target tokens.
    """

    loss: float
    accuracy: float
    uniform: float
    unigram: float
    tokens: int


class Sample(TypedDict):
    """A validation example with the text that the model generates.

    Attributes:
        task: The task.
        inputs: Text of the inputs.
        target: Text of the targets.
        prediction: The generated text.
    """

    task: str
    inputs: str
    target: str
    prediction: str


class Results(TypedDict):
    """The content of results.json.

    Attributes:
        step: The last step.
        seconds: Duration of the training steps of all launches.
        tasks: Results by task.
        samples: Decoded validation examples.
        goodput: Seconds of all launches by purpose.
    """

    step: int
    seconds: float
    tasks: dict[str, TaskResult]
    samples: list[Sample]
    goodput: dict[str, float]


def write_results(model_dir: epath.Path, results: Results) -> None:
    """Write results.json and draw the loss curves."""
    atomic.write_json(model_dir / RESULTS, results)
    draw_curves(model_dir, {name: task["unigram"] for name, task in results["tasks"].items()})


def read_results(model_dir: epath.PathLike) -> Results | None:
    """Read the results of a finished run; None for a run that has not finished."""
    return read_json_if_exists(epath.Path(model_dir) / RESULTS)


def show_results(console: Console, model_dir: epath.Path, results: Results) -> None:
    """Print the samples and a table of validation losses."""
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
    """Draw training and validation losses by step to loss_curves.png.

    Args:
        model_dir: Directory of the run.
        unigram: Unigram baseline of each task.
    """
    records = list(read_metrics(model_dir))
    figure, axes = new_figure((8, 5))
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
    atomic.write_bytes(model_dir / CURVES, to_png(figure))


def _plot(axes: Any, records: list[dict[str, Any]], kind: str, **style: Any) -> None:
    """Plot the losses of one kind of records."""
    points = [(r["step"], r["loss"]) for r in records if r["kind"] == kind]
    if points:
        axes.plot(*zip(*points, strict=True), **style)
