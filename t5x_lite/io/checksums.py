"""Checksums of a directory's files: written once, compared later to find corruption."""

import zlib
from pathlib import Path

from t5x_lite.io import atomic
from t5x_lite.io.safe_files import inside, link_outside, read_json

RECORD = "checksums.json"
_BLOCK_BYTES = 1 << 20


def write_checksums(directory: Path) -> None:
    """Write `directory`/checksums.json with the size and CRC-32 of every file below `directory`.

    The record maps relative names to [size in bytes, CRC-32]:

        {"state/data": [2304000, 1042819331], "commit_success.txt": [30, 7738114]}
    """
    record = {name: list(_size_and_crc(directory / name)) for name in _files(directory)}
    atomic.write_json(directory / RECORD, record, indent=None)


def has_checksums(directory: Path) -> bool:
    """Return whether `write_checksums` has completed for a directory."""
    return (directory / RECORD).exists()


def find_corruption(directory: Path, *, max_bytes: int | None = None) -> str | None:
    """Compare the files below a directory with their checksums.

    A symbolic link or a name in the record that leads out of the directory counts as corruption.

    Args:
        directory: The directory that `write_checksums` was called with.
        max_bytes: If the files have more bytes than this in total, only their sizes are compared.
            None always reads them.

    Returns:
        A description of the first difference. None if there is none, or no record.
    """
    if (link := link_outside(directory)) is not None:
        return f"{link} is a link that leads elsewhere"
    if not has_checksums(directory):
        return None
    try:
        record = read_json(directory / RECORD)
        reads = max_bytes is None or sum(size for size, _ in record.values()) <= max_bytes
        for name, (size, crc) in record.items():
            path = inside(directory, name)
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
            if reads and _size_and_crc(path)[1] != crc:
                return f"{name} is not what was written"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{RECORD} is not readable: {error}"
    return None


def _files(directory: Path) -> list[str]:
    """Return the relative names of all files but the record and its temporaries."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    names = (path.relative_to(directory).as_posix() for path in paths)
    return sorted(n for n in names if n != RECORD and not n.startswith(f".{RECORD}"))


def _size_and_crc(path: Path) -> tuple[int, int]:
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return size, crc
