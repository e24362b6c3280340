"""The same configuration gives the same bits, in whatever process and on however many cores."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from t5x_lite.debugging.compare import compare
from t5x_lite.trainer.train import train

ROOT = Path(__file__).parents[2]


@pytest.fixture
def same(weights, capsys):
    """Assert that two runs have the same step hashes and bit for bit the same last state."""

    def check(one, other):
        compare(run_a=str(one), run_b=str(other))
        assert "the runs are identical in" in capsys.readouterr().out
        first, second = weights(one), weights(other)
        assert first.keys() == second.keys()
        for name, array in first.items():
            assert array.tobytes() == second[name].tobytes(), name

    return check


def test_a_run_repeats_itself_with_dropout_in_bfloat16(tmp_path, train_settings, same):
    """Each run traces and compiles for itself."""
    model = {"dropout_rate": 0.1, "dtype": "bfloat16"}
    for name in ("one", "other"):
        train(**train_settings(tmp_path / name, steps=3, model=model, deterministic=True))
    same(tmp_path / "one", tmp_path / "other")


@pytest.mark.slow
def test_a_process_of_its_own_on_one_core_gives_the_same_bits(tmp_path, data_dir, same):
    settings = {
        "DATA_DIR": data_dir,
        "TRAIN_STEPS": 12,
        "BATCH_SIZE": 8,
        "TASK_FEATURE_LENGTHS": "{'inputs': 32, 'targets': 16}",
        "EmbeddedCorpus.vocab_size": 412,
        "EmbeddedCorpus.packages": "('gin', 'beartype')",
        "TransformerConfig.vocab_size": 512,
        "TransformerConfig.dropout_rate": 0.1,
        "StepHashes.params_every_steps": 2,
        "Evaluation.max_examples": 8,
    }
    flags = [f"--gin.{name}={value}" for name, value in settings.items()]
    cores = sorted(os.sched_getaffinity(0))
    for name, usable in (("one", cores[:1]), ("all", cores)):
        # Nothing of the first run's compiler is there for the second.
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / f"cache_{name}")}
        environment["PYTHONHASHSEED"] = str(len(name))
        subprocess.run(
            [
                *(sys.executable, "-m", "t5x_lite", "train"),
                *("--gin_file=recipes/tiny_embedded.gin", f"--gin.MODEL_DIR={tmp_path / name}"),
                *flags,
            ],
            cwd=ROOT,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda usable=usable: os.sched_setaffinity(0, usable),
        )
    same(tmp_path / "one", tmp_path / "all")
