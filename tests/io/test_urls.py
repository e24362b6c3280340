"""A run whose MODEL_DIR is an address: orbax, TensorStore and etils write it all to gs://.

What answers is a server that speaks Google Cloud Storage's interface.
"""

import json
import socket
import sys
import urllib.parse
import urllib.request

import fsspec.asyn
import pytest
from etils import epath

from t5x_lite.checkpoints.checkpointer import Checkpointer
from t5x_lite.checkpoints.policy import CheckpointPolicy
from t5x_lite.errors import ConfigError
from t5x_lite.evaluation.validation_loss import Evaluation
from t5x_lite.io.metric_writers import read_records

emulator = pytest.importorskip("gcp_storage_emulator.server")
gcsfs = pytest.importorskip("gcsfs")
QUIET = {
    "evaluation": Evaluation(period=100, max_examples=8, samples=0),
    "checkpoints": CheckpointPolicy(period=2),
}


@pytest.fixture
def bucket(monkeypatch):
    """Yield what tells the names of all objects in the bucket gs://runs."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        server = f"http://localhost:{free.getsockname()[1]}"
    for name, value in {
        "STORAGE_EMULATOR_HOST": server,  # gcsfs, google-cloud-storage
        "TENSORSTORE_GCS_HTTP_URL": server,
        "GOOGLE_CLOUD_PROJECT": "none",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask Google what bucket this is
    }.items():
        monkeypatch.setenv(name, value)
    # TensorFlow's own client knows no other server than Google's.
    monkeypatch.setattr("etils.epath.gpath._is_tf_installed", lambda: False)
    # The server cannot move objects; gcsfs would ask it for a minute before it copies.
    plain = fsspec.asyn.AsyncFileSystem._mv_file
    monkeypatch.setattr(gcsfs.GCSFileSystem, "_mv_file", plain)

    def objects():
        with urllib.request.urlopen(f"{server}/storage/v1/b/runs/o") as answer:
            return [item["name"] for item in json.load(answer).get("items", ())]

    port = urllib.parse.urlparse(server).port
    with emulator.create_server("localhost", port, in_memory=True, default_bucket="runs"):
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield objects
    gcsfs.GCSFileSystem.clear_instance_cache()


def test_a_run_under_an_address_is_stopped_and_goes_on(bucket, train_small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_small("gs://runs/small", steps=2, **QUIET)
    train_small("gs://runs/small", steps=3, **QUIET)
    run = epath.Path("gs://runs/small")
    assert not list(tmp_path.iterdir())
    kept = {name.split("/")[2] for name in bucket() if name.startswith("small/checkpoints/")}
    assert kept == {"2", "3"}
    assert len(list((run / "launches").iterdir())) == 2
    assert list((run / "goodput").iterdir())  # of one process, so of both launches
    assert json.loads((run / "results.json").read_text())["step"] == 3
    assert (run / "loss_curves.png").stat().length > 1000
    steps = [json.loads(x)["step"] for x in (run / "receipts.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    assert [r["step"] for r in read_records(run) if r["kind"] == "train"] == [1, 2, 3]
    assert list((run / "tensorboard").iterdir())


def test_an_address_without_the_package_for_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    with pytest.raises(ConfigError, match=r"gs://runs/small need .*t5x_lite\[gcs\]") as caught:
        Checkpointer("gs://runs/small")
    assert caught.value.names == ("MODEL_DIR",)
