"""The same rules on Apache Beam: the same pages as on one machine, and the same counts."""

import gzip
import json
import sys

import pytest

from t5x_lite.data.c4 import beam, local
from t5x_lite.data.c4.build_stages import BuildJob
from t5x_lite.data.c4.recipe import C4Recipe
from t5x_lite.data.sources.jsonl_and_tsv import MalformedLines
from t5x_lite.errors import ConfigError

IN_MEMORY = ("--runner=DirectRunner", "--direct_running_mode=in_memory")
# Processes of their own get the pipeline in a message, as the machines of a cluster do.
IN_PROCESSES = (
    *("--runner=DirectRunner", "--direct_running_mode=multi_processing"),
    "--direct_num_workers=2",
)


def pages(directory):
    found = {}
    for path in directory.glob("c4-*.json.gz"):
        with gzip.open(path, "rt") as file:
            for line in file:
                page = json.loads(line)
                found[page["url"]] = (path.name.split("-")[1].split(".")[0], page)
    return found


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("unit", "options"),
    [
        ("lines", IN_MEMORY),
        ("three_sentences", IN_MEMORY),
        pytest.param("lines", IN_PROCESSES, marks=pytest.mark.slow),
    ],
)
def test_beam_and_one_machine_build_the_same(unit, options, wet_files, tmp_path):
    pytest.importorskip("apache_beam")
    recipe = C4Recipe(unit=unit, bad_words=str(wet_files / "bad_words.txt"))
    wet = tuple(sorted(map(str, wet_files.glob("*.gz"))))
    expected = local.build(BuildJob(recipe, wet, tmp_path / "local", 2), processes=1)
    found = beam.build_with_beam(
        recipe, str(wet_files / "*.gz"), str(tmp_path / "beam"), train_shards=2, options=options
    )
    assert pages(tmp_path / "beam") == pages(tmp_path / "local") != {}
    of_hashes = {name for name in expected if name.startswith("duplicates: hash")}
    assert found == {name: n for name, n in expected.items() if name not in of_hashes and n}
    names = sorted(path.name for path in (tmp_path / "beam").glob("c4-train*"))
    assert names == [f"c4-train.0000{n}-of-00002.json.gz" for n in range(2)]


@pytest.mark.filterwarnings("default")
def test_a_bad_file_stops_beam_too(wet_files, tmp_path):
    pytest.importorskip("apache_beam")
    (tmp_path / "bad.wet.gz").write_bytes(gzip.compress(b"no WET file"))
    recipe = C4Recipe(bad_words=str(wet_files / "bad_words.txt"))
    with pytest.raises(Exception, match="no WARC header"):
        beam.build_with_beam(
            recipe, str(tmp_path / "*.gz"), str(tmp_path / "out"), options=IN_MEMORY
        )
    lenient = beam.build_with_beam(
        recipe,
        str(tmp_path / "*.gz"),
        str(tmp_path / "out"),
        bad_pages=MalformedLines(1.0),
        options=IN_MEMORY,
    )
    assert lenient == {"read: no WARC header": 1}


def test_without_beam_the_extra_is_named(monkeypatch, wet_files):
    beam._beam.cache_clear()
    monkeypatch.setitem(sys.modules, "apache_beam.io.fileio", None)
    recipe = C4Recipe(bad_words=str(wet_files / "bad_words.txt"))
    with pytest.raises(ConfigError, match="it comes with the extra 'beam'"):
        beam.build_with_beam(recipe, "*.gz", "out")
