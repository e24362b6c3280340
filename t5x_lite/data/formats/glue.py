"""GLUE and SuperGLUE: the name of the task, then each field after its own name.

{"sentence": "It is so.", "label": 1}   ->   "cola sentence: It is so."     "acceptable"
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.data.code_identity import versioned

Example = Mapping[str, Any]
UNKNOWN = "<unk>"  # the target of examples whose label is kept secret


@versioned("glue.classification", 1)
def classification(
    example: Example,
    *,
    benchmark: str,
    fields: Mapping[str, str],
    labels: Sequence[str],
) -> list[dict[str, Any]]:
    """Ask for the text of a label.

    `fields` maps the names the model reads, in their order, to those of the data set. A label of
    -1 is that of a test set.
    """
    parts = [f"{shown}: {example[field]}" for shown, field in fields.items()]
    label = example["label"]
    return [
        {
            "inputs": " ".join([benchmark, *parts]),
            "targets": UNKNOWN if label == -1 else labels[label],
            "idx": example["idx"],
        }
    ]


@versioned("glue.options", 1)
def options(example: Example, *, make: Any, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Make an example of each label: whether it is right, and its place among those of a question.

    copa ... question: cause    choice1    is_correct 0   idx/question 7   idx/option 0
    copa ... question: cause    choice2    is_correct 1   idx/question 7   idx/option 1

    What `make` numbers in parts (MultiRC: paragraph, question, answer) keeps them.
    """
    return [
        {
            "inputs": made["inputs"],
            "targets": label,
            "is_correct": int(label == made["targets"]),
            **_place(made),
            "idx/option": number,
        }
        for made in make(example)
        for number, label in enumerate(labels)
    ]


def _place(made: Example) -> dict[str, Any]:
    if "idx" in made:
        return {"idx/question": made["idx"]}
    return {name: value for name, value in made.items() if name.startswith("idx/")}


@versioned("glue.similarity", 1)
def similarity(example: Example) -> list[dict[str, Any]]:
    """Ask for STS-B's score of two sentences, rounded to a fifth: 3.25 is "3.2"."""
    score = np.round(np.float32(example["label"]) * np.float32(5)) / np.float32(5)
    inputs = f"stsb sentence1: {example['sentence1']} sentence2: {example['sentence2']}"
    return [{"inputs": inputs, "targets": f"{score:.1f}", "idx": example["idx"]}]


@versioned("glue.multirc", 1)
def multirc(example: Example) -> list[dict[str, Any]]:
    """Ask whether one answer to a question about a paragraph is right; markup is removed."""
    inputs = " ".join(
        ["multirc", *(f"{name}: {example[name]}" for name in ("question", "answer", "paragraph"))]
    )
    inputs = re.sub("</?b>", "", inputs.replace("<br>", " "))
    label = example["label"]
    return [
        {
            "inputs": inputs,
            "targets": UNKNOWN if label == -1 else ("False", "True")[label],
            **{name: example[name] for name in ("idx/paragraph", "idx/question", "idx/answer")},
        }
    ]


@versioned("glue.record", 1)
def record(example: Example) -> list[dict[str, Any]]:
    """Ask for the entity that a query leaves out: one example for each right answer.

    The highlights that follow a news text become sentences of it. Test examples, which have no
    answers, become one example without a known target.
    """
    passage = re.sub("([.?!\"'])\n@highlight\n", r"\1 ", example["passage"])
    passage = passage.replace("\n@highlight\n", ". ")
    entities = ", ".join(example["entities"])
    inputs = f"record query: {example['query']} entities: {entities} passage: {passage}"
    return [
        {
            "inputs": inputs,
            "targets": answer,
            "answers": list(example["answers"]),
            "idx/passage": example["idx/passage"],
            "idx/query": example["idx/query"],
        }
        for answer in (example["answers"] or [UNKNOWN])
    ]
