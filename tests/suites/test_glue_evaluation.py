"""GLUE from data sets on disk to the benchmark's average, held against scikit-learn and SciPy."""

import json

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from t5x_lite.data.data_config import Data
from t5x_lite.decoding.generation import Generation
from t5x_lite.errors import ConfigError
from t5x_lite.evaluation.evaluate import evaluate
from t5x_lite.inference.engine import Inference, Scored
from t5x_lite.suites.rank_classification import StudyOptions
from t5x_lite.suites.t5 import Study
from t5x_lite.tokenizers.vocabularies import ByteVocabulary

pytest.importorskip("tensorflow_datasets")

BYTES = ByteVocabulary()
TEXT, NUMBER, SCORE = "text", "number", "score"
WAYS, ENTAILED = ("entailment", "neutral", "contradiction"), ("entailment", "not_entailment")
# Fields and labels of each data set of the mixture, in the order of its label numbers.
SETS = {
    "cola": (("sentence",), ("unacceptable", "acceptable")),
    "sst2": (("sentence",), ("negative", "positive")),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate")),
    "stsb": (("sentence1", "sentence2"), ()),
    "mnli": (("premise", "hypothesis"), WAYS),
    "mnli_matched": (("premise", "hypothesis"), WAYS),
    "mnli_mismatched": (("premise", "hypothesis"), WAYS),
    "qnli": (("question", "sentence"), ENTAILED),
    "rte": (("sentence1", "sentence2"), ENTAILED),
    "ax": (("premise", "hypothesis"), WAYS),
}
ROWS = 10  # of a split; batches of 4 do not divide it


def rows_of(name, split):
    """Rows whose texts name the data set, the split and the row."""
    fields, labels = SETS[name]
    rng = np.random.default_rng(sum(map(ord, name + split)))
    rows = []
    for i in range(ROWS):
        label = rng.integers(len(labels)) if labels else np.round(rng.uniform(0, 5), 3)
        texts = {field: f"{name} {split} {i} {field}." for field in fields}
        rows.append({**texts, "label": label.item(), "idx": i})
    return rows


@pytest.fixture(scope="module")
def glue(tmp_path_factory, write_data_sets):
    """A directory with all data sets of GLUE, ten rows a split."""
    directory = tmp_path_factory.mktemp("glue")
    sets = {}
    for name, (fields, labels) in SETS.items():
        spec = {**dict.fromkeys(fields, TEXT), "label": NUMBER if labels else SCORE, "idx": NUMBER}
        held_out = ("validation", "test") if "matched" in name else ("train", "validation")
        splits = {"ax": ("test",), "mnli": ("train",)}.get(name, held_out)
        sets[f"glue/{name}:1.0.0"] = spec, {split: rows_of(name, split) for split in splits}
    write_data_sets(directory, sets)
    return directory


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, save_untrained):
    return save_untrained(tmp_path_factory.mktemp("model"), (1, 2))


@pytest.fixture
def look(glue, model_dir, tmp_path_factory):
    """Evaluate on a task or mixture of GLUE."""
    place = tmp_path_factory.getbasetemp() / "glue_data"

    def run(name="glue_v002_proportional", declared=Study, **changes):
        settings = dict(
            model_dir=str(model_dir),
            data=Data(
                mixture_or_task_name=name,
                feature_lengths={"inputs": 96, "targets": 20},
                data_dir=str(place),
                task_providers=(declared(vocabulary=BYTES, tfds_data_dir=str(glue)),),
            ),
            batch_size=4,
            mesh={"data": 4, "tensor": 2},
            generation=Generation(max_length=16),
            losses=False,
        )
        evaluate(**{**settings, **changes})

    return run


def answer(text):
    """What the stand-in says of an example: often right, sometimes not, sometimes no label."""
    words = text.split()
    name, split, number = next(
        (words[i], words[i + 1], int(words[i + 2]))
        for i, word in enumerate(words[:-2])
        if word in SETS and words[i + 2].isdecimal()
    )
    row, (_, labels) = rows_of(name, split)[number], SETS[name]
    if number == 4:
        return row, "no label"
    if not labels:
        return row, f"{(row['label'] + number / 9) % 5:.1f}"
    return row, labels[(row["label"] + (number % 4 == 1)) % len(labels)]


@pytest.fixture
def say(saying):
    return saying(lambda text: answer(text)[1])


def records(model_dir, step):
    lines = (model_dir / "evaluations.jsonl").read_text().splitlines()
    return {line["task"]: line for line in map(json.loads, lines) if line["step"] == step}


def test_glues_scores_are_those_of_scikit_learn_and_scipy_on_the_same_words(
    look, say, model_dir, monkeypatch, capsys, log_lines
):
    monkeypatch.setattr(Inference, "generate", say)
    look(steps=2, published=("T5 study baseline", "T5 base"))
    by_task, means = records(model_dir, 2), {}
    average = by_task.pop("averages")
    assert len(by_task) == 9
    for task, line in by_task.items():
        path = model_dir / "predictions" / "validation" / "2" / f"{task}.jsonl"
        seen = [answer(json.loads(x)["inputs"]) for x in path.read_text().splitlines()]
        assert len(seen) == line["examples"] == ROWS
        assert sorted(row["idx"] for row, _ in seen) == list(range(ROWS))
        name = task.removeprefix("glue_").removesuffix("_v002")
        expected = {key: 100 * value for key, value in scores(name, seen).items()}
        assert {key: line[key] for key in expected} == pytest.approx(expected)
        means[name] = np.mean(list(expected.values()))
    mnli = np.mean([means.pop("mnli_matched"), means.pop("mnli_mismatched")])
    assert average["glue"] == pytest.approx(np.mean([*means.values(), mnli]))
    said = capsys.readouterr().out
    omitted = "not evaluated, no metrics or no split 'validation': glue_ax_v002, glue_mnli_v002"
    assert omitted in "\n".join(log_lines)
    assert "T5 base (test)" in said
    row = next(text for text in said.splitlines() if "glue/average" in text).split()
    assert row[1:] == [f"{average['glue']:.2f}", "83.28", "82.70"]


