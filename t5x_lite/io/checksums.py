"""Whether files are still what they were when they were written."""

import json
import zlib
from pathlib import Path

from t5x_lite.io.safe_files import inside, link_outside, read_json

RECORD = "checksums.json"
_BLOCK = 1 << 20


def seal(directory: Path) -> None:
    """Write the size and CRC-32 of every file below `directory` into a record beside them."""
    found = {name: list(_describe(directory / name)) for name in _files(directory)}
    temporary = directory / f".{RECORD}"
    temporary.write_text(json.dumps(found))
    temporary.replace(directory / RECORD)


def is_sealed(directory: Path) -> bool:
    """Whether a record is there."""
    return (directory / RECORD).exists()


def damage(directory: Path, *, most_bytes: int | None = None) -> str | None:
    """The first difference from the record, in words; None if there is none, or no record.

    What leads out of the directory, a name in the record or a symbolic link, is damage as well.
    most_bytes: of files that have more in all only the sizes are compared.
    """
    if (link := link_outside(directory)) is not None:
        return f"{link} is a link that leads elsewhere"
    if not is_sealed(directory):
        return None
    try:
        record = read_json(directory / RECORD)
        read = most_bytes is None or sum(size for size, _ in record.values()) <= most_bytes
        for name, (size, checksum) in record.items():
            path = inside(directory, name)
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
            if read and _describe(path)[1] != checksum:
                return f"{name} is not what was written"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{RECORD} is not readable: {error}"
    return None


def _files(directory: Path) -> list[str]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    names = (path.relative_to(directory).as_posix() for path in paths)
    return sorted(name for name in names if name not in (RECORD, f".{RECORD}"))


def _describe(path: Path) -> tuple[int, int]:
    size = checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            size += len(block)
            checksum = zlib.crc32(block, checksum)
    return size, checksum
