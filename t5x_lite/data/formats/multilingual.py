"""The multilingual tasks of mT5 (Xue et al. 2021), as its code formats them."""

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
    """Put spaces around what is no letter, mark, number, underscore or ASCII space."""
    kept = (
        char
        if char == "_" or char in _SPACES or unicodedata.category(char)[0] in "LMN"
        else f" {char} "
        for char in text
    )
    return _SPACE.sub(" ", "".join(kept))


@versioned("multilingual.entailment", 1)
def entailment(example: Example) -> list[dict[str, Any]]:
    """Ask for the digit of a label: 0 entailment, 1 neutral, 2 contradiction."""
    inputs = f"xnli: premise: {example['premise']} hypothesis: {example['hypothesis']}"
    return [{"inputs": inputs, "targets": str(example["label"])}]


@versioned("multilingual.entailment_in_one", 1)
def entailment_in_one(example: Example, *, language: str) -> list[dict[str, Any]]:
    """Ask the same of an example of XNLI, which holds all languages, in one of them."""
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
    """Ask whether two sentences mean the same."""
    inputs = f"paws sentence1: {example['sentence1']} sentence2: {example['sentence2']}"
    return [{"inputs": inputs, "targets": PAWS_LABELS[example["label"]]}]


@versioned("multilingual.question_in_one", 1)
def question_in_one(example: Example, *, language: str) -> list[dict[str, Any]]:
    """Ask a question of TyDi QA if it is in one language, named in English, as its id begins."""
    return question(example) if example["id"].split("-")[0] == language else []


@versioned("multilingual.question", 1)
def question(example: Example) -> list[dict[str, Any]]:
    """Ask for the first answer to a question about a context, in any script."""
    asked, context = pad_punctuation(example["question"]), pad_punctuation(example["context"])
    answers = [pad_punctuation(answer) for answer in example["answers/text"]]
    return [
        {
            "inputs": _SPACE.sub(" ", f"question: {asked} context: {context}"),
            "targets": answers[0],
            "id": example["id"],
            "context": context,
            "question": asked,
            "answers": answers,
        }
    ]


@versioned("multilingual.entities", 1)
def entities(example: Example) -> list[dict[str, Any]]:
    """Ask for the names in a sentence with their kinds (PER, ORG, LOC).

    inputs     tag: Ada Lovelace saw London
    targets    PER: Ada Lovelace $$ LOC: London
    """
    inputs = f"tag: {' '.join(example['tokens'])}"
    return [{"inputs": inputs, "targets": " $$ ".join(example["spans"])}]
