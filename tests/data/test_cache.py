"""`t5x_lite cache`, called as the command line calls it."""

import dataclasses
import importlib.util
import json

import pytest

from t5x_lite.data.cache import cache
from t5x_lite.data.data_config import Data
from t5x_lite.data.prepare import prepare
from t5x_lite.data.tasks.task_providers import JsonLinesText
from t5x_lite.errors import ConfigError
from t5x_lite.tokenizers.vocabularies import ByteVocabulary

pytest.importorskip("seqio")


@pytest.fixture
def data(tmp_path):
    for split, shards in (("train", 3), ("validation", 1)):
        for number in range(shards):
            lines = [json.dumps({"text": f"trees grow {number} {n}"}) for n in range(4)]
            name = f"c4-{split}.{number:05d}-of-{shards:05d}.json"
            (tmp_path / name).write_text("\n".join(lines) + "\n")
    declared = JsonLinesText("trees", str(tmp_path), ByteVocabulary())
    return Data(
        "trees",
        {"inputs": 64, "targets": 32},
        str(tmp_path / "data"),
        task_providers=(declared,),
        tokenizer="sentencepiece",
    )


def test_what_was_cached_is_what_training_finds(data, capsys, log_lines):
    cache(data=data, processes=1)
    assert "tokenizing trees/train ..." in log_lines
    assert "sentencepiece" in capsys.readouterr().out
    log_lines.clear()
    plan = prepare(data)
    assert log_lines == []
    counts = {split: store.num_examples for _, split, store in plan.stores()}
    assert counts == {"train": 12, "validation": 4}
    cache(data=data, processes=1)
    assert not [line for line in log_lines if "tokenizing" in line]


def test_cached_tasks_are_required_where_they_are_asked_for(data):
    required = dataclasses.replace(data, use_cached=True)
    with pytest.raises(ConfigError, match=r"no token store of trees/train .* cache") as caught:
        prepare(required)
    assert caught.value.names == ("Data.use_cached",)
    cache(data=required, processes=1)
    assert [split for _, split, _ in prepare(required).stores()] == ["train", "validation"]


def test_cached_tasks_are_not_made_while_training(data):
    with pytest.raises(ConfigError, match="use_cached requires token stores"):
        dataclasses.replace(data, use_cached=True, tokenization="while_training")


def test_a_changed_source_is_said_to_differ_and_tokenized_again(data, tmp_path, log_lines):
    cache(data=data, processes=1)
    log_lines.clear()
    shard = tmp_path / "c4-train.00001-of-00003.json"
    shard.write_text(shard.read_text() + '{"text": "slowly"}\n')
    cache(data=data, processes=1)
    assert [line for line in log_lines if "does not match: source.sizes." in line]
    assert "tokenizing trees/train ..." in log_lines
    assert "tokenizing trees/validation ..." not in log_lines


def test_no_processes_are_refused(data):
    with pytest.raises(ConfigError, match="processes is 0; expected 1 or more") as caught:
        cache(data=data, processes=0)
    assert caught.value.names == ("cache.processes",)


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is not None, reason="Beam is there")
def test_beam_that_is_not_installed_is_named_with_its_extra(data):
    with pytest.raises(ConfigError, match=r"pip install 't5x_lite\[beam\]'") as caught:
        cache(data=data, beam_flags=[])
    assert caught.value.names == ("cache.beam_flags",)
