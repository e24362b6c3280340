"""Numbers going wrong: what is noted, and when a run goes back to a checkpoint and skips data."""

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
from t5x_lite.io.json_lines import read_json_lines, write_json_lines
from t5x_lite.training.callbacks import Callback, Report, StepInfo
from t5x_lite.training.step_metrics import PackedMetrics, fetch_metrics

DECISIONS = "decisions.jsonl"
_LOG = logging.getLogger(__name__)


class Decision(NamedTuple):
    """One line of decisions.jsonl. step: at which it was taken. why: in words."""

    step: int
    why: str
    back_to: int
    position: StreamPosition


class Rollback(Exception):  # noqa: N818 no error, as StopIteration is none
    """Ends the loop: a decision was written, and the run starts again where it says."""


def read(directory: epath.PathLike) -> list[Decision]:
    """The decisions of a run, as its first process finds them."""
    path = epath.Path(directory) / DECISIONS
    found = list(read_json_lines(path, strict=True)) if processes.is_first() else None
    return [Decision(**line) for line in processes.broadcast(found)]


def write(directory: epath.PathLike, decisions: Sequence[Decision]) -> None:
    """Write all decisions of a run, at once or not at all."""
    if processes.is_first():
        records = (decision._asdict() for decision in decisions)
        write_json_lines(epath.Path(directory) / DECISIONS, records)


def gave_up(decisions: Sequence[Decision], step: int, progress: Mapping[str, Any]) -> bool:
    """Whether a checkpoint of `step` belongs to what a later decision gave up."""
    return any(each.back_to < step for each in decisions[progress.get("decisions", 0) :])


def jumps(decisions: Sequence[Decision], step: int, known: int) -> dict[int, StreamPosition]:
    """Where a run that goes on after `step` leaves the order of the data: {step: position}.

    known: how many decisions had been taken when the data's position after `step` was noted.
    """
    found: dict[int, StreamPosition] = {}
    for each in decisions[known:]:
        found = {at: position for at, position in found.items() if at < each.back_to}
        found[each.back_to] = each.position
    return {at: position for at, position in found.items() if at >= step}


ANOMALIES = "anomalies.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnomalyGuard:
    """When a run goes back; only whole steps are judged, in their order, when a line is due.

    nonfinite_steps: go back when so many of the last 100 steps had a loss or gradient that is not
        finite; None never does. (Whether such a step changes weights is `Update.skip_nonfinite`.)
    spike_deviations: a loss is high when it lies more than so many deviations above the median of
        the last `history` losses that were not high, a deviation being 1.48 times their median
        distance from it, as for a normal distribution. None looks for no spikes.
    spike_steps: go back when so many losses in a row are high.
    margin_steps: go back to a checkpoint at least so many steps before the first bad step, if
        there is one; else to the oldest, else to the start.
    max_rollbacks: of the whole run; after that the run ends with an error.
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


class Seen(NamedTuple):
    """What a guard knows of a step, once it is done."""

    step: int
    loss: float
    grad_norm: float
    skipped: float


class AnomalyDetector:
    """The rule, without a run: takes steps in order, says why to go back; its state is JSON."""

    def __init__(self, guard: AnomalyGuard, memory: str | None = None):
        self._guard = guard
        kept = json.loads(memory) if memory else {"losses": [], "high": [], "bad": [], "skipped": 0}
        self._losses = deque(kept["losses"], guard.history)
        self._high, self._bad = list(kept["high"]), list(kept["bad"])  # steps
        self._skipped = kept["skipped"]

    @property
    def memory(self) -> str:
        """All that the next steps will be judged by."""
        return json.dumps(
            {
                "losses": list(self._losses),
                "high": self._high,
                "bad": self._bad,
                "skipped": self._skipped,
            }
        )

    def is_finite(self, seen: Seen) -> bool:
        """Whether a step's numbers are; a step that was left out has none."""
        numbers = (seen.loss, seen.grad_norm)
        return seen.skipped == self._skipped and all(map(math.isfinite, numbers))

    def judge(self, seen: Seen) -> tuple[int, str] | None:
        """The first bad step and the reason to go back, if this step gives one."""
        finite, self._skipped = self.is_finite(seen), seen.skipped
        guard = self._guard
        if not finite:
            self._bad = [step for step in self._bad if step > seen.step - 100] + [seen.step]
            if guard.nonfinite_steps is not None and len(self._bad) >= guard.nonfinite_steps:
                return self._bad[0], f"{len(self._bad)} of 100 steps were not finite"
            return None
        if not self._is_high(seen.loss):
            self._losses.append(seen.loss)
            self._high = []
            return None
        self._high.append(seen.step)
        if len(self._high) < guard.spike_steps:
            return None
        median = statistics.median(self._losses)
        return self._high[0], f"{len(self._high)} losses in a row were high, median {median:.3f}"

    def _is_high(self, loss: float) -> bool:
        if self._guard.spike_deviations is None or len(self._losses) < self._guard.history:
            return False
        median = statistics.median(self._losses)
        deviation = 1.48 * statistics.median(abs(x - median) for x in self._losses)
        return loss > median + self._guard.spike_deviations * deviation


