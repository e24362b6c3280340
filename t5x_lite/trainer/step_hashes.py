"""Step hashes (receipts.jsonl): what every step read and computed, in a few digits to compare.

Two runs computed the same, bit for bit, as far as their lines are equal: for example a run and the
same run with an interruption, or with a newer version of a library. `t5x_lite compare RUN_A RUN_B`
finds the first difference and shows whether it is in the data, the loss or the weights. A line:

    {"step": 100, "ids": "5d1e...", "batch": "9c40...", "loss": "0x1.8f2p+11", "params": "e07a..."}

ids: a hash of which examples the batch holds, in which rows. batch: a fingerprint of the bits of
the batch's arrays. loss: the sum of the losses of all target tokens, as hexadecimal floating point,
which loses no bit. params: a fingerprint of the bits of the weights after the step, every
`StepHashes.params_every_steps` steps.

If "ids" are equal but "batch" is not, the data was changed or tokenized in another way. If "batch"
is equal but "loss" is not, the computation differs: on another mesh, for example, sums are added in
another order.
"""

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
from t5x_lite.io.run_records import drop_steps_after
from t5x_lite.training.bit_fingerprints import to_hex
from t5x_lite.training.callbacks import Callback, Report, StepInfo
from t5x_lite.training.step_metrics import FINGERPRINT_PREFIX, PackedMetrics, fetch_metrics

RECEIPTS = "receipts.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepHashes:
    """Which step hashes a run records in receipts.jsonl.

    Args:
        steps: Whether to write a line for every step: hashes of the batch's examples and of its
            bits, and the exact sum of its losses.
        params_every_steps: Add a fingerprint of the weights after every step that is a multiple of
            this number. It reads all weights, so the default of 100 spreads that cost.

    Raises:
        ConfigError: `params_every_steps` is less than 1.
    """

    steps: bool = True
    params_every_steps: int = 100

    def __post_init__(self):
        require_field(self, "params_every_steps", self.params_every_steps >= 1, "at least 1")

    @property
    def fingerprint_every(self) -> int | None:
        """The steps between two fingerprints of the weights, None for no hashes at all."""
        return self.params_every_steps if self.steps else None


class StepHashWriter(Callback):
    """Writes the step hashes, with each log line and before every checkpoint.

    Args:
        config: What is recorded.
        directory: The run's directory.
        stream: The training data, to look up which examples a step had.
    """

    def __init__(self, config: StepHashes, directory: epath.PathLike, stream: Stream):
        self._config, self._stream = config, stream
        self._path = epath.Path(directory) / RECEIPTS
        # The ids of the batches from `_next_position` on. They come in order, so that looking up
        # the next batch is cheap; a new iterator is needed only after a jump in the data.
        self._example_ids: Iterator[ExampleIds] = iter(())
        self._next_position: Any = None
        self._unwritten: list[tuple[int, str, PackedMetrics]] = []  # step, hash of ids, metrics
        self._lines: AppendFile | None = None

    def on_start(self, step: int, progress: Mapping[str, Any]) -> None:
        """Remove the lines of steps after the checkpoint: they will be computed again."""
        self._unwritten = []
        if self._config.steps and processes.is_first():
            drop_steps_after(self._path, step)
            self._lines = AppendFile(self._path)

    def __exit__(self, *_: object) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def after_step(self, moment: StepInfo) -> None:
        """Hash the ids of the step's examples; nothing is fetched from the devices yet."""
        if self._lines is None:
            return
        if moment.before != self._next_position:
            self._example_ids = self._stream.example_ids(moment.before)
        self._next_position = moment.position
        ids = hash_example_ids(next(self._example_ids))
        self._unwritten.append((moment.step, ids, moment.metrics))

    def on_log(self, step: int, numbers: Mapping[str, float], report: Report) -> None:
        """Write the lines of these steps, whose metrics are fetched anyway."""
        self._write()

    def on_save(self, step: int) -> None:
        """Write all lines up to the checkpoint: a run that resumes from it does not compute them.

        Otherwise the lines of the steps before it would be missing after a crash.
        """
        self._write()

    def _write(self) -> None:
        if self._lines is None:
            return
        fetched = fetch_metrics([metrics for *_, metrics in self._unwritten])
        for (step, ids, _), metrics in zip(self._unwritten, fetched, strict=True):
            line = {
                "step": step,
                "ids": ids,
                "batch": to_hex(metrics[f"{FINGERPRINT_PREFIX}batch"]),
                "loss": float(metrics["loss"]).hex(),
            }
            if step % self._config.params_every_steps == 0:
                line["params"] = to_hex(metrics[f"{FINGERPRINT_PREFIX}params"])
            self._lines.write((json.dumps(line) + "\n").encode())
        self._unwritten = []


def hash_example_ids(example_ids: ExampleIds) -> str:
    """Return 16 hexadecimal digits for which examples a batch holds, and in which rows.

    Args:
        example_ids: Task, epoch, index and row of each example, and the names of the tasks. The
            names are part of the hash, so that it does not depend on the number of a task alone.
    """
    digest = hashlib.blake2b("\n".join(example_ids.names).encode(), digest_size=8)
    for column in example_ids[1:]:
        # Little-endian 64-bit integers on every machine.
        digest.update(np.ascontiguousarray(column, "<i8").tobytes())
    return digest.hexdigest()
