"""Profiler traces of some steps, for TensorBoard and Perfetto, by configuration or on a signal."""

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
    """Which steps to trace with `jax.profiler`.

    Independent of this, the signal SIGUSR1 makes a process trace the steps that follow.

    Args:
        first_step: The first step to trace, counted from 1; None traces only on the signal. Choose
            a step after the first, which waits for compilation.
        steps: The number of steps of a trace. The default of 5 shows the overlap of steps, and the
            files stay small.

    Raises:
        ConfigError: A value is less than 1.
    """

    first_step: int | None = None
    steps: int = 5

    def __post_init__(self):
        valid = self.first_step is None or self.first_step >= 1
        require_field(self, "first_step", valid, "None or at least 1")
        require_field(self, "steps", self.steps >= 1, "at least 1")


class Profiler(Callback):
    """Starts and ends traces between steps; a context manager, for the main thread.

    Args:
        profile: Which steps to trace.
        directory: Where the traces are written.
    """

    def __init__(self, profile: Profile, directory: epath.PathLike):
        self._profile, self._directory = profile, epath.Path(directory)
        self._requests = SignalRequests(signal.SIGUSR1)
        self._until: int | None = None  # the last step of the current trace

    def __enter__(self) -> "Profiler":
        self._requests.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._requests.__exit__(*error)
        if self._until is not None:
            self._end()

    def before_step(self, step: int, state: Any) -> None:
        """Start a trace if it was configured or requested for this step.

        It waits for the state first, so that the trace does not contain earlier steps.
        """
        if self._until is not None:
            return
        requested = self._requests.take()
        if requested or step == self._profile.first_step:
            jax.block_until_ready(state)
            self._until = step + self._profile.steps - 1
            jax.profiler.start_trace(str(self._directory))

    def after_step(self, moment: StepInfo) -> None:
        """End the trace if this step was its last, once the devices have computed it."""
        if moment.step == self._until:
            jax.block_until_ready(moment.state)
            self._end()

    def _end(self) -> None:
        self._until = None
        jax.profiler.stop_trace()
        _LOG.info(f"wrote a trace; view it with: tensorboard --logdir {self._directory}")
