"""How stores are made: by files, by processes, and by whoever comes after one was killed."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from t5x_lite.data.data_config import Data
from t5x_lite.data.store import document_groups
from t5x_lite.data.store.token_store import TokenStore
from t5x_lite.data.tasks.preprocessors import text_steps
from t5x_lite.data.tasks.task_providers import JsonLinesText, add_task
from t5x_lite.data.tokenize import build_store
from t5x_lite.data.tokenize.build_store import build_token_store, write_parts
from t5x_lite.data.tokenize.store_identity import changed_shards
from t5x_lite.data.tokenize.tokenize_file import records_to_tokenize
from t5x_lite.data.tokenize.workers import Beam, Processes
from t5x_lite.errors import ConfigError
from t5x_lite.tokenizers.vocabularies import ByteVocabulary, Vocabulary, train_vocabulary

seqio = pytest.importorskip("seqio")

# Builds a store whose files are read from lists. For every n, a child is killed (-9) at its n-th
# file operation, another one soon after it has gone on, and the third is left to finish.
KILLED_AT_EVERY_STEP = """
import os, signal, sys
from pathlib import Path
import numpy as np
from t5x_lite.data.tokenize import build_store

build_store._TOKENS = 2  # so that the first file has three parts
FILES = [[[5, 6], [7, 7, 7], [7]], [], [[8, 9, 10]], [[11], [], [12, 13]]]

class Task:
    name = "t"
    source = None

def describe(task, split, tokenizer):
    return {
        "task": "t", "split": split, "tokenizer": tokenizer,
        "vocabularies": {name: {"size": 50} for name in ("inputs", "targets")},
        "source": {"shards": [f"/no/{n}" for n in range(4)], "sizes": {}},
    }

def read(task, split, number, names, *, tokenizer):
    for rows in FILES[number]:
        tokens = np.array(rows, np.int64)
        length = np.array([len(rows)])
        yield {"inputs": (tokens, length), "targets": (tokens + 1, length)}

class Opened:
    def __init__(self, directory):
        self.directory = directory

build_store.describe_store, build_store.read_groups = describe, read
os.fsync = lambda descriptor: None  # what a killed process wrote is not lost with it
build_store.TokenStore.open = Opened

def build(directory):
    build_store.build_token_store(Task(), "train", directory)

def files(directory):
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}

def killed_after(operations):
    left = [operations]
    def hook(event, arguments):
        if event in ("open", "os.rename", "os.remove", "os.truncate", "os.rmdir", "os.mkdir"):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    return hook

root = Path(sys.argv[1])
build(root / "undisturbed")
wanted = files(root / "undisturbed")

def ends_alone(operations, directory):
    child = os.fork()
    if not child:
        sys.addaudithook(killed_after(operations))
        build(directory)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0

