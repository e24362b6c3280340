"""A run whose MODEL_DIR is a gs:// URL: orbax, TensorStore and etils write everything there."""

import json
import sys

import pytest
from etils import epath

from t5x_lite.checkpoints.checkpointer import Checkpointer
from t5x_lite.checkpoints.policy import CheckpointPolicy
from t5x_lite.errors import ConfigError
from t5x_lite.evaluation.validation_loss import Evaluation
from t5x_lite.io.metric_writers import read_metrics

QUIET = {
    "evaluation": Evaluation(period=100, max_examples=8, samples=0),
    "checkpoints": CheckpointPolicy(period=2),
}


# TensorStore may report to orbax's event loop when orbax, no longer waiting, has closed the loop.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
)
def test_a_run_at_a_url_is_stopped_and_resumed(bucket, train_small, tmp_path, monkeypatch):
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
    assert [r["step"] for r in read_metrics(run) if r["kind"] == "train"] == [1, 2, 3]
    assert list((run / "tensorboard").iterdir())


def test_a_url_without_the_package_for_it_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    with pytest.raises(ConfigError, match=r"gs://runs/small need .*t5x_lite\[gcs\]") as caught:
        Checkpointer("gs://runs/small")
    assert caught.value.names == ("MODEL_DIR",)
