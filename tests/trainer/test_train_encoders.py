"""Models without a decoder, trained on masked text and next sentences by the same call."""

import json

import pytest

from t5x_lite.errors import ConfigError
from t5x_lite.io.metric_writers import read_metrics
from t5x_lite.objectives.bert import Bert, MaskedLM
from t5x_lite.objectives.span_corruption import SpanCorruption
from t5x_lite.training.schedules import InverseSquareRoot

BERT = dict(
    num_decoder_layers=0,
    mlp_activations=("gelu_exact",),
    norm="layer",
    norm_position="post",
    final_norm=False,
    embedding_norm=True,
    use_bias=True,
    scale_attention=True,
    positions="learned",
    max_positions=32,
    logits_via_embedding=True,
    scale_tied_logits=False,
    head_bias=True,
    head_transform=True,
    init_std=0.02,
)
NSP = dict(num_token_types=2, next_sentence_head=True)
TEXT = dict(mixture_or_task_name="embedded_text", feature_lengths={"inputs": 32, "targets": 32})


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_an_encoder_learns_masked_tokens_and_is_judged_on_held_out_ones(
    kind, train_small, tmp_path
):
    model, objective = (BERT | NSP, Bert()) if kind == "bert" else (BERT, MaskedLM())
    data = TEXT | dict(objective=objective, pack=kind == "roberta")
    train_small(
        tmp_path,
        steps=40,
        model=model,
        data=data,
        learning_rate=InverseSquareRoot(base=1.0, warmup_steps=100),
        log_every_steps=5,
    )
    records = [r for r in read_metrics(tmp_path) if r["kind"] == "train"]
    losses = [record["loss"] for record in records]
    assert losses[-1] < losses[0] - 0.5
    assert all(("next_sentence_loss" in r) == (kind == "bert") for r in records)
    if kind == "bert":
        assert 0.4 < records[-1]["next_sentence_loss"] < 1.0  # about the log of 2: a guess, so far
    results = json.loads((tmp_path / "results.json").read_text())
    task = results["tasks"]["embedded_text"]
    assert task["loss"] < task["uniform"]
    assert task["tokens"] < 16 * 32 * 0.2  # 15 % of the tokens of 16 examples of at most 32
    assert results["samples"] == []


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (dict(mixture_or_task_name="embedded_mix", objective=MaskedLM()), "MIXTURE_OR_TASK_NAME"),
        (dict(objective=SpanCorruption()), "OBJECTIVE"),
        (dict(objective=Bert(), pack=True), "Data.pack"),
    ],
)
def test_what_an_encoder_cannot_learn_is_said_before_anything_is_compiled(
    data, names, train_small, tmp_path, log_lines
):
    with pytest.raises(ConfigError) as caught:
        train_small(tmp_path, steps=1, model=BERT | NSP, data=TEXT | data)
    assert names in caught.value.names
    assert not [line for line in log_lines if "compiling" in line]
