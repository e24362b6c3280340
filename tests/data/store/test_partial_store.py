"""Training from a store while it is being made: the same batches as from the finished one."""

import itertools
import json
import os
import signal
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.data.data_config import Data
from t5x_lite.data.prepare import prepare
from t5x_lite.data.store import partial_store
from t5x_lite.data.store.partial_store import PartialStore
from t5x_lite.data.store.token_store import TokenStore
from t5x_lite.data.stream import shuffle
from t5x_lite.data.stream.stream import Stream, StreamTask
from t5x_lite.data.tasks.task_providers import JsonLinesText
from t5x_lite.data.tokenize import build_store
from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic
from t5x_lite.objectives.bert import Bert
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import SpanCorruption
from t5x_lite.tokenizers.vocabularies import ByteVocabulary

LENGTHS = {"inputs": 40, "targets": 16}
LONGER = {"inputs": 64, "targets": 32}
BLOCK_EXAMPLES = 64


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "BLOCK_EXAMPLES", BLOCK_EXAMPLES)
        patch.setattr(partial_store, "_POLL_SECONDS", 0)
        yield


class Source:
    """What a store is made of, file by file, as `build_store.write_parts` leaves it."""

    def __init__(self, seed, features, files):
        random = np.random.default_rng(seed)
        self.files = [
            {
                name: [random.integers(3, 90, random.integers(0, 60)) for _ in range(count)]
                for name in features
            }
            for count in files
        ]
        self.description = {
            "task": "t",
            "split": "train",
            "tokenizer": "seqio",
            "vocabularies": {name: {"size": 100} for name in features},
            "source": {"shards": [f"/no/{n}" for n in range(len(files))], "sizes": {}},
        }

    def grow(self, directory):
        """Make the store in a directory, giving way after each file."""
        partial = build_store.partial_directory(directory)
        made = build_store.StoreWriter(partial, self.description)
        made.append_parts()
        yield
        for number in made.missing_files():
            path = build_store.part_path(partial, number, 0)
            features = {}
            for name, rows in self.files[number].items():
                tokens = np.concatenate([np.zeros(0, np.int64), *rows]).astype("<u2")
                lengths = np.array([len(row) for row in rows], "<u4")
                tokens.tofile(path.with_suffix(f".{name}.tokens.bin"))
                lengths.tofile(path.with_suffix(f".{name}.lengths.bin"))
                features[name] = {
                    "examples": len(rows),
                    "tokens": len(tokens),
                    "filled": int(np.count_nonzero(lengths)),
                }
            atomic.write_json(path, {"features": features, "last": True, "left_out": None})
            made.append_parts()
            yield
        made.finish()
        build_store.publish(partial, directory)

    def growing(self, directory):
        """The store as a reader sees it who, whenever it must wait, sees one more file done."""
        progress = self.grow(directory)
        next(progress)
        return PartialStore(directory, lambda: next(progress, None))

    def whole(self, directory):
        for _ in self.grow(directory):
            pass
        return TokenStore.open(directory)


TEXT = Source(0, ["targets"], [150, 10, 0, 140, 200, 90])
PAIRS = Source(1, ["inputs", "targets"], [40, 30, 50, 20])


def tasks_of(text, pairs):
    return [StreamTask("text", text, 2.0, SpanCorruption()), StreamTask("pairs", pairs, 1.0, None)]


def stream_of(tasks, **changed):
    settings = {"feature_lengths": LENGTHS, "batch_size": 8, "seed": 3, "pack": True}
    settings |= {"sentinels": Sentinels(99, 10), "window_examples": 32, "in_blocks": True}
    return Stream(tasks, **(settings | changed))


def assert_same(found, expected):
    for (batch, after), (wanted, wanted_after) in zip(found, expected, strict=True):
        assert after == wanted_after
        for name, array in wanted.items():
            np.testing.assert_array_equal(batch[name], array)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished")
    return tasks_of(TEXT.whole(directory / "text"), PAIRS.whole(directory / "pairs"))


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(
    "ends",
    [{}, {"on_task_exhausted": "renormalize", "num_epochs": 2}, {"on_task_exhausted": "stop"}],
)
def test_a_growing_store_gives_the_batches_of_the_finished_one(finished, tmp_path, pack, ends):
    growing_tasks = tasks_of(TEXT.growing(tmp_path / "text"), PAIRS.growing(tmp_path / "pairs"))
    expected, found = (
        itertools.islice(stream.batches(stream.start()), 400)
        for stream in (
            stream_of(finished, pack=pack, **ends),
            stream_of(growing_tasks, pack=pack, **ends),
        )
    )
    assert_same(found, expected)
    assert (tmp_path / "pairs" / "manifest.json").exists()


def test_the_first_batch_comes_before_the_store_is_complete(tmp_path):
    store = TEXT.growing(tmp_path / "text")
    stream = stream_of([StreamTask("text", store, 1.0, SpanCorruption())])
    _, position = next(stream.batches(stream.start()))
    assert not (tmp_path / "text").exists()
    progress = json.loads((tmp_path / ".text.partial" / "progress.json").read_text())
    assert progress["num_examples"] < 590
    assert stream.epochs_seen(position) == {}


