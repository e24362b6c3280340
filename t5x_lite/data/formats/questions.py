"""Format question answering: SQuAD and TriviaQA, with a context or without.

Punctuation gets spaces around it in questions, contexts and answers:

    question: Who wrote "Emma"?   ->   question: Who wrote " Emma " ?
"""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_lite.data.code_identity import versioned

Example = Mapping[str, Any]

_PUNCTUATION = re.compile(f"([{re.escape(string.punctuation)}])")
_SPACE = re.compile("[ \t\n\f\r]+")
_CAPITALS = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def pad_punctuation(text: str) -> str:
    """Put spaces around ASCII punctuation and make one space of each run of white space."""
    return _SPACE.sub(" ", _PUNCTUATION.sub(r" \1 ", text))


@versioned("questions.squad", 1)
def squad(example: Example, *, closed_book: bool = False) -> list[dict[str, Any]]:
    """Ask for the first answer to a question about a context.

        inputs     question: Who wrote it ? context: Ada wrote it .
        targets    Ada

    Args:
        example: An example of SQuAD.
        closed_book: Whether to omit the context from the inputs.
    """
    question, context = pad_punctuation(example["question"]), pad_punctuation(example["context"])
    answers = [pad_punctuation(answer) for answer in example["answers/text"]]
    inputs = (
        f"squad trivia question: {question}"
        if closed_book
        else f"question: {question} context: {context}"
    )
    return [
        {
            "inputs": _SPACE.sub(" ", inputs),
            "targets": answers[0],
            "id": example["id"],
            "context": context,
            "question": question,
            "answers": answers,
        }
    ]


@versioned("questions.squad_span", 1)
def squad_span(example: Example) -> list[dict[str, Any]]:
    """Ask for the indices of the answer's first and last word: "start: 3 end: 5".

    Words are those of `span_words`. There is no example if the answer is not found, or if it ends
    the context: the T5 library does not look there.

    Args:
        example: An example of SQuAD.
    """
    [formatted] = squad(example)
    words, answer = span_words(formatted["context"]), span_words(formatted["targets"])
    for start in range(len(words) - len(answer)):
        if words[start : start + len(answer)] == answer:
            return [formatted | {"targets": f"start: {start} end: {start + len(answer) - 1}"}]
    return []


def span_words(text: str) -> list[str]:
    """Split a text into words: runs of ASCII letters, digits and underscores.

    Two neighboring separators have an empty word between them, which counts:

        "a, b"   ->   "a", "", "b"
    """
    return re.sub(r"\W", " ", text, flags=re.ASCII).split(" ")


@versioned("questions.trivia_qa", 1)
def trivia_qa(example: Example) -> list[dict[str, Any]]:
    """Ask a question about each text that contains one of its answers, once for each answer.

    Args:
        example: An example of TriviaQA.
    """
    question = pad_punctuation(example["question"])
    answers = [pad_punctuation(answer) for answer in example["answer/normalized_aliases"]]
    texts: Sequence[str] = [
        *example["entity_pages/wiki_context"],
        *example["search_results/search_context"],
    ]
    examples = []
    for text in texts:
        context = pad_punctuation(text)
        lowered = context.translate(_CAPITALS)
        inputs = _SPACE.sub(" ", f"question: {question} context: {context}")
        examples += [
            {"inputs": inputs, "targets": answer}
            for answer in answers
            if answer.translate(_CAPITALS) in lowered
        ]
    return examples
