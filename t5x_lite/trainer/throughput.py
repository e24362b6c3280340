"""The clock of a run: speed, padding, waiting for data."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from t5x_lite.hardware.chips import peak_flops
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.flops import TokenFlops, token_flops, train_step_flops
from t5x_lite.training.step_metrics import PackedMetrics, fetch_metrics, summarize, summarize_tasks

IN_FLIGHT = 2  # steps that may be under way at once


class StepWork(NamedTuple):
    """What a step is worth in model FLOPs, and what the devices could do.

    per_step: on a full batch. per_token: on one token of either side. devices: how many. peak:
    FLOP/s of one, None where it is not known (a CPU).
    """

    per_step: float
    per_token: TokenFlops
    devices: int
    peak: float | None

    @classmethod
    def of(
        cls,
        model: TransformerConfig,
        mesh: jax.sharding.Mesh,
        batch_size: int,
        lengths: Mapping[str, int],
    ) -> "StepWork":
        """Count a run's work; `lengths` of its features."""
        return cls(
            train_step_flops(model, batch_size=batch_size, lengths=lengths),
            token_flops(model, batch_size=batch_size, lengths=lengths),
            mesh.size,
            peak_flops(mesh.devices.flat[0].device_kind),
        )

    def rates(self, seconds_per_step: float, inputs: float, targets: float) -> dict[str, float]:
        """TFLOP/s of a device and, where its peak is known, MFU and effective MFU.

        inputs, targets: real tokens a step. MFU counts all positions, the effective one real ones.
        """
        each = 1.0 / (seconds_per_step * self.devices)
        rates = {"tflops_per_device": self.per_step * each / 1e12}
        if self.peak is not None:
            real = inputs * self.per_token.inputs + targets * self.per_token.targets
            rates |= {
                "mfu": self.per_step * each / self.peak,
                "effective_mfu": real * each / self.peak,
            }
        return rates


class ThroughputMeter:
    """Metrics of the steps since the last line, and the time they took."""

    def __init__(
        self, seconds_before: float, batches: Any, work: StepWork, tasks: Sequence[str] = ()
    ):
        self._batches, self._work, self._tasks = batches, work, tasks
        self.by_task: dict[str, dict[str, float]] = {}  # as of the last reading
        self._seconds_before = seconds_before
        self._began = self._last = time.perf_counter()
        self._waited = batches.waited
        self._window: list[PackedMetrics] = []
        self._positions = 0

    @property
    def seconds(self) -> float:
        """Seconds of training over all launches, evaluations left out."""
        return self._seconds_before + time.perf_counter() - self._began

    def add(self, metrics: PackedMetrics, batch: Mapping[str, jax.Array]) -> None:
        """Take the metrics of one step; nothing is fetched from the devices.

        At most two steps are under way: enough to keep devices busy, and a wish to stop is
        answered soon.
        """
        self._window.append(metrics)
        if len(self._window) > IN_FLIGHT:
            self._window[-1 - IN_FLIGHT].words.block_until_ready()
        sides = ("encoder_input_tokens", "decoder_target_tokens")
        self._positions += sum(batch[name].size for name in sides if name in batch)

    def read(self) -> dict[str, float]:
        """The numbers since the last reading, which then start afresh."""
        window = fetch_metrics(self._window)
        numbers = summarize(window)
        self.by_task = summarize_tasks(window, self._tasks)
        now, waited = time.perf_counter(), self._batches.waited
        elapsed, steps = now - self._last, len(self._window)
        inputs, targets = numbers.pop("input_tokens"), numbers.pop("target_tokens")
        tokens = inputs + targets
        numbers |= {
            "tokens_per_second": tokens / elapsed,
            "tokens_per_second_per_device": tokens / elapsed / self._work.devices,
            "padding": 1.0 - tokens / self._positions,
            "data_wait": (waited - self._waited) / elapsed,
            "seconds_per_step": elapsed / steps,
            **self._work.rates(elapsed / steps, inputs / steps, targets / steps),
            **device_memory(),
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


def device_memory() -> dict[str, float]:
    """GiB in use on this process's first device, now and at most so far; a CPU counts none."""
    counted = jax.local_devices()[0].memory_stats() or {}
    names = {"bytes_in_use": "device_memory_gib", "peak_bytes_in_use": "device_memory_peak_gib"}
    return {name: counted[key] / 2**30 for key, name in names.items() if key in counted}
