"""Traces of some steps for TensorBoard's profile plugin, by configuration or by signal."""

import dataclasses
import logging
import signal
from typing import Any

import jax
from etils import epath

from t5x_lite.distributed.signals import SignalRequests
from t5x_lite.errors import require_field
from t5x_lite.training.callbacks import Callback, StepInfo

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """Which steps to trace.

    first_step: counted from 1; None traces nothing until the process is sent SIGUSR1, which traces
    the steps that follow. steps: how many.
    """

    first_step: int | None = None
    steps: int = 5

    def __post_init__(self):
        valid = self.first_step is None or self.first_step >= 1
        require_field(self, "first_step", valid, "None or at least 1")
        require_field(self, "steps", self.steps >= 1, "at least 1")


class Profiler(Callback):
    """Starts and ends traces between steps; a context manager, for the main thread."""

    def __init__(self, profile: Profile, directory: epath.PathLike):
        self._profile, self._directory = profile, epath.Path(directory)
        self._requests = SignalRequests(signal.SIGUSR1)
        self._until: int | None = None  # the last step of the trace under way

    def __enter__(self) -> "Profiler":
        self._requests.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._requests.__exit__(*error)
        if self._until is not None:
            self._end()

    def before_step(self, step: int, state: Any) -> None:
        """Begin a trace if step `step` (from 1) is wanted; waits for `state` first."""
        if self._until is not None:
            return
        requested = self._requests.take()
        if requested or step == self._profile.first_step:
            jax.block_until_ready(state)
            self._until = step + self._profile.steps - 1
            jax.profiler.start_trace(str(self._directory))

    def after_step(self, moment: StepInfo) -> None:
        """End the trace if this step was its last, once it is really done."""
        if moment.step == self._until:
            jax.block_until_ready(moment.state)
            self._end()

    def _end(self) -> None:
        self._until = None
        jax.profiler.stop_trace()
        _LOG.info(f"wrote a trace; view it with: tensorboard --logdir {self._directory}")
