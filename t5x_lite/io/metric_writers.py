"""A run's metrics on disk: metrics.jsonl, and TensorBoard events without TensorFlow.

A resumed run continues both: what an interrupted run wrote after its last checkpoint is dropped, so
that every step occurs once.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore  (made by protobuf)
from tensorboardX.record_writer import register_writer_factory

from t5x_lite.io.append_file import AppendFile
from t5x_lite.io.run_records import drop_steps_after, read_json_lines

METRICS = "metrics.jsonl"
EVENTS = "tensorboard"
_SCHEME = "append_file"  # of the paths that tensorboardX opens with `_AppendFiles`


class MetricWriters:
    """Writes the metrics of one run to metrics.jsonl and TensorBoard; a context manager.

    Args:
        model_dir: The run's directory, a local path or a URL.
        start_step: The step from which the run starts or resumes; records after it are dropped.
        silent: Write nothing, as in all processes but the first.
    """

    def __init__(
        self,
        model_dir: epath.PathLike,
        *,
        start_step: int,
        silent: bool = False,
    ):
        self._silent = silent
        if silent:
            return
        path = epath.Path(model_dir) / METRICS
        drop_steps_after(path, start_step)
        self._lines = AppendFile(path)
        self._events = SummaryWriter(
            f"{_SCHEME}:{epath.Path(model_dir) / EVENTS}",
            purge_step=start_step + 1 if start_step else None,
        )

    def __enter__(self) -> "MetricWriters":
        return self

    def __exit__(self, *_):
        if self._silent:
            return
        self._lines.close()
        self._events.close()

    def write(self, step: int, kind: str, numbers: Mapping[str, float]) -> None:
        """Write one record.

        Args:
            step: The number of the step.
            kind: What the numbers are of, such as "train" or "validation/embedded_text".
            numbers: Values by name, such as {"loss": 4.81}; TensorBoard has them as "KIND/NAME".
        """
        if self._silent:
            return
        record = {"step": step, "kind": kind, **numbers}
        self._lines.write((json.dumps(record) + "\n").encode())
        # One event for all of them: each event takes tensorboardX a tenth of a millisecond.
        values = [Summary.Value(tag=f"{kind}/{n}", simple_value=x) for n, x in numbers.items()]
        assert self._events.file_writer is not None
        self._events.file_writer.add_summary(Summary(value=values), step)


def read_metrics(model_dir: epath.PathLike) -> Iterator[dict[str, Any]]:
    """Yield the records of a run's metrics.jsonl in order: {"step": 1, "kind": "train", ...}."""
    yield from read_json_lines(epath.Path(model_dir) / METRICS)


class _AppendFiles:
    """How tensorboardX opens files: its own writer's thread would end at the first failure."""

    def open(self, path: str) -> AppendFile:
        return AppendFile(path.removeprefix(f"{_SCHEME}:"), silent=True)

    def directory_check(self, path: str) -> None:
        epath.Path(path.removeprefix(f"{_SCHEME}:")).mkdir(parents=True, exist_ok=True)


register_writer_factory(_SCHEME, _AppendFiles())
