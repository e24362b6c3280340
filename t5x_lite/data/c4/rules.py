"""The rules by which C4 cleans and filters pages (Raffel et al. 2020, section 2.2).

They are those of the public builder, `tensorflow_datasets.text.c4` 3.1.0, also where the paper
differs. Each rule counts in `counts` what it kept and what it dropped.
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
    """Return a URL without the parts that differ between URLs of the same page.

    "https://www.example.org/a/?utm_source=b"   ->   "example.org/a"
    """
    url = re.sub(r"https?:\/\/(www\.)?", "", url)
    return re.sub(r"\?(utm_|ref|feed).*", "", url).rstrip("/")


def is_short_enough(page: Page, counts: Counts) -> bool:
    """Return whether a page has at most 190,000 characters."""
    return _counted(len(page.text) <= MAX_CHARACTERS, counts, "length: page", "longer than 190,000")


def age(page: Page) -> tuple[str, bytes]:
    """Return a key that is greatest for the newest page; a hash decides between equal dates."""
    return page.timestamp, hashlib.md5(f"{page.url} {page.text}".encode()).digest()


def newest(pages: Iterable[Page], counts: Counts) -> Page:
    """Return the newest of several pages with the same URL."""
    first, *others = pages
    counts["address: page kept"] += 1
    counts["address: older page of one address"] += len(others)
    return max([first, *others], key=age)


def clean(page: Page, counts: Counts) -> Page | None:
    """Return a page with only those of its lines that are sentences, or None to drop the page.

    A line is dropped if a word has more than 1,000 characters; if, without citation marks, it does
    not end in `. ? ! "`, or ends in an ellipsis; if it has fewer than five words; or if it mentions
    JavaScript or a policy. The page is dropped if a line has "lorem ipsum" or a brace and no
    earlier rule applied to it, or if fewer than three sentences remain.

    Args:
        page: The page.
        counts: Counts lines and pages by what happened to them.

    Raises:
        ConfigError: If the extra `c4` is not installed.
    """
    lines, number = [], 0
    for line in page.text.splitlines():
        line = line.strip()
        reason = None
        if any(len(word) > MAX_WORD for word in line.split()):
            reason = "with a word of more than 1,000 characters"
        else:
            line = _CITATION.sub("", line)
            reason = _reason_to_drop(line)
        if reason in _DROPS_PAGE:
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
    """Return whether langdetect gives English at least 99 %; needs the extra `c4`."""
    langdetect = _langdetect()
    with _ONE_AT_A_TIME:  # langdetect uses a random generator that all threads share
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
    """Drops pages with a word of a list, in upper or lower case, between non-word characters.

    Args:
        words: The list.
    """

    def __init__(self, words: Iterable[str]):
        escaped = "|".join(re.escape(word) for word in words)
        self._pattern = re.compile(rf"(?:\W|^)({escaped})(?:\W|$)")

    def allow(self, page: Page, counts: Counts) -> bool:
        """Return whether a page has none of the words."""
        match = self._pattern.search(page.text.lower())
        return _counted(match is None, counts, "words: page", "with a word of the block list")


class NewsDomains:
    """Keeps pages of news: those of domains, or of their subdomains, on RealNews's list.

    Args:
        domains: By domain, a list of its subdomains, or anything else for all of them.
    """

    def __init__(self, domains: Mapping[str, Collection[str] | bool]):
        self._domains = domains

    def allow(self, page: Page, counts: Counts) -> bool:
        """Return whether a page is of a domain on the list; needs the extra `c4`."""
        parsed = _domain_parser()(normalized_url(page.url))
        domain = f"{parsed.domain}.{parsed.suffix}"
        allowed = self._domains.get(domain, ())
        is_allowed = domain in self._domains and (
            not isinstance(allowed, list | tuple) or parsed.subdomain in allowed
        )
        return _counted(is_allowed, counts, "news: page", "of another domain")


class Addresses:
    """Keeps pages whose URLs are listed; 8 bytes of memory for each URL.

    Args:
        addresses: The URLs.
    """

    def __init__(self, addresses: Iterable[str]):
        hashes = (_short_hash(normalized_url(address)) for address in addresses)
        self._hashes = np.unique(np.fromiter(hashes, np.uint64))

    def __len__(self) -> int:
        return len(self._hashes)

    def allow(self, page: Page, counts: Counts) -> bool:
        """Return whether the URL of a page is listed."""
        key = np.uint64(_short_hash(normalized_url(page.url)))
        index = int(np.searchsorted(self._hashes, key))
        is_listed = index < len(self._hashes) and self._hashes[index] == key
        return _counted(bool(is_listed), counts, "addresses: page", "that is not listed")


def is_validation(page: Page) -> bool:
    """Return whether a page belongs to the validation split: one in a thousand, by its URL."""
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
            "nltk.downloader punkt_tab` (NLTK_DATA sets where it is)"
        ) from None


@functools.cache
def _langdetect() -> Any:
    try:
        import langdetect
    except ImportError as error:
        raise ConfigError(f"detecting languages needs the extra 'c4': {error}") from None
    langdetect.DetectorFactory.seed = 0  # otherwise results are random
    return langdetect


@functools.cache
def _domain_parser() -> Callable[[str], Any]:
    try:
        import tldextract
    except ImportError as error:
        raise ConfigError(f"parsing domains needs the extra 'c4': {error}") from None
    return tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)  # use the bundled list


def _short_hash(text: str) -> int:
    return int.from_bytes(hashlib.md5(text.encode()).digest()[:8])


def _reason_to_drop(line: str) -> str | None:
    """Return why a line or, for one of `_DROPS_PAGE`, its page is dropped; None if it is kept."""
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


_DROPS_PAGE = ("with lorem ipsum", "with a brace")


def _counted(kept: bool, counts: Counts, what: str, otherwise: str) -> bool:
    """Count a decision and return it."""
    counts[f"{what} {'kept' if kept else otherwise}"] += 1
    return kept
