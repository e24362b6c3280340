"""SuperGLUE from data sets on disk to the benchmark's average; test sets; answers by rank."""

import json
import re

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

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
TEXT, NUMBER = "text", "number"
BOOLEAN = ("False", "True")
ENTAILED = ("entailment", "not_entailment")
# Fields and labels of the data sets that ask for one of some labels.
LABELLED = {
    "boolq": (("passage", "question"), BOOLEAN),
    "cb": (("premise", "hypothesis"), ("entailment", "contradiction", "neutral")),
    "copa": (("choice1", "choice2", "premise", "question"), ("choice1", "choice2")),
    "rte": (("premise", "hypothesis"), ENTAILED),
    "wic": (("sentence1", "sentence2", "word"), BOOLEAN),
    "axb": (("sentence1", "sentence2"), ENTAILED),
    "axg": (("premise", "hypothesis"), ENTAILED),
}
MULTIRC = ("paragraph", "question", "answer")
NAMES = ("Ann", "Bob", "Eve")
ROWS = 10  # of a split; batches of 4 do not divide it


def rows_of(name, split):
    """Rows whose texts name data set, split and row; a test set keeps its labels secret."""
    rng = np.random.default_rng(sum(map(ord, name + split)))
    secret = split == "test" and name != "dpr"
    rows = []
    for i in range(ROWS):
        place = f"{name} {split} {i}"
        labels = LABELLED.get(name, ((), BOOLEAN))[1]
        row = {"label": -1 if secret else rng.integers(len(labels)).item(), "idx": i}
        noun = NAMES[i % 3]
        if name == "multirc":
            row["label"] = -1 if secret else int(i % 3 != 1)
            row |= {field: f"{place} {field}." for field in MULTIRC}
            row["idx"] = {"paragraph": i // 4, "question": i // 2, "answer": i}
        elif name == "record":
            right = [] if secret else [noun, f"the {noun} one"][: 1 + i % 2]
            row = {"passage": f"{place} text.", "query": f"{place} @placeholder ran."}
            row |= {"entities": list(NAMES), "answers": right}
            row["idx"] = {"passage": i // 2, "query": i}
        elif name == "wsc":
            row |= {"text": f"{place} {noun} ran since he did.", "span1_text": noun}
            row |= {"span2_text": "he", "span1_index": 3, "span2_index": 6}
        elif name == "dpr":
            del row["idx"]
            row |= {"sentence": f"{place} Ann saw Bob as he ran.", "pronoun": "he"}
            row["candidates"] = ["Ann", "Bob"]
        else:
            row |= {field: f"{place} {field}." for field in LABELLED[name][0]}
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def super_glue(tmp_path_factory, write_data_sets):
    """A directory with all data sets of SuperGLUE and DPR, ten rows a split."""
    directory = tmp_path_factory.mktemp("super_glue")
    specs = {
        name: {**dict.fromkeys(fields, TEXT), "label": NUMBER, "idx": NUMBER}
        for name, (fields, _) in LABELLED.items()
    }
    specs["multirc"] = {
        **dict.fromkeys(MULTIRC, TEXT),
        "label": NUMBER,
        "idx": dict.fromkeys(MULTIRC, NUMBER),
    }
    specs["record"] = {"passage": TEXT, "query": TEXT, "entities": [TEXT], "answers": [TEXT]}
    specs["record"]["idx"] = {"passage": NUMBER, "query": NUMBER}
    specs["wsc"] = {"text": TEXT, "span1_text": TEXT, "span2_text": TEXT}
    specs["wsc"] |= dict.fromkeys(("span1_index", "span2_index", "label", "idx"), NUMBER)
    specs["dpr"] = {"sentence": TEXT, "pronoun": TEXT, "candidates": (2, TEXT), "label": NUMBER}
    sets = {}
    for name, spec in specs.items():
        place = {"wsc": "super_glue/wsc.fixed:1.0.2", "dpr": "definite_pronoun_resolution:1.1.0"}
        splits = {"axb": ("test",), "axg": ("test",), "dpr": ("train", "test")}
        splits = splits.get(name, ("train", "validation", "test"))
        rows = {split: rows_of(name, split) for split in splits}
        sets[place.get(name, f"super_glue/{name}:1.0.2")] = spec, rows
    write_data_sets(directory, sets)
    return directory


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, save_untrained):
    return save_untrained(tmp_path_factory.mktemp("model"), (2,))


@pytest.fixture
def look(super_glue, model_dir, tmp_path_factory):
    """Evaluate on a task or mixture of SuperGLUE."""
    place = tmp_path_factory.getbasetemp() / "super_glue_data"

    def run(name="super_glue_v102_proportional", declared=Study, **changes):
        settings = dict(
            model_dir=str(model_dir),
            data=Data(
                mixture_or_task_name=name,
                feature_lengths={"inputs": 160, "targets": 20},
                data_dir=str(place),
                task_providers=(declared(vocabulary=BYTES, tfds_data_dir=str(super_glue)),),
            ),
            batch_size=4,
            mesh={"data": 4, "tensor": 2},
            generation=Generation(max_length=16),
            losses=False,
        )
        evaluate(**{**settings, **changes})

    return run


def asked(text):
    """The data set and the row that a text is about."""
    name, split, number = re.search(r"(\w+) (train|validation|test) (\d+)\b", text).groups()
    return name, rows_of(name, split)[int(number)], int(number)


def answer(text):
    """What the stand-in says of an example: often right, sometimes not, sometimes no label."""
    name, row, number = asked(text)
    wrong = number % 4 == 1
    if name == "record":
        return "nobody" if wrong else f"The {NAMES[number % 3]}!"
    if name == "wsc":
        return "Tom" if wrong else f"the {row['span1_text'].lower()}"
    if name == "dpr":
        return row["candidates"][(row["label"] + wrong) % 2]
    if number == 4:
        return "no label"
    labels = LABELLED.get(name, ((), BOOLEAN))[1]
    return labels[(row["label"] + wrong) % len(labels)]


def expected(name, seen):
    """What scikit-learn computes, or a count, from rows and the words said of them."""
    rows, words = [row for row, _ in seen], [text for _, text in seen]
    if name == "record":
        first = {row["idx"]["query"]: text != "nobody" for row, text in seen}
        return dict.fromkeys(("em", "f1"), np.mean(list(first.values())))
    truth = [row["label"] for row in rows]
    if name == "wsc":
        said = [int(text != "Tom") for text in words]
        return {"accuracy": accuracy_score(truth, said)}
    labels = LABELLED.get(name, ((), BOOLEAN))[1]
    said = [labels.index(text) if text in labels else -1 for text in words]
    if name == "multirc":
        valid = [1 - t if s == -1 else s for s, t in zip(said, truth, strict=True)]
        right = {}
        for row, s in zip(rows, said, strict=True):
            question = row["idx"]["question"]
            right[question] = right.get(question, True) and s == row["label"]
        return {"f1": f1_score(truth, valid), "exact_match": np.mean(list(right.values()))}
    found = {"accuracy": accuracy_score(truth, said)}
    if name == "cb":
        found["mean_3class_f1"] = f1_score(truth, said, labels=[0, 1, 2], average="macro")
    return found


def records(model_dir, split):
    lines = (model_dir / "evaluations.jsonl").read_text().splitlines()
    return {x["task"]: x for x in map(json.loads, lines) if x["split"] == split}


def predictions(model_dir, split, task):
    path = model_dir / "predictions" / split / "2" / f"{task}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_super_glues_scores_are_those_of_scikit_learn_on_the_same_words(
    look, saying, model_dir, monkeypatch, capsys
):
    monkeypatch.setattr(Inference, "generate", saying(answer))
    look(published=("T5 study baseline",))
    by_task, means = records(model_dir, "validation"), []
    average = by_task.pop("averages")["super_glue"]
    assert len(by_task) == 8
    for task, line in by_task.items():
        name = task.split("_")[2]
        seen = []
        for said in predictions(model_dir, "validation", task):
            row = asked(said["inputs"])[1]
            seen.append((row, said["text"]))
        assert len(seen) == line["examples"] == (15 if name == "record" else ROWS)
        wanted = {key: 100 * value for key, value in expected(name, seen).items()}
        assert {key: line[key] for key in wanted} == pytest.approx(wanted), task
        means.append(np.mean(list(wanted.values())))
    assert average == pytest.approx(np.mean(means))
    said = capsys.readouterr().out
    row = next(text for text in said.splitlines() if "super_glue/average" in text).split()
    assert row[1:] == [f"{average:.2f}", "71.36"]


