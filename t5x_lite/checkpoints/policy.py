"""The checkpoint policy: when a run saves, what it keeps, and how failed saves are retried."""

import dataclasses
import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from etils import epath
from orbax.checkpoint import v1 as ocp

from t5x_lite.checkpoints.frozen_base import pinned
from t5x_lite.errors import require_field

Better = Literal["lower", "higher"]
_saving, _keeping = ocp.training.save_decision_policies, ocp.training.preservation_policies


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointPolicy:
    """When a run saves checkpoints, which of them it keeps, and how it retries failed saves.

    The last step of a run is always saved. A checkpoint is kept if any of `keep`, `keep_period`,
    `keep_best` and `pinned_steps` keeps it; the others are deleted when newer ones are complete.

    Args:
        period: Save after every step that is a multiple of it. With the default of 1000, a crash
            costs at most as many steps.
        every_minutes: Also save when this number of minutes has passed since the last save or the
            start of the process; None does not.
        keep: Keep this number of the newest checkpoints; None keeps all. The default of 3 leaves
            older ones to return to if the newest is corrupt.
        keep_period: Permanently keep the checkpoints of steps that are multiples of it; None keeps
            none of them.
        keep_best: Keep the best checkpoints by a metric: {name: "lower" or "higher"}, which says
            what is better. Names are as in metrics.jsonl, such as "validation/embedded_text/loss".
            A checkpoint counts only if the metric was reported at its own step.
        keep_best_count: The number of best checkpoints to keep by each metric.
        pinned_steps: Save at these steps, and permanently keep their checkpoints.
        retry_seconds: After a failed save, retry as soon as this number of seconds has passed.
            Training continues meanwhile.
        save_timeout_seconds: A save that takes longer than this has failed. If one of several
            processes cannot write, the others may not notice it before.
        max_failures: End the run with an error after this number of failed saves in a row.

    Raises:
        ConfigError: A value is out of range.
    """

    period: int = 1000
    every_minutes: float | None = None
    keep: int | None = 3
    keep_period: int | None = None
    keep_best: Mapping[str, Better] = dataclasses.field(default_factory=dict)
    keep_best_count: int = 1
    pinned_steps: Sequence[int] = ()
    retry_seconds: float = 30.0
    save_timeout_seconds: int = 1200
    max_failures: int = 10

    def __post_init__(self):
        for name in ("period", "keep_best_count", "save_timeout_seconds", "max_failures"):
            require_field(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("keep", "keep_period"):
            value = getattr(self, name)
            require_field(self, name, value is None or value >= 1, "None or at least 1")
        valid = self.every_minutes is None or self.every_minutes > 0
        require_field(self, "every_minutes", valid, "None or positive")
        require_field(self, "retry_seconds", self.retry_seconds >= 0, "0 or more")
        valid = set(self.keep_best.values()) <= {"lower", "higher"}
        require_field(self, "keep_best", valid, "metric names with 'lower' or 'higher'")

    def save_policy(self) -> Any:
        """Return orbax's policy for when to save."""
        policies: list[Any] = [
            _saving.FixedIntervalPolicy(self.period),
            _saving.SpecificStepsPolicy(frozenset(self.pinned_steps)),
        ]
        if self.every_minutes is not None:
            policies.append(EveryMinutes(self.every_minutes))
        return _saving.AnySavePolicy(policies=policies)

    def may_save(self, step: int) -> bool:
        """Return whether the policy may save at a step.

        It is called after each step and only excludes steps quickly: orbax takes half a millisecond
        to decide.
        """
        by_step = step % self.period == 0 or step in self.pinned_steps
        return by_step or self.every_minutes is not None

    def preservation_policy(self, model_dir: epath.Path) -> Any:
        """Return orbax's policy for which checkpoints to keep.

        Args:
            model_dir: The run's directory. It lists the checkpoints that other runs need, since
                they hold those runs' frozen weights; they are kept too.
        """
        if self.keep is None:
            return _keeping.PreserveAll()
        policies: list[Any] = [
            _keeping.LatestN(self.keep),
            _keeping.CustomSteps(tuple(self.pinned_steps)),
            UsedByOtherRuns(model_dir),
            *(Best(name, better, self.keep_best_count) for name, better in self.keep_best.items()),
        ]
        if self.keep_period is not None:
            policies.append(_keeping.EveryNSteps(self.keep_period))
        return _keeping.AnyPreservationPolicy(policies)


class EveryMinutes(_saving.ContinuousCheckpointingPolicy):
    """Save when some minutes have passed since the last save or the start of the process.

    The first process decides for all, since their clocks differ.

    Args:
        minutes: Between two saves.
    """

    def __init__(self, minutes: float):
        super().__init__(minimum_interval_secs=minutes * 60)  # pyright: ignore  (any timedelta)
        self._began = _Time(datetime.datetime.now(tz=datetime.UTC))

    def should_save(self, step: Any, previous_steps: Sequence[Any], *, context: Any) -> bool:
        """Return whether the time has passed."""
        newest = max([self._began, *previous_steps], key=lambda info: info.time)
        return super().should_save(step, [newest], context=context)  # pyright: ignore


class _Time(NamedTuple):
    time: datetime.datetime


@dataclasses.dataclass(frozen=True)
class UsedByOtherRuns:
    """Keep the checkpoints that hold the frozen weights of other runs (`frozen_base`).

    Args:
        model_dir: The directory of this run.
    """

    model_dir: epath.Path

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Return for each checkpoint whether to keep it."""
        steps = pinned(self.model_dir)
        return [info.step in steps for info in checkpoints]


@dataclasses.dataclass(frozen=True)
class Best:
    """Keep the checkpoints that are best by one metric; those without it do not count.

    Args:
        metric: Its name in metrics.jsonl.
        better: What is better, "lower" or "higher".
        count: The number of checkpoints to keep.
    """

    metric: str
    better: Better
    count: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Return for each checkpoint whether to keep it."""
        ranked = ranking(checkpoints, self.metric, self.better)[: self.count]
        return [info.step in ranked for info in checkpoints]


def ranking(checkpoints: Sequence[Any], metric: str, better: Better) -> list[int]:
    """Return the steps of the checkpoints that have a metric, best first; of equals, newest first.

    Args:
        checkpoints: Orbax's descriptions of them.
        metric: Its name in metrics.jsonl.
        better: What is better, "lower" or "higher".
    """
    sign = 1 if better == "lower" else -1
    # Sorting by (value, -step) puts the newer of two equals first.
    order = sorted((sign * i.metrics[metric], -i.step) for i in checkpoints if _has(i, metric))
    return [-negative_step for _, negative_step in order]


def _has(info: Any, metric: str) -> bool:
    """Whether a checkpoint has a finite value of a metric."""
    return bool(info.metrics) and math.isfinite(info.metrics.get(metric, math.nan))
