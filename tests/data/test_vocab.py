"""`t5x_lite inspect` and `t5x_lite vocab`, called as the command line calls them."""

import dataclasses
import json

import pytest

from t5x_lite.data.data_config import Data
from t5x_lite.data.tasks.task_providers import JsonLinesText
from t5x_lite.data.tasks.text_pairs import TextPairs
from t5x_lite.data.vocab import vocab
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.reporting.inspect_data import inspect
from t5x_lite.tokenizers.vocabularies import ByteVocabulary, Vocabulary
from t5x_lite.training.schedules import InverseSquareRoot

WORDS = "trees grow slowly and without being asked for it while rivers run quickly to the sea"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    words = WORDS.split()
    lines = [
        json.dumps({"text": " ".join(words[(n * k) % len(words)] for k in range(1, 12))})
        for n in range(400)
    ]
    (directory / "c4-train.00000-of-00001.json").write_text("\n".join(lines) + "\n")
    (directory / "pairs.jsonl").write_text('{"inputs": "1 + 1", "targets": "2"}\n' * 5)
    return directory


def test_a_vocabulary_is_trained_to_the_same_bytes_each_time(corpus, tmp_path, log_lines):
    settings = dict(corpus={f"{corpus}/c4-train*": 1.0}, vocab_size=40, max_lines=300)
    vocab(**settings, output=str(tmp_path / "one.model"))
    assert "training a vocabulary of 40 pieces on 300 lines ..." in log_lines
    assert "140 ids including 100 sentinels, 256 embedding rows" in log_lines[-1]
    vocab(**settings, output=str(tmp_path / "two.model"))
    assert (tmp_path / "one.model").read_bytes() == (tmp_path / "two.model").read_bytes()
    vocab(**settings, output=str(tmp_path / "other.model"), seed=1)
    assert (tmp_path / "one.model").read_bytes() != (tmp_path / "other.model").read_bytes()
    with pytest.raises(ConfigError, match=r"one\.model exists already"):
        vocab(**settings, output=str(tmp_path / "one.model"))


def test_sentinels_can_be_stored_in_the_vocabulary_itself(corpus, tmp_path):
    path = str(tmp_path / "with_sentinels.model")
    vocab(corpus={f"{corpus}/c4-train*": 1.0}, output=path, vocab_size=40, extra_ids=10)
    made = Vocabulary(path, extra_ids=0)
    assert (made.size, made.sentinels) == (50, Sentinels(49, 10))
    assert made.decode([49, *made.encode("trees grow"), 48]).split() == [
        "<extra_id_0>",
        "trees",
        "grow",
        "<extra_id_1>",
    ]


def test_a_mixture_is_shown_as_a_person_reads_it(corpus, tmp_path, capsys):
    vocabulary = ByteVocabulary()
    data = Data(
        mixture_or_task_name="inspected_text",
        feature_lengths={"inputs": 64, "targets": 40},
        data_dir=str(tmp_path),
        task_providers=(JsonLinesText("inspected_text", str(corpus), vocabulary),),
    )
    inspect(data=data, examples=2)
    said = " ".join(capsys.readouterr().out.split())
    assert "inspected_text, example 1 of" in said
    assert "inspected_text, example 2 of" in said
    assert "100.00%" in said
    assert "padding of 64 rows with packing: inputs" in said
    inputs = said.partition(" inputs ")[2]
    assert "<extra_id_0>" in inputs
    first = said.partition("example 1")[2].partition("example 2")[0]
    assert first.count("<extra_id_0>") == 2  # in the inputs and in the targets
    assert "of 64 tokens" in first
    text = " ".join(WORDS.split()[(0 * k) % 16] for k in range(1, 4))
    assert f"text {text}" in first
    inspect(data=dataclasses.replace(data, pack=False), examples=1)
    assert "padding of 64 rows without packing: inputs" in " ".join(capsys.readouterr().out.split())


def test_documents_that_end_inside_a_piece_are_shown_apart(corpus, tmp_path, capsys):
    from t5x_lite.objectives.language_models import LMAdaptation

    (tmp_path / "c4-train.00000-of-00001.json").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ("One.", "Two.", "Three."))
    )
    data = Data(
        mixture_or_task_name="inspected_stream",
        feature_lengths={"inputs": 12, "targets": 12},
        data_dir=str(tmp_path),
        objective=LMAdaptation(),
        task_providers=(JsonLinesText("inspected_stream", str(tmp_path), ByteVocabulary()),),
    )
    inspect(data=data, examples=2)
    said = " ".join(capsys.readouterr().out.split())
    assert "text One. </s> Two. </s> Th" in said
    assert "text ree." in said


def test_what_an_encoder_predicts_is_shown(corpus, tmp_path, capsys):
    from t5x_lite.objectives.bert import Bert, MaskedLM

    declared = JsonLinesText("inspected_mlm", str(corpus), ByteVocabulary(extra_ids=2))
    data = Data(
        mixture_or_task_name="inspected_mlm",
        feature_lengths={"inputs": 41, "targets": 41},
        data_dir=str(tmp_path),
        objective=MaskedLM(),
        task_providers=(declared,),
    )
    inspect(data=data, examples=1)
    said = " ".join(capsys.readouterr().out.split())
    predicted = said.rpartition("predicted ")[2]
    assert 0 < len(predicted.replace(" ", "")) <= 6  # 15 % of 40 bytes
    assert "<extra_id_0>" in said
    with pytest.raises(ConfigError, match="set pack = False"):
        inspect(data=dataclasses.replace(data, objective=Bert()), examples=1)


def test_pairs_are_shown_with_their_mixing_rates(corpus, tmp_path, capsys):
    from t5x_lite.data.tasks.mixing_rates import Mixture

    pairs = [
        TextPairs(name, f"{corpus}/pairs.jsonl", ByteVocabulary()) for name in ("sum_a", "sum_b")
    ]
    nested = Mixture("sum_nested", {"sum_a": 1.0, "sum_b": 1.0})
    mixture = Mixture("sum_mix", {"sum_nested": 2.0, "sum_a": 2.0})
    data = Data(
        "sum_mix",
        {"inputs": 64, "targets": 40},
        str(tmp_path),
        task_providers=(*pairs, nested, mixture),
    )
    inspect(data=data, examples=1)
    said = " ".join(capsys.readouterr().out.split())
    assert "sum_a 5 3 75.00% 6.0 2.0" in said
    assert "sum_b 5 1 25.00% 6.0 2.0" in said
    assert "text 1 + 1 -> 2 inputs 1 + 1 6 of 64 tokens, 91% free targets 2 2 of 40 tokens" in said


def test_fewer_than_no_examples_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="examples is -1"):
        inspect(data=Data("x", {}, str(tmp_path)), examples=-1)


def test_a_schedule_is_shown_without_data_at_its_first_and_last_step(tmp_path, capsys):
    schedule = InverseSquareRoot(base=1.0, warmup_steps=10_000)
    inspect(learning_rate=schedule, steps=1_000_001, output=str(tmp_path / "out"))
    said = capsys.readouterr().out.split()
    assert said[said.index("0") + 1] == "1.0000e-02"
    assert said[said.index("1,000,000") + 1] == "1.0000e-03"
    assert (tmp_path / "out" / "learning_rate.png").read_bytes().startswith(b"\x89PNG")


def test_inspecting_nothing_says_what_can_be_inspected():
    with pytest.raises(ConfigError, match="nothing to inspect"):
        inspect()
