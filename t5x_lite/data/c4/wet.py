"""Read Common Crawl's WET files: pages as text, each under a WARC header, gzipped.

    WARC/1.0
    WARC-Type: conversion
    WARC-Target-URI: https://example.org/a
    WARC-Date: 2019-04-20T01:02:03Z
    Content-Type: text/plain
    Content-Length: 31

    The first line.
    The second.

The result is that of C4's builder: stripped lines, without empty ones and without lines that start
like header lines, wherever they are.
"""

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import IO, NamedTuple

from t5x_lite.data.sources.jsonl_and_tsv import CUT_SHORT, EMPTY, NOT_UTF8, TOO_LONG, LineStats

NO_HEADER = "no WARC header"
Counts = Counter[str]

_BEGIN = b"WARC/1.0"
_HEADER_LINES = ("WARC", "CONTENT-", "Content-")
_FIELDS = {
    "WARC-Target-URI:": "url",
    "WARC-Date:": "timestamp",
    "Content-Type:": "content_type",
    "Content-Length:": "content_length",
}
_LINE_END = re.compile("\r\n|\r|\n")
_MAX_BYTES = 10_000_000  # of a page; the rules drop pages above 190,000 characters anyway
_MESSAGES_KEPT = 20  # about malformed pages


class Page(NamedTuple):
    """A web page.

    Attributes:
        url: Its address.
        text: Its lines, joined by newlines.
        timestamp: When it was crawled.
        content_type: As its header says.
        content_length: As its header says.
    """

    url: str
    text: str
    timestamp: str
    content_type: str = ""
    content_length: str = ""


def read_pages(file: IO[bytes], name: str, counts: Counts, line_stats: LineStats) -> Iterator[Page]:
    """Yield the pages of a gzipped WET file, with one page in memory.

    Pages without a URL, a date or text are counted and skipped, as in C4's builder. What cannot be
    read (a truncated file, another kind of file, a page that is not UTF-8 or above ten million
    bytes) is malformed.

    Args:
        file: The file, open in binary mode.
        name: The file's name, for messages.
        counts: Counts pages by what happened to them.
        line_stats: Counts malformed pages; a page is a line of it.
    """
    reader = _PageReader(name, counts, line_stats)
    try:
        with gzip.open(file, "rb") as lines:
            while line := lines.readline(_MAX_BYTES + 1):
                if line.strip() == _BEGIN and (page := reader.finish()):
                    yield page
                if not reader.take(line):
                    return
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        reader.bad(CUT_SHORT, f"the rest cannot be read: {error}")
        return
    if not reader.number:
        reader.bad(EMPTY, "it holds no page")
    elif page := reader.finish():
        yield page


class _PageReader:
    """The page that is being read, line by line; `number` counts the pages so far."""

    def __init__(self, name: str, counts: Counts, line_stats: LineStats):
        self._name, self._counts, self._line_stats = name, counts, line_stats
        self.number, self._lines, self._bytes = 0, [], 0

    def take(self, line: bytes) -> bool:
        """Add a line of the file; return False if this is no WET file."""
        if (stripped := line.strip()) == _BEGIN:
            self.number, self._lines, self._bytes = self.number + 1, [], 0
            return True
        if not self.number and stripped:
            self.bad(NO_HEADER, f"the file begins with {stripped[:40]!r} instead of {_BEGIN!r}")
            return False
        self._bytes += len(line)
        if self._bytes <= _MAX_BYTES:
            self._lines.append(line)
        return True

    def finish(self) -> Page | None:
        """Return the page whose lines were added, None if there is none or it is malformed."""
        if not self.number:
            return None
        self._line_stats.lines += 1
        if self._bytes > _MAX_BYTES:
            return self.bad(TOO_LONG, f"it has {self._bytes:,} bytes")
        try:
            text = b"".join(self._lines).decode()
        except UnicodeDecodeError as error:
            return self.bad(NOT_UTF8, f"{error.object[error.start : error.end]!r}: {error.reason}")
        page = _parse(text)
        for field in ("url", "text", "timestamp"):
            if not getattr(page, field):
                self._counts[f"read: page without {field}"] += 1
                return None
        self._counts["read: page kept"] += 1
        return page

    def bad(self, reason: str, detail: str) -> None:
        """Count something malformed and keep a message about it."""
        self._line_stats.lines += not self.number
        self._line_stats.bad[reason] += 1
        message = f"{self._name}, page {self.number}: {reason} ({detail})"
        self._line_stats.first += [message][: _MESSAGES_KEPT - len(self._line_stats.first)]


def _parse(record: str) -> Page:
    """Return the page of a record, header and text together."""
    fields = dict.fromkeys(_FIELDS.values(), "")
    lines = []
    for line in map(str.strip, _LINE_END.split(record)):
        for begin, field in _FIELDS.items():
            if line.startswith(begin):
                fields[field] = line[len(begin) :].strip()
        if line and not line.startswith(_HEADER_LINES):
            lines.append(line)
    return Page(text="\n".join(lines), **fields)
