"""The clock of a run: speed, padding, waiting for data; and the wish of a user to stop."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from t5x_lite.training.metrics import summarize

IN_FLIGHT = 2  # steps that may be under way at once


class Meter:
    """Metrics of the steps since the last line, and the time they took."""

    def __init__(self, seconds_before: float, batches: Any):
        self._batches = batches
        self._seconds_before = seconds_before
        self._began = self._last = time.perf_counter()
        self._waited = batches.waited
        self._window: list[Mapping[str, jax.Array]] = []
        self._positions = 0

    @property
    def seconds(self) -> float:
        """Seconds of training over all launches, evaluations left out."""
        return self._seconds_before + time.perf_counter() - self._began

    def add(self, metrics: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> None:
        """Take the metrics of one step; nothing is fetched from the devices.

        At most two steps are under way: enough to keep devices busy, and a wish to stop is
        answered soon.
        """
        self._window.append(metrics)
        if len(self._window) > IN_FLIGHT:
            jax.block_until_ready(self._window[-1 - IN_FLIGHT])
        sides = ("encoder_input_tokens", "decoder_target_tokens")
        self._positions += sum(batch[name].size for name in sides if name in batch)

    def read(self) -> dict[str, float]:
        """The numbers since the last reading, which then start afresh."""
        numbers = summarize(self._window)
        now, waited = time.perf_counter(), self._batches.waited
        elapsed = now - self._last
        tokens = numbers.pop("tokens")
        numbers |= {
            "tokens_per_second": tokens / elapsed,
            "padding": 1.0 - tokens / self._positions,
            "data_wait": (waited - self._waited) / elapsed,
            "seconds_per_step": elapsed / len(self._window),
        }
        self._window, self._positions, self._last, self._waited = [], 0, now, waited
        return numbers

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens inside out of the time."""
        began, waited = time.perf_counter(), self._batches.waited
        yield
        away = time.perf_counter() - began
        self._began, self._last = self._began + away, self._last + away
        self._waited += self._batches.waited - waited


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[], int | None]]:
    """Catch SIGINT and SIGTERM, once: the yielded function says which came. A second one kills."""
    came: list[int] = []

    def catch(number: int, _: Any) -> None:
        came.append(number)
        signal.signal(number, before[number])

    before: dict[int, Any] = {
        number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: came[0] if came else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
