import gzip
import json
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from t5x_lite.data.sources import embedded_corpus, jsonl_and_tsv
from t5x_lite.errors import ConfigError

SOURCE = '''"""A module that is described in more than forty letters."""

raise ImportError("a corpus must never import what it reads")


class Tree:
    """A tree whose docstring is long enough to be a document."""

    def climb(self):
        r"""Climb it by the branch \\d, which is quite a long way up.

        >>> Tree().climb()
        'up there'

        Then rest for a while.
        """

    def fall(self):
        """Too short."""

    class Leaf:
        """A leaf of the tree, green and veined, one among many."""


if True:

    async def grow():
        """Grow as trees do, slowly and without being asked for it."""

        def inner():
            """What a function hides is none of the reader's business."""


def again():
    """A tree whose  docstring is long enough
    to be a DOCUMENT."""


def table():
    """Numbers: 1234 5678 91011 121314 151617 181920 212223 24252627."""


def escape():
    "Not in triple quotes, yet as long as the others are: \\\\d+ \\d."
'''


@pytest.fixture
def orchard(tmp_path, monkeypatch):
    """A package of one module, one test module and one file that is no Python."""
    package = tmp_path / "path" / "orchard"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "trees.py").write_text(SOURCE)
    (package / "broken.py").write_text(f'"""{"A file of Python 2. " * 5}"""\nprint "x"\n')
    (package / "tests" / "more.py").write_text(f'"""{"A test of something. " * 5}"""\n')
    (package / "test_trees.py").write_text(f'"""{"Another test of it. " * 5}"""\n')
    monkeypatch.syspath_prepend(tmp_path / "path")
    return "orchard"