def test_test_sets_give_predictions_and_no_scores_where_labels_are_secret(
    look, saying, model_dir, monkeypatch, capsys, log_lines
):
    monkeypatch.setattr(Inference, "generate", saying(answer))
    look(split="test")
    said = capsys.readouterr().out
    by_task = records(model_dir, "test")
    assert by_task.pop("dpr_v001_simple")["accuracy"] == 70.0  # rows 1, 5 and 9 are wrong
    assert len(by_task) == 10
    for task, line in by_task.items():
        assert line.keys() == {"step", "split", "task", "examples"}, task
        lines = predictions(model_dir, "test", task)
        assert len(lines) == line["examples"] == ROWS
        assert [x["text"] for x in lines] == [answer(x["inputs"]) for x in lines]
    assert "super_glue_axb_v102" in by_task
    assert predictions(model_dir, "test", "super_glue_boolq_v102")[4]["prediction"] == -1
    told = next(line for line in log_lines if "predictions only" in line)
    assert "super_glue_boolq_v102" in told
    assert "dpr_v001_simple" not in told
    assert "dpr_v001_simple/accuracy" in said


def test_each_task_may_have_a_split_of_its_own(look, saying, model_dir, monkeypatch, capsys):
    monkeypatch.setattr(Inference, "generate", saying(answer))
    split = {"dpr_v001_simple": "test", "super_glue_wsc_v102_simple_eval": "validation"}
    look("wsc_dpr_simple_proportional", split=split)
    said = capsys.readouterr().out
    assert "dpr_v001_simple/accuracy (test)" in said
    assert "super_glue_wsc_v102_simple_eval/accuracy " in said
    assert records(model_dir, "test")["dpr_v001_simple"]["accuracy"] == 70.0
    with pytest.raises(ConfigError, match=r"a split is given for dpr; the tasks of 'wsc_dpr"):
        look("wsc_dpr_simple_proportional", split={"dpr": "test"})


