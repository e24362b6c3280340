"""A user's own files become tasks by task_providers alone."""

import gzip
import json

import pytest

from t5x_lite.data.data_config import Data
from t5x_lite.data.prepare import prepare
from t5x_lite.data.sources.jsonl_and_tsv import MalformedLines
from t5x_lite.data.tasks.task_providers import JsonLinesText
from t5x_lite.data.tasks.text_pairs import TextPairs
from t5x_lite.errors import ConfigError
from t5x_lite.tokenizers.vocabularies import ByteVocabulary, Vocabulary, train_vocabulary

seqio = pytest.importorskip("seqio")

BYTES = ByteVocabulary()
LENGTHS = {"inputs": 64, "targets": 40}


def stored_pairs(plan, split="train"):
    tasks = plan.train_tasks() if split == "train" else plan.validation_tasks()
    store, pairs = tasks[0].store, []
    for number in range(store.num_examples):
        parts = []
        for feature in ("inputs", "targets"):
            first, last = store.offsets(feature)[number : number + 2]
            parts.append(BYTES.decode(store.tokens(feature)[first:last].tolist()))
        pairs.append(tuple(parts))
    return pairs


def test_json_lines_and_tsv_become_one_task(tmp_path):
    rows = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(5)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "train.0.jsonl").write_bytes(lines)
    (tmp_path / "train.1.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "dev.tsv").write_text("id\tanswer\tquestion\n7\tnein\tist es so?\n")
    declared = TextPairs(
        name="sums",
        train=f"{tmp_path}/train.*",
        validation=f"{tmp_path}/dev.tsv",
        vocabulary=BYTES,
        inputs="question",
        targets="answer",
    )
    plan = prepare(Data("sums", LENGTHS, str(tmp_path / "data"), task_providers=(declared,)))
    assert stored_pairs(plan) == [(f"{n} + 1?", str(n + 1)) for n in range(5)] * 2
    assert stored_pairs(plan, "validation") == [("ist es so?", "nein")]


def test_a_pattern_that_matches_nothing_is_named(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"inputs": "a", "targets": "b"}\n')
    declared = TextPairs("mine", f"{tmp_path}/train.jsonl", BYTES, f"{tmp_path}/dev.jsonl")
    with pytest.raises(ConfigError, match=r"no file matches .*/dev\.jsonl"):
        declared.register("")


def test_plain_text_becomes_a_task_for_the_objective(tmp_path):
    (tmp_path / "train.txt").write_text("Trees grow slowly.\n" * 30)
    declared = JsonLinesText("trees", str(tmp_path), BYTES, {"train": "train.txt"})
    plan = prepare(Data("trees", LENGTHS, str(tmp_path / "data"), task_providers=(declared,)))
    [task] = plan.train_tasks()
    assert task.objective is not None
    assert task.store.num_examples == 30


def test_skipped_lines_are_logged_and_stand_in_the_manifest(tmp_path, log_lines):
    good = '{"body": "Trees grow slowly."}\n'
    (tmp_path / "a.json").write_text(good * 9 + "{\n")
    declared = JsonLinesText(
        "some_left_out",
        str(tmp_path),
        BYTES,
        {"train": "a.json"},
        text_field="body",
        bad_lines=MalformedLines(max_fraction=0.1),
    )
    data = Data("some_left_out", LENGTHS, str(tmp_path / "data"), task_providers=(declared,))
    plan = prepare(data)
    path = f"{tmp_path}/a.json"
    [line] = [line for line in log_lines if "skipped 1 of" in line]
    assert line.startswith(
        f"{path}: skipped 1 of 10 lines (1 no JSON); the first: {path}, line 10: no JSON"
    )
    [task] = plan.train_tasks()
    assert task.store.num_examples == 9
    assert list(task.store.manifest["left_out"]) == [path]
    (tmp_path / "a.json").write_text(good * 8 + "{\n[]\n")
    with pytest.raises(
        ConfigError, match=r"2 of 10 lines are malformed; the tolerance is a fraction of"
    ):
        prepare(data)


def test_a_vocabulary_under_an_address_is_found_again(tmp_path, log_lines):
    import tensorflow as tf

    train_vocabulary(["trees grow slowly"] * 9, tmp_path / "a.model", vocab_size=15)
    tf.io.gfile.copy(str(tmp_path / "a.model"), "ram://bucket/vocab/a.model")
    (tmp_path / "train.tsv").write_text("inputs\ttargets\ntrees\tgrow\n")
    vocabulary = Vocabulary("ram://bucket/vocab/a.model")
    declared = TextPairs("far_vocabulary", f"{tmp_path}/train.tsv", vocabulary)
    data = Data("far_vocabulary", LENGTHS, str(tmp_path / "data"), task_providers=(declared,))
    plan = prepare(data)
    assert log_lines
    assert plan.vocabulary() == vocabulary
    log_lines.clear()
    assert prepare(data) == plan
    assert log_lines == []
    with pytest.raises(ConfigError, match=r"'ram://bucket/gone\.model' cannot be read"):
        Vocabulary("ram://bucket/gone.model").fingerprint  # noqa: B018


def test_files_under_an_address_are_read_with_tensorflows_file_systems(tmp_path):
    import tensorflow as tf

    text = '{"text": "Trees grow slowly."}\n' * 7
    with tf.io.gfile.GFile("ram://bucket/en/c4-train.00000-of-00001.json.gz", "wb") as file:
        file.write(gzip.compress(text.encode()))
    declared = JsonLinesText("remote", "ram://bucket/en", BYTES)
    plan = prepare(Data("remote", LENGTHS, str(tmp_path), task_providers=(declared,)))
    [task] = plan.train_tasks()
    assert task.store.num_examples == 7
    assert len(task.store.manifest["source"]["sizes"]) == 1
