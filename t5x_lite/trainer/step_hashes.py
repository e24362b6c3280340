"""Receipts: what every step was given and made, in so few digits that two runs can be compared."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from t5x_lite.data.stream.stream import ExampleIds, Stream
from t5x_lite.distributed import processes
from t5x_lite.errors import require_field
from t5x_lite.io.append_file import AppendFile
from t5x_lite.io.json_lines import drop_steps_after
from t5x_lite.training.bit_fingerprints import to_hex
from t5x_lite.training.callbacks import Callback, Report, StepInfo
from t5x_lite.training.step_metrics import FINGERPRINT_PREFIX, PackedMetrics, fetch_metrics

RECEIPTS = "receipts.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepHashes:
    """What is noted of the steps of a run, in receipts.jsonl.

    steps: a line for every step with hashes of which examples the batch held and of its bits, and
        the sum of the losses of its tokens, to the bit.
    params_every_steps: with one of the weights' bits after steps that are a multiple of it.
    """

    steps: bool = True
    params_every_steps: int = 100

    def __post_init__(self):
        require_field(self, "params_every_steps", self.params_every_steps >= 1, "at least 1")

    @property
    def fingerprint_every(self) -> int | None:
        """For `program.build`."""
        return self.params_every_steps if self.steps else None


class StepHashWriter(Callback):
    """Writes receipts whenever a line is due and before every checkpoint."""

    def __init__(self, receipts: StepHashes, directory: epath.PathLike, stream: Stream):
        self._receipts, self._stream = receipts, stream
        self._path = epath.Path(directory) / RECEIPTS
        self._identities: Iterator[ExampleIds] = iter(())
        self._expected: Any = None  # the position that `_identities` goes on from
        self._open: list[tuple[int, str, PackedMetrics]] = []
        self._lines: AppendFile | None = None

    def on_start(self, step: int, progress: Mapping[str, Any]) -> None:
        """Drop what an interrupted run noted of later steps, and go on after `step`."""
        self._open = []
        if self._receipts.steps and processes.is_first():
            drop_steps_after(self._path, step)
            self._lines = AppendFile(self._path)

    def __exit__(self, *_: object) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def after_step(self, moment: StepInfo) -> None:
        """Keep what the step's receipt is made of; nothing is fetched from the devices."""
        if self._lines is None:
            return
        if moment.before != self._expected:
            self._identities = self._stream.example_ids(moment.before)
        self._expected = moment.position
        self._open.append((moment.step, hash_of(next(self._identities)), moment.metrics))

    def on_log(self, step: int, numbers: Mapping[str, float], report: Report) -> None:
        """Write, as the numbers of these steps were fetched anyway."""
        self._write()

    def on_save(self, step: int) -> None:
        """Write: a run that goes on from this step does not come by here again."""
        self._write()

    def _write(self) -> None:
        if self._lines is None:
            return
        window = fetch_metrics([metrics for *_, metrics in self._open])
        for (step, ids, _), made in zip(self._open, window, strict=True):
            line = {
                "step": step,
                "ids": ids,
                "batch": to_hex(made[f"{FINGERPRINT_PREFIX}batch"]),
                "loss": float(made["loss"]).hex(),
            }
            if step % self._receipts.params_every_steps == 0:
                line["params"] = to_hex(made[f"{FINGERPRINT_PREFIX}params"])
            self._lines.write((json.dumps(line) + "\n").encode())
        self._open = []


def hash_of(example_ids: ExampleIds) -> str:
    """16 digits for which examples a batch holds in which rows, by the names of their tasks."""
    digest = hashlib.blake2b("\n".join(example_ids.names).encode(), digest_size=8)
    for column in example_ids[1:]:
        digest.update(np.ascontiguousarray(column, "<i8").tobytes())
    return digest.hexdigest()
