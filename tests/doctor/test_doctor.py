"""`t5x_lite doctor` on this machine: what it finds before a run, alone and with other processes."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from t5x_lite.checkpoints.checkpointer import CheckpointPolicy
from t5x_lite.distributed import rendezvous
from t5x_lite.distributed.processes import DistributedConfig
from t5x_lite.doctor.doctor import doctor
from t5x_lite.errors import ConfigError
from t5x_lite.models.config import TransformerConfig
from t5x_lite.training.optimizers import Adafactor

ROOT = Path(__file__).parent.parent.parent
TINY = TransformerConfig(
    vocab_size=512,
    emb_dim=32,
    num_heads=2,
    head_dim=16,
    mlp_dim=64,
    num_encoder_layers=1,
    num_decoder_layers=1,
)


@pytest.fixture
def examine(small_data, tmp_path):
    """Run the doctor over the small corpus: examine(batch_size=3)."""

    def run(*, data=None, **changes):
        settings = dict(
            model_dir=str(tmp_path / "run"),
            model=TINY,
            data=small_data(**(data or {})),
            optimizer=Adafactor(),
            batch_size=8,
            mesh={"data": -1},
            checkpoints=CheckpointPolicy(),
        )
        doctor(**{**settings, **changes})

    return run


def test_a_machine_that_is_fit_is_told_so_in_one_line_for_each_thing(examine, capsys, tmp_path):
    examine(devices=8)
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert lines[-1].startswith("ready to run, ")
    assert "ok    devices: 8" in lines
    assert list((tmp_path / "run").iterdir()) == []


def test_missing_devices_are_an_error_before_anything_starts(examine, capsys):
    with pytest.raises(ConfigError, match=r"8 instead of 16.*nothing was started"):
        examine(devices=16)
    assert "WRONG devices" in capsys.readouterr().out


def test_a_model_directory_that_cannot_be_written_is_named(examine, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="model directory: this host cannot write"):
        examine(model_dir=str(tmp_path / "file" / "run"))


def test_data_that_is_not_there_is_named(examine, tmp_path):
    from t5x_lite.data.tasks.task_providers import JsonLinesText
    from t5x_lite.tokenizers.vocabularies import Vocabulary

    declared = JsonLinesText(
        name="mine", directory=str(tmp_path / "gone"), vocabulary=Vocabulary(str(tmp_path / "v"))
    )
    data = {"mixture_or_task_name": "mine", "task_providers": (declared,)}
    with pytest.raises(ConfigError, match=r"the vocabulary .* cannot be read.*and 1 more"):
        examine(data=data)


def test_a_batch_that_does_not_divide_is_found_without_the_model(examine):
    with pytest.raises(ConfigError, match="8 parts"):
        examine(batch_size=12)


def test_a_model_too_large_for_the_disk_is_found(examine, monkeypatch):
    from t5x_lite.doctor import host_facts

    monkeypatch.setattr(host_facts, "free_disk", lambda directory: 10**6)
    with pytest.raises(ConfigError, match="keep fewer checkpoints"):
        examine()


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def call_all(numbers, expected, *, seconds):
    """What every process of these numbers hears in one roll call."""
    address = f"localhost:{free_port()}"

    def one(number):
        try:
            rendezvous.wait_for_all(DistributedConfig(address, expected, number), seconds=seconds)
        except ConfigError as error:
            return error.message
        return "all here"

    with ThreadPoolExecutor(len(numbers)) as threads:
        return list(threads.map(one, numbers))


def test_a_roll_call_ends_when_all_are_there():
    assert call_all([2, 0, 1, 3], 4, seconds=60) == ["all here"] * 4


def test_all_hear_who_is_missing():
    for heard in call_all([0, 2], 4, seconds=1):
        assert heard.startswith("2 of 4 processes did not come within 1 s: 1, 3; there were 0 on ")


def test_who_finds_nobody_says_where_it_looked():
    [heard] = call_all([1], 2, seconds=1)
    assert "process 1 of 2 found no process 0 at localhost:" in heard


@pytest.mark.slow
def test_the_doctor_of_two_processes_finds_the_one_that_differs(tmp_path):
    """Each has its own MODEL_DIR, which is then not shared, and its own configuration."""
    address = f"localhost:{free_port()}"

    def start(number):
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "t5x_lite", "doctor", "--devices=4"),
                *("--gin_file=recipes/tiny_embedded.gin", "--gin.MESH={'data': 4}"),
                f"--gin.MODEL_DIR={tmp_path}/{number}",
                *(f"--gin.DATA_DIR={tmp_path}/data", "--gin.CPU_DEVICES=4"),
                *(f"--coordinator_address={address}", "--num_processes=2"),
                f"--process_id={number}",
            ],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    said = [process.communicate(timeout=300) for process in [start(0), start(1)]]
    out, error = said[0]
    assert "WRONG configuration: process 1 on " in out
    assert "WRONG model directory: process 0 on " in out
    assert "does not see what process 1 on" in out
    assert "ok    devices: 4, 2 on each host" in out
    assert "nothing was started" in error
    assert said[1][0].count("WRONG") == 0  # the first speaks for all
    assert "nothing was started" in said[1][1]
