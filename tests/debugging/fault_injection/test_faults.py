"""Torture: faults do what the table says, and a batch that is not finite is so in every start."""

import random
import signal
from pathlib import Path

import gin
import numpy as np
import pytest

from t5x_lite.checkpoints.policy import CheckpointPolicy
from t5x_lite.cli import gin_config
from t5x_lite.command import Invocation
from t5x_lite.debugging.fault_injection import faults
from t5x_lite.debugging.fault_injection.faults import FAULTS, FaultContext
from t5x_lite.debugging.fault_injection.nan_batch import NanBatch
from t5x_lite.debugging.fault_injection.torture import LAP, PodShape, torture
from t5x_lite.errors import ConfigError
from t5x_lite.evaluation.validation_loss import Evaluation
from t5x_lite.io import checksums

GIN_CONFIGS = Path(__file__).resolve().parents[3] / "gin_configs"


class Ended:
    """Stands for a run that trains until it is killed."""

    alive = True

    def __init__(self):
        self.sent = []

    def wait_for(self, said, seconds, *, since=0.0):
        return since + 1.0

    def send(self, number):
        self.sent.append(number)

    def end(self, seconds):
        return -9


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """A run with two sealed checkpoints."""
    monkeypatch.setattr(faults.time, "sleep", lambda seconds: None)
    for step in (5, 10):
        directory = tmp_path / "checkpoints" / str(step)
        (directory / "state").mkdir(parents=True)
        (directory / "state" / "data").write_bytes(bytes(range(100)))
        (directory / "commit_success.txt").write_text("done")
        checksums.write_checksums(directory)
    store = tmp_path / "data" / "stores" / "a_task" / "train-1"
    store.mkdir(parents=True)
    (store / "targets.tokens.bin").write_bytes(bytes(range(10)))
    (store / "manifest.json").write_text("{}")
    checksums.write_checksums(store)
    return FaultContext(Ended(), tmp_path, random.Random(0), tmp_path / "data")


def fault(name):
    return next(each for each in FAULTS if each.name == name)


@pytest.mark.parametrize("name", ["truncated file", "flipped bit", "missing file"])
def test_only_the_newest_checkpoint_is_corrupted_and_that_is_detected(name, scene):
    assert -9 in fault(name).inject(scene)
    assert scene.run.sent == [signal.SIGKILL]
    assert scene.expected == ["is corrupt"]
    assert checksums.find_corruption(scene.directory / "checkpoints" / "10") is not None
    assert checksums.find_corruption(scene.directory / "checkpoints" / "5") is None


def test_a_checkpoint_without_checksums_or_without_another_before_it_is_spared(scene):
    (scene.directory / "checkpoints" / "10" / checksums.RECORD).unlink()
    fault("flipped bit").inject(scene)
    assert scene.expected == []
    data = scene.directory / "checkpoints" / "10" / "state" / "data"
    assert data.read_bytes() == bytes(range(100))


@pytest.mark.parametrize("name", ["deleted shard", "corrupted shard"])
def test_a_file_of_a_token_store_is_corrupted_and_that_is_detected(name, scene):
    assert -9 in fault(name).inject(scene)
    assert scene.expected == ["is corrupt"]
    store = scene.data_dir / "stores" / "a_task" / "train-1"
    assert (checksums.find_corruption(store) or "").startswith("targets.tokens.bin")
    assert (store / "manifest.json").read_text() == "{}"


def test_the_last_part_runs_on_another_number_of_processes_and_devices():
    for pod in (PodShape(1, 4), PodShape(2, 2), PodShape(2, 4)):
        other = pod.unlike()
        assert other.processes != pod.processes
        assert other.processes * other.devices != pod.processes * pod.devices
        assert f"--gin.CPU_DEVICES={other.processes * other.devices}" in other.flags


def test_the_parts_of_a_start_are_read_from_its_line():
    line = "import 1 min 2 s, data 38.7 s, rest of compiling 5.0 s"
    assert LAP.findall(line) == [
        ("import", "1", "2"),
        ("data", "", "38.7"),
        ("rest of compiling", "", "5.0"),
    ]


def test_the_batch_of_one_step_is_not_finite_and_the_given_one_is_not_changed():
    callback = NanBatch(step=4)
    for step in range(1, 7):
        given = {"decoder_loss_weights": np.ones((2, 3), np.float32), "other": np.ones(2)}
        batch = callback.on_batch(step, given, {"window": 0})
        assert np.isnan(batch["decoder_loss_weights"]).any() == (step == 4)
        assert np.isfinite(batch["other"]).all()
        assert np.isfinite(given["decoder_loss_weights"]).all()
    with pytest.raises(ConfigError, match="step must be at least 1; got 0"):
        NanBatch(step=0)


def test_the_shipped_gin_file_makes_a_batch_not_finite_from_any_start(
    tmp_path, train_small, weights
):
    """The step is skipped, also in a run that resumes shortly before it."""
    quiet = {"evaluation": Evaluation(period=100, max_examples=1, samples=0)}
    quiet |= {"checkpoints": CheckpointPolicy(period=1, keep=None)}
    gin.clear_config()
    gin_config.parse(["runs/nan_batch.gin"], ["--gin.NAN_STEP=3"], ["", str(GIN_CONFIGS)])
    (reference,) = gin.query_parameter("train.callbacks")
    assert reference.configurable.wrapped is NanBatch
    callbacks = [gin.get_configurable(NanBatch)()]
    gin.clear_config()
    train_small(tmp_path / "run", steps=4, callbacks=callbacks, **quiet)
    for steps in (2, 4):
        train_small(tmp_path / "resumed", steps=steps, callbacks=callbacks, **quiet)
    state, resumed = weights(tmp_path / "run"), weights(tmp_path / "resumed")
    assert state["['skipped']"] == 1
    for name, array in state.items():
        np.testing.assert_array_equal(array, resumed[name], err_msg=name)


def test_an_unknown_fault_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match="no fault earthquake; expected some of kill"):
        torture(model_dir=str(tmp_path), steps=3, faults=("earthquake",), invocation=Invocation())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_tiny_run_under_every_fault_equals_one_undisturbed(tmp_path):
    small = {
        "EmbeddedCorpus.vocab_size": 412,
        "EmbeddedCorpus.packages": "('gin','beartype')",
        "TransformerConfig.vocab_size": 512,
        "TransformerConfig.emb_dim": 32,
        "BATCH_SIZE": 8,
        "TASK_FEATURE_LENGTHS": "{'inputs':32,'targets':16}",
        "MESH": "{'data':2,'fsdp':2}",
        "CPU_DEVICES": 4,
        "EVAL_PERIOD": 10**6,
        "CHECKPOINT_PERIOD": 10,
        "TRAIN_STEPS": 400,
        "DATA_DIR": tmp_path / "data",
    }
    flags = [f"--gin.{name}={value}" for name, value in small.items()]
    torture(
        model_dir=str(tmp_path / "torture"),
        steps=400,
        invocation=Invocation(gin_arguments=["--gin_file=recipes/tiny_embedded.gin", *flags]),
        minutes=60,
        num_faults=len([each for each in FAULTS if each.processes == 1]),
    )