def scores(name, seen):
    """What the libraries compute from rows' labels and the words said of them."""
    labels = SETS[name][1]
    truth = [row["label"] for row, _ in seen]
    if not labels:
        truth = [round(label * 5) / 5 for label in truth]
        said = [-1.0 if text == "no label" else float(text) for _, text in seen]
        return {
            "pearson_corrcoef": pearsonr(truth, said).statistic,
            "spearman_corrcoef": spearmanr(truth, said).statistic,
        }
    said = [labels.index(text) if text in labels else -1 for _, text in seen]
    if name == "cola":
        return {"matthews_corrcoef": matthews_corrcoef(truth, said)}
    found = {"accuracy": accuracy_score(truth, said)}
    if name in ("mrpc", "qqp"):
        said = [1 - true if s == -1 else s for s, true in zip(said, truth, strict=True)]
        found["f1"] = f1_score(truth, said)
    return found


def test_the_likeliest_label_is_the_answer_where_options_are_ranked(look, model_dir, monkeypatch):
    def score(inference, params, batch):
        texts = [[BYTES.decode(row) for row in batch[k].tolist()] for k in ("inputs", "targets")]
        likely = [answer(inputs)[1] == target for inputs, target in zip(*texts, strict=True)]
        totals = np.where(likely, -1.0, -5.0).astype(np.float32)
        return Scored(totals, np.zeros_like(batch["targets"], np.float32))

    monkeypatch.setattr(Inference, "score", score)
    look("glue_options", declared=StudyOptions, steps=2)
    for name in ("rte", "mnli_matched", "sst2"):
        task, labels = f"glue_{name}_v002_options", SETS[name][1]
        line = records(model_dir, 2)[task]
        path = model_dir / "predictions" / "validation" / "2" / f"{task}.jsonl"
        asked = [json.loads(x)["inputs"] for x in path.read_text().splitlines()]
        assert line["examples"] == len(asked) == ROWS * len(labels)
        seen = [answer(inputs) for inputs in asked[:: len(labels)]]
        said = [labels.index(text) if text in labels else 0 for _, text in seen]
        expected = accuracy_score([row["label"] for row, _ in seen], said)
        assert line["accuracy"] == pytest.approx(100 * expected)


def test_a_task_is_read_once_and_then_without_seqio(look, say, monkeypatch, capsys, log_lines):
    monkeypatch.setattr(Inference, "generate", say)
    look("glue_cola_v002")
    first = capsys.readouterr().out
    assert "reading the evaluation examples of glue_cola_v002/validation ..." in log_lines
    log_lines.clear()
    look("glue_cola_v002", steps="all")
    second = capsys.readouterr().out
    assert not [line for line in log_lines if "seqio" in line or "reading the eval" in line]
    score = next(x for x in first.splitlines() if "glue_cola_v002/matthews" in x).split()[1]
    both = next(x for x in second.splitlines() if "glue_cola_v002/matthews" in x).split()
    assert both[1:] == [score, score]


def test_losses_are_taken_beside_metrics(look, model_dir, capsys, log_lines):
    look("glue_rte_v002", losses=True, max_examples=3)
    said = capsys.readouterr().out
    assert "glue_rte_v002/loss" in said
    assert "no glue average: scores of glue_cola_v002" in "\n".join(log_lines)
    line = records(model_dir, 2)["glue_rte_v002"]
    assert line["examples"] == 3
    assert 0 < line["loss"] < 30


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 7}, "has no checkpoint of step 7; the steps there: 1, 2"),
        ({"steps": "latest"}, "expected 'newest', 'all', a step or several"),
        ({"losses": False, "metrics": False}, "losses and metrics are both False"),
        ({"published": ("T5 tiny",)}, "expected a sequence of previous best, T5 small"),
        ({"max_examples": -2}, "max_examples is -2"),
        ({"name": "glue_cola_v002", "split": "dev"}, "no task of .* has metrics and a split 'dev'"),
        ({"name": "glue_ax_v002"}, "no task of .* has metrics and a split 'validation'"),
    ],
)
def test_what_cannot_be_evaluated_is_named(changes, said, look):
    with pytest.raises(ConfigError, match=said):
        look(**changes)


def test_a_model_for_another_vocabulary_or_none_is_refused(look, save_untrained, tmp_path):
    save_untrained(tmp_path / "small", (1,), vocab_size=128)
    with pytest.raises(ConfigError, match="the vocabulary has 259 ids but the model"):
        look("glue_cola_v002", model_dir=str(tmp_path / "small"))
    with pytest.raises(ConfigError, match="does not describe a model"):
        look("glue_cola_v002", model_dir=str(tmp_path / "nowhere"))