def read_bytes(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def write_shard(directory, *lines):
    directory.mkdir(exist_ok=True)
    path = directory / "c4-train.00000-of-00001.json"
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_docstrings_become_documents_without_importing_anything(orchard):
    documents = embedded_corpus.embedded_documents([orchard])
    assert list(documents) == [
        "orchard.trees",
        "orchard.trees.Tree",
        "orchard.trees.Tree.climb",
        "orchard.trees.Tree.Leaf",
        "orchard.trees.grow",
        "orchard.trees.escape",
    ]
    assert orchard not in sys.modules


def test_interpreter_sessions_are_cut_out(orchard):
    text = embedded_corpus.embedded_documents([orchard])["orchard.trees.Tree.climb"]
    assert text == (
        "Climb it by the branch \\d, which is quite a long way up.\n\nThen rest for a while."
    )


def test_packages_that_are_not_installed_are_left_out(orchard):
    with_missing = embedded_corpus.embedded_documents([orchard, "no_such_package_anywhere"])
    assert with_missing == embedded_corpus.embedded_documents([orchard])


def test_the_language_reference_is_part_of_the_standard_library(tmp_path, monkeypatch):
    installed = Path(sysconfig.get_path("stdlib"))
    if not (installed / "pydoc_data" / "topics.py").exists():
        pytest.skip("this Python comes without its language reference")
    for folder in ("json", "pydoc_data"):
        shutil.copytree(installed / folder, tmp_path / folder)
    shutil.copytree(installed / "json", tmp_path / "test" / "json")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    documents = embedded_corpus.embedded_documents([embedded_corpus.STANDARD_LIBRARY])
    assert "debugging assertions" in documents["pydoc_data.topics.assert"]
    assert documents["json.dumps"].startswith("Serialize ``obj`` to a JSON formatted ``str``.")
    assert {name.split(".")[0] for name in documents} == {"json", "pydoc_data"}


def test_the_same_packages_give_the_same_bytes(tmp_path):
    for directory in ("one", "two"):
        embedded_corpus.write_embedded_corpus(tmp_path / directory, ["gin", "optax"])
    assert read_bytes(tmp_path / "one") == read_bytes(tmp_path / "two")


def test_shards_have_c4s_names_and_fields(tmp_path):
    summary = embedded_corpus.write_embedded_corpus(tmp_path / "corpus", ["optax"])
    shards = [path.name for path in sorted((tmp_path / "corpus").glob("*.gz"))]
    assert shards == [
        *(f"c4-train.{shard:05d}-of-00004.json.gz" for shard in range(4)),
        "c4-validation.00000-of-00001.json.gz",
    ]
    documents = list(embedded_corpus.read_documents(tmp_path / "corpus", "train"))
    assert {tuple(document) for document in documents} == {("text", "url", "timestamp")}
    assert "https://docs.invalid/optax._src.alias.adamw" in {d["url"] for d in documents}
    validation = list(embedded_corpus.read_documents(tmp_path / "corpus", "validation"))
    assert (len(documents), len(validation)) == (
        summary.train_documents,
        summary.validation_documents,
    )
    assert summary.characters == sum(len(d["text"]) for d in documents + validation)


def test_a_documents_split_depends_on_its_name_alone(tmp_path):
    names = {}
    for packages in (["optax"], ["gin", "optax"]):
        directory = tmp_path / "-".join(packages)
        embedded_corpus.write_embedded_corpus(directory, packages)
        for split in ("train", "validation"):
            documents = embedded_corpus.read_documents(directory, split)
            names[len(packages), split] = set(map(embedded_corpus.document_name, documents))
    assert names[1, "validation"] <= names[2, "validation"]
    assert names[1, "train"] <= names[2, "train"]
    assert not names[2, "train"] & names[2, "validation"]
    assert 0.005 < len(names[2, "validation"]) / len(names[2, "train"]) < 0.05


def test_a_corpus_once_written_is_kept_although_packages_change(tmp_path, orchard):
    before = embedded_corpus.write_embedded_corpus(tmp_path / "corpus", [orchard])
    content = read_bytes(tmp_path / "corpus")
    (tmp_path / "path" / orchard / "trees.py").write_text("")
    assert embedded_corpus.write_embedded_corpus(tmp_path / "corpus", [orchard]) == before
    assert read_bytes(tmp_path / "corpus") == content


def test_the_corpus_of_other_packages_is_refused(tmp_path, orchard):
    embedded_corpus.write_embedded_corpus(tmp_path / "corpus", [orchard])
    with pytest.raises(ConfigError, match="the packages orchard, expected gin") as caught:
        embedded_corpus.write_embedded_corpus(tmp_path / "corpus", ["gin"])
    assert caught.value.names == ("EmbeddedCorpus.packages", "DATA_DIR")


def test_a_corpus_cut_short_is_no_corpus(tmp_path, orchard, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(gzip, "GzipFile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        embedded_corpus.write_embedded_corpus(tmp_path / "corpus" / "embedded", [orchard])
    assert list((tmp_path / "corpus").iterdir()) == []


def test_plain_and_gzipped_shards_are_read_in_order(tmp_path):
    for shard, opened in enumerate((open, gzip.open)):
        ending = ".gz" * shard
        with opened(tmp_path / f"c4-train.0000{shard}-of-00002.json{ending}", "wt") as file:
            file.write(json.dumps({"text": f"shard {shard}"}) + "\n")
    texts = [document["text"] for document in embedded_corpus.read_documents(tmp_path, "train")]
    assert texts == ["shard 0", "shard 1"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"text": "cut of', r"no JSON \(Unterminated string"),
        ('{"url": "https://docs.invalid/x"}', "string 'text'"),
        ('{"text": 3}', "string 'text'"),
        ("[1, 2]", "string 'text'"),
        ("", r"no JSON \(Expecting value"),
    ],
)
def test_a_broken_line_is_named_by_file_and_line(tmp_path, line, complaint):
    path = write_shard(tmp_path, '{"text": "good"}', line, '{"text": "good"}')
    with pytest.raises(ConfigError, match=complaint) as caught:
        list(jsonl_and_tsv.read_records(str(path), ("text",)))
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert caught.value.names == ("DATA_DIR", "MalformedLines.max_fraction")


def test_a_gzip_file_cut_short_is_named(tmp_path):
    path = tmp_path / "c4-train.00000-of-00001.json.gz"
    lines = [json.dumps({"text": f"{number:064x}"}) for number in range(9999)]
    path.write_bytes(gzip.compress("\n".join(lines).encode())[:-100])
    with pytest.raises(ConfigError, match=r"json\.gz, line \d+: cut short"):
        list(jsonl_and_tsv.read_records(str(path), ("text",)))


def test_missing_shards_are_named_by_their_pattern(tmp_path):
    with pytest.raises(ConfigError) as caught:
        next(embedded_corpus.read_documents(tmp_path, "train"))
    assert str(caught.value) == f"no file matches {tmp_path}/c4-train.*.json*"
    assert caught.value.names == ("DATA_DIR",)


def test_two_processes_that_write_the_corpus_at_once_end_with_one(tmp_path, monkeypatch):
    read, directory = embedded_corpus.embedded_documents, tmp_path / "corpus"

    def overtaken(packages):
        monkeypatch.setattr(embedded_corpus, "embedded_documents", read)
        embedded_corpus.write_embedded_corpus(directory, packages)
        return read(packages)

    monkeypatch.setattr(embedded_corpus, "embedded_documents", overtaken)
    summary = embedded_corpus.write_embedded_corpus(directory, ("gin",))
    assert summary == embedded_corpus.write_embedded_corpus(directory, ("gin",))
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
