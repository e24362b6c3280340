"""`t5x_lite c4`, called as the command line calls it; the rules have tests of their own."""

import gzip
import json
from pathlib import Path

import pytest

from t5x_lite.data.c4.build_c4 import c4
from t5x_lite.data.c4.recipe import C4Recipe
from t5x_lite.data.sources.jsonl_and_tsv import MalformedLines
from t5x_lite.errors import ConfigError


@pytest.fixture
def wet(tmp_path):
    """A file of two pages in English and one in another language, and one that is cut short."""
    pytest.importorskip("langdetect")
    texts = {
        "https://a.invalid/1": "The trees of this garden grow slowly. They are old. We like them.",
        "https://a.invalid/2": "The river runs to the sea. It is wide there. Nobody can cross it.",
        "https://a.invalid/3": "Die Bäume wachsen langsam. Der Fluss ist breit. Wir mögen beide.",
    }
    with gzip.open(tmp_path / "pages.warc.wet.gz", "wt") as file:
        for url, text in texts.items():
            file.write(
                f"WARC/1.0\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2019-04-20T00:00:00Z\r\n"
                f"Content-Type: text/plain\r\n\r\n{text}\r\n\r\n"
            )
    content = (tmp_path / "pages.warc.wet.gz").read_bytes()
    (tmp_path / "cut.warc.wet.gz").write_bytes(content[:-30])
    return tmp_path


def test_pages_become_shards_that_tasks_read_and_every_rule_is_told(
    wet, tmp_path, capsys, log_lines
):
    out = tmp_path / "c4"
    c4(
        wet=str(wet / "pages*.gz"),
        out=str(out),
        recipe=C4Recipe(variant="en.noclean"),
        processes=1,
        buckets=2,
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "reading pages, 1 WET file ..." in log_lines
    assert not [line for line in log_lines if "duplicate lines" in line]
    assert "read: page kept 3" in said
    assert "language: page not in English 1" in said
    assert "written: train page 2" in said
    assert json.loads((out / "statistics.json").read_text())["written: train page"] == 2

    from t5x_lite.data.sources.embedded_corpus import read_documents

    urls = {document["url"] for document in read_documents(out, "train")}
    assert urls == {"https://a.invalid/1", "https://a.invalid/2"}


def test_the_command_needs_no_gin_file(wet, tmp_path, capsys, monkeypatch):
    import gin

    from t5x_lite.cli import main

    monkeypatch.chdir(tmp_path)
    gin.clear_config()
    main.main(["c4", f"--wet={wet}/pages*.gz", "--out=c4", "--variant=en.noclean"])
    gin.clear_config()
    assert json.loads(Path("c4", "statistics.json").read_text())["written: train page"] == 2


def test_what_is_left_out_of_a_bad_file_is_counted_where_it_is_allowed(wet, tmp_path, capsys):
    settings = dict(recipe=C4Recipe(variant="en.noclean"), processes=1, buckets=1)
    with pytest.raises(ConfigError, match=r"cut\.warc\.wet\.gz: .*cut short"):
        c4(wet=str(wet / "*.gz"), out=str(tmp_path / "strict"), **settings)
    c4(wet=str(wet / "*.gz"), out=str(tmp_path / "c4"), bad_pages=MalformedLines(1.0), **settings)
    assert "read: cut short 1" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runner": "spark"}, "the runner is 'spark'"),
        ({"processes": 0}, "processes is 0"),
        ({"buckets": 0}, "buckets is 0"),
        ({"wet": "nowhere/*.gz"}, "no file matches nowhere"),
    ],
)
def test_what_cannot_work_is_said_before_any_page_is_read(changes, message, tmp_path):
    pytest.importorskip("langdetect")
    settings = dict(wet="*.gz", out=str(tmp_path / "out"), recipe=C4Recipe("en.noclean"))
    with pytest.raises(ConfigError, match=message):
        c4(**settings | changes)
    assert not (tmp_path / "out").exists()
