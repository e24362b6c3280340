"""`train` with Data.tokenization = "while_training": one process and two, from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from t5x_lite.data.sources import embedded_corpus
from t5x_lite.io.metric_writers import read_metrics
from t5x_lite.tokenizers.vocabularies import train_vocabulary

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "TRAIN_STEPS": 6,
    "BATCH_SIZE": 8,
    "TASK_FEATURE_LENGTHS": "{'inputs': 32, 'targets': 16}",
    "MESH": "{'data': 4}",
    "TransformerConfig.emb_dim": 32,
    "TransformerConfig.num_heads": 4,
    "TransformerConfig.head_dim": 8,
    "TransformerConfig.mlp_dim": 64,
    "TransformerConfig.vocab_size": 512,
    "EVAL_PERIOD": 100,
    "Evaluation.max_examples": 16,
    "train.log_every_steps": 1,
}
FILES = ("models/tiny", "objectives/span_corruption", "tasks/my_text", "optimizers/adafactor")


@pytest.fixture
def text(tmp_path):
    """A corpus of 8 files, and the bindings that name it and its vocabulary."""
    texts = list(embedded_corpus.embedded_documents(packages=("gin", "beartype")).values())
    directory = tmp_path / "text"
    directory.mkdir()
    for number in range(8):
        lines = [json.dumps({"text": text}) + "\n" for text in texts[number::8]]
        (directory / f"train-{number}.json").write_text("".join(lines))
    (directory / "validation-0.json").write_text(json.dumps({"text": texts[0]}) + "\n")
    train_vocabulary(texts, tmp_path / "pieces.model", vocab_size=400, max_lines=10_000)
    return {"TEXT_DIR": directory, "VOCABULARY": tmp_path / "pieces.model"}


def train(directory, processes, **settings):
    """Train in a pod of 4 devices; the loss of every step."""
    places = {"MODEL_DIR": directory / "run", "DATA_DIR": directory / "data"}
    settings = {**SETTINGS, **places, "Data.tokenization": "while_training", **settings}
    command = [
        *(sys.executable, "launch/local_pod.py", f"--processes={processes}"),
        *(f"--devices={4 // processes}", "--", "t5x_lite", "train"),
        *(f"--gin_file={name}.gin" for name in (*FILES, "runs/pretrain")),
        *(f"--gin.{name}={value}" for name, value in settings.items()),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "while training" in done.stdout
    records = [r for r in read_metrics(directory / "run") if r["kind"] == "train"]
    return {r["step"]: r["loss"] for r in records}


@pytest.mark.slow
def test_a_pod_learns_from_a_store_under_way_what_one_process_does(text, tmp_path):
    alone, pod = (train(tmp_path / str(count), count, **text) for count in (1, 2))
    assert sorted(alone) == [1, 2, 3, 4, 5, 6]
    assert pod == pytest.approx(alone, rel=1e-6)
