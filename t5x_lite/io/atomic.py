"""Atomic writes: a reader of a path gets the old content or all of the new, never a part.

A local file is written under a unique temporary name in the same directory and flushed to the disk;
then it is renamed, and the rename is flushed as well. So it holds after a power cut, and for
several threads or processes that write the same path at once. A writer that fails leaves the old
content and no temporary file. One that is killed may leave `.NAME.RANDOM.tmp`, which is never read.

An object store replaces an object as a whole. A URL such as "gs://bucket/file" is therefore written
directly, once its content is complete.
"""

import contextlib
import errno
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from etils import epath

from t5x_lite.io.urls import is_url

_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.tmp", re.DOTALL)


def write_bytes(path: epath.PathLike, content: bytes) -> None:
    """Write a file atomically.

    Args:
        path: A local path or a URL. Its directory must exist.
        content: The new content.

    Raises:
        OSError: The file cannot be written; its old content, if any, is unchanged.
    """
    with open_binary(path) as file:
        file.write(content)


def write_text(path: epath.PathLike, text: str) -> None:
    """Write a text file atomically, as UTF-8; arguments and errors are those of `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: epath.PathLike, content: Any, *, indent: int | None = 2) -> None:
    """Write a JSON file atomically, with a newline at its end.

    Args:
        path: A local path or a URL. Its directory must exist.
        content: What `json.dumps` accepts.
        indent: Spaces for each level. None writes everything on one line, for files that are large
            or often rewritten.

    Raises:
        OSError: The file cannot be written; its old content, if any, is unchanged.
    """
    write_text(path, json.dumps(content, indent=indent) + "\n")


@contextlib.contextmanager
def open_binary(path: epath.PathLike) -> Iterator[BinaryIO]:
    """Open a file for writing that appears, atomically, when the context ends without an error.

        with atomic.open_binary("weights.npy") as file:
            np.save(file, array)

    Args:
        path: A local path or a URL. Its directory must exist. What is written to a URL is kept in
            memory until the context ends.

    Yields:
        The file under its temporary name.

    Raises:
        OSError: The file cannot be written; its old content, if any, is unchanged.
    """
    if is_url(path):
        content = io.BytesIO()
        yield content
        _upload(path, content.getvalue())
        return
    target = Path(path)
    temporary = _temporary(target)
    try:
        # Exclusive creation, and not tempfile, whose files only their owner may read.
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(target.parent)


@contextlib.contextmanager
def open_text(path: epath.PathLike) -> Iterator[TextIO]:
    """Open a text file for writing, as UTF-8; all else is as with `open_binary`."""
    with open_binary(path) as file:
        text = io.TextIOWrapper(file, "utf-8", newline="\n")
        yield text
        text.detach()  # flushes it into the file, which stays open


@contextlib.contextmanager
def new_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Fill a directory that appears, atomically, when the context ends without an error.

    All files in it are flushed to the disk before it is renamed. If the context ends with an error,
    everything is removed.

    Args:
        path: The local path of the directory, which must not exist or be empty. Its parent must
            exist.

    Yields:
        The path of the directory under its temporary name, to write files into.

    Raises:
        OSError: Something cannot be written, or the directory exists by now and is not empty.
    """
    target = Path(path)
    temporary = _temporary(target)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for file in (Path(folder, name) for name in names):
                if not file.is_symlink():
                    _sync(file)
            _sync(Path(folder))
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(target.parent)


def rename(source: epath.PathLike, target: epath.PathLike) -> None:
    """Rename a complete file or directory, and flush the rename to the disk.

    Args:
        source: A local path or a URL. Its content has been flushed before.
        target: The new path in the same file system. A file there is replaced.

    Raises:
        OSError: It cannot be renamed.
    """
    if is_url(source):
        epath.Path(source).rename(target)
        return
    os.replace(source, target)
    for parent in {Path(source).parent, Path(target).parent}:
        _sync(parent)


def remove_temporaries(directory: Path) -> None:
    """Remove the temporary files that killed writers left in a directory.

    Args:
        directory: A local directory in which no other process or thread is writing.
    """
    for path in directory.glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()


def _upload(url: epath.PathLike, content: bytes) -> None:
    try:
        epath.Path(url).write_bytes(content)
    except OSError:
        raise
    except Exception as error:  # TensorFlow, gcsfs and others have kinds of errors of their own
        raise OSError(f"{os.fspath(url)} cannot be written: {error}") from error


def _temporary(target: Path) -> Path:
    """Return a unique hidden name beside the target, with an ending that no pattern matches."""
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")


def _sync(path: Path) -> None:
    """Flush the content of a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems have no fsync of directories.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
