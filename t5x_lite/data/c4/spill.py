"""Records on disk, written once in any order and read back bucket by bucket.

A spill is one file of compressed records and a table of which bucket each belongs to, where it
begins and how long it is; it appears under its name when it is complete.
"""

import contextlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from t5x_lite.data.c4.wet import Counts, Page

TABLE = np.dtype([("bucket", "u4"), ("start", "u8"), ("length", "u4")])


class PageSpill:
    """Pages being written to a spill: a context manager that completes it, or leaves nothing."""

    def __init__(self, path: Path):
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        file, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        self._file, self._partial = os.fdopen(file, "wb"), Path(name)
        self._table: list[tuple[int, int, int]] = []

    def write(self, page: Page, bucket: int = 0) -> None:
        """Append a page."""
        record = zlib.compress(json.dumps(page).encode(), 1)
        self._table.append((bucket, self._file.tell(), len(record)))
        self._file.write(record)

    def __enter__(self) -> "PageSpill":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._file.close()
        if error is not None:
            self._partial.unlink()
            return
        write_array(_table_of(self._path), np.array(self._table, TABLE))
        self._partial.replace(self._path)


def read_spill(path: Path, bucket: int = 0) -> Iterator[Page]:
    """Yield the pages of a bucket, in the order in which they were written."""
    table = np.load(_table_of(path), mmap_mode="r")
    with open(path, "rb") as file:
        for _, start, length in table[table["bucket"] == bucket]:
            file.seek(int(start))
            yield Page(*json.loads(zlib.decompress(file.read(int(length)))))


def _table_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.npy")


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array to a file that appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _complete(path) as file:
        np.save(file, array)


def write_json(path: Path, content: Any) -> None:
    """Write JSON to a file that appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _complete(path) as file:
        file.write(json.dumps(content, indent=1).encode())


def read_counts(path: Path) -> Counts:
    """Return counts that `write_json` wrote."""
    return Counts(json.loads(path.read_text()))


@contextlib.contextmanager
def _complete(path: Path) -> Iterator[Any]:
    with tempfile.NamedTemporaryFile(
        prefix=f".{path.name}.", dir=path.parent, delete=False
    ) as file:
        try:
            yield file
        except BaseException:
            os.unlink(file.name)
            raise
    os.replace(file.name, path)
