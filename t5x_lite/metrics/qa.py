"""Exact match and F1 of answers of SQuAD, TriviaQA and MLQA, which normalize answers differently.

A target is the list of all correct answers; a prediction is compared with the best of them.
"""

import functools
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "ar": r"\sال^|ال",  # noqa: RUF001
    "hi": r"(?!)",
    "zh": r"(?!)",
}
_ALSO_PUNCTUATION_IN_TRIVIA = "‘’´`_"  # noqa: RUF001


def squad(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Compute SQuAD's exact match and F1; case, punctuation, articles and spacing are ignored."""
    return _best_scores(targets, predictions, normalize_squad)


def trivia_qa(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Compute exact match and F1 with TriviaQA's normalization: punctuation separates words."""
    return _best_scores(targets, predictions, normalize_trivia_qa)


def mlqa(
    targets: Sequence[Sequence[str]], predictions: Sequence[str], *, language: str
) -> dict[str, float]:
    """Compute exact match and F1 with MLQA's normalization for a language.

    Args:
        targets: Correct answers of each example.
        predictions: Predicted answers.
        language: Code of the language, which has its own articles and word boundaries.
    """
    return _best_scores(targets, predictions, functools.partial(normalize_mlqa, language=language))


def span_squad(
    targets: Sequence[Mapping[str, Any]], predictions: Sequence[str]
) -> dict[str, float]:
    """Compute SQuAD's scores of answers predicted as word indices, such as "start: 3 end: 5".

    Words are counted as in the task's format: every space, and every character that is not an ASCII
    letter, digit or underscore, separates two words. Other predictions count as empty answers.

    Args:
        targets: "answers" and "context" of each example.
        predictions: Predicted spans.
    """
    texts = [
        _span_text(target["context"], prediction)
        for target, prediction in zip(targets, predictions, strict=True)
    ]
    return squad([target["answers"] for target in targets], texts)


def normalize_squad(text: str) -> str:
    """Lowercase an answer and remove ASCII punctuation, English articles and extra spaces."""
    kept = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(_ARTICLES["en"], " ", kept).split())


def normalize_trivia_qa(text: str) -> str:
    """Normalize like `normalize_squad`, but replace each punctuation character with a space."""
    marks = string.punctuation + _ALSO_PUNCTUATION_IN_TRIVIA
    kept = "".join(" " if char in marks else char for char in text.lower())
    return " ".join(re.sub(_ARTICLES["en"], " ", kept).split())


def normalize_mlqa(text: str, *, language: str) -> str:
    """Lowercase an answer and remove Unicode punctuation and the articles of a language.

    Args:
        text: The answer.
        language: Code of the language; in Chinese each character becomes a word.
    """
    kept = "".join(char for char in text.lower() if not _is_punctuation(char))
    kept = re.sub(_ARTICLES[language], " ", kept)
    if language == "zh":
        kept = re.sub(r"([\u4e00-\u9fa5])", r" \1 ", kept)
    return " ".join(kept.split())


def _best_scores(
    targets: Sequence[Sequence[str]], predictions: Sequence[str], normalize: Callable[[str], str]
) -> dict[str, float]:
    exact, f1 = [], []
    for answers, prediction in zip(targets, predictions, strict=True):
        predicted = normalize(prediction)
        correct = [normalize(answer) for answer in answers]
        exact.append(predicted in correct)
        f1.append(max(_f1(answer, predicted) for answer in correct))
    return {"em": 100 * float(np.mean(exact)), "f1": 100 * float(np.mean(f1))}


def _f1(target: str, prediction: str) -> float:
    """Return F1 over the words of two texts as multisets."""
    true, predicted = Counter(target.split()), Counter(prediction.split())
    shared = (true & predicted).total()
    return 2 * shared / (true.total() + predicted.total()) if shared else 0.0


def _span_text(context: str, prediction: str) -> str:
    """Return the words of a context that a text such as "start: 3 end: 5" denotes, or ""."""
    words = re.sub(r"\W", " ", prediction).split()
    if len(words) < 4 or not all(_is_number(word) for word in (words[1], words[3])):
        return ""
    context_words = re.sub(r"\W", " ", context, flags=re.ASCII).split(" ")
    return " ".join(context_words[int(words[1]) : int(words[3]) + 1])


def _is_number(word: Iterable[str]) -> bool:
    return all(char in string.digits for char in word)


def _is_punctuation(char: str) -> bool:
    return char in string.punctuation or unicodedata.category(char).startswith("P")
