"""C4's rules, page by page (Raffel et al. 2020, section 2.2), as its public builder applies them.

The builder is `tensorflow_datasets.text.c4` 3.1.0; where the paper says otherwise, the builder
counts. Each rule says in `counts` what it took and what it left out.
"""

import functools
import hashlib
import re
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from t5x_lite.data.c4.wet import Counts, Page
from t5x_lite.errors import ConfigError

MAX_CHARACTERS = 190_000  # of a page
MAX_WORD = 1000  # characters
MIN_WORDS = 5  # of a line
MIN_SENTENCES = 3  # of a page
MIN_ENGLISH = 0.99
VALIDATION_EVERY = 1000

_ONE_AT_A_TIME = threading.Lock()
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_END_MARKS = (".", "?", "!", '"')
_POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)


def normalized_url(url: str) -> str:
    """Return what two addresses of one page have in common.

    "https://www.example.org/a/?utm_source=b" -> "example.org/a"
    """
    url = re.sub(r"https?:\/\/(www\.)?", "", url)
    return re.sub(r"\?(utm_|ref|feed).*", "", url).rstrip("/")


def is_short_enough(page: Page, counts: Counts) -> bool:
    """Tell whether a page has at most 190,000 characters."""
    return _counted(len(page.text) <= MAX_CHARACTERS, counts, "length: page", "longer than 190,000")


def age(page: Page) -> tuple[str, bytes]:
    """Return what is greatest for the newest page; of pages of one date a hash decides."""
    return page.timestamp, hashlib.md5(f"{page.url} {page.text}".encode()).digest()


def newest(pages: Iterable[Page], counts: Counts) -> Page:
    """Return the newest of the pages of one address."""
    first, *others = pages
    counts["address: page kept"] += 1
    counts["address: older page of one address"] += len(others)
    return max([first, *others], key=age)


def clean(page: Page, counts: Counts) -> Page | None:
    """Return a page with those of its lines that are sentences, None where few are or it is code.

    A line goes if a word in it has more than 1,000 characters; if, without marks of citations, it
    ends in no `. ? ! "`, or in an ellipsis; if it has fewer than five words, or speaks of
    JavaScript or of policies. A page goes at a line with "lorem ipsum" or a brace that has come
    that far, and if fewer than three sentences are left.
    """
    lines, number = [], 0
    for line in page.text.splitlines():
        line = line.strip()
        reason = None
        if any(len(word) > MAX_WORD for word in line.split()):
            reason = "with a word of more than 1,000 characters"
        else:
            line = _CITATION.sub("", line)
            reason = _fault(line)
        if reason in _OF_PAGES:
            counts[f"clean: page {reason}"] += 1
            return None
        counts[f"clean: line {reason or 'kept'}"] += 1
        if not reason:
            lines.append(line)
            number += len(sentences(line))
    if not _counted(number >= MIN_SENTENCES, counts, "clean: page", "of under three sentences"):
        return None
    return page._replace(text="\n".join(lines).strip())


def is_english(page: Page, counts: Counts) -> bool:
    """Tell whether langdetect is 99 % sure that a page is English; needs the extra `c4`."""
    langdetect = _langdetect()
    with _ONE_AT_A_TIME:  # langdetect draws from a generator that all threads share
        try:
            best = next(iter(langdetect.detect_langs(page.text)), None)
        except langdetect.lang_detect_exception.LangDetectException:
            best = None
    if best is None:
        return _counted(False, counts, "language: page", "of no known language")
    if best.prob < MIN_ENGLISH:
        return _counted(False, counts, "language: page", "of doubtful language")
    return _counted(best.lang == "en", counts, "language: page", "not in English")


class BadWords:
    """Pages with a word of a list go: in any case of letters, with no letter or digit beside it."""

    def __init__(self, words: Iterable[str]):
        escaped = "|".join(re.escape(word) for word in words)
        self._pattern = re.compile(rf"(?:\W|^)({escaped})(?:\W|$)")

    def allow(self, page: Page, counts: Counts) -> bool:
        """Tell whether a page has none of the words."""
        found = self._pattern.search(page.text.lower())
        return _counted(found is None, counts, "words: page", "with a word of the block list")


