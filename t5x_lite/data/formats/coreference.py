"""Format Winograd schemas: asterisks mark a pronoun, the target is what it refers to.

wsc: Mitchell asked Tom if *he* could lend some money.   ->   Tom
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from t5x_lite.data.code_identity import versioned
from t5x_lite.data.formats.glue import UNKNOWN

Example = Mapping[str, Any]

PRONOUNS = frozenset(("he", "she", "they", "it", "her", "his", "their", "them", "him"))
_ARTICLES = ("a", "an", "the")
_MARKS = (".", ",", "?", "!")
# Two texts of SuperGLUE's WSC whose word index is not that of the pronoun: by the text, what comes
# before the pronoun and what comes after it.
_CORRECTED = {
    "The boy continued to whip the pony , and eventually the pony threw him over. John laughed out "
    'quite loud. "Good for him," he said. ': (
        "The boy continued to whip the pony , and eventually the pony threw him over. John laughed "
        'out quite loud. "Good for ',
        ' ," he said.',
    ),
    "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the magic "
    "pebble in an iron safe . Some day they might want to use it , but really for now, what more "
    "could they wish for?": (
        "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the "
        "magic pebble in an iron safe . Some day they might want to use ",
        " , but really for now, what more could they wish for?",
    ),
}


@versioned("coreference.wsc", 1)
def wsc(example: Example, *, right_only: bool) -> list[dict[str, Any]]:
    """Ask what a pronoun refers to; the target is the candidate of the example, right or wrong.

    Args:
        example: An example of SuperGLUE's WSC.
        right_only: Whether to omit examples with a wrong candidate, which must not be learned.

    Raises:
        ValueError: If the pronoun is not where the example says it is.
    """
    if right_only and not example["label"]:
        return []
    pronoun = example["span2_text"]
    before, after = _CORRECTED.get(example["text"]) or _around(example)
    return [
        {
            "inputs": f"wsc: {before}*{pronoun}*{after}",
            "targets": example["span1_text"],
            "label": int(example["label"]),
            "idx": example["idx"],
        }
    ]


@versioned("coreference.definite_pronoun", 1)
def definite_pronoun(example: Example) -> list[dict[str, Any]]:
    """Ask what a pronoun refers to, marking the first of its form in the sentence.

    Args:
        example: An example of the Definite Pronoun Resolution data set.
    """
    pronoun = re.escape(example["pronoun"])
    marked = re.sub(rf" ({pronoun})( |\.|,)", r" *\1*\2", example["sentence"], count=1)
    targets = example["candidates"][example["label"]]
    return [{"inputs": f"wsc: {marked}", "targets": targets}]


@versioned("coreference.definite_pronoun_options", 1)
def definite_pronoun_options(example: Example) -> list[dict[str, Any]]:
    """Return one example for each candidate, for evaluation by rank classification.

    The data set has no index: the CRC-32 of the inputs identifies the question.

    Args:
        example: An example of the Definite Pronoun Resolution data set.
    """
    (formatted,) = definite_pronoun(example)
    return [
        {
            "inputs": formatted["inputs"],
            "targets": candidate,
            "is_correct": int(number == example["label"]),
            "idx/question": zlib.crc32(formatted["inputs"].encode()),
            "idx/option": number,
        }
        for number, candidate in enumerate(example["candidates"])
    ]


@versioned("coreference.wsc_marked", 1)
def wsc_marked(example: Example) -> list[dict[str, Any]]:
    """Ask whether a marked pronoun refers to a marked noun: T5's other format of WSC.

        wsc text: * Mitchell * asked Tom if # he # could lend some money.   ->   False

    Words that are not at the index that the data set gives stay unmarked, as in T5's code.

    Args:
        example: An example of SuperGLUE's WSC.
    """
    noun, pronoun = int(example["span1_index"]), int(example["span2_index"])
    text = _marked(example["text"], example["span1_text"], noun, "*")
    text = _marked(text, example["span2_text"], pronoun + 2 * (noun < pronoun), "#")
    label = example["label"]
    return [
        {
            "inputs": f"wsc text: {text}",
            "targets": UNKNOWN if label == -1 else ("False", "True")[label],
            "idx": example["idx"],
        }
    ]


@versioned("coreference.wnli", 1)
def wnli(example: Example) -> list[dict[str, Any]]:
    """Turn a WNLI pair into a Winograd schema, for evaluation.

    The hypothesis repeats a part of the premise with the pronoun replaced. The pronoun is the one
    with the most shared words around it, the candidate what replaces it.

    Args:
        example: An example of WNLI.
    """
    premise, hypothesis = example["sentence1"], example["sentence2"]
    match = _best_match(_words(premise), _words(hypothesis))
    return [
        {
            "inputs": f"wsc: {_mark(premise, match.position)}",
            "targets": _as_written(match.candidate, hypothesis),
            "premise": premise,
            "hypothesis": hypothesis,
            "label": int(example["label"]),
            "idx": example["idx"],
        }
    ]


def _marked(text: str, words: str, index: int, mark: str) -> str:
    """Put marks around words that start at a word index; the text as it is if they do not."""
    pattern = rf"^((?:\S+\s){{{index}}})({re.escape(words)})"
    return re.sub(pattern, lambda match: f"{match[1]}{mark} {match[2]} {mark}", text)


def _around(example: Example) -> tuple[str, str]:
    """Return the text before the pronoun and the text after it."""
    words, index = example["text"].split(" "), example["span2_index"]
    if not 0 < index < len(words) or words[index] != example["span2_text"]:
        raise ValueError(
            f"word {index} of {example['text']!r} is not the pronoun {example['span2_text']!r}"
        )
    return " ".join([*words[:index], ""]), " ".join(["", *words[index + 1 :]])


class _Match(NamedTuple):
    """Shared words around a pronoun, its position among the words, and the text for it."""

    shared: int
    position: int
    candidate: str


def _best_match(premise: Sequence[str], hypothesis: Sequence[str]) -> _Match:
    indices = [index for index, word in enumerate(premise) if word in PRONOUNS]
    return max((_match(premise, hypothesis, index) for index in indices), key=lambda m: m.shared)


def _match(premise: Sequence[str], hypothesis: Sequence[str], index: int) -> _Match:
    before, after = premise[:index], premise[index + 1 :]
    shared_before = _shared_start(before[::-1], hypothesis[::-1])
    shared_after = _shared_start(after, hypothesis)
    shared = shared_before + shared_after
    if not shared:
        return _Match(0, index, "")
    left = before[-shared_before or len(before) :]
    right = after[:shared_after]
    text = " ".join(hypothesis)
    for pattern in ([*left, "(.+)", *right], ["^(.+)", *right], [*left, "(.+)$"]):
        if match := re.search(" ".join(pattern), text):
            return _Match(shared, index, match[1])
    return _Match(shared, index, "")


def _shared_start(words: Sequence[str], others: Sequence[str]) -> int:
    """Return how many of the first words occur together, in this order, among others."""
    text = " ".join(others)
    count = 0
    while count < len(words) and " ".join(words[: count + 1]) in text:
        count += 1
    return count


def _as_written(candidate: str, hypothesis: str) -> str:
    """Return a candidate, from its last article, as the hypothesis writes it, never possessive."""
    words = candidate.split(" ")
    start = max((words.index(article) for article in _ARTICLES if article in words), default=0)
    pattern = " ".join(rf"{re.escape(word)}(?:\.|,|\?|!)?" for word in words[start:])
    match = re.search(pattern, hypothesis, re.IGNORECASE)
    if not match:
        raise ValueError(f"the hypothesis {hypothesis!r} does not hold {candidate!r}")
    written = match[0][:-1] if match[0].endswith(_MARKS) else match[0]
    return written.removesuffix("'") if written.endswith("'") else written.removesuffix("'s")


def _words(text: str) -> list[str]:
    """Split a text into words in lower case, each without one mark at its end."""
    stripped = (re.sub(r"[.,?!]$", "", word) for word in text.strip().lower().split(" "))
    return [word for word in stripped if word]


def _mark(text: str, index: int) -> str:
    words = text.split(" ")
    word = words[index]
    words[index] = f"*{word[:-1]}* {word[-1]}" if word.endswith(_MARKS) else f"*{word}*"
    return " ".join(words)
