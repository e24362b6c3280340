"""Reading files that others made, so that they cannot exhaust memory or lead to other files."""

import json
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

from etils import epath

from t5x_lite.errors import ConfigError
from t5x_lite.io.urls import is_url

MAX_JSON_BYTES = 1 << 26  # manifests list shards and grow with a corpus
MAX_JSON_LEVELS = 64
# Weights hardly compress: larger than both of these, their description cannot be true.
SMALL_BYTES, MAX_COMPRESSION = 1 << 30, 1000


def read_json(path: Path | epath.Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file of bounded size and depth.

    Args:
        path: A local path or a URL.
        max_bytes: The largest file that is read.

    Returns:
        What the file holds.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is larger than `max_bytes`, nested more than `MAX_JSON_LEVELS` levels deep,
            or not JSON.
    """
    if (size := _size(path)) > max_bytes:
        raise ValueError(f"it has {size:,} bytes, more than {max_bytes:,}")
    try:
        content = json.loads(path.read_text("utf-8"))
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_JSON_LEVELS} levels deep") from None
    level: list[Any] = [content]
    for _ in range(MAX_JSON_LEVELS):
        nested = (x for x in level if isinstance(x, dict | list))
        level = [child for x in nested for child in (x.values() if isinstance(x, dict) else x)]
        if not level:
            return content
    raise ValueError(f"it is nested more than {MAX_JSON_LEVELS} levels deep")


def read_json_if_exists(path: Path | epath.Path) -> Any | None:
    """Read a JSON file with the bounds of `read_json`; return None if it does not exist."""
    # Not every object store raises FileNotFoundError.
    if is_url(path) and not path.exists():
        return None
    try:
        return read_json(path)
    except FileNotFoundError:
        return None


def read_json_object(path: Path | epath.Path, *names: str) -> dict[str, Any]:
    """Read the JSON object of a file with the bounds of `read_json`.

    Args:
        path: A local path or a URL.
        names: The configuration names, such as "MODEL_DIR", that an error refers to.

    Returns:
        The object.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not readable as JSON: {error}", *names) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no JSON object but {type(content).__name__}", *names)
    return content


def inside(directory: Path, name: Any) -> Path:
    """Return the path of a file that something in a directory names.

    Args:
        directory: The directory that the path must not leave.
        name: A relative path, from a manifest or an index that others wrote.

    Returns:
        `directory` / `name`.

    Raises:
        ValueError: The name is no relative path, or it leads out of the directory by "..", as an
            absolute path or through a symbolic link.
    """
    parts = PurePath(name).parts if isinstance(name, str) else ()
    if not parts or "\0" in name or "\\" in name or PurePath(name).is_absolute() or ".." in parts:
        raise ValueError(f"{name!r} is no path inside {directory}")
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        raise ValueError(f"{name!r} leads out of {directory}")
    return path


def link_outside(directory: Path) -> str | None:
    """Return the relative name of a symbolic link that leads out of a directory, or None."""
    root = directory.resolve()
    for path in directory.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            return path.relative_to(directory).as_posix()
    return None


def check_descriptions(directory: Path, names: Iterable[str]) -> None:
    """Check the links and the JSON files of a directory before another library reads them.

    Args:
        directory: A directory such as a checkpoint's.
        names: Patterns of the JSON files' paths inside it. Missing files are not an error.

    Raises:
        ValueError: A link leads out of the directory, or a JSON file is not one that `read_json`
            accepts.
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
    """Check that arrays can be as large as described, before memory is allocated for them.

    Arrays of zeros compress well, so a state may be larger than its files; weights do not.

    Args:
        described: The size in bytes of all arrays together, as their metadata claims it.
        directory: The directory that holds them.

    Raises:
        ValueError: The arrays are far larger than the files.
    """
    stored = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    if described > max(SMALL_BYTES, MAX_COMPRESSION * stored):
        raise ValueError(f"its arrays claim {described:,} bytes, its files have {stored:,}")


def _size(path: Path | epath.Path) -> int:
    return path.stat().st_size if isinstance(path, Path) else path.stat().length
