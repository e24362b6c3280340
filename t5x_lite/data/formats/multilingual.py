"""Format the multilingual tasks of mT5 (Xue et al. 2021): XNLI, PAWS-X, TyDi QA, NER ..."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from t5x_lite.data.code_identity import versioned

Example = Mapping[str, Any]

PAWS_LABELS = ("different_meaning", "paraphrase")
_SPACES = " \t\n\f\r"
_SPACE = re.compile(f"[{_SPACES}]+")


def pad_punctuation(text: str) -> str:
    """Put spaces around every character except letters, marks, numbers, "_" and ASCII spaces."""
    padded = (
        char
        if char == "_" or char in _SPACES or unicodedata.category(char)[0] in "LMN"
        else f" {char} "
        for char in text
    )
    return _SPACE.sub(" ", "".join(padded))


@versioned("multilingual.entailment", 1)
def entailment(example: Example) -> list[dict[str, Any]]:
    """Ask for the digit of a label: 0 entailment, 1 neutral, 2 contradiction.

    Args:
        example: An example with "premise", "hypothesis" and "label".
    """
    inputs = f"xnli: premise: {example['premise']} hypothesis: {example['hypothesis']}"
    return [{"inputs": inputs, "targets": str(example["label"])}]


@versioned("multilingual.entailment_in_one", 1)
def entailment_in_one(example: Example, *, language: str) -> list[dict[str, Any]]:
    """Ask for the label of an example of XNLI, which has all languages, in one of them.

    Args:
        example: An example of XNLI.
        language: The code of the language, such as "de".
    """
    hypotheses = dict(
        zip(example["hypothesis/language"], example["hypothesis/translation"], strict=True)
    )
    return entailment(
        {
            "premise": example[f"premise/{language}"],
            "hypothesis": hypotheses[language],
            "label": example["label"],
        }
    )


@versioned("multilingual.paraphrase", 1)
def paraphrase(example: Example) -> list[dict[str, Any]]:
    """Ask whether two sentences mean the same.

    Args:
        example: An example of PAWS or PAWS-X.
    """
    inputs = f"paws sentence1: {example['sentence1']} sentence2: {example['sentence2']}"
    return [{"inputs": inputs, "targets": PAWS_LABELS[example["label"]]}]


@versioned("multilingual.question_in_one", 1)
def question_in_one(example: Example, *, language: str) -> list[dict[str, Any]]:
    """Ask a question of TyDi QA if it is in a given language; otherwise return no example.

    Args:
        example: An example of TyDi QA, whose id starts with the English name of its language.
        language: That name in lower case, such as "english".
    """
    return question(example) if example["id"].split("-")[0] == language else []


@versioned("multilingual.question", 1)
def question(example: Example) -> list[dict[str, Any]]:
    """Ask for the first answer to a question about a context, in any script.

    Args:
        example: An example in the layout of SQuAD.
    """
    padded_question, context = (
        pad_punctuation(example["question"]),
        pad_punctuation(example["context"]),
    )
    answers = [pad_punctuation(answer) for answer in example["answers/text"]]
    return [
        {
            "inputs": _SPACE.sub(" ", f"question: {padded_question} context: {context}"),
            "targets": answers[0],
            "id": example["id"],
            "context": context,
            "question": padded_question,
            "answers": answers,
        }
    ]


@versioned("multilingual.entities", 1)
def entities(example: Example) -> list[dict[str, Any]]:
    """Ask for the named entities of a sentence with their types (PER, ORG, LOC).

        inputs     tag: Ada Lovelace saw London
        targets    PER: Ada Lovelace $$ LOC: London

    Args:
        example: An example of WikiANN.
    """
    inputs = f"tag: {' '.join(example['tokens'])}"
    return [{"inputs": inputs, "targets": " $$ ".join(example["spans"])}]
