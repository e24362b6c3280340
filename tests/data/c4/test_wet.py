"""WET files, sound and broken: pages as C4's builder reads them, and nothing lost in silence."""

import gzip
import io

import pytest

from t5x_lite.data.c4.wet import Counts, Page, read_pages
from t5x_lite.data.sources.jsonl_and_tsv import LineStats, MalformedLines, check_line_stats
from t5x_lite.errors import ConfigError


def pages_of(content, line_stats=None):
    counts, line_stats = Counts(), LineStats() if line_stats is None else line_stats
    return list(read_pages(io.BytesIO(content), "x.wet.gz", counts, line_stats)), counts, line_stats


@pytest.mark.filterwarnings("default")
def test_pages_are_read_as_the_builder_reads_them(wet_files, tmp_path, wet_record):
    builder = pytest.importorskip("tensorflow_datasets.text.c4_utils")
    odd = wet_record(
        "https://odd.invalid/", ["\u3000wide space\u3000", "a\rb\x0bc", "WARC line", ""]
    )
    odd += wet_record("", ["A page without an address."])
    odd += wet_record("https://empty.invalid/", [])
    odd += wet_record("https://date.invalid/", ["A page without a date."], date="")
    odd += wet_record(
        "https://odd.invalid/b", ["Content-Type: of a line", "A WARC/1.0 is no begin"]
    )
    (tmp_path / "odd.wet.gz").write_bytes(gzip.compress(odd.encode()))
    for path in (*sorted(wet_files.glob("*.gz")), tmp_path / "odd.wet.gz"):
        theirs = builder.split_wet_file(str(path), counter_inc_fn=lambda name: None)
        expected = [
            Page(p.url, p.text, p.timestamp, p.content_type, p.content_length) for p in theirs
        ]
        found, counts, line_stats = pages_of(path.read_bytes())
        assert found == expected
        assert counts["read: page kept"] == len(expected) > 1
        assert not line_stats.bad
    assert counts == {
        "read: page kept": 2,
        "read: page without url": 1,
        "read: page without text": 1,
        "read: page without timestamp": 1,
    }


def test_a_file_that_is_cut_short_gives_the_pages_before_the_cut(wet_record):
    first = gzip.compress(wet_record("https://a.invalid", ["A line."]).encode())
    second = gzip.compress(wet_record("https://b.invalid", ["word " * 999]).encode())
    begun = gzip.compress(b"WARC/1.0\r\n")
    found, _, line_stats = pages_of(first + begun + second[:40])
    assert [page.url for page in found] == ["https://a.invalid"]
    assert line_stats.bad == {"cut short": 1}
    assert "x.wet.gz, page" in line_stats.first[0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (gzip.compress(b"", mtime=0), "empty file"),  # without the time: it is in the tests' names
        (b"WARC/1.0\r\n", "cut short"),
        (gzip.compress(b"<html>\r\nno WET file", mtime=0), "no WARC header"),
    ],
)
def test_what_is_no_wet_file_is_said(content, reason):
    found, _, line_stats = pages_of(content)
    assert found == []
    assert line_stats.bad == {reason: 1}
    with pytest.raises(ConfigError, match=f"1 of 1 lines skipped .*{reason}"):
        check_line_stats(line_stats, "x.wet.gz", MalformedLines(0.5))


def test_a_page_that_is_not_utf8_or_too_long_is_left_out_alone(wet_record, monkeypatch, caplog):
    monkeypatch.setattr("t5x_lite.data.c4.wet._MAX_BYTES", 400)
    records = [
        wet_record("https://a.invalid", ["A line."]).encode(),
        wet_record("https://b.invalid", ["A l?ne."]).encode().replace(b"?", b"\xff"),
        wet_record("https://c.invalid", ["A line. " * 60]).encode(),
        wet_record("https://d.invalid", ["A line."]).encode(),
    ]
    found, _, line_stats = pages_of(gzip.compress(b"".join(records)))
    assert [page.url for page in found] == ["https://a.invalid", "https://d.invalid"]
    assert line_stats.bad == {"not UTF-8": 1, "too long": 1}
    assert line_stats.lines == 4
    assert "page 2: not UTF-8" in line_stats.first[0]
    check_line_stats(line_stats, "x.wet.gz", MalformedLines(0.5))
    assert "page 3: too long" in caplog.text
    with pytest.raises(ConfigError, match="2 of 4 lines skipped"):
        check_line_stats(line_stats, "x.wet.gz", MalformedLines(0.4))
