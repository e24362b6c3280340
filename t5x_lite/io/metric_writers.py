"""Where numbers go: one JSON line a record, and TensorBoard events without TensorFlow.

Both are continued by a restarted run: what an interrupted run wrote after its last checkpoint is
dropped, so that every step stands there once.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore  (made by protobuf)
from tensorboardX.record_writer import register_writer_factory

from t5x_lite.io.append_file import AppendFile

RECORDS = "metrics.jsonl"
EVENTS = "tensorboard"
_FORGIVING = "forgiving"  # the kind of path whose writer outlives a full disk


class Writers:
    """Writes records of one run; a context manager. `start_step` is where the run goes on.

    silent: it writes nothing, as in all processes but the first.
    """

    def __init__(
        self,
        model_dir: epath.PathLike,
        *,
        start_step: int,
        report: Callable[[str], None] = print,
        silent: bool = False,
    ):
        self._silent = silent
        if silent:
            return
        path = epath.Path(model_dir) / RECORDS
        drop_after(path, start_step)
        self._lines = AppendFile(path, report)
        self._events = SummaryWriter(
            f"{_FORGIVING}:{epath.Path(model_dir) / EVENTS}",
            purge_step=start_step + 1 if start_step else None,
        )

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *_):
        if self._silent:
            return
        self._lines.close()
        self._events.close()

    def write(self, step: int, kind: str, numbers: Mapping[str, float]) -> None:
        """Record numbers under a kind such as "train" or "validation/embedded_text"."""
        if self._silent:
            return
        record = {"step": step, "kind": kind, **numbers}
        self._lines.write((json.dumps(record) + "\n").encode())
        # One event for all of them: tensorboardX takes a tenth of a millisecond for each.
        values = [Summary.Value(tag=f"{kind}/{n}", simple_value=x) for n, x in numbers.items()]
        assert self._events.file_writer is not None
        self._events.file_writer.add_summary(Summary(value=values), step)


def read_records(model_dir: epath.PathLike) -> Iterator[dict[str, Any]]:
    """The records of a run in the order they were written; a half-written last line is left out."""
    yield from read_lines(epath.Path(model_dir) / RECORDS)


def read_lines(path: epath.Path) -> Iterator[dict[str, Any]]:
    """The JSON lines of a file up to one that is cut off; none if there is no file."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def drop_after(path: epath.Path, step: int) -> None:
    """Drop what a file of JSON lines says of later steps, and a last line that is cut off."""
    if not path.exists():
        return
    before = path.read_text()
    kept = "".join(json.dumps(r) + "\n" for r in read_lines(path) if r["step"] <= step)
    if kept != before:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(kept)
        temporary.replace(path)


class _ForgivingFiles:
    """How tensorboardX opens files: its own writers end with their thread at the first failure."""

    def open(self, path: str) -> AppendFile:
        return AppendFile(path.removeprefix(f"{_FORGIVING}:"), lambda _: None)

    def directory_check(self, path: str) -> None:
        epath.Path(path.removeprefix(f"{_FORGIVING}:")).mkdir(parents=True, exist_ok=True)


register_writer_factory(_FORGIVING, _ForgivingFiles())
