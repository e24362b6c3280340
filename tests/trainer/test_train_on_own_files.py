"""`train` with recipes/my_text.gin and recipes/my_pairs.gin, given nothing but files."""

import json
import math

import gin
import pytest

from t5x_lite.cli import main
from t5x_lite.io.metric_writers import read_metrics

SMALL = {
    "TRAIN_STEPS": 2,
    "BATCH_SIZE": 8,
    "TASK_FEATURE_LENGTHS": "{'inputs': 64, 'targets': 32}",
    "TransformerConfig.emb_dim": 32,
    "TransformerConfig.head_dim": 8,
    "TransformerConfig.mlp_dim": 64,
    "TransformerConfig.num_encoder_layers": 1,
    "TransformerConfig.num_decoder_layers": 1,
    "train.log_every_steps": 1,
}


@pytest.fixture
def records(tmp_path, monkeypatch):
    """Train with a recipe and return its metrics: records("my_text", TEXT_DIR="text")."""
    monkeypatch.chdir(tmp_path)

    def train(recipe, **given):
        settings = {**SMALL, "MODEL_DIR": "run", "DATA_DIR": "data", **given}
        flags = [f"--gin.{name}={value}" for name, value in settings.items()]
        gin.clear_config()
        main.main(["train", f"--gin_file=recipes/{recipe}.gin", *flags])
        return list(read_metrics(tmp_path / "run"))

    yield train
    gin.clear_config()


def _lines(path, *records):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _losses(records, kind):
    return [record["loss"] for record in records if record["kind"] == kind]


def test_a_folder_of_text_is_all_that_pretraining_needs(records, tmp_path):
    texts = [{"text": f"Sentence {n} says that {n * n} is the square of {n}."} for n in range(64)]
    _lines(tmp_path / "text" / "train.jsonl", *texts[:48])
    _lines(tmp_path / "text" / "validation.jsonl", *texts[48:])
    metrics = records("my_text", TEXT_DIR="text")
    assert len(_losses(metrics, "train")) == 2
    # Before it has learned anything, a model of 384 ids is about as good as a uniform guess.
    assert _losses(metrics, "train")[0] == pytest.approx(math.log(384), rel=0.2)
    assert len(_losses(metrics, "validation/my_text")) == 1


def test_files_of_pairs_are_all_that_training_on_pairs_needs(records, tmp_path):
    pairs = [{"inputs": f"double: {n}", "targets": str(2 * n)} for n in range(64)]
    _lines(tmp_path / "pairs" / "train.jsonl", *pairs[:48])
    _lines(tmp_path / "pairs" / "validation.jsonl", *pairs[48:])
    metrics = records(
        "my_pairs",
        TRAIN_FILES="pairs/train*.jsonl",
        VALIDATION_FILES="pairs/validation*.jsonl",
    )
    assert len(_losses(metrics, "train")) == 2
    assert _losses(metrics, "train")[0] == pytest.approx(math.log(384), rel=0.2)
    assert len(_losses(metrics, "validation/my_pairs")) == 1
