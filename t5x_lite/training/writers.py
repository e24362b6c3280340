"""Where numbers go: one JSON line a record, and TensorBoard events without TensorFlow.

Both are continued by a restarted run: what an interrupted run wrote after its last checkpoint is
dropped, so that every step stands there once.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

RECORDS = "metrics.jsonl"
EVENTS = "tensorboard"


class Writers:
    """Writes records of one run; a context manager. `start_step` is where the run goes on.

    silent: it writes nothing, as in all processes but the first.
    """

    def __init__(self, model_dir: str | Path, *, start_step: int, silent: bool = False):
        self._silent = silent
        if silent:
            return
        self._path = Path(model_dir) / RECORDS
        kept = [record for record in read_records(model_dir) if record["step"] <= start_step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        temporary.replace(self._path)
        self._lines = self._path.open("a", buffering=1)
        self._events = SummaryWriter(
            str(Path(model_dir) / EVENTS), purge_step=start_step + 1 if start_step else None
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
        self._lines.write(json.dumps({"step": step, "kind": kind, **numbers}) + "\n")
        for name, value in numbers.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)


def read_records(model_dir: str | Path) -> Iterator[dict[str, Any]]:
    """The records of a run in the order they were written; a half-written last line is left out."""
    path = Path(model_dir) / RECORDS
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return
