"""Stores under an address: the same examples as on disk, read by the stretch."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.data.data_config import Data
from t5x_lite.data.prepare import prepare
from t5x_lite.data.store import remote_store
from t5x_lite.data.store.remote_store import ObjectStore, RemoteStore, upload
from t5x_lite.data.store.token_store import TokenStore
from t5x_lite.data.stream.pair_trimming import PairTrimming
from t5x_lite.data.stream.stream import Stream, StreamTask
from t5x_lite.data.tasks.task_providers import JsonLinesText
from t5x_lite.data.tasks.text_pairs import TextPairs
from t5x_lite.data.tokenize.build_store import build_token_store
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.language_models import FullLM, LMAdaptation
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import SpanCorruption
from t5x_lite.tokenizers.vocabularies import ByteVocabulary

seqio = pytest.importorskip("seqio")

LENGTHS = {"inputs": 40, "targets": 16}
WIDE = {"inputs": 64, "targets": 64}


@pytest.fixture(autouse=True, scope="module")
def small_objects():
    """Objects and blocks so small that stretches lie across them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_store, "_OBJECT_BYTES", 1000)
        patch.setattr(remote_store, "_BLOCK_ITEMS", 32)
        patch.setattr(remote_store, "_BLOCKS_KEPT", 3)
        yield


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A store of text and one of pairs, on disk and under an address."""
    folder = tmp_path_factory.mktemp("remote")
    random = np.random.default_rng(0)
    texts = ["word " * random.integers(0, 20) for _ in range(400)]
    (folder / "c4-train.00000-of-00001.json").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts)
    )
    pairs = [{"inputs": "in" * random.integers(1, 30), "targets": "out"} for _ in range(300)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    JsonLinesText("remote_text", str(folder), ByteVocabulary(100)).register("")
    TextPairs("remote_pairs", f"{folder}/pairs.jsonl", ByteVocabulary(100)).register("")
    found = {}
    for name in ("remote_text", "remote_pairs"):
        task = seqio.TaskRegistry.get(name)
        build_token_store(task, "train", folder / name, tokenizer="sentencepiece")
        address = f"file://{folder}/bucket/{name}"
        upload(folder / name, address)
        found[name] = TokenStore.open(folder / name), RemoteStore.open(address)
    return found


@pytest.mark.parametrize("objective", [SpanCorruption(), FullLM(), LMAdaptation()])
@pytest.mark.parametrize("trimming", [None, PairTrimming(keep_last_tokens=2)])
def test_a_store_under_an_address_gives_the_batches_of_the_one_on_disk(stores, objective, trimming):
    expected, found = (
        itertools.islice(stream.batches(stream.start()), 60)
        for stream in (
            Stream(
                [
                    StreamTask("text", stores["remote_text"][place], 2.0, objective),
                    StreamTask("pairs", stores["remote_pairs"][place], 1.0, None, trimming),
                ],
                feature_lengths=LENGTHS if isinstance(objective, SpanCorruption) else WIDE,
                batch_size=8,
                seed=3,
                pack=True,
                sentinels=Sentinels(358, 100),
                window_examples=64,
            )
            for place in (0, 1)
        )
    )
    for (batch, position), (wanted, where) in zip(found, expected, strict=True):
        assert position == where
        for name, array in wanted.items():
            np.testing.assert_array_equal(batch[name], array)


@given(st.data())
def test_items_and_slices_are_those_of_the_array(stores, data):
    local, far = (store.offsets("targets") for store in stores["remote_pairs"])
    assert len(far) == len(local)
    place = st.integers(-len(local), len(local) - 1)
    first, last = data.draw(place), data.draw(place)
    step = data.draw(st.sampled_from([None, 1, 3]))
    np.testing.assert_array_equal(far[first:last:step], local[first:last:step])
    assert far[first] == local[first]
    places = np.array(data.draw(st.lists(place, max_size=9)), np.int64)
    np.testing.assert_array_equal(far[places], np.asarray(local)[places])


def test_a_batch_reads_its_own_stretches_and_no_more(stores, monkeypatch):
    asked, read = [], ObjectStore.read_ranges
    monkeypatch.setattr(
        ObjectStore, "read_ranges", lambda self, ranges: asked.extend(ranges) or read(self, ranges)
    )
    _, store = stores["remote_text"]
    task = StreamTask("text", store, 1.0, SpanCorruption())
    settings = {"feature_lengths": LENGTHS, "seed": 3, "sentinels": Sentinels(358, 100)}
    stream = Stream([task], **settings, batch_size=4, pack=False)
    asked.clear()
    next(stream.batches(stream.start()))
    tokens = sum(last - first for name, first, last in asked if "tokens" in name) // 2
    assert tokens <= 4 * SpanCorruption().raw_length(LENGTHS)


def test_a_copy_that_was_killed_is_gone_on_with(stores, tmp_path, monkeypatch):
    local, whole = stores["remote_text"]
    address, write, written = f"file://{tmp_path}/bucket", ObjectStore.write, []

    def killed(self, name, content):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(name)
        write(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            upload(local.directory, address)
    with pytest.raises(ConfigError, match="there is no token store in") as caught:
        RemoteStore.open(address)
    assert caught.value.names == ("Data.store_dir",)
    monkeypatch.setattr(
        ObjectStore, "write", lambda self, *part: written.append(part[0]) or write(self, *part)
    )
    upload(local.directory, address)
    assert len(set(written)) == len(written)
    names = ObjectStore(address).names("")
    assert names == whole.objects.names("")
    assert all(ObjectStore(address).read(name) == whole.objects.read(name) for name in names)


def test_a_plan_moves_its_stores_to_the_address_and_finds_them_from_another_machine(
    tmp_path, log_lines
):
    (tmp_path / "c4-train.00000-of-00001.json").write_text('{"text": "Trees grow."}\n' * 9)
    declared = JsonLinesText("moved_text", str(tmp_path), ByteVocabulary(100))
    data = Data(
        "moved_text",
        LENGTHS,
        str(tmp_path / "data"),
        task_providers=(declared,),
        tokenizer="sentencepiece",
        store_dir=f"file://{tmp_path}/bucket",
    )
    [task] = prepare(data).train_tasks()
    assert isinstance(task.store, RemoteStore)
    assert task.store.num_examples == 9
    assert "tokenizing moved_text/train ..." in log_lines
    assert not list((tmp_path / "data" / "stores" / "moved_text").iterdir())
    log_lines.clear()
    prepare(data)
    assert log_lines == []
    elsewhere = dataclasses.replace(data, data_dir=str(tmp_path / "elsewhere"))
    log_lines.clear()
    prepare(elsewhere)
    assert log_lines == ["importing seqio and TensorFlow ..."]
    shutil.rmtree(tmp_path / "bucket")
    prepare(data)
    assert "tokenizing moved_text/train ..." in log_lines


@pytest.mark.parametrize(
    "changes", [{"store_dir": "/a/path"}, {"store_dir": "gs://a", "tokenization": "while_training"}]
)
def test_what_an_address_cannot_be_is_refused(changes):
    with pytest.raises(ConfigError, match="it takes an address") as caught:
        Data("t", LENGTHS, "/nowhere", **changes)
    assert caught.value.names[0] == "Data.store_dir"


def test_an_address_that_nobody_knows_is_named():
    with pytest.raises(ConfigError, match="nobody://bucket/x/ cannot be used") as caught:
        RemoteStore.open("nobody://bucket/x")
    assert caught.value.names == ("Data.store_dir",)
