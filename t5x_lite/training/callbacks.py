"""Callbacks: code that runs between the steps of a run, such as metrics, traces and evaluations.

A callback is a subclass of `Callback` that overrides some of its methods. In my_callbacks.py:

    class Perplexity(Callback):
        def on_log(self, step, numbers, report):
            report("my_metrics", {"perplexity": math.exp(numbers["loss"])})

In a gin file:

    import my_callbacks
    train.train.callbacks = (@my_callbacks.Perplexity(),)

The calls for a run of two steps that logs, evaluates and saves after the second one:

    __enter__   on_start   on_batch(1)   on_batch(2)
    before_step(1)   after_step(1)
    before_step(2)   after_step(2)   on_log(2)   on_evaluate(2)   on_save(2)   to_save
    __exit__
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import jax

from t5x_lite.data.stream.stream import Batch, StreamPosition
from t5x_lite.training.step_metrics import PackedMetrics

# Writes numbers to metrics.jsonl and TensorBoard, at the current step: (kind, {name: number}).
Report = Callable[[str, Mapping[str, float]], None]


class StepInfo(NamedTuple):
    """A step that was dispatched to the devices, which may still compute it.

    The arrays may be kept, except those of `state`: the next step overwrites them.

    Args:
        step: The number of the step, from 1.
        state: The state after the step.
        batch: What the step read, on the devices.
        before: The position in the data before the batch.
        position: The position in the data after the batch.
        metrics: Of this step alone.
    """

    step: int
    state: Any
    batch: Mapping[str, jax.Array]
    before: StreamPosition
    position: StreamPosition
    metrics: PackedMetrics


class Callback:
    """Base class of callbacks, whose methods do nothing; a subclass overrides some of them.

    A callback is a context manager: it is entered before the first step of a launch and left after
    the last one, also after an error. After a rollback it is entered again. The methods are called
    on every process, in the order of the list of callbacks, and in the thread of the loop, except
    `on_batch`. If a method waits for a result of the devices, they may become idle meanwhile.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Release files, threads and the like."""

    def on_start(self, step: int, progress: Mapping[str, Any]) -> None:
        """Start from a checkpoint; called after `__enter__`, also after a rollback.

        Args:
            step: The number of steps done.
            progress: What was saved beside the checkpoint's state, the results of `to_save` of all
                callbacks included; empty without a checkpoint.
        """

    def to_save(self) -> Mapping[str, str | float]:
        """Return what is saved with each checkpoint, for `on_start` after a restart.

        Returns:
            JSON values by name. All callbacks share the names: choose one that is unique.
        """
        return {}

    def on_batch(self, step: int, batch: Batch, before: StreamPosition) -> Batch:
        """Return the batch that a step trains on; the default returns that of the data.

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
        """Prepare for a step that is about to be dispatched to the devices.

        Args:
            step: The number of the step, from 1.
            state: The state before the step.
        """

    def after_step(self, moment: StepInfo) -> None:
        """Use a step that was dispatched to the devices; waiting for its results slows the run.

        Args:
            moment: The step, its batch and its metrics.
        """

    def on_log(self, step: int, numbers: Mapping[str, float], report: Report) -> None:
        """Use the metrics of the steps since the last log line, which were just fetched.

        Args:
            step: The number of steps done.
            numbers: Means over these steps, such as "loss" and "tokens_per_second".
            report: Writes more numbers.
        """

    def on_evaluate(self, step: int, state: Any, report: Report) -> None:
        """Evaluate the model after its validation losses; the time does not count as training.

        Numbers that are reported here or in `on_log` are saved with a checkpoint of the same step,
        so that `CheckpointPolicy.keep_best` can use them.

        Args:
            step: The number of steps done.
            state: Its `eval_params` are the weights to evaluate.
            report: Writes the results.
        """

    def on_report(self, step: int, kind: str, numbers: Mapping[str, float]) -> None:
        """Use numbers that were just written to metrics.jsonl, by the run or by a callback.

        Args:
            step: The number of steps done.
            kind: Such as "train" or "validation/my_task".
            numbers: By name.
        """

    def on_save(self, step: int) -> None:
        """Prepare for a checkpoint that is about to be saved, before `to_save` is called.

        Args:
            step: The number of steps done.
        """
