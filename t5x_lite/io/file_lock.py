"""One process at a time."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO


@contextlib.contextmanager
def alone(path: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a path, which ends with the process; wait while another one holds it."""
    while True:
        with open(path, "w") as file:
            # Whoever held it removed the file; another one may have made and locked it anew.
            if not _wait_for(file, path, report) or _is_at(file, path):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


def _wait_for(file: TextIO, path: Path, report: Callable[[str], None]) -> bool:
    """Lock a file; return False on a file system without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        report(f"waiting for the process that makes {path.name[1:-5]} ...")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
