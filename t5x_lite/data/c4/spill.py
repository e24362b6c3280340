"""Spill pages to disk: written in any order, read bucket by bucket.

A spill is one file of compressed records, and a table with the bucket, the start and the length of
each record. It appears under its name when it is complete.
"""

import contextlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.c4.wet import Counts, Page
from t5x_lite.io import atomic
from t5x_lite.io.safe_files import read_json

TABLE = np.dtype([("bucket", "u4"), ("start", "u8"), ("length", "u4")])


class PageSpill:
    """A spill that is being written."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._table: list[tuple[int, int, int]] = []

    def write(self, page: Page, bucket: int = 0) -> None:
        """Append a page to a bucket."""
        record = zlib.compress(json.dumps(page).encode(), 1)
        self._table.append((bucket, self._file.tell(), len(record)))
        self._file.write(record)

    @property
    def table(self) -> NDArray[Any]:
        """The bucket, the start and the length of each record: [pages]."""
        return np.array(self._table, TABLE)


@contextlib.contextmanager
def open_spill(path: Path) -> Iterator[PageSpill]:
    """Open a spill for writing; it appears when the context ends without an error."""
    with atomic.open_binary(path) as file:
        spill = PageSpill(file)
        yield spill
        write_array(_table_of(path), spill.table)  # first, so that a spill has its table


def read_spill(path: Path, bucket: int = 0) -> Iterator[Page]:
    """Yield the pages of a bucket, in the order in which they were written.

    Args:
        path: The path of the spill.
        bucket: The number of the bucket.
    """
    table = np.load(_table_of(path), mmap_mode="r")
    with open(path, "rb") as file:
        for _, start, length in table[table["bucket"] == bucket]:
            file.seek(int(start))
            yield Page(*json.loads(zlib.decompress(file.read(int(length)))))


def _table_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.npy")


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array to a file that appears when it is complete."""
    with atomic.open_binary(path) as file:
        np.save(file, array)


def read_counts(path: Path) -> Counts:
    """Return the counts of a JSON file."""
    return Counts(read_json(path))
