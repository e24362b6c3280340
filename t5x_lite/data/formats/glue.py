"""Format GLUE and SuperGLUE: the name of the task, then each field after its own name.

{"sentence": "It is so.", "label": 1}   ->   "cola sentence: It is so."     "acceptable"
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.data.code_identity import versioned

Example = Mapping[str, Any]
UNKNOWN = "<unk>"  # the target of test examples, whose labels are not published


@versioned("glue.classification", 1)
def classification(
    example: Example,
    *,
    benchmark: str,
    fields: Mapping[str, str],
    labels: Sequence[str],
) -> list[dict[str, Any]]:
    """Ask for the text of a label.

        {"question1": "How?", "question2": "Why?", "label": 0, "idx": 3}
        inputs     qqp question1: How? question2: Why?
        targets    not_duplicate

    Args:
        example: An example of the data set with a "label" (-1: not published) and an "idx".
        benchmark: The name of the task, which the inputs start with.
        fields: The fields of the data set by the names that the model reads, in this order.
        labels: The text of each label.
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
    """Return one example for each label, for evaluation by rank classification.

        inputs                      targets    is_correct   idx/question   idx/option
        copa ... question: cause    choice1    0            7              0
        copa ... question: cause    choice2    1            7              1

    Args:
        example: An example of the data set.
        make: The format of the task, which returns "idx", or several fields "idx/...", as MultiRC
            does for paragraph, question and answer.
        labels: The text of each label.
    """
    return [
        {
            "inputs": formatted["inputs"],
            "targets": label,
            "is_correct": int(label == formatted["targets"]),
            **_question_index(formatted),
            "idx/option": number,
        }
        for formatted in make(example)
        for number, label in enumerate(labels)
    ]


def _question_index(formatted: Example) -> dict[str, Any]:
    if "idx" in formatted:
        return {"idx/question": formatted["idx"]}
    return {name: value for name, value in formatted.items() if name.startswith("idx/")}


@versioned("glue.similarity", 1)
def similarity(example: Example) -> list[dict[str, Any]]:
    """Ask for STS-B's score of two sentences, rounded to a fifth: 3.25 is "3.2".

    Args:
        example: An example of the data set.
    """
    # In float32, as the data set stores scores: 3.25 * 5 is then exact and rounds half to even.
    score = np.round(np.float32(example["label"]) * np.float32(5)) / np.float32(5)
    inputs = f"stsb sentence1: {example['sentence1']} sentence2: {example['sentence2']}"
    return [{"inputs": inputs, "targets": f"{score:.1f}", "idx": example["idx"]}]


@versioned("glue.multirc", 1)
def multirc(example: Example) -> list[dict[str, Any]]:
    """Ask whether one answer to a question about a paragraph is right; markup is removed.

        inputs     multirc question: Who? answer: Ada paragraph: Ada wrote it.
        targets    True

    Args:
        example: An example of the data set.
    """
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
    """Ask for the entity that is missing in a query (ReCoRD): one example for each right answer.

    The highlights that follow a news text become sentences of it. Test examples, which have no
    answers, become one example with the target "<unk>".

        inputs     record query: @placeholder wrote it. entities: Ada, Bob passage: Ada met Bob.
        targets    Ada

    Args:
        example: An example of the data set.
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
