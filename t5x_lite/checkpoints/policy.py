"""When a run saves, what it keeps, and how often saving may fail."""

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
    """When to save, what to keep, and when to give up; the last step of a run is always saved.

    period: save when the number of finished steps is a multiple of it.
    every_minutes: save as well when so much time has gone by since the last save.
    keep: so many of the newest checkpoints stay; None keeps all.
    keep_period: those of multiples of it stay for good.
    keep_best: for each number, named as in metrics.jsonl ("validation/embedded_text/loss"), whether
        "lower" or "higher" is better; the `keep_best_count` best checkpoints by each stay. A
        checkpoint counts if the number was reported at its very step.
    pinned_steps: are saved and stay for good.
    retry_seconds: how long to wait after a save that failed before the next try. The run goes on.
    save_timeout_seconds: a save that has not ended by then has failed. When one process of several
        cannot write, the others may hear of it no sooner.
    max_failures: after so many failures in a row the run ends.
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

    def saving(self) -> Any:
        """The policy as orbax's decision to save."""
        policies: list[Any] = [
            _saving.FixedIntervalPolicy(self.period),
            _saving.SpecificStepsPolicy(frozenset(self.pinned_steps)),
        ]
        if self.every_minutes is not None:
            policies.append(EveryMinutes(self.every_minutes))
        return _saving.AnySavePolicy(policies=policies)

    def may_want(self, step: int) -> bool:
        """Whether `saving` could choose this step; orbax takes half a millisecond to say so."""
        by_step = step % self.period == 0 or step in self.pinned_steps
        return by_step or self.every_minutes is not None

    def keeping(self, model_dir: epath.Path) -> Any:
        """The policy as orbax's decision to preserve; so are the steps that other runs rest on."""
        if self.keep is None:
            return _keeping.PreserveAll()
        policies: list[Any] = [
            _keeping.LatestN(self.keep),
            _keeping.CustomSteps(tuple(self.pinned_steps)),
            RestedOn(model_dir),
            *(Best(name, better, self.keep_best_count) for name, better in self.keep_best.items()),
        ]
        if self.keep_period is not None:
            policies.append(_keeping.EveryNSteps(self.keep_period))
        return _keeping.AnyPreservationPolicy(policies)


class EveryMinutes(_saving.ContinuousCheckpointingPolicy):
    """Save once so many minutes have gone by since the last save or the start of the process.

    The first process decides for all.
    """

    def __init__(self, minutes: float):
        super().__init__(minimum_interval_secs=minutes * 60)  # pyright: ignore  (any timedelta)
        self._began = _Time(datetime.datetime.now(tz=datetime.UTC))

    def should_save(self, step: Any, previous_steps: Sequence[Any], *, context: Any) -> bool:
        """Say whether the time has come."""
        newest = max([self._began, *previous_steps], key=lambda info: info.time)
        return super().should_save(step, [newest], context=context)  # pyright: ignore


class _Time(NamedTuple):
    time: datetime.datetime


@dataclasses.dataclass(frozen=True)
class RestedOn:
    """Keep the checkpoints that hold the frozen weights of other runs (`frozen.Base`)."""

    model_dir: epath.Path

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Say of each checkpoint whether it stays."""
        steps = pinned(self.model_dir)
        return [info.step in steps for info in checkpoints]


@dataclasses.dataclass(frozen=True)
class Best:
    """Keep the checkpoints that are best by one number; those without it are not kept by this."""

    metric: str
    better: Better
    count: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Say of each checkpoint whether it stays."""
        ranked = ranking(checkpoints, self.metric, self.better)[: self.count]
        return [info.step in ranked for info in checkpoints]


def ranking(checkpoints: Sequence[Any], metric: str, better: Better) -> list[int]:
    """The steps at which a number was reported, the best first; of equals the newer first."""
    found = [(info.metrics[metric], -info.step) for info in checkpoints if has(info, metric)]
    sign = 1 if better == "lower" else -1
    return [-step for _, step in sorted((sign * value, step) for value, step in found)]


def has(info: Any, metric: str) -> bool:
    """Whether a checkpoint knows a number; one that is not finite does not count."""
    return bool(info.metrics) and math.isfinite(info.metrics.get(metric, math.nan))
