"""Rollback after loss spikes and NaNs: detect bad steps, return to a checkpoint and skip the data.

How a rollback works, by an example. A run saves every 100 steps, and its losses are not finite from
step 251 on:

1. `AnomalyGuardCallback` notices at the next log line, here at step 260, that 10 of the last 100
   steps were not finite. It records the examples of each of them in anomalies.jsonl.
2. It appends a decision to decisions.jsonl: "taken at step 260, back to step 200, continue with the
   data after step 260". Then it raises `Rollback`, which ends the loop.
3. The loop restores the checkpoint of step 200, and from there reads the batches that come after
   those of step 260. The data of steps 201 to 260 is never read again:

       step          199   200   201   202
       batch number  199   200   261   262

Only the decisions, never the memory of the process, define what is skipped. A run that is killed at
any moment therefore reads the same batches after a restart: each checkpoint records the number of
decisions that had been taken, and `data_jumps` applies those that came later.
"""

import dataclasses
import json
import logging
import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from t5x_lite.data.stream.stream import ExampleIds, Stream, StreamPosition
from t5x_lite.distributed import processes
from t5x_lite.errors import ConfigError, require_field
from t5x_lite.io.append_file import AppendFile
from t5x_lite.io.run_records import read_json_lines, write_json_lines
from t5x_lite.training.callbacks import Callback, Report, StepInfo
from t5x_lite.training.step_metrics import PackedMetrics, fetch_metrics

DECISIONS = "decisions.jsonl"
ANOMALIES = "anomalies.jsonl"
NONFINITE_WINDOW = 100  # steps over which those that are not finite are counted
_LOG = logging.getLogger(__name__)


class Decision(NamedTuple):
    """One line of decisions.jsonl: a rollback.

    Args:
        step: The step at which the rollback was decided.
        why: The reason, for a reader.
        back_to: The step whose checkpoint the run returns to; 0 is the start of the run.
        position: The position in the data from which the run continues after `back_to`.
    """

    step: int
    why: str
    back_to: int
    position: StreamPosition


class Rollback(Exception):  # noqa: N818 it is no error, just as StopIteration is none
    """Ends the loop after a decision was written; the run restarts according to the decisions."""


def read_decisions(directory: epath.PathLike) -> list[Decision]:
    """Return all decisions of a run, oldest first, the same on every process.

    Args:
        directory: The run's directory. Only the first process reads it.
    """
    path = epath.Path(directory) / DECISIONS
    lines = list(read_json_lines(path, strict=True)) if processes.is_first() else None
    return [Decision(**line) for line in processes.broadcast(lines)]


def write_decisions(directory: epath.PathLike, decisions: Sequence[Decision]) -> None:
    """Replace a run's decisions atomically; only the first process writes.

    Args:
        directory: The run's directory.
        decisions: All decisions of the run, oldest first.
    """
    if processes.is_first():
        records = (decision._asdict() for decision in decisions)
        write_json_lines(epath.Path(directory) / DECISIONS, records)


