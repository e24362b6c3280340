"""Downstream, as a user types it: pretrain, fine-tune whole or in part, evaluate, infer, export."""

import json
from pathlib import Path

import pytest

import t5x_lite

pytestmark = pytest.mark.slow
SMALL = {
    "TASK_FEATURE_LENGTHS": "{'inputs': 32, 'targets': 16}",
    "EmbeddedCorpus.vocab_size": 412,
    "EmbeddedCorpus.packages": "('gin', 'beartype')",
    "BATCH_SIZE": 8,
    "MESH": "{'data': 8}",
}
MODEL = {
    "TransformerConfig.emb_dim": 32,
    "TransformerConfig.num_heads": 4,
    "TransformerConfig.head_dim": 8,
    "TransformerConfig.mlp_dim": 64,
    "TransformerConfig.vocab_size": 512,
}
SAVING = {"CHECKPOINT_PERIOD": 2, "EVAL_PERIOD": 4, "Evaluation.max_examples": 8}
JUDGED = {"Generation.max_length": 8}
TUNING = {
    "whole": {},
    "adapters": {"TransformerConfig.adapter_dim": 4},
    "prompt": {"TransformerConfig.prompt_length": 5},
    "gradual_unfreezing": {"EPISODE_STEPS": 2},
}


@pytest.fixture
def t5x(command, data_dir):
    """Run a command with gin files and settings."""

    def run(name, *files, **settings):
        given = {**SMALL, "DATA_DIR": data_dir, **settings}
        flags = [f"--gin.{key}={value}" for key, value in given.items()]
        command(name, *(f"--gin_file={file}" for file in files), *flags)

    return run


def bytes_of(run, step):
    """How much the weights of a checkpoint take."""
    place = Path(run, "checkpoints", str(step))
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def test_a_pretrained_model_is_tuned_in_every_way_evaluated_used_and_exported(t5x, command, capsys):
    settings = {**MODEL, **SAVING, "CPU_DEVICES": None, "TRAIN_STEPS": 4}
    t5x("train", "recipes/tiny_embedded.gin", MODEL_DIR="runs/tiny", **settings)
    corpus = ("objectives/span_corruption.gin", "tasks/embedded.gin", "runs/evaluate.gin")
    for name, options in TUNING.items():
        files = [] if name == "whole" else [f"tuning/{name}.gin"]
        run, tuned = f"runs/{name}", {**MODEL, **SAVING, **JUDGED, **options, "TRAIN_STEPS": 4}
        t5x("train", "recipes/tiny_finetune.gin", *files, MODEL_DIR=run, **tuned)
        t5x("evaluate", *corpus, MODEL_DIR=run, STEPS="all", **JUDGED)
        lines = [json.loads(x) for x in Path(run, "evaluations.jsonl").read_text().splitlines()]
        found = {(line["step"], line["task"]): line for line in lines}
        assert {step for step, _ in found} == {2, 4}, name
        assert {"loss", "rouge1", "examples"} <= found[4, "embedded_summarize"].keys(), name
        assert found[4, "embedded_name"]["sequence_accuracy"] >= 0
        assert t5x_lite.load(run).generate("summarize: a text", max_length=4)[0].text is not None
    whole, adapters, prompt = (bytes_of(f"runs/{n}", 4) for n in ("whole", "adapters", "prompt"))
    assert prompt < adapters < whole
    Path("in.txt").write_text("a text\nanother\n")
    flags = ("--inputs=in.txt", "--prefix=summarize: ", "--gin.Generation.max_length=4")
    command("infer", "--model_dir=runs/adapters", "--outputs=out.jsonl", *flags)
    assert len(Path("out.jsonl").read_text().splitlines()) == 2
    for name in ("whole", "gradual_unfreezing"):
        command("export", f"--model_dir=runs/{name}", f"--destination=out/{name}")
        ours, theirs = t5x_lite.load(f"runs/{name}"), t5x_lite.load(f"out/{name}")
        assert ours.score("a", "b") == pytest.approx(theirs.score("a", "b"), rel=1e-5)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        command("export", "--model_dir=runs/prompt", "--destination=out/prompt")
    assert "transformers has no such model" in capsys.readouterr().err
