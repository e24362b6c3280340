"""A lock between processes, held by a file: of those that want it, one runs at a time."""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a path; wait while another process or thread holds it.

    The lock ends with the context or with the process, however it ends. On a file system without
    locks a warning is logged and the context is entered without one.

    Args:
        path: The lock's file, which is created, and removed at the end. By convention its name is
            that of what it protects, as in ".train.lock" for "train".

    Yields:
        None, while the lock is held.
    """
    while True:
        with open(path, "w") as file:
            # The previous holder removed this file before it released the lock. Another process may
            # have created and locked a new file at the path: then this lock protects nothing.
            if not _acquire(file, path) or _is_current(file, path):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


def _acquire(file: TextIO, path: Path) -> bool:
    """Lock a file; return False on a file system without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _LOG.info(f"waiting for the process that holds {path} ...")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        _LOG.warning(f"{path} cannot be locked ({error}); continuing without the lock")
        return False
    return True


def _is_current(file: TextIO, path: Path) -> bool:
    """Return whether the open file is still the one at the path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