def is_discarded(decisions: Sequence[Decision], step: int, progress: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint was made obsolete by a rollback that was decided after it.

    Args:
        decisions: All decisions of the run.
        step: The step of the checkpoint.
        progress: What was saved beside the checkpoint's state. Its "decisions" is the number of
            decisions that had been taken by then.
    """
    later = decisions[progress.get("decisions", 0) :]
    return any(decision.back_to < step for decision in later)


def data_jumps(decisions: Sequence[Decision], step: int, known: int) -> dict[int, StreamPosition]:
    """Return the steps after which a run that resumes from `step` skips data, and to where.

    A rollback to step 8 and a later one to step 20 give two jumps. If the later one returns to step
    4 instead, it also undoes the first one, and only the jump at step 4 remains.

    Args:
        decisions: All decisions of the run.
        step: The step of the checkpoint that is resumed from. Earlier jumps are in the past.
        known: The number of decisions that had been taken when that checkpoint was saved. Its
            position in the data already contains them.

    Returns:
        {step: position of the batch that the step after it reads}.
    """
    jumps: dict[int, StreamPosition] = {}
    for decision in decisions[known:]:
        jumps = {at: position for at, position in jumps.items() if at < decision.back_to}
        jumps[decision.back_to] = decision.position
    return {at: position for at, position in jumps.items() if at >= step}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnomalyGuard:
    """When a run rolls back to an earlier checkpoint and skips the data that it read since then.

    Steps are judged in their order, but only when a log line is due: reading the metrics after each
    step would make the devices wait.

    Args:
        nonfinite_steps: Roll back when this number of the last 100 steps had a loss or a gradient
            that is not finite; None never does. The default of 10 tolerates the few that a healthy
            run recovers from. Whether such a step changes weights is `Update.skip_nonfinite`.
        spike_deviations: A loss is high when it exceeds the median of the last `history` losses
            that were not high by more than this number of deviations. A deviation is 1.48 times
            the median distance from that median, which for a normal distribution is the standard
            deviation. None, the default, does not look for spikes.
        spike_steps: Roll back when this number of losses in a row are high. One high loss is often
            a single hard batch.
        history: The number of losses that a new one is compared with. Spikes are not looked for
            before there are as many.
        margin_steps: Roll back to a checkpoint that is more than this number of steps older than
            the first bad step. Without one, to the oldest checkpoint before the first bad step;
            without that, to the start of the run.
        max_rollbacks: The number of rollbacks of the whole run, over all launches. One more ends
            the run with an error.

    Raises:
        ConfigError: For a value that is too small.
    """

    nonfinite_steps: int | None = 10
    spike_deviations: float | None = None
    spike_steps: int = 10
    history: int = 128
    margin_steps: int = 0
    max_rollbacks: int = 5

    def __post_init__(self):
        least = {"nonfinite_steps": 1, "spike_steps": 1, "history": 8, "margin_steps": 0}
        least |= {"max_rollbacks": 0, "spike_deviations": 1}
        for name, minimum in least.items():
            value = getattr(self, name)
            valid = value is None or value >= minimum
            require_field(self, name, valid, f"at least {minimum}")


class StepNumbers(NamedTuple):
    """The numbers of a finished step that decide whether it was bad.

    Args:
        step: The number of the step.
        loss: The loss per token.
        grad_norm: The norm of the gradient.
        skipped: The number of steps so far that changed no weights (`Update.skip_nonfinite`).
    """

    step: int
    loss: float
    grad_norm: float
    skipped: float


class AnomalyDetector:
    """Decides from the numbers of the steps alone when to roll back; knows no run and no files.

    Args:
        guard: The thresholds.
        state_json: The `state_json` of an earlier detector, to continue from; None starts without
            a history.
    """

    def __init__(self, guard: AnomalyGuard, state_json: str | None = None):
        self._guard = guard
        empty = {"losses": [], "high": [], "bad": [], "skipped": 0}
        state = json.loads(state_json) if state_json else empty
        self._losses = deque(state["losses"], guard.history)
        # Steps: the high losses since the last normal one, and those that were not finite.
        self._high, self._bad = list(state["high"]), list(state["bad"])
        self._skipped = state["skipped"]

    @property
    def state_json(self) -> str:
        """Everything that decides about later steps, saved with each checkpoint."""
        return json.dumps(
            {
                "losses": list(self._losses),
                "high": self._high,
                "bad": self._bad,
                "skipped": self._skipped,
            }
        )

    def is_finite(self, numbers: StepNumbers) -> bool:
        """Return whether the next step's loss and gradient are finite.

        A step that was skipped counts as not finite, whatever its numbers are.
        """
        was_skipped = numbers.skipped != self._skipped
        return not was_skipped and all(map(math.isfinite, (numbers.loss, numbers.grad_norm)))

    def add(self, numbers: StepNumbers) -> tuple[int, str] | None:
        """Take the next step, and return the reason to roll back if there is one.

        Args:
            numbers: Of the step that follows the one before. Every step must be added once.

        Returns:
            The first bad step and the reason, or None.
        """
        finite, self._skipped = self.is_finite(numbers), numbers.skipped
        return self._add_loss(numbers) if finite else self._add_nonfinite(numbers.step)

    def _add_nonfinite(self, step: int) -> tuple[int, str] | None:
        first = step - NONFINITE_WINDOW + 1
        self._bad = [*(bad for bad in self._bad if bad >= first), step]
        limit = self._guard.nonfinite_steps
        if limit is None or len(self._bad) < limit:
            return None
        return self._bad[0], f"{len(self._bad)} of {NONFINITE_WINDOW} steps were not finite"

    def _add_loss(self, numbers: StepNumbers) -> tuple[int, str] | None:
        if not self._is_high(numbers.loss):
            self._losses.append(numbers.loss)
            self._high = []
            return None
        # High losses do not enter the history: a long spike must not become the new normal.
        self._high.append(numbers.step)
        if len(self._high) < self._guard.spike_steps:
            return None
        median = statistics.median(self._losses)
        return self._high[0], f"{len(self._high)} losses in a row were high, median {median:.3f}"

    def _is_high(self, loss: float) -> bool:
        if self._guard.spike_deviations is None or len(self._losses) < self._guard.history:
            return False
        # Median and median distance, unlike mean and standard deviation, ignore single outliers.
        median = statistics.median(self._losses)
        deviation = 1.48 * statistics.median(abs(x - median) for x in self._losses)
        return loss > median + self._guard.spike_deviations * deviation


class AnomalyGuardCallback(Callback):
    """Checks the steps of a run, records bad ones in anomalies.jsonl and starts rollbacks.

    It raises `Rollback` for a rollback, and ConfigError for one more than `max_rollbacks`.

    Args:
        guard: The thresholds.
        directory: The run's directory.
        stream: The training data, to look up which examples a bad step had.
        seed: The seed of dropout, recorded with a bad step so that it can be replayed.
        steps_saved: Returns the steps that have a checkpoint.
    """

    def __init__(
        self,
        guard: AnomalyGuard,
        directory: epath.PathLike,
        stream: Stream,
        seed: int,
        steps_saved: Callable[[], list[int]],
    ):
        self._guard, self._directory, self._stream = guard, epath.Path(directory), stream
        self._seed, self._steps_saved = seed, steps_saved
        # Steps that are not checked yet: their metrics may still be computed on the devices.
        self._unchecked: list[tuple[int, PackedMetrics, StreamPosition]] = []
        self._position: Any = None
        self._detector = AnomalyDetector(guard)

    def on_start(self, step: int, progress: Mapping[str, Any]) -> None:
        """Continue with the history that was saved with the checkpoint."""
        self._detector = AnomalyDetector(self._guard, progress.get("judge"))
        self._unchecked = []

    def to_save(self) -> Mapping[str, str | float]:
        """Return the history, by which the steps after a restart are judged alike."""
        return {"judge": self._detector.state_json}

    def after_step(self, moment: StepInfo) -> None:
        """Keep the metrics of the step; nothing is fetched from the devices yet."""
        self._unchecked.append((moment.step, moment.metrics, moment.before))
        self._position = moment.position

    def on_log(self, step: int, numbers: Mapping[str, float], report: Report) -> None:
        """Check the steps since the last line, whose metrics are fetched anyway."""
        self._check_steps()

    def on_save(self, step: int) -> None:
        """Check the steps first, so that the checkpoint's history ends at its own step."""
        self._check_steps()

    def _check_steps(self) -> None:
        steps, self._unchecked = self._unchecked, []
        fetched = fetch_metrics([metrics for _, metrics, _ in steps])
        for (step, _, before), metrics in zip(steps, fetched, strict=True):
            loss = float(metrics["loss"]) / max(float(metrics["weight"]), 1.0)
            grad_norm, skipped = float(metrics["grad_norm"]), float(metrics["skipped_steps"])
            numbers = StepNumbers(step, loss, grad_norm, skipped)
            if not self._detector.is_finite(numbers):
                self._record_nonfinite(numbers, before)
            if (anomaly := self._detector.add(numbers)) is not None:
                self._roll_back(step, *anomaly)

    def _record_nonfinite(self, numbers: StepNumbers, before: StreamPosition) -> None:
        """Append what is needed to reproduce a step: its examples and the key of its dropout."""
        if not processes.is_first():
            return
        _LOG.warning(
            f"step {numbers.step:,} is not finite (loss {numbers.loss:g}, gradient norm "
            f"{numbers.grad_norm:g}); its examples are listed in {ANOMALIES}"
        )
        values = numbers._asdict()
        record = {
            # As text, since JSON has no nan and no inf.
            **{name: repr(value) for name, value in values.items() if name != "step"},
            "step": numbers.step,
            "key": {"seed": self._seed, "fold_in": numbers.step - 1},
            "position": before,
            "examples": list_examples(next(self._stream.example_ids(before))),
        }
        lines = AppendFile(self._directory / ANOMALIES)
        lines.write((json.dumps(record) + "\n").encode())
        lines.close()

    def _roll_back(self, step: int, first_bad: int, why: str) -> None:
        earlier = read_decisions(self._directory)
        if len(earlier) >= self._guard.max_rollbacks:
            raise ConfigError(
                f"{why} at step {step:,}, after {len(earlier)} rollbacks; see {ANOMALIES} and "
                f"{DECISIONS} in {self._directory}",
                "AnomalyGuard.max_rollbacks",
            )
        before_bad = [saved for saved in self._steps_saved() if saved < first_bad]
        with_margin = [
            saved for saved in before_bad if saved < first_bad - self._guard.margin_steps
        ]
        back_to = max(with_margin) if with_margin else min(before_bad, default=0)
        decision = Decision(step, why, back_to, self._position)
        write_decisions(self._directory, [*earlier, decision])
        if processes.is_first():
            _LOG.warning(
                f"rolling back from step {step:,} to step {back_to:,}: {why}, first at step "
                f"{first_bad:,}; the data read since then is skipped ({DECISIONS})"
            )
        raise Rollback


def list_examples(example_ids: ExampleIds) -> list[list[Any]]:
    """Return which examples a batch holds, as JSON: [[task, epoch, index, row of the batch], ...].

    Args:
        example_ids: The names of the tasks, and a column for each of the four; the first holds
            positions in the names.
    """
    columns = zip(*(column.tolist() for column in example_ids[1:]), strict=True)
    return [[example_ids.names[task], *rest] for task, *rest in columns]