class NewsDomains:
    """Pages of news: their domain, and where it says so their subdomain, is on RealNews's list.

    domains: by domain, the subdomains that count, or anything else for all of them.
    """

    def __init__(self, domains: Mapping[str, Collection[str] | bool]):
        self._domains = domains

    def allow(self, page: Page, counts: Counts) -> bool:
        """Tell whether a page is of a domain on the list; needs the extra `c4`."""
        found = _domain_parser()(normalized_url(page.url))
        domain = f"{found.domain}.{found.suffix}"
        allowed = self._domains.get(domain, ())
        is_allowed = domain in self._domains and (
            not isinstance(allowed, list | tuple) or found.subdomain in allowed
        )
        return _counted(is_allowed, counts, "news: page", "of another domain")


class Addresses:
    """Pages of listed addresses, of which memory holds eight bytes each."""

    def __init__(self, addresses: Iterable[str]):
        hashes = (_short_hash(normalized_url(address)) for address in addresses)
        self._hashes = np.unique(np.fromiter(hashes, np.uint64))

    def __len__(self) -> int:
        return len(self._hashes)

    def allow(self, page: Page, counts: Counts) -> bool:
        """Tell whether a page is listed."""
        wanted = np.uint64(_short_hash(normalized_url(page.url)))
        place = int(np.searchsorted(self._hashes, wanted))
        is_listed = place < len(self._hashes) and self._hashes[place] == wanted
        return _counted(bool(is_listed), counts, "addresses: page", "that is not listed")


def is_validation(page: Page) -> bool:
    """Tell whether a page is of the validation split: one in a thousand, by its address."""
    digest = hashlib.md5(normalized_url(page.url).encode()).digest()
    return int.from_bytes(digest) % VALIDATION_EVERY == 0


def sentences(text: str) -> list[str]:
    """Return the sentences of a text by NLTK's Punkt for English; needs the extra `c4`."""
    return _punkt()(text)


@functools.cache
def _punkt() -> Callable[[str], list[str]]:
    try:
        from nltk.tokenize.punkt import PunktTokenizer
    except ImportError as error:
        raise ConfigError(f"counting sentences needs the extra 'c4': {error}") from None
    try:
        return PunktTokenizer("english").tokenize
    except LookupError:
        raise ConfigError(
            "NLTK does not find its English model of sentences: fetch it once by `python -m "
            "nltk.downloader punkt_tab` (the environment's NLTK_DATA tells where it lies)"
        ) from None


@functools.cache
def _langdetect() -> Any:
    try:
        import langdetect
    except ImportError as error:
        raise ConfigError(f"telling languages needs the extra 'c4': {error}") from None
    langdetect.DetectorFactory.seed = 0  # or it draws its samples anew each time
    return langdetect


@functools.cache
def _domain_parser() -> Callable[[str], Any]:
    try:
        import tldextract
    except ImportError as error:
        raise ConfigError(f"telling domains needs the extra 'c4': {error}") from None
    return tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)  # the list that it carries


def _short_hash(text: str) -> int:
    return int.from_bytes(hashlib.md5(text.encode()).digest()[:8])


def _fault(line: str) -> str | None:
    """Return what speaks against a line or, if one of `_OF_PAGES`, against its page."""
    lowered = line.lower()
    if not line.endswith(_END_MARKS) or line.endswith("..."):
        return "without an end mark"
    if len(line.split()) < MIN_WORDS:
        return "of under five words"
    if "lorem ipsum" in lowered:
        return "with lorem ipsum"
    if "javascript" in lowered:
        return "about JavaScript"
    if "{" in line:
        return "with a brace"
    if any(policy in lowered for policy in _POLICIES):
        return "about a policy"
    return None


_OF_PAGES = ("with lorem ipsum", "with a brace")


def _counted(kept: bool, counts: Counts, what: str, otherwise: str) -> bool:
    counts[f"{what} {'kept' if kept else otherwise}"] += 1
    return kept
