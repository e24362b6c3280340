"""Files that grow line by line, kept through full disks, on file systems and in stores."""

import contextlib
import os
import time
from collections.abc import Callable
from typing import BinaryIO

from etils import epath

UPLOAD_SECONDS = 60.0


class AppendFile:
    """Appends to a file; what cannot be written now is kept and written with what follows.

    A failure is reported once, until it is over; nothing here is worth a run. A store such as gs://
    cannot append: there the whole file is written anew, at most once a minute and at the end.
    """

    def __init__(self, path: epath.PathLike, report: Callable[[str], None] = print):
        self._path, self._report = epath.Path(path), report
        self._kept, self._failing = b"", False
        self._written_at = 0.0
        self._file: BinaryIO | None = None
        self._stored: bytes | None = None  # of a store's file, all there is
        if "://" in str(path):
            self._stored = self._path.read_bytes() if self._path.exists() else b""

    def write(self, content: bytes) -> None:
        """Append; a content is there as a whole or not at all, unless the process is killed."""
        self._kept += content
        if self._stored is None or time.monotonic() - self._written_at > UPLOAD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was kept, if that is possible now."""
        try:
            if self._stored is not None:
                self._path.write_bytes(self._stored + self._kept)
                self._stored += self._kept
            elif self._kept:
                self._append()
        except OSError as error:
            if not self._failing:
                self._report(f"{self._path} could not be WRITTEN ({error}): kept for later")
            self._failing = True
            return
        self._kept, self._failing, self._written_at = b"", False, time.monotonic()

    def close(self) -> None:
        """Write what is left and close the file."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self) -> None:
        if self._file is None:
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 closed by `close`
        good = os.fstat(self._file.fileno()).st_size
        written = self._file.write(self._kept)
        if written != len(self._kept):
            with contextlib.suppress(OSError):
                self._file.truncate(good)
            raise OSError(f"only {written} of {len(self._kept)} bytes found room")
