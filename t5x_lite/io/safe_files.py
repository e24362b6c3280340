"""Files that others made: read so that they lead nowhere else and take no more than a file may."""

import json
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

from etils import epath

MOST_BYTES = 1 << 26  # of a JSON file: manifests list shards and grow with a corpus
MOST_LEVELS = 64
_SMALL, _SHRINKING = 1 << 30, 1000  # bytes that are no harm; how far files may be compressed


def read_json(path: Path | epath.Path, *, most_bytes: int = MOST_BYTES) -> Any:
    """The JSON of a file; ValueError if it is none, too long or nested too deeply; OSError."""
    if (size := _size(path)) > most_bytes:
        raise ValueError(f"it has {size:,} bytes, more than {most_bytes:,}")
    try:
        found = json.loads(path.read_text("utf-8"))
    except RecursionError:
        raise ValueError(f"it is nested more than {MOST_LEVELS} levels deep") from None
    level: list[Any] = [found]
    for _ in range(MOST_LEVELS):
        nested = (x for x in level if isinstance(x, dict | list))
        level = [child for x in nested for child in (x.values() if isinstance(x, dict) else x)]
        if not level:
            return found
    raise ValueError(f"it is nested more than {MOST_LEVELS} levels deep")


def _size(path: Path | epath.Path) -> int:
    return path.stat().st_size if isinstance(path, Path) else path.stat().length


def inside(directory: Path, name: Any) -> Path:
    """The path of a file that something in `directory` names; ValueError if it leads outside.

    Neither "..", nor an absolute path, nor a symbolic link may lead out of the directory.
    """
    parts = PurePath(name).parts if isinstance(name, str) else ()
    if not parts or "\0" in name or "\\" in name or PurePath(name).is_absolute() or ".." in parts:
        raise ValueError(f"{name!r} is no path inside {directory}")
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        raise ValueError(f"{name!r} leads out of {directory}")
    return path


def link_outside(directory: Path) -> str | None:
    """The name of a symbolic link below a directory that leads out of it, or None."""
    root = directory.resolve()
    for path in directory.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            return path.relative_to(directory).as_posix()
    return None


def check_descriptions(directory: Path, names: Iterable[str]) -> None:
    """Raise ValueError for links out of a directory, and for JSON of these names that is absurd.

    names: patterns for paths inside; what is not there is not looked at.
    """
    if (link := link_outside(directory)) is not None:
        raise ValueError(f"{link} is a link that leads elsewhere")
    for name in names:
        for path in directory.glob(name):
            try:
                read_json(path)
            except ValueError as error:
                raise ValueError(f"{path.relative_to(directory)}: {error}") from error


def check_size(described: int, directory: Path) -> None:
    """Raise ValueError where arrays are said to be far larger than the files that hold them.

    Arrays of zeros take no room, so a state may be larger; weights do not shrink like that.
    """
    stored = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    if described > max(_SMALL, _SHRINKING * stored):
        raise ValueError(f"its arrays are said to have {described:,} bytes, its files {stored:,}")
