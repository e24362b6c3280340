"""Read JSON lines, TSV and text files as records, and count and report malformed lines.

No line is skipped silently. A malformed line is logged as a warning with its file and line number
and counted. If a file has more of them than the tolerance permits, that is an error.
"""

import contextlib
import csv
import gzip
import json
import logging
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from t5x_lite.errors import ConfigError
from t5x_lite.io import files

NOT_JSON, NO_FIELD, NOT_UTF8 = "no JSON", "no text field", "not UTF-8"
TOO_LONG, CUT_SHORT, EMPTY = "too long", "cut short", "empty file"
_LOG = logging.getLogger(__name__)
_WARNINGS_PER_FILE = 20


@dataclass(frozen=True)
class MalformedLines:
    """The tolerance for malformed lines in data files.

    Args:
        max_fraction: Fraction of a file's lines that may be malformed, from 0 to 1. 0 stops at the
            first one: a new corpus should be looked at before lines are skipped.
        max_bytes: Longest valid line, in bytes. A longer one is malformed and not kept in memory,
            so that a file without line ends cannot exhaust it.

    Raises:
        ConfigError: If a value is out of range.
    """

    max_fraction: float = 0.0
    max_bytes: int = 10_000_000

    def __post_init__(self):
        if not 0 <= self.max_fraction <= 1 or self.max_bytes < 1:
            raise ConfigError(
                f"max_fraction takes a number from 0 to 1, max_bytes 1 or more; got {self}",
                "MalformedLines.max_fraction",
                "MalformedLines.max_bytes",
            )


STRICT = MalformedLines()


@dataclass
class LineStats:
    """Counts of the lines that were read.

    Attributes:
        lines: How many lines were read, malformed ones included.
        bad: How many were malformed, by the reason.
        first: Messages about the first malformed lines.
    """

    lines: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """Return it as "skipped 3 of 1,200 lines (2 no JSON, 1 too long); the first: ..."."""
        kinds = ", ".join(f"{number:,} {reason}" for reason, number in self.bad.most_common())
        return (
            f"skipped {self.bad.total():,} of {self.lines:,} line{'s' * (self.lines != 1)} "
            f"({kinds}); the first: {self.first[0]}"
        )


class MalformedLineError(ValueError):
    """A line that cannot be used.

    Args:
        reason: The kind under which it is counted, such as `NOT_JSON`.
        detail: What is wrong with this line.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


def read_records(
    path: str,
    fields: Sequence[str],
    bad_lines: MalformedLines = STRICT,
    line_stats: LineStats | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the records of a file as mappings with text in each of the `fields`.

        {"text": "One.", "url": "a"}   ->   {"text": "One.", "url": "a"}

    Args:
        path: A path or URL. ".tsv" has tab-separated columns under a line with their names, ".txt"
            a "text" on each line, and all other files JSON lines. ".gz" may follow.
        fields: The fields that every record must have.
        bad_lines: The tolerance for malformed lines.
        line_stats: Counts lines and malformed lines; None: they are counted for this file only.

    Raises:
        ConfigError: If the file cannot be read; at the first malformed line; or, with a tolerance,
            at the end of a file with too many. An empty file counts as malformed, but exceeds no
            tolerance above 0.
    """
    line_stats = LineStats() if line_stats is None else line_stats
    kind = path.removesuffix(".gz").rsplit(".", 1)[-1]
    number, bad, columns, is_empty = 0, 0, [], False
    for number, line in enumerate(_lines(path, bad_lines.max_bytes), start=1):
        if kind == "tsv" and number == 1:
            columns = _columns(path, line, fields)
            continue
        line_stats.lines += 1
        try:
            if isinstance(line, MalformedLineError):
                raise line
            if kind == "tsv":
                yield _from_row(decode_line(line), columns, fields)
            elif kind == "txt":
                yield {"text": decode_line(line)}
            else:
                yield parse_json_line(line, fields)
        except MalformedLineError as error:
            bad += 1
            is_empty = error.reason == EMPTY
            message = f"{path}, line {number}: {error.reason} ({error})"
            line_stats.bad[error.reason] += 1
            line_stats.first += [message][: _WARNINGS_PER_FILE - len(line_stats.first)]
            if bad_lines.max_fraction == 0:
                raise ConfigError(message, "DATA_DIR", "MalformedLines.max_fraction") from None
            if bad <= _WARNINGS_PER_FILE:
                _LOG.warning(f"skipped {message}")
    if bad > bad_lines.max_fraction * number and not is_empty:
        raise ConfigError(
            f"{path}: {bad:,} of {number:,} lines are malformed; the tolerance is a fraction of "
            f"{bad_lines.max_fraction:g}; the first: {line_stats.first[0]}",
            "MalformedLines.max_fraction",
            "DATA_DIR",
        )


