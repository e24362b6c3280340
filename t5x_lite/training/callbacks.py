"""What attaches to a run beside its steps: traces, receipts, guards, evaluations ..."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import jax

from t5x_lite.data.stream.stream import Batch, StreamPosition
from t5x_lite.training.step_metrics import PackedMetrics

Report = Callable[[str, Mapping[str, float]], None]  # (kind, numbers), for the writers


class StepInfo(NamedTuple):
    """A run after a step that was handed to the devices and is perhaps not done yet.

    step: finished steps. batch: what the step was given. before, position: of the stream, before
    and after the batch. metrics: of the step alone. The arrays may be kept; those of `state` are
    the next step's to overwrite.
    """

    step: int
    state: Any
    batch: Mapping[str, jax.Array]
    before: StreamPosition
    position: StreamPosition
    metrics: PackedMetrics


class Callback:
    """Is told what happens in a run; a subclass overrides what it wants to hear.

    A context manager: entered before a launch's first step, left after its last and on errors. All
    observers of a run are told in the order of its list, in the thread of the loop, on every
    process. Whatever a step waits for here, the devices may wait for too.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of what was taken."""

    def on_start(self, step: int, progress: Mapping[str, Any]) -> None:
        """Hear after which step the run goes on, and what was saved beside that checkpoint's state.

        Comes after `__enter__`, and again when the run goes back.
        """

    def to_save(self) -> Mapping[str, str | float]:
        """What `on_start` shall find in `progress` under a name of one's own."""
        return {}

    def on_batch(self, step: int, batch: Batch, before: StreamPosition) -> Batch:
        """Return the batch that a step trains on; the default is the one that the data gives.

        It is called before the batch is moved to the devices, in the thread that prefetches, up to
        a few steps ahead. For the same position in the data it must return the same batch, or
        resuming is no longer bit-exact.

        Args:
            step: The step that the batch is for, counted from 1.
            batch: The rows of this process: NumPy arrays by feature, which must not be changed.
            before: The position in the data at which the batch begins.

        Returns:
            The batch, with the same features, shapes and types.
        """
        return batch

    def before_step(self, step: int, state: Any) -> None:
        """Hear that step `step`, counted from 1, is about to be handed to the devices."""

    def after_step(self, moment: StepInfo) -> None:
        """Hear that a step was handed to the devices; waiting for its results slows the run."""

    def on_log(self, step: int, numbers: Mapping[str, float], report: Report) -> None:
        """Hear the numbers of the steps since the last line, and report more of them."""

    def on_evaluate(self, step: int, state: Any, report: Report) -> None:
        """Evaluate `state.eval_params` in a way of one's own; this time is not counted as training.

        What is reported here or in `on_log` can say which checkpoint is the best.
        """

    def on_report(self, step: int, kind: str, numbers: Mapping[str, float]) -> None:
        """Hear a record that is written: what `report` was given, or the run itself reports."""

    def on_save(self, step: int) -> None:
        """Hear that a checkpoint of this step is about to be written."""
