"""Lines that cannot be used: each is counted and named, and past a share they are an error."""

import gzip
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.data.sources import jsonl_and_tsv
from t5x_lite.data.sources.jsonl_and_tsv import LineStats, MalformedLines, read_records
from t5x_lite.errors import ConfigError

GOOD = [json.dumps({"text": f"line {number}"}).encode() for number in range(20)]
HALF = MalformedLines(max_fraction=0.5, max_bytes=1000)


def write(path, lines):
    content = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"text": "cut of', jsonl_and_tsv.NOT_JSON, "Unterminated string"),
        (b"", jsonl_and_tsv.NOT_JSON, "Expecting value"),
        (b'{"url": "https://docs.invalid/x"}', jsonl_and_tsv.NO_FIELD, "a string 'text'"),
        (b'{"text": 3}', jsonl_and_tsv.NO_FIELD, "a string 'text'"),
        (b"[1, 2]", jsonl_and_tsv.NO_FIELD, "a string 'text'"),
        (b'{"text": "caf\xe9"}', jsonl_and_tsv.NOT_UTF8, "byte 14: invalid continuation byte"),
        (b'{"text": "\\ud83d"}', jsonl_and_tsv.NOT_UTF8, "half a surrogate"),
        (b'{"text": "' + b"x" * 5000 + b'"}', jsonl_and_tsv.TOO_LONG, "it has 5,013 bytes"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else None,
)
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_bad_line_is_counted_and_named_and_the_others_are_read(
    tmp_path, caplog, name, line, reason, detail
):
    path = write(tmp_path / name, [GOOD[0], line, GOOD[1]])
    line_stats = LineStats()
    with caplog.at_level(logging.WARNING):
        texts = [record["text"] for record in read_records(path, ("text",), HALF, line_stats)]
    assert texts == ["line 0", "line 1"]
    assert (line_stats.lines, dict(line_stats.bad)) == (3, {reason: 1})
    expected = f"skipped 1 of 3 lines (1 {reason}); the first: {path}"
    assert line_stats.describe().startswith(expected)
    [message] = [entry.getMessage() for entry in caplog.records]
    assert message.startswith(f"skipped {path}, line 2: {reason} (")
    assert detail in message


def test_a_line_of_50_megabytes_is_passed_over_without_being_kept(tmp_path):
    path = tmp_path / "a.json"
    with open(path, "wb") as file:
        file.write(GOOD[0] + b'\n{"text": "')
        for _ in range(50):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n' + GOOD[1] + b"\n")
    line_stats = LineStats()
    bad_lines = MalformedLines(max_fraction=0.5)
    texts = [record["text"] for record in read_records(str(path), ("text",), bad_lines, line_stats)]
    assert texts == ["line 0", "line 1"]
    assert dict(line_stats.bad) == {jsonl_and_tsv.TOO_LONG: 1}
    assert "line 2: too long (it has 50,000,013 bytes)" in line_stats.first[0]
    with pytest.raises(ConfigError, match="line 2: too long"):
        list(read_records(str(path), ("text",)))


def test_a_gzip_file_cut_short_gives_what_it_has_and_says_where_it_ends(tmp_path):
    lines = [json.dumps({"text": f"{number**9:x}"}).encode() for number in range(5000)]
    path = write(tmp_path / "a.json.gz", lines)
    (tmp_path / "a.json.gz").write_bytes((tmp_path / "a.json.gz").read_bytes()[:-5000])
    line_stats = LineStats()
    texts = [record["text"] for record in read_records(path, ("text",), HALF, line_stats)]
    assert texts == [json.loads(line)["text"] for line in lines[: len(texts)]]
    assert 1000 < len(texts) < 5000
    assert dict(line_stats.bad) == {jsonl_and_tsv.CUT_SHORT: 1}
    assert f"line {len(texts) + 1}: cut short" in line_stats.first[0]
    with pytest.raises(ConfigError, match=r"line \d+: cut short"):
        list(read_records(path, ("text",)))


def test_a_gzip_file_that_is_none_is_named(tmp_path):
    (tmp_path / "a.json.gz").write_bytes(b"plain text")
    with pytest.raises(ConfigError, match=r"a\.json\.gz, line 1: cut short .*Not a gzipped file"):
        list(read_records(str(tmp_path / "a.json.gz"), ("text",)))


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.txt"])
def test_an_empty_file_is_an_error_unless_a_share_is_allowed(tmp_path, name):
    path = write(tmp_path / name, [])
    with pytest.raises(ConfigError, match="line 1: empty file"):
        list(read_records(path, ("text",)))
    line_stats = LineStats()
    assert list(read_records(path, ("text",), HALF, line_stats)) == []
    assert dict(line_stats.bad) == {jsonl_and_tsv.EMPTY: 1}


@pytest.mark.parametrize(("share", "is_error"), [(0.09, True), (0.1, False), (0.5, False)])
def test_more_than_the_allowed_share_is_an_error_at_the_end_of_the_file(tmp_path, share, is_error):
    path = write(tmp_path / "a.json", [*GOOD[:9], b"{", *GOOD[9:18], b"{"])
    read = []
    lines = read_records(path, ("text",), MalformedLines(max_fraction=share))
    if is_error:
        with pytest.raises(ConfigError, match=r"2 of 20 lines are malformed.*line 10: no JSON"):
            read.extend(lines)
    else:
        read.extend(lines)
    assert len(read) == 18


def test_without_an_allowed_share_the_first_bad_line_stops_the_reading(tmp_path):
    path = write(tmp_path / "a.json", [GOOD[0], b"{", GOOD[1]])
    lines = read_records(path, ("text",))
    assert next(lines)["text"] == "line 0"
    with pytest.raises(ConfigError, match=r"a\.json, line 2: no JSON") as caught:
        next(lines)
    assert caught.value.names == ("DATA_DIR", "MalformedLines.max_fraction")


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_0_and_1_is_refused(share):
    with pytest.raises(ConfigError, match="from 0 to 1"):
        MalformedLines(max_fraction=share)


def test_columns_of_tab_separated_files_are_found_by_their_names(tmp_path):
    path = write(tmp_path / "a.tsv.gz", [b"id\ttargets\tinputs", b'1\tja\t"yes" it is', b"2\tnein"])
    line_stats = LineStats()
    found = list(read_records(path, ("inputs", "targets"), HALF, line_stats))
    assert found == [{"inputs": '"yes" it is', "targets": "ja"}]
    assert "line 3: no text field (2 columns instead of 3)" in line_stats.first[0]
    with pytest.raises(ConfigError, match=r"no column is called 'text': .* has 'id', 'targets'"):
        list(read_records(path, ("text",)))


def test_lines_of_plain_text_are_documents(tmp_path):
    path = write(tmp_path / "a.txt", ["Übung".encode(), b"  two \r"])
    assert [record["text"] for record in read_records(path, ("text",))] == ["Übung", "  two "]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.json cannot be read"):
        list(read_records(str(tmp_path / "gone.json"), ("text",)))


@given(st.lists(st.sampled_from([GOOD[0], b"{", b"\xff", b"[]", b""]), min_size=1))
def test_every_line_is_either_read_or_counted(tmp_path_factory, lines):
    path = write(tmp_path_factory.mktemp("lines") / "a.json", lines)
    line_stats = LineStats()
    read = list(read_records(path, ("text",), MalformedLines(max_fraction=1.0), line_stats))
    assert len(read) == lines.count(GOOD[0])
    assert line_stats.lines == len(lines) == len(read) + line_stats.bad.total()