def check_line_stats(line_stats: LineStats, path: str, bad_lines: MalformedLines) -> None:
    """Log a warning for the malformed lines of a file.

    Args:
        line_stats: The counts of the file.
        path: The path of the file.
        bad_lines: The tolerance for malformed lines.

    Raises:
        ConfigError: If the file has too many malformed lines.
    """
    if not line_stats.bad:
        return
    if line_stats.bad.total() > bad_lines.max_fraction * line_stats.lines:
        raise ConfigError(
            f"{path}: {line_stats.describe()}; the tolerance is a fraction of "
            f"{bad_lines.max_fraction:g}",
            "MalformedLines.max_fraction",
        )
    for message in line_stats.first:
        _LOG.warning(f"skipped {message}")


def _lines(path: str, max_bytes: int) -> Iterator[bytes | MalformedLineError]:
    """Yield the lines of a file without their line ends; for a malformed one, its error."""
    number = 0
    try:
        with contextlib.ExitStack() as stack:
            file: IO[bytes] = stack.enter_context(files.open_bytes(path))
            if path.endswith(".gz"):
                file = stack.enter_context(gzip.open(file, "rb"))  # pyright: ignore
            while line := file.readline(max_bytes + 1):
                number += 1
                if len(line) > max_bytes and not line.endswith(b"\n"):
                    yield MalformedLineError(TOO_LONG, f"it has {_skip(file, line):,} bytes")
                else:
                    yield line.rstrip(b"\r\n")
        if not number:
            yield MalformedLineError(EMPTY, "it holds no example")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield MalformedLineError(CUT_SHORT, f"the rest cannot be read: {error}")
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__.startswith("tensorflow"):
            raise ConfigError(f"{path} cannot be read: {error}", "DATA_DIR") from None
        raise


def _skip(file: IO[bytes], line: bytes) -> int:
    """Read the rest of a line, of which some is read; return how many bytes it has."""
    length, piece = len(line), line
    while piece and not piece.endswith(b"\n"):
        piece = file.readline(1 << 20)
        length += len(piece)
    return length


def decode_line(line: bytes) -> str:
    """Return the text of a line; raises MalformedLineError if it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise MalformedLineError(NOT_UTF8, f"byte {error.start + 1}: {error.reason}") from None


def parse_json_line(line: bytes, fields: Sequence[str]) -> dict[str, Any]:
    """Parse a line of a JSON-lines file.

    >>> parse_json_line(b'{"text": "A tree.", "id": 7}', ["text"])
    {"text": "A tree.", "id": 7}

    Args:
        line: The line, with or without its end.
        fields: The names that must have text; other names may have any value.

    Returns:
        The whole object of the line.

    Raises:
        MalformedLineError: The line is not UTF-8, no JSON object, or lacks text for a field.
    """
    try:
        record = json.loads(decode_line(line))
    except json.JSONDecodeError as error:
        raise MalformedLineError(NOT_JSON, error.msg) from None
    except RecursionError:
        raise MalformedLineError(NOT_JSON, "too deeply nested") from None
    if not isinstance(record, dict):
        raise MalformedLineError(NO_FIELD, f"not a JSON object with a string {fields[0]!r}")
    for name in fields:
        if not isinstance(record.get(name), str):
            raise MalformedLineError(NO_FIELD, f"not a JSON object with a string {name!r}")
        try:
            record[name].encode()
        except UnicodeEncodeError:
            raise MalformedLineError(NOT_UTF8, f"{name!r} has half a surrogate pair") from None
    return record


def _columns(path: str, line: bytes | MalformedLineError, fields: Sequence[str]) -> list[str]:
    names = (
        []
        if isinstance(line, MalformedLineError)
        else line.decode("utf-8-sig", "replace").split("\t")
    )
    if missing := [name for name in fields if name not in names]:
        raise ConfigError(
            f"{path}, line 1: no column is called {missing[0]!r}: the first line names the columns "
            f"and has {', '.join(map(repr, names)) or 'nothing'}",
            "DATA_DIR",
        )
    return names


def _from_row(text: str, columns: Sequence[str], fields: Sequence[str]) -> dict[str, Any]:
    cells = next(csv.reader([text], delimiter="\t", quoting=csv.QUOTE_NONE), [])
    if len(cells) != len(columns):
        raise MalformedLineError(NO_FIELD, f"{len(cells)} columns instead of {len(columns)}")
    record = dict(zip(columns, cells, strict=True))
    return {name: record[name] for name in fields}