for gap in range(1, 1000):
    directory = root / f"after_{gap}"
    done = ends_alone(gap, directory)
    done or ends_alone(gap * 2 // 3, directory) or build(directory)
    assert files(directory) == wanted, gap
    if done:
        break
assert sorted(path.name for path in root.iterdir() if path.name[0] == ".") == []
print(gap)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Five files of JSON lines, and a vocabulary."""
    directory = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    words = [f"word{n}" for n in range(60)]
    texts = [" ".join(random.choice(words, random.integers(1, 30))) for _ in range(300)]
    for number in range(5):
        lines = [json.dumps({"text": text}) for text in texts[number::5]]
        name = f"c4-train.{number:05d}-of-00005.json"
        (directory / name).write_text("\n".join(lines) + "\n")
    train_vocabulary(texts, directory / "unigram.model", vocab_size=60)
    return directory


@pytest.fixture
def declared(corpus):
    return JsonLinesText("cached_text", str(corpus), Vocabulary(str(corpus / "unigram.model")))


@pytest.fixture
def task(declared):
    declared.register("")
    return seqio.TaskRegistry.get("cached_text")


def build(task, directory, **settings):
    """Without TensorFlow, which is slow to begin."""
    build_token_store(task, "train", directory, tokenizer="sentencepiece", **settings)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_builder_killed_at_every_file_operation_ends_in_the_same_bytes(tmp_path):
    command = [sys.executable, "-c", KILLED_AT_EVERY_STEP, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50  # moments at which it was killed


@pytest.mark.slow  # every process imports TensorFlow
@pytest.mark.parametrize("tokenizer", ["seqio", "sentencepiece"])
def test_several_processes_write_the_bytes_of_one(declared, task, tmp_path, tokenizer):
    build_token_store(task, "train", tmp_path / "one", tokenizer=tokenizer)
    data = Data("cached_text", {}, str(tmp_path), task_providers=(declared,), tokenizer=tokenizer)
    with Processes(2) as workers:
        make_parts = workers.make_parts(data, "cached_text", "train")
        build_token_store(
            task, "train", tmp_path / "two", tokenizer=tokenizer, make_parts=make_parts
        )
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.filterwarnings("default")
def test_beam_writes_the_bytes_of_one_process(tmp_path):
    pytest.importorskip("apache_beam")
    for number in range(3):
        text = json.dumps({"text": f"text number {number}"}) + "\n"
        (tmp_path / f"c4-train.{number:05d}-of-00003.json").write_text(text * 5)
    declared = JsonLinesText("beam_text", str(tmp_path), ByteVocabulary())
    declared.register("")
    data = Data("beam_text", {}, str(tmp_path), task_providers=(declared,))
    make_parts = Beam(["--runner=DirectRunner"]).make_parts(data, "beam_text", "train")
    task = seqio.TaskRegistry.get("beam_text")
    build_token_store(task, "train", tmp_path / "one")
    build_token_store(task, "train", tmp_path / "beam", make_parts=make_parts)
    assert contents(tmp_path / "one") == contents(tmp_path / "beam")


def test_parts_may_come_in_any_order(task, tmp_path):
    def backwards(numbers, partial):
        for number in reversed(numbers):
            yield from write_parts(task, "train", number, partial)

    build(task, tmp_path / "one")
    build(task, tmp_path / "two", make_parts=backwards)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_what_is_done_is_not_done_again(task, tmp_path):
    made = []

    def stop_after_two(numbers, partial):
        for number in numbers[:2]:
            made.extend(write_parts(task, "train", number, partial))
            yield
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(task, tmp_path / "store", make_parts=stop_after_two)
    assert not (tmp_path / "store").exists()

    def rest(numbers, partial):
        made.extend(numbers)
        for number in numbers:
            yield from write_parts(task, "train", number, partial)

    build(task, tmp_path / "store", make_parts=rest)
    assert made == [0, 1, 2, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_of_many_files_it_is_logged_how_many_are_done(tmp_path, log_lines):
    for number in range(40):
        (tmp_path / f"c4-train.{number:05d}-of-00040.json").write_text('{"text": "a"}\n')
    JsonLinesText("many_files", str(tmp_path), ByteVocabulary()).register("")
    build(seqio.TaskRegistry.get("many_files"), tmp_path / "store")
    assert log_lines == [f"tokenized {n} of 40 files of many_files/train" for n in range(2, 41, 2)]


def test_parts_of_another_description_are_not_gone_on_with(task, declared, corpus, tmp_path):
    def stop_after_one(numbers, partial):
        yield from write_parts(task, "train", numbers[0], partial)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(task, tmp_path / "store", make_parts=stop_after_one)
    add_task("cached_text", declared_source(declared), text_steps(), ByteVocabulary())
    other = seqio.TaskRegistry.get("cached_text")
    build(other, tmp_path / "store")
    build(other, tmp_path / "fresh")
    assert contents(tmp_path / "store") == contents(tmp_path / "fresh")


def declared_source(declared):
    from t5x_lite.data.sources.seqio_sources import JsonLinesSource

    return JsonLinesSource(declared.directory, fields=("text",))


def test_sentencepiece_alone_writes_what_its_own_library_says(task, corpus, tmp_path):
    build(task, tmp_path / "store")
    store = TokenStore.open(tmp_path / "store")
    assert store.manifest["tokenizer"] == "sentencepiece"
    vocabulary = Vocabulary(str(corpus / "unigram.model"))
    documents = [
        json.loads(line)["text"]
        for shard in sorted(corpus.glob("c4-train*"))
        for line in shard.read_text().splitlines()
    ]
    expected = [token for text in documents for token in vocabulary.encode(text)]
    assert store.tokens("targets").tolist() == expected
    assert store.num_examples == 300
    assert len(store.tokens("inputs")) == 0


def test_only_tasks_that_rename_and_tokenize_can_do_without_tensorflow(task, declared):
    assert records_to_tokenize(task) is not None
    twice = [text_steps()[0], *text_steps()]
    add_task("cached_twice", declared_source(declared), twice, declared.vocabulary)
    assert records_to_tokenize(seqio.TaskRegistry.get("cached_twice")) is None


def test_a_full_disk_is_said_and_what_is_done_stays(task, tmp_path, monkeypatch):
    build(task, tmp_path / "whole")
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(build_store.os, "fsync", full)
    with pytest.raises(ConfigError, match="no space left on the device of") as caught:
        build(task, tmp_path / "store")
    assert caught.value.names == ("DATA_DIR",)
    assert not (tmp_path / "store").exists()
    build(task, tmp_path / "store")
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_a_file_that_went_missing_is_named(task, corpus, tmp_path):
    lost = corpus / "c4-train.00003-of-00005.json"
    kept = lost.read_bytes()
    lost.unlink()
    try:
        with pytest.raises(ConfigError, match=r"c4-train\.00003-of-00005\.json cannot be read"):
            build(task, tmp_path / "store")
    finally:
        lost.write_bytes(kept)
    assert not (tmp_path / "store").exists()


def test_a_change_of_a_file_is_seen_and_a_mere_touch_is_not(task, corpus, tmp_path):
    build(task, tmp_path / "store")
    manifest = TokenStore.open(tmp_path / "store").manifest
    assert changed_shards(manifest) == []
    shard = corpus / "c4-train.00002-of-00005.json"
    kept = shard.read_bytes()
    os.utime(shard, ns=(0, 10**18))
    assert changed_shards(manifest) == []
    shard.write_bytes(kept[:100] + bytes([kept[100] ^ 1]) + kept[101:])
    assert changed_shards(manifest) == [str(shard)]
    shard.write_bytes(kept + b"\n")
    assert changed_shards(manifest) == [str(shard)]
    shard.write_bytes(kept)


def test_of_two_at_once_the_second_waits_and_uses_what_the_first_made(task, tmp_path):
    program = f"""
import logging, sys
from pathlib import Path
from t5x_lite.io.file_lock import file_lock
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
with file_lock(Path({str(tmp_path)!r}, ".store.lock")):
    sys.exit(0 if Path({str(tmp_path)!r}, "store").exists() else 3)
"""
    second = None

    def meanwhile(numbers, partial):
        nonlocal second
        command = [sys.executable, "-c", program]
        second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert (
            second.stdout.readline()
            == f"waiting for the process that holds {tmp_path}/.store.lock ...\n"
        )
        for number in numbers:
            yield from write_parts(task, "train", number, partial)

    build(task, tmp_path / "store", make_parts=meanwhile)
    second.stdout.close()
    assert second.wait() == 0


def test_offsets_are_the_file_that_numpy_would_write(task, tmp_path):
    build(task, tmp_path / "store")
    store = TokenStore.open(tmp_path / "store")
    np.save(tmp_path / "again.npy", np.array(store.offsets("targets")))
    written = (tmp_path / "store" / "targets.offsets.npy").read_bytes()
    assert written == (tmp_path / "again.npy").read_bytes()


def test_a_file_in_many_parts_gives_the_bytes_of_one_in_a_single_part(task, tmp_path, monkeypatch):
    build(task, tmp_path / "one")
    monkeypatch.setattr(build_store, "_TOKENS", 200)
    seen = []

    def counted(numbers, partial):
        for number in numbers:
            seen.extend(write_parts(task, "train", number, partial))
            yield

    monkeypatch.setattr("t5x_lite.data.tokenize.tokenize_file._EXAMPLES_PER_READ", 7)
    build(task, tmp_path / "many", make_parts=counted)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert len(seen) > 2 * 5


@pytest.mark.parametrize("documents", [128, 256, 384])
def test_the_table_of_groups_says_what_all_offsets_say(tmp_path, documents):
    for number, lines in enumerate((300, 4, 211, 500)):
        texts = ["" if n % 7 == 3 else "word" * (n % 5 + 1) for n in range(lines)]
        path = tmp_path / f"c4-train.{number:05d}-of-00004.json"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    name = f"grouped_{documents}"
    JsonLinesText(name, str(tmp_path), ByteVocabulary()).register("")
    build(seqio.TaskRegistry.get(name), tmp_path / "store")
    store = TokenStore.open(tmp_path / "store")
    first, starts = document_groups.group_documents(store, "targets", documents)
    offsets = np.asarray(store.offsets("targets"))
    filled = np.flatnonzero(np.diff(offsets) > 0)
    np.testing.assert_array_equal(first, [*filled[::documents], len(offsets) - 1])
    np.testing.assert_array_equal(starts, offsets[first])
    assert store.groups("inputs").shape == (0, 2)
