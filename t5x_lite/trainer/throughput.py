"""Throughput: tokens per second, MFU, padding, and the time that steps wait for data."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from t5x_lite.hardware.chips import peak_flops
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.flops import TokenFlops, token_flops, train_step_flops
from t5x_lite.training.step_metrics import PackedMetrics, fetch_metrics, summarize, summarize_tasks

# Steps that may be computed or queued at once. Two keep the devices busy: while one is computed,
# the next is queued. More would only delay the reaction to a stop request.
IN_FLIGHT = 2


class StepWork(NamedTuple):
    """The model FLOPs of a step, and the peak of the devices.

    Args:
        per_step: FLOPs of a step on a full batch, padding included.
        per_token: FLOPs of a step for one token of the inputs and of the targets.
        devices: The number of devices.
        peak: FLOP/s of one device; None if it is not known, as for a CPU.
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
        """Count the FLOPs of a run's step.

        Args:
            model: The model's configuration.
            mesh: The devices, of one kind.
            batch_size: Rows of the global batch.
            lengths: The length of each feature in tokens.
        """
        return cls(
            train_step_flops(model, batch_size=batch_size, lengths=lengths),
            token_flops(model, batch_size=batch_size, lengths=lengths),
            mesh.size,
            peak_flops(mesh.devices.flat[0].device_kind),
        )

    def rates(self, seconds_per_step: float, inputs: float, targets: float) -> dict[str, float]:
        """Return TFLOP/s per device and, if the peak is known, MFU and effective MFU.

        MFU is the model FLOPs utilization of Chowdhery et al., 2022 (PaLM), appendix B. It counts
        all positions; effective MFU counts those that are not padding.

        Args:
            seconds_per_step: Mean time of a step.
            inputs: Input tokens of a step without padding.
            targets: Target tokens of a step without padding.
        """
        steps_per_device_second = 1.0 / (seconds_per_step * self.devices)
        rates = {"tflops_per_device": self.per_step * steps_per_device_second / 1e12}
        if self.peak is not None:
            real = inputs * self.per_token.inputs + targets * self.per_token.targets
            rates |= {
                "mfu": self.per_step * steps_per_device_second / self.peak,
                "effective_mfu": real * steps_per_device_second / self.peak,
            }
        return rates


class ThroughputMeter:
    """Collects the metrics of the steps since the last log line, and measures their time.

    Args:
        seconds_before: Seconds of training in earlier launches.
        batches: The prefetched batches, which count the seconds that the loop waited for them.
        work: The FLOPs of a step.
        tasks: Names of the tasks, for metrics of each of them.
    """

    def __init__(
        self, seconds_before: float, batches: Any, work: StepWork, tasks: Sequence[str] = ()
    ):
        self._batches, self._work, self._tasks = batches, work, tasks
        self.by_task: dict[str, dict[str, float]] = {}  # of the last `read`
        self._seconds_before = seconds_before
        self._began = self._last = time.perf_counter()
        self._waited = batches.waited
        self._window: list[PackedMetrics] = []
        self._positions = 0

    @property
    def seconds(self) -> float:
        """Seconds of training over all launches, without evaluations."""
        return self._seconds_before + time.perf_counter() - self._began

    def add(self, metrics: PackedMetrics, batch: Mapping[str, jax.Array]) -> None:
        """Add the metrics of one step, without fetching them from the devices.

        It waits until at most `IN_FLIGHT` steps are not computed yet.

        Args:
            metrics: Metrics of the step, on the devices.
            batch: What the step read.
        """
        self._window.append(metrics)
        if len(self._window) > IN_FLIGHT:
            self._window[-1 - IN_FLIGHT].words.block_until_ready()
        sides = ("encoder_input_tokens", "decoder_target_tokens")
        self._positions += sum(batch[name].size for name in sides if name in batch)

    def read(self) -> dict[str, float]:
        """Return the metrics of the steps since the last call, and start the next interval."""
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
        """Exclude the time inside the context from all rates, as for evaluations."""
        began, waited = time.perf_counter(), self._batches.waited
        yield
        away = time.perf_counter() - began
        self._began, self._last = self._began + away, self._last + away
        self._waited += self._batches.waited - waited


def device_memory() -> dict[str, float]:
    """Return the GiB in use on this process's first device, now and at most; empty for a CPU."""
    counted = jax.local_devices()[0].memory_stats() or {}
    names = {"bytes_in_use": "device_memory_gib", "peak_bytes_in_use": "device_memory_peak_gib"}
    return {name: counted[key] / 2**30 for key, name in names.items() if key in counted}