@settings(max_examples=15)
@given(stop=st.integers(1, 60), files=st.integers(0, 6), hosts=st.sampled_from([1, 2, 4]))
def test_a_run_killed_while_the_store_grew_continues_to_the_byte(
    finished, tmp_path_factory, stop, files, hosts
):
    """Whatever the builder did last, and on other hosts than before."""
    directory = tmp_path_factory.mktemp("killed")
    whole = stream_of(finished)
    expected = list(itertools.islice(whole.batches(whole.start()), stop + 4))
    before = stream_of(
        tasks_of(TEXT.growing(directory / "text"), PAIRS.growing(directory / "pairs"))
    )
    *_, (_, position) = itertools.islice(before.batches(before.start()), stop)
    for _ in itertools.islice(TEXT.grow(directory / "text"), files):  # another one goes on
        if (directory / "text").exists():
            break
    text = TEXT.growing(directory / "text") if not (directory / "text").exists() else None
    text = text or TokenStore.open(directory / "text")
    pairs = PAIRS.growing(directory / "pairs") if not (directory / "pairs").exists() else None
    pairs = pairs or TokenStore.open(directory / "pairs")
    share = 8 // hosts
    for host in range(hosts):
        rows = slice(host * share, (host + 1) * share)
        after = stream_of(tasks_of(text, pairs)).batches(json.loads(json.dumps(position)), rows)
        wanted = [
            ({name: array[rows] for name, array in batch.items()}, where)
            for batch, where in expected[stop:]
        ]
        assert_same(itertools.islice(after, 4), wanted)


def test_what_ended_the_builder_is_raised_where_its_examples_are_missing(tmp_path):
    progress = TEXT.grow(tmp_path / "text")

    def check():
        next(progress)
        if (tmp_path / ".text.partial" / "parts" / "00003-0000.json").exists():
            raise ConfigError("/no/4, line 1: no JSON", "DATA_DIR")

    store = PartialStore(tmp_path / "text", check)
    stream = stream_of([StreamTask("text", store, 1.0, SpanCorruption())])
    with pytest.raises(ConfigError, match="/no/4, line 1"):
        for _ in stream.batches(stream.start()):
            pass


def test_a_run_goes_on_only_with_the_order_that_it_began_with(finished):
    position = stream_of(finished).start()
    with pytest.raises(ConfigError, match="began with tokenization = 'while_training'") as caught:
        stream_of(finished, in_blocks=False).batches(position)
    assert caught.value.names == ("Data.tokenization",)
    with pytest.raises(ConfigError, match="began with tokenization = 'before_training'"):
        stream_of(finished).batches(stream_of(finished, in_blocks=False).start())


def test_an_objective_that_takes_pieces_from_everywhere_waits_for_the_store(finished):
    with pytest.raises(ConfigError, match="Bert combines chunks from all of task 'text'") as caught:
        stream_of([finished[0]._replace(objective=Bert())], pack=False)
    assert caught.value.names == ("Data.tokenization",)


@pytest.fixture
def data(tmp_path):
    """Text in eight files, of which the builder makes a part each."""
    for number in range(8):
        texts = [f"the tree number {n} of file {number} grows slowly " * 4 for n in range(260)]
        path = tmp_path / f"c4-train.{number:05d}-of-00008.json"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def make(name, **changes):
        declared = JsonLinesText("growing_text", str(tmp_path), ByteVocabulary())
        settings = {"tokenizer": "sentencepiece", "tokenization": "while_training", **changes}
        return Data(
            "growing_text",
            LONGER,
            str(tmp_path / name),
            task_providers=(declared,),
            **settings,
        )

    return make


def contents(directory):
    [store] = (directory / "stores" / "growing_text").glob("train-*")
    return {path.name: path.read_bytes() for path in store.iterdir()}


def test_another_process_makes_the_store_that_this_one_reads(
    data, tmp_path, monkeypatch, log_lines
):
    pytest.importorskip("seqio")
    before = prepare(data("before", tokenization="before_training"))
    plan = prepare(data("while"))
    assert log_lines[-1] == "tokenizing growing_text while training ..."
    _assert_trains_alike(plan, before, monkeypatch)
    assert contents(tmp_path / "while") == contents(tmp_path / "before")


@pytest.mark.slow  # every process imports TensorFlow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_process_is_gone_on_with(data, tmp_path, processes, monkeypatch):
    before = prepare(data("before", tokenization="before_training"))
    plan = prepare(data("while", processes=processes))
    os.kill(plan.builder._process.pid, signal.SIGKILL)
    plan.builder._ended.wait()
    with pytest.raises(RuntimeError, match="that tokenizes was killed"):
        plan.builder.check()
    plan.close()
    _assert_trains_alike(prepare(data("while", processes=processes)), before, monkeypatch)
    assert contents(tmp_path / "while") == contents(tmp_path / "before")


def _assert_trains_alike(plan, finished, monkeypatch):
    monkeypatch.setattr(partial_store, "_POLL_SECONDS", 0.01)
    [growing_task], [task] = plan.train_tasks(), finished.train_tasks()
    assert isinstance(growing_task.store, PartialStore)
    assert isinstance(task.store, TokenStore)
    streams = [stream_of([each], feature_lengths=LONGER) for each in (growing_task, task)]
    found, expected = (itertools.islice(each.batches(each.start()), 200) for each in streams)
    assert_same(found, expected)
    plan.builder._ended.wait()
    plan.builder.check()
    plan.close()


def test_bad_input_ends_the_builder_with_its_own_message(data, tmp_path):
    pytest.importorskip("seqio")
    broken = tmp_path / "c4-train.00002-of-00008.json"
    broken.write_text('{"text": "a"}\nno JSON\n')
    plan = prepare(data("while"))
    plan.builder._ended.wait()
    with pytest.raises(ConfigError, match=r"c4-train\.00002-of-00008\.json, line 2") as caught:
        plan.builder.check()
    assert "MalformedLines.max_fraction" in caught.value.names
    plan.close()
    assert not [thread for thread in threading.enumerate() if "listen" in thread.name]
