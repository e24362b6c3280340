"""Remove duplicates across pages: lines, or spans of three sentences, stay on one page only.

It takes two functions, between which the hashes of all pages are compared: `keys` returns hashes of
what may be a duplicate on a page, and `without_duplicates` removes what another page keeps. Of the
pages that share a line, the one whose URL has the smallest MD5 keeps it, so that no domain is
favored.

C4's public builder and the released data compare lines. The paper describes spans of three
sentences (Raffel et al. 2020, section 2.2), which are the other choice here.
"""

import hashlib
from collections.abc import Collection, Iterator
from typing import Literal

from t5x_lite.data.c4 import rules
from t5x_lite.data.c4.wet import Counts, Page

Unit = Literal["lines", "three_sentences"]
SPAN = 3  # sentences


def hashed(text: str) -> bytes:
    """Return the MD5 of a text."""
    return hashlib.md5(text.encode()).digest()


def keys(page: Page, unit: Unit) -> list[bytes]:
    """Return the hashes of the lines or spans of a page, each once, in order.

    Args:
        page: The page.
        unit: "lines" or "three_sentences".
    """
    hashes = (
        (_line_key(line) for line in page.text.split("\n"))
        if unit == "lines"
        else _span_keys([sentence for _, sentence in _sentences(page)])
    )
    return list(dict.fromkeys(hashes))


def without_duplicates(
    page: Page, kept: Collection[bytes], unit: Unit, counts: Counts
) -> Page | None:
    """Return a page without duplicates, or None if fewer than three sentences remain.

    Args:
        page: The page.
        kept: Those of its `keys` that this page keeps.
        unit: "lines" or "three_sentences".
        counts: Counts lines, sentences and pages by what happened to them.
    """
    remove = _without_lines if unit == "lines" else _without_spans
    text = remove(page, kept, counts)
    if not text or len(rules.sentences(text)) < rules.MIN_SENTENCES:
        counts["duplicates: page of under three sentences"] += 1
        return None
    counts["duplicates: page kept"] += 1
    return page._replace(text=text)


def _without_lines(page: Page, kept: Collection[bytes], counts: Counts) -> str:
    lines: dict[bytes, str] = {}
    for line in page.text.split("\n"):
        key = _line_key(line)
        if key not in kept:
            counts["duplicates: line of another page"] += 1
        elif key in lines:
            counts["duplicates: line repeated on its page"] += 1
        else:
            counts["duplicates: line kept"] += 1
            lines[key] = line
    return "\n".join(lines.values())


def _without_spans(page: Page, kept: Collection[bytes], counts: Counts) -> str:
    """Remove the sentences of every span that another page keeps, or that is repeated here."""
    sentences = _sentences(page)
    is_removed, seen = [False] * len(sentences), set()
    for first, key in enumerate(_span_keys([sentence for _, sentence in sentences])):
        if key not in kept or key in seen:
            is_removed[first : first + SPAN] = [True] * SPAN
        seen.add(key)
    counts["duplicates: sentence removed"] += sum(is_removed)
    counts["duplicates: sentence kept"] += len(is_removed) - sum(is_removed)
    lines: dict[int, list[str]] = {}
    for (number, sentence), removed in zip(sentences, is_removed, strict=True):
        if not removed:
            lines.setdefault(number, []).append(sentence)
    return "\n".join(" ".join(parts) for parts in lines.values())


def _sentences(page: Page) -> list[tuple[int, str]]:
    """Return the sentences of a page, each with the number of its line."""
    return [
        (number, sentence)
        for number, line in enumerate(page.text.split("\n"))
        for sentence in rules.sentences(line)
    ]


def _span_keys(sentences: list[str]) -> Iterator[bytes]:
    normalized = [" ".join(sentence.lower().split()) for sentence in sentences]
    for first in range(len(normalized) - SPAN + 1):
        yield hashed("\n".join(normalized[first : first + SPAN]))


def _line_key(line: str) -> bytes:
    return hashed(line.strip().lower())
