"""Questions about a text, or about nothing but the question: SQuAD and TriviaQA.

Punctuation is set apart with spaces in questions, contexts and answers alike:

    question: Who wrote "Emma" ?   is read as   question: Who wrote " Emma " ?
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
    """Ask for the first answer to a question about a context; `closed_book` leaves it out."""
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
    """Ask for the places of the answer's first and last word: "start: 3 end: 5".

    Words are counted as `span_words` splits the context. An answer that is not found, or that ends
    the context, makes no example.
    """
    [made] = squad(example)
    words, answer = span_words(made["context"]), span_words(made["targets"])
    for start in range(len(words) - len(answer)):
        if words[start : start + len(answer)] == answer:
            return [made | {"targets": f"start: {start} end: {start + len(answer) - 1}"}]
    return []


def span_words(text: str) -> list[str]:
    """Split at each space, once all that is no ASCII letter, digit or underscore is one.

    Two neighboring spaces have an empty word between them, which counts.
    """
    return re.sub(r"\W", " ", text, flags=re.ASCII).split(" ")


@versioned("questions.trivia_qa", 1)
def trivia_qa(example: Example) -> list[dict[str, Any]]:
    """Ask a question about each text in which one of its answers occurs, answer by answer."""
    question = pad_punctuation(example["question"])
    answers = [pad_punctuation(answer) for answer in example["answer/normalized_aliases"]]
    texts: Sequence[str] = [
        *example["entity_pages/wiki_context"],
        *example["search_results/search_context"],
    ]
    found = []
    for text in texts:
        context = pad_punctuation(text)
        lowered = context.translate(_CAPITALS)
        inputs = _SPACE.sub(" ", f"question: {question} context: {context}")
        found += [
            {"inputs": inputs, "targets": answer}
            for answer in answers
            if answer.translate(_CAPITALS) in lowered
        ]
    return found
