"""Exact match and F1 of answers: SQuAD's, TriviaQA's and MLQA's, which differ in what they ignore.

A target is the list of all answers that count as right; the best of them is taken.
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
    """Compute SQuAD's scores: letter case, punctuation, articles and spacing do not count."""
    return _best_scores(targets, predictions, normalize_squad)


def trivia_qa(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Compute the same with TriviaQA's rule, by which punctuation parts words."""
    return _best_scores(targets, predictions, normalize_trivia_qa)


def mlqa(
    targets: Sequence[Sequence[str]], predictions: Sequence[str], *, language: str
) -> dict[str, float]:
    """Compute the same with MLQA's rules of a language: its articles, its words."""
    return _best_scores(targets, predictions, functools.partial(normalize_mlqa, language=language))


def span_squad(
    targets: Sequence[Mapping[str, Any]], predictions: Sequence[str]
) -> dict[str, float]:
    """Compute SQuAD's scores of answers given as "start: 3 end: 5", words of the context.

    Words are counted as the task's format counts them: each space parts two, and so does what is no
    ASCII letter, digit or underscore. What is no such text is no answer.
    """
    texts = [
        _stretch(target["context"], prediction)
        for target, prediction in zip(targets, predictions, strict=True)
    ]
    return squad([target["answers"] for target in targets], texts)


def normalize_squad(text: str) -> str:
    """Return an answer in lower case without ASCII punctuation, articles and needless space."""
    kept = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(_ARTICLES["en"], " ", kept).split())


def normalize_trivia_qa(text: str) -> str:
    """Return an answer as `normalize_squad` does, with a space for each punctuation character."""
    marks = string.punctuation + _ALSO_PUNCTUATION_IN_TRIVIA
    kept = "".join(" " if char in marks else char for char in text.lower())
    return " ".join(re.sub(_ARTICLES["en"], " ", kept).split())


def normalize_mlqa(text: str, *, language: str) -> str:
    """Return an answer without any script's punctuation and one language's articles.

    Each Chinese character is a word.
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
        found = normalize(prediction)
        rights = [normalize(answer) for answer in answers]
        exact.append(found in rights)
        f1.append(max(_f1(right, found) for right in rights))
    return {"em": 100 * float(np.mean(exact)), "f1": 100 * float(np.mean(f1))}


def _f1(target: str, prediction: str) -> float:
    """Return the harmonic mean of precision and recall over words, repeated ones counted."""
    wanted, found = Counter(target.split()), Counter(prediction.split())
    shared = (wanted & found).total()
    return 2 * shared / (wanted.total() + found.total()) if shared else 0.0


def _stretch(context: str, prediction: str) -> str:
    """Return the words of a context that "start: 3 end: 5" names."""
    words = re.sub(r"\W", " ", prediction).split()
    if len(words) < 4 or not all(_is_whole(word) for word in (words[1], words[3])):
        return ""
    places = re.sub(r"\W", " ", context, flags=re.ASCII).split(" ")
    return " ".join(places[int(words[1]) : int(words[3]) + 1])


def _is_whole(word: Iterable[str]) -> bool:
    return all(char in string.digits for char in word)


def _is_punctuation(char: str) -> bool:
    return char in string.punctuation or unicodedata.category(char).startswith("P")
