"""Files that grow by appending, whose content survives a full disk; in buckets as well."""

import contextlib
import logging
import os
import time
from typing import BinaryIO

from etils import epath

from t5x_lite.io import atomic
from t5x_lite.io.urls import is_url

UPLOAD_SECONDS = 60.0
_LOG = logging.getLogger(__name__)


class AppendFile:
    """Appends to a file; content that cannot be written now is kept and written with the next.

    A failure is logged once, until a write succeeds again; it never ends the run. An object store
    such as gs:// cannot append: there the whole file is uploaded, at most once a minute
    (`UPLOAD_SECONDS`) and by `flush` and `close`.

    Args:
        path: A local path or a URL. Content is kept as long as its directory does not exist.
        silent: Do not log failures.
    """

    def __init__(self, path: epath.PathLike, *, silent: bool = False):
        self._path, self._silent = epath.Path(path), silent
        self._pending, self._failing = b"", False
        self._written_at = 0.0
        self._file: BinaryIO | None = None
        self._uploaded: bytes | None = None  # the whole content of an object, None for a local file
        if is_url(path):
            self._uploaded = self._path.read_bytes() if self._path.exists() else b""

    def write(self, content: bytes) -> None:
        """Append content; unless the process is killed, all of it is written or none."""
        self._pending += content
        if self._uploaded is None or time.monotonic() - self._written_at > UPLOAD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the pending content if that is possible now; if not, keep it."""
        try:
            if self._uploaded is not None:
                atomic.write_bytes(self._path, self._uploaded + self._pending)
                self._uploaded += self._pending
            elif self._pending:
                self._append()
        except OSError as error:
            if not self._failing and not self._silent:
                _LOG.warning(f"cannot write {self._path} ({error}); its content is kept in memory")
            self._failing = True
            return
        self._pending, self._failing, self._written_at = b"", False, time.monotonic()

    def close(self) -> None:
        """Write the pending content and close the file."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self) -> None:
        if self._file is None:
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 closed by `close`
        size_before = os.fstat(self._file.fileno()).st_size
        written = self._file.write(self._pending)
        if written != len(self._pending):
            # A full disk takes a part. Without it the file ends with a whole line.
            with contextlib.suppress(OSError):
                self._file.truncate(size_before)
            raise OSError(f"only {written} of {len(self._pending)} bytes fit on the disk")
