"""Token stores at gs://, held against a server that speaks Google Cloud Storage's interface."""

import itertools
import json
import socket

import numpy as np
import pytest

from t5x_lite.data.data_config import Data
from t5x_lite.data.prepare import prepare
from t5x_lite.data.store.remote_store import RemoteStore
from t5x_lite.data.stream.stream import Stream
from t5x_lite.data.tasks.task_providers import JsonLinesText
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import SpanCorruption
from t5x_lite.tokenizers.vocabularies import ByteVocabulary

pytest.importorskip("seqio")
emulator = pytest.importorskip("gcp_storage_emulator.server")
LENGTHS = {"inputs": 40, "targets": 16}


@pytest.fixture
def bucket(monkeypatch):
    """The address of an empty bucket."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://localhost:{port}")
    with emulator.create_server("localhost", port, in_memory=True, default_bucket="corpus"):
        yield "gs://corpus"


def batches(task, count=40):
    stream = Stream(
        [task],
        feature_lengths=LENGTHS,
        batch_size=8,
        seed=3,
        sentinels=Sentinels(358, 100),
        pack=True,
        window_examples=64,
    )
    return itertools.islice(stream.batches(stream.start()), count)


def test_a_store_in_a_bucket_gives_the_batches_of_the_one_on_disk(bucket, tmp_path):
    texts = [f"Tree {n} grows. " * (n % 20) for n in range(400)]
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (tmp_path / "c4-train.00000-of-00001.json").write_text("".join(lines))
    found = []
    for store_dir in (None, f"{bucket}/stores"):
        data = Data(
            "bucket_text",
            LENGTHS,
            str(tmp_path / f"data_{store_dir is None}"),
            objective=SpanCorruption(),
            task_providers=(JsonLinesText("bucket_text", str(tmp_path), ByteVocabulary(100)),),
            tokenizer="sentencepiece",
            store_dir=store_dir,
        )
        found.append(prepare(data).train_tasks()[0])
    assert isinstance(found[1].store, RemoteStore)
    for (wanted, where), (batch, position) in zip(*map(batches, found), strict=True):
        assert position == where
        for name, array in wanted.items():
            np.testing.assert_array_equal(batch[name], array)


def test_a_bucket_that_is_not_there_is_named(bucket):
    with pytest.raises(ConfigError, match="gs://another/stores") as caught:
        RemoteStore.open("gs://another/stores")
    assert caught.value.names == ("Data.store_dir",)
