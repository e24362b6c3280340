"""The tasks of a stream, and which of them cannot be had in which way."""

from collections.abc import Sequence
from typing import NamedTuple

from t5x_lite.data.examples import Ending
from t5x_lite.data.opening import AnyStore
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.denoising import Objective, PairObjective


class StreamTask(NamedTuple):
    """A task of a mixture: its store, its rate in any unit, its objective (None for pairs).

    ending: of pairs that are not simply cut where they are too long.
    """

    name: str
    store: AnyStore
    rate: float
    objective: Objective | None
    ending: Ending | None = None


def check_packable(tasks: Sequence[StreamTask]) -> None:
    """Raise ConfigError for an objective whose examples cannot share a row."""
    for task in tasks:
        if labels := getattr(task.objective, "labels", ()):
            raise ConfigError(
                f"{' and '.join(labels)} of task {task.name!r} is one number a row: wanted pack = "
                "False, so that no two examples share one",
                "Data.pack",
            )


def check_piecewise(tasks: Sequence[StreamTask]) -> None:
    """Raise ConfigError for an objective that needs the whole text to begin with."""
    for task in tasks:
        if isinstance(task.objective, PairObjective):
            raise ConfigError(
                f"{type(task.objective).__name__} puts pieces from all over task {task.name!r} "
                "together: wanted tokenise = 'before_training'",
                "Data.tokenise",
            )
