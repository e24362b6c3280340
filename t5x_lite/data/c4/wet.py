"""Common Crawl's WET files: pages as text under a WARC header each, gzipped one after another.

    WARC/1.0
    WARC-Type: conversion
    WARC-Target-URI: https://example.org/a
    WARC-Date: 2019-04-20T01:02:03Z
    Content-Type: text/plain
    Content-Length: 31

    The first line.
    The second.

What is taken is what C4's builder takes: lines without their white space, none empty, and none that
begin as header lines do, wherever they stand.
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
_MAX_BYTES = 10_000_000  # of a page; one of more than 190,000 characters is dropped in any case
_NAMED = 20  # of the bad ones


class Page(NamedTuple):
    """A page of the web: its lines joined by newlines, and what its header says."""

    url: str
    text: str
    timestamp: str
    content_type: str = ""
    content_length: str = ""


def read_pages(file: IO[bytes], name: str, counts: Counts, line_stats: LineStats) -> Iterator[Page]:
    """Yield the pages of a gzipped WET file; memory holds one.

    Pages that lack an address, a date or text are counted, as in C4's builder. What cannot be read
    (a file that is cut short or no WET file, a page that is not UTF-8 or has ten million bytes) is
    left out and goes into `line_stats`, a page being a line of it.
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
        reader.bad(CUT_SHORT, f"nothing can be read from here on: {error}")
        return
    if not reader.number:
        reader.bad(EMPTY, "it holds no page")
    elif page := reader.finish():
        yield page


class _PageReader:
    """The page that is being read, line by line; `number` counts the pages so far."""

    def __init__(self, name: str, counts: Counts, line_stats: LineStats):
        self._name, self._counts, self._tally = name, counts, line_stats
        self.number, self._lines, self._bytes = 0, [], 0

    def take(self, line: bytes) -> bool:
        """Take a line of the file; return whether it goes on."""
        if (stripped := line.strip()) == _BEGIN:
            self.number, self._lines, self._bytes = self.number + 1, [], 0
            return True
        if not self.number and stripped:
            self.bad(NO_HEADER, f"the file begins with {stripped[:40]!r} in place of {_BEGIN!r}")
            return False
        self._bytes += len(line)
        if self._bytes <= _MAX_BYTES:
            self._lines.append(line)
        return True

    def finish(self) -> Page | None:
        """Return the page that has been read, if it is one."""
        if not self.number:
            return None
        self._tally.lines += 1
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
        """Count and name something that cannot be used."""
        self._tally.lines += not self.number
        self._tally.bad[reason] += 1
        message = f"{self._name}, page {self.number}: {reason} ({detail})"
        self._tally.first += [message][: _NAMED - len(self._tally.first)]


def _parse(record: str) -> Page:
    """Return the page of a record, header and text together."""
    fields = dict.fromkeys(_FIELDS.values(), "")
    kept = []
    for line in map(str.strip, _LINE_END.split(record)):
        for begin, field in _FIELDS.items():
            if line.startswith(begin):
                fields[field] = line[len(begin) :].strip()
        if line and not line.startswith(_HEADER_LINES):
            kept.append(line)
    return Page(text="\n".join(kept), **fields)