def test_multirc_wsc_and_dpr_are_answered_by_rank(look, model_dir, monkeypatch):
    """The likeliest option is what the stand-in would say; of none it finds the first likeliest."""

    def said(text):
        name, row, number = asked(text)
        label = (row["label"] + (number % 4 == 1)) % 2
        return row["candidates"][label] if name == "dpr" else BOOLEAN[label]

    def score(inference, params, batch):
        texts = [[BYTES.decode(row) for row in batch[k].tolist()] for k in ("inputs", "targets")]
        likely = [said(inputs) == target for inputs, target in zip(*texts, strict=True)]
        totals = np.where(likely, -1.0, -5.0).astype(np.float32)
        return Scored(totals, np.zeros_like(batch["targets"], np.float32))

    monkeypatch.setattr(Inference, "score", score)
    split = {"dpr_v001_options": "test"}
    tasks = ("super_glue_multirc_v102_options", "super_glue_wsc_v102_options", "dpr_v001_options")
    for task in tasks:
        look(task, declared=StudyOptions, split=split.get(task, "validation"))
        line = records(model_dir, split.get(task, "validation"))[task]
        lines = predictions(model_dir, split.get(task, "validation"), task)
        assert line["examples"] == len(lines) == 2 * ROWS
        if task != "super_glue_multirc_v102_options":
            assert line["accuracy"] == 70.0
            continue
        seen = [(asked(x["inputs"])[1], said(x["inputs"])) for x in lines[::2]]
        wanted = {key: 100 * value for key, value in expected("multirc", seen).items()}
        assert {key: line[key] for key in wanted} == pytest.approx(wanted)
    texts = {x["inputs"] for x in predictions(model_dir, "validation", tasks[1])}
    assert "wsc text: wsc validation 0 * Ann * ran since # he # did." in texts
