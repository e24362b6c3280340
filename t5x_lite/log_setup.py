"""Logging: log lines on the terminal and in MODEL_DIR/log.txt.

Each module logs to `logging.getLogger(__name__)`, below the logger "t5x_lite". Importing the
package configures nothing; the root logger and the loggers of other libraries are never touched.
The command line calls `to_terminal`; training calls `to_run_directory`. A Python program that uses
t5x_lite as a library sees INFO lines after, for example:

    logging.basicConfig()
    logging.getLogger("t5x_lite").setLevel(logging.INFO)
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

FILE = "log.txt"
_FILE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_PACKAGE = logging.getLogger("t5x_lite")


@contextlib.contextmanager
def to_terminal() -> Iterator[None]:
    """Print the package's log lines of level INFO and above to standard output.

    Lines do not propagate to the root logger meanwhile: a library that configures the root logger
    would print all of them a second time.
    """
    handler, level, propagate = _TerminalHandler(), _PACKAGE.level, _PACKAGE.propagate
    _PACKAGE.addHandler(handler)
    _PACKAGE.setLevel(logging.INFO)
    _PACKAGE.propagate = False
    try:
        yield
    finally:
        _PACKAGE.removeHandler(handler)
        _PACKAGE.setLevel(level)
        _PACKAGE.propagate = propagate


def only_warnings() -> None:
    """Log WARNING and above from now on, as all processes of a run but the first do."""
    _PACKAGE.setLevel(logging.WARNING)


def use_stderr() -> None:
    """Print log lines to standard error, because standard output carries the command's data."""
    for handler in _PACKAGE.handlers:
        if isinstance(handler, _TerminalHandler):
            handler.stderr = True


@contextlib.contextmanager
def to_run_directory(model_dir: str | os.PathLike) -> Iterator[None]:
    """Append the package's log lines to MODEL_DIR/log.txt, with time, level and logger.

    Lines logged before the directory exists are kept and written once it does. A full disk is
    tolerated: lines are kept until there is room. A directory such as gs:// is written at most once
    a minute and at the end (`AppendFile`). An exception that ends the run is written, too.
    """
    handler = _RunLogHandler(f"{os.fspath(model_dir)}/{FILE}")
    # Without any handler Python prints warnings to stderr; with this one alone it would stop.
    last_resort = None if _PACKAGE.hasHandlers() else logging.lastResort
    handlers = [handler, *([last_resort] if last_resort else [])]
    for each_handler in handlers:
        _PACKAGE.addHandler(each_handler)
    try:
        yield
    except (Exception, KeyboardInterrupt):
        handler.handle(_record_of_error())
        raise
    finally:
        for each_handler in handlers:
            _PACKAGE.removeHandler(each_handler)
        handler.close()


def _record_of_error() -> logging.LogRecord:
    """Return a record of the exception that is being handled; the terminal shows it elsewhere."""
    text, error = "the run ended with an error", sys.exc_info()
    return _PACKAGE.makeRecord(__name__, logging.ERROR, __file__, 0, text, (), error)


class _TerminalHandler(logging.Handler):
    """Prints log lines above the live line: the message, after its level from WARNING on."""

    def __init__(self):
        super().__init__()
        self.stderr = False

    def emit(self, record: logging.LogRecord) -> None:
        # Imported with the first line: `t5x_lite --help` need not wait for rich.
        from rich.text import Text

        from t5x_lite.console import terminal

        if getattr(record, "shown", False):
            return
        try:
            is_warning = record.levelno > logging.INFO
            level = f"{record.levelname}: " if is_warning else ""
            style = "yellow" if is_warning else ""
            terminal(self.stderr).print(Text(f"{level}{self.format(record)}", style=style))
        except Exception:
            self.handleError(record)


class _RunLogHandler(logging.Handler):
    """Appends log lines to a file that need not be writable yet."""

    def __init__(self, path: str):
        from t5x_lite.io.append_file import AppendFile  # slow to import, for `t5x_lite --help`

        super().__init__()
        self.setFormatter(logging.Formatter(_FILE_FORMAT))
        self._file = AppendFile(path, silent=True)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._file.write(f"{self.format(record)}\n".encode())
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._file.close()
        super().close()