class AnomalyGuardCallback(Callback):
    """Judges the steps of a run whenever a line is due, notes what is bad, and has the run go back.

    Raises `decisions.Rollback` for that, and ConfigError when it was done too often.
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
        self._open: list[tuple[int, PackedMetrics, StreamPosition]] = []
        self._position: Any = None
        self.judge = AnomalyDetector(guard)

    def on_start(self, step: int, progress: Mapping[str, Any]) -> None:
        """Take up what a checkpoint says of the steps before it."""
        self.judge, self._open = AnomalyDetector(self._guard, progress.get("judge")), []

    def to_save(self) -> Mapping[str, str | float]:
        """What the steps after a checkpoint are judged by."""
        return {"judge": self.judge.memory}

    def after_step(self, moment: StepInfo) -> None:
        """Keep the numbers of the step; nothing is fetched from the devices."""
        self._open.append((moment.step, moment.metrics, moment.before))
        self._position = moment.position

    def on_log(self, step: int, numbers: Mapping[str, float], report: Report) -> None:
        """Judge."""
        self._judge_all()

    def on_save(self, step: int) -> None:
        """Judge first, so that the checkpoint holds what the judge knows by then."""
        self._judge_all()

    def _judge_all(self) -> None:
        taken, self._open = self._open, []
        fetched = fetch_metrics([metrics for _, metrics, _ in taken])
        for (step, _, before), numbers in zip(taken, fetched, strict=True):
            loss = float(numbers["loss"]) / max(float(numbers["weight"]), 1.0)
            seen = Seen(step, loss, float(numbers["grad_norm"]), float(numbers["skipped_steps"]))
            if not self.judge.is_finite(seen):
                self._note(seen, before)
            if (bad := self.judge.judge(seen)) is not None:
                self._go_back(step, *bad)

    def _note(self, seen: Seen, before: StreamPosition) -> None:
        """Record a step whose numbers are not finite: its examples, and the key of its dropout."""
        if not processes.is_first():
            return
        _LOG.warning(
            f"step {seen.step:,} is not finite (loss {seen.loss:g}, gradient norm "
            f"{seen.grad_norm:g}); its examples are listed in {ANOMALIES}"
        )
        record = {
            **{name: repr(value) for name, value in seen._asdict().items() if name != "step"},
            "step": seen.step,
            "key": {"seed": self._seed, "fold_in": seen.step - 1},
            "position": before,
            "examples": named(next(self._stream.example_ids(before))),
        }
        lines = AppendFile(self._directory / ANOMALIES)
        lines.write((json.dumps(record) + "\n").encode())
        lines.close()

    def _go_back(self, step: int, first_bad: int, why: str) -> None:
        before = read(self._directory)
        if len(before) >= self._guard.max_rollbacks:
            raise ConfigError(
                f"{why} at step {step:,}, after {len(before)} rollbacks; see {ANOMALIES} and "
                f"{DECISIONS} in {self._directory}",
                "AnomalyGuard.max_rollbacks",
            )
        good = [saved for saved in self._steps_saved() if saved < first_bad]
        early = [saved for saved in good if saved < first_bad - self._guard.margin_steps]
        back_to = max(early) if early else min(good, default=0)
        decision = Decision(step, why, back_to, self._position)
        write(self._directory, [*before, decision])
        if processes.is_first():
            _LOG.warning(
                f"rolling back from step {step:,} to step {back_to:,}: {why}, first at step "
                f"{first_bad:,}; the data read since then is skipped ({DECISIONS})"
            )
        raise Rollback


def named(example_ids: ExampleIds) -> list[list[Any]]:
    """Which examples a batch holds: task, epoch, index and row of each."""
    columns = zip(*(column.tolist() for column in example_ids[1:]), strict=True)
    return [[example_ids.names[task], *rest] for task, *rest in columns]
