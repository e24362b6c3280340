"""Winograd schemas as text: the pronoun stands between asterisks, the target is whom it means.

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
# Two texts of SuperGLUE's WSC whose word index misses the pronoun, by what tells them: the words
# before it, what stands there, and the text to use.
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
    """Ask whom a pronoun means; the target is the candidate of the example, right or wrong.

    `right_only` leaves out what must not be learned: the wrong candidates. Raises ValueError where
    the pronoun is not where the example says it is.
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
    """Ask whom the first pronoun of that form in a sentence means."""
    pronoun = re.escape(example["pronoun"])
    marked = re.sub(rf" ({pronoun})( |\.|,)", r" *\1*\2", example["sentence"], count=1)
    targets = example["candidates"][example["label"]]
    return [{"inputs": f"wsc: {marked}", "targets": targets}]


@versioned("coreference.definite_pronoun_options", 1)
def definite_pronoun_options(example: Example) -> list[dict[str, Any]]:
    """Ask the same with each candidate as the target; a question is known by its text's CRC-32."""
    (asked,) = definite_pronoun(example)
    return [
        {
            "inputs": asked["inputs"],
            "targets": candidate,
            "is_correct": int(number == example["label"]),
            "idx/question": zlib.crc32(asked["inputs"].encode()),
            "idx/option": number,
        }
        for number, candidate in enumerate(example["candidates"])
    ]


@versioned("coreference.wsc_marked", 1)
def wsc_marked(example: Example) -> list[dict[str, Any]]:
    """Ask whether a marked noun and a marked pronoun mean the same: T5's other format of WSC.

    wsc text: * Mitchell * asked Tom if # he # could lend some money.   ->   False

    Where the data set's place misses the words, they stay without marks, as in T5's code.
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
    """Make a Winograd schema of a WNLI pair, for evaluation.

    The hypothesis repeats a part of the premise with the pronoun replaced: the pronoun is the one
    in whose surroundings most words are shared, the candidate what stands there instead.
    """
    premise, hypothesis = example["sentence1"], example["sentence2"]
    match = _best_match(_words(premise), _words(hypothesis))
    return [
        {
            "inputs": f"wsc: {_mark(premise, match.place)}",
            "targets": _as_written(match.candidate, hypothesis),
            "premise": premise,
            "hypothesis": hypothesis,
            "label": int(example["label"]),
            "idx": example["idx"],
        }
    ]


def _marked(text: str, words: str, place: int, mark: str) -> str:
    """Put marks around words that follow the first `place` words; the text as it is if they do not.

    T5's code does the same by a regular expression.
    """
    pattern = rf"^((?:\S+\s){{{place}}})({re.escape(words)})"
    return re.sub(pattern, lambda found: f"{found[1]}{mark} {found[2]} {mark}", text)


def _around(example: Example) -> tuple[str, str]:
    words, place = example["text"].split(" "), example["span2_index"]
    if not 0 < place < len(words) or words[place] != example["span2_text"]:
        raise ValueError(
            f"word {place} of {example['text']!r} is not the pronoun {example['span2_text']!r}"
        )
    return " ".join([*words[:place], ""]), " ".join(["", *words[place + 1 :]])


class _Match(NamedTuple):
    """How many words around a pronoun are shared, where it stands, what stands there instead."""

    shared: int
    place: int
    candidate: str


def _best_match(premise: Sequence[str], hypothesis: Sequence[str]) -> _Match:
    places = [place for place, word in enumerate(premise) if word in PRONOUNS]
    return max((_match(premise, hypothesis, place) for place in places), key=lambda m: m.shared)


def _match(premise: Sequence[str], hypothesis: Sequence[str], place: int) -> _Match:
    before, after = premise[:place], premise[place + 1 :]
    shared_before = _shared_start(before[::-1], hypothesis[::-1])
    shared_after = _shared_start(after, hypothesis)
    shared = shared_before + shared_after
    if not shared:
        return _Match(0, place, "")
    left = before[-shared_before or len(before) :]
    right = after[:shared_after]
    text = " ".join(hypothesis)
    for pattern in ([*left, "(.+)", *right], ["^(.+)", *right], [*left, "(.+)$"]):
        if found := re.search(" ".join(pattern), text):
            return _Match(shared, place, found[1])
    return _Match(shared, place, "")


def _shared_start(words: Sequence[str], others: Sequence[str]) -> int:
    """Count how many first words occur, as one stretch of text, among others."""
    text = " ".join(others)
    count = 0
    while count < len(words) and " ".join(words[: count + 1]) in text:
        count += 1
    return count


def _as_written(candidate: str, hypothesis: str) -> str:
    """Return a candidate from its last article on as the hypothesis writes it, never possessive."""
    words = candidate.split(" ")
    start = max((words.index(article) for article in _ARTICLES if article in words), default=0)
    pattern = " ".join(rf"{re.escape(word)}(?:\.|,|\?|!)?" for word in words[start:])
    found = re.search(pattern, hypothesis, re.IGNORECASE)
    if not found:
        raise ValueError(f"the hypothesis {hypothesis!r} does not hold {candidate!r}")
    written = found[0][:-1] if found[0].endswith(_MARKS) else found[0]
    return written.removesuffix("'") if written.endswith("'") else written.removesuffix("'s")


def _words(text: str) -> list[str]:
    """Split a text into words in lower case, each without one mark at its end."""
    stripped = (re.sub(r"[.,?!]$", "", word) for word in text.strip().lower().split(" "))
    return [word for word in stripped if word]


def _mark(text: str, place: int) -> str:
    words = text.split(" ")
    word = words[place]
    words[place] = f"*{word[:-1]}* {word[-1]}" if word.endswith(_MARKS) else f"*{word}*"
    return " ".join(words)
