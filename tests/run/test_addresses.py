"""A run whose MODEL_DIR is an address, gs://bucket/run.

Its arrays go through TensorStore to a server that speaks Google Cloud Storage's interface, its
other files through etils to a directory: TensorFlow, which reads them for etils, knows no such
server.
"""

import json
import os
import socket

import pytest
from etils.epath import backend, gpath

from t5x_lite.checkpoint_policy import CheckpointPolicy
from t5x_lite.run.held_out import Evaluation
from t5x_lite.training.writers import read_records

emulator = pytest.importorskip("gcp_storage_emulator.server")
QUIET = {
    "evaluation": Evaluation(every_steps=100, max_examples=8, samples=0),
    "checkpoints": CheckpointPolicy(every_steps=2),
}


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The directory that gs://bucket stands for."""

    def there(path):
        return str(path).replace("gs://", f"{tmp_path}/")

    class Store(backend._OsPathBackend):
        def mkdir(self, path, **options):
            os.makedirs(there(path), exist_ok=True)

        def glob(self, path):
            return [found.replace(f"{tmp_path}/", "gs://") for found in super().glob(there(path))]

    def mapped(name):
        plain = getattr(backend._OsPathBackend, name)
        return lambda self, *paths, **options: plain(self, *map(there, paths), **options)

    for name in ("exists", "isdir", "listdir", "makedirs", "rmtree", "remove", "stat", "replace"):
        setattr(Store, name, mapped(name))
    Store.rename = Store.replace
    Store.open = lambda self, path, mode: backend._OsPathBackend.open(self, there(path), mode)
    store, plain = Store(), gpath._GPath._backend.fget
    monkeypatch.setattr(
        gpath._GPath,
        "_backend",
        property(lambda path: store if path._uri_scheme == "gs" else plain(path)),
    )
    (tmp_path / "bucket").mkdir()
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://localhost:{port}")
    with emulator.create_server("localhost", port, in_memory=True, default_bucket="bucket"):
        yield tmp_path / "bucket"


def test_a_run_under_an_address_is_stopped_and_goes_on(bucket, train_small):
    train_small("gs://bucket/run", steps=2, **QUIET)
    train_small("gs://bucket/run", steps=3, **QUIET)
    run = bucket / "run"
    assert sorted(path.name for path in bucket.parent.iterdir()) == ["bucket"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "3"]
    assert len(list((run / "launches").iterdir())) == 2
    assert len(list((run / "goodput").iterdir())) == 2
    assert json.loads((run / "results.json").read_text())["step"] == 3
    assert (run / "loss_curves.png").stat().st_size > 1000
    steps = [json.loads(x)["step"] for x in (run / "receipts.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    assert [r["step"] for r in read_records("gs://bucket/run") if r["kind"] == "train"] == [1, 2, 3]
    assert list((run / "tensorboard").iterdir())
    assert not list((run / "checkpoints").rglob("d/*"))  # the arrays are in the bucket
