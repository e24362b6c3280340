"""The learning rate by step, as a table and as a figure."""

import logging
from pathlib import Path

import numpy as np

from t5x_lite.console import Console
from t5x_lite.io import atomic
from t5x_lite.reporting.drawing import new_figure, to_png
from t5x_lite.training.schedules import Schedule

_LOG = logging.getLogger(__name__)
PICTURE = "learning_rate.png"
_FRACTIONS = (0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1)  # of the steps, for the table
_POINTS = 2_000  # of the curve


def show_schedule(console: Console, schedule: Schedule, steps: int, output: Path) -> None:
    """Print the learning rate at some steps and draw it over all, on linear and logarithmic axes.

    Args:
        console: Where to print.
        schedule: The schedule.
        steps: Number of steps.
        output: Directory for the figure.
    """
    step_n = sorted({round(fraction * (steps - 1)) for fraction in _FRACTIONS})
    rates_n = _rates(schedule, np.array(step_n))
    rows = [(f"{step:,}", f"{rate:.4e}") for step, rate in zip(step_n, rates_n, strict=True)]
    console.table(f"Learning rate over {steps:,} steps", ("step", "rate"), rows)
    output.mkdir(parents=True, exist_ok=True)
    _draw(schedule, steps, output / PICTURE)
    _LOG.info(f"wrote {output / PICTURE}")


def _rates(schedule: Schedule, step_n: np.ndarray) -> np.ndarray:
    import jax

    return np.asarray(jax.jit(jax.vmap(schedule))(step_n))


def _draw(schedule: Schedule, steps: int, path: Path) -> None:
    figure, (linear, logarithmic) = new_figure((10, 4), columns=2, sharey=True)
    even_n = np.unique(np.linspace(0, steps - 1, _POINTS).round().astype(int))
    early_n = np.unique(np.geomspace(1, max(steps - 1, 1), _POINTS).round().astype(int))
    linear.plot(even_n, _rates(schedule, even_n), color="C0")
    logarithmic.plot(early_n, _rates(schedule, early_n), color="C0")
    logarithmic.set_xscale("log")
    linear.set(xlabel="step", ylabel="learning rate", title=str(type(schedule).__name__))
    linear.set_ylim(bottom=0)
    logarithmic.set(xlabel="step, logarithmic")
    for axes in (linear, logarithmic):
        axes.grid(alpha=0.3)
    atomic.write_bytes(path, to_png(figure))
