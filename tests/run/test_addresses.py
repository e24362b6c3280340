"""A run whose MODEL_DIR is an address, gs://bucket/run: nothing takes the address for a path.

The bucket is a directory, of which etils is told; orbax, which wants google-cloud-storage for
addresses, is given its path.
"""

import json
import os

import pytest
from etils import epath
from etils.epath import backend, gpath

from t5x_lite.checkpoint_policy import CheckpointPolicy
from t5x_lite.run.held_out import Evaluation
from t5x_lite.training.writers import read_records

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
    monkeypatch.setattr(
        "t5x_lite.checkpoints.absolute", lambda path: epath.Path(there(path)).absolute()
    )
    return tmp_path / "bucket"


def test_a_run_under_an_address_is_stopped_and_goes_on(bucket, train_small):
    train_small("gs://bucket/run", steps=2, **QUIET)
    train_small("gs://bucket/run", steps=3, **QUIET)
    run = bucket / "run"
    assert sorted(path.name for path in bucket.parent.iterdir()) == ["bucket"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "3"]
    assert len(list((run / "launches").iterdir())) == 2
    assert list((run / "goodput").iterdir())  # of one process, so of both launches
    assert json.loads((run / "results.json").read_text())["step"] == 3
    assert (run / "loss_curves.png").stat().st_size > 1000
    steps = [json.loads(x)["step"] for x in (run / "receipts.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    assert [r["step"] for r in read_records("gs://bucket/run") if r["kind"] == "train"] == [1, 2, 3]
    assert list((run / "tensorboard").iterdir())
