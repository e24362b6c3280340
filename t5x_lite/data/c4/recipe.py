"""Choose the rules of a variant of C4 (en, noclean, noblocklist, realnewslike, webtextlike)."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from t5x_lite.data.c4 import duplicates, rules
from t5x_lite.data.c4.wet import Counts, Page
from t5x_lite.errors import ConfigError
from t5x_lite.io import files

Variant = Literal["en", "en.noclean", "en.noblocklist", "realnewslike", "webtextlike"]
VARIANTS = ("en", "en.noclean", "en.noblocklist", "realnewslike", "webtextlike")
Check = Callable[[Page, Counts], bool]


@dataclass(frozen=True)
class C4Recipe:
    """A variant of C4 and the files that its rules read.

    Args:
        variant: "en" (all rules), "en.noclean" (only URLs and language), "en.noblocklist" (without
            the list of words), "realnewslike" (only news domains), or "webtextlike" (only listed
            URLs).
        unit: What is compared to find duplicates: "lines", as in the builder, or the paper's
            "three_sentences".
        bad_words: A file with one word on each line. The builder uses LDNOOBW's list, which is not
            shipped here.
        news_domains: RealNews's JSON of domains and their subdomains.
        web_addresses: A pattern of files with one URL on each line.

    Raises:
        ConfigError: For an unknown variant or unit, or a variant without the file it needs.
    """

    variant: Variant = "en"
    unit: duplicates.Unit = "lines"
    bad_words: str | None = None
    news_domains: str | None = None
    web_addresses: str | None = None

    def __post_init__(self):
        """Check the variant and that the files it needs are given."""
        if self.variant not in VARIANTS:
            raise ConfigError(
                f"the variant is {self.variant!r}; expected one of {', '.join(VARIANTS)}",
                "C4Recipe.variant",
            )
        if self.unit not in ("lines", "three_sentences"):
            raise ConfigError(
                f"the unit is {self.unit!r}; expected 'lines' or 'three_sentences'", "C4Recipe.unit"
            )
        needed = {
            "bad_words": not self.variant.startswith("en.no"),
            "news_domains": self.variant == "realnewslike",
            "web_addresses": self.variant == "webtextlike",
        }
        for name, is_needed in needed.items():
            if is_needed and getattr(self, name) is None:
                raise ConfigError(f"{self.variant} needs {name}: a file", f"C4Recipe.{name}")

    @property
    def is_cleaned(self) -> bool:
        """Whether lines and pages are cleaned, and duplicates removed."""
        return self.variant != "en.noclean"

    def first_checks(self) -> list[Check]:
        """Return the checks before pages with the same URL are compared."""
        if self.variant != "realnewslike":
            return [rules.is_short_enough]
        return [rules.is_short_enough, _news(self.news_domains or "").allow]

    def last_checks(self) -> list[Check]:
        """Return the checks after duplicates are removed."""
        if self.variant.startswith("en.no"):
            return [rules.is_english]
        return [rules.is_english, _words(self.bad_words or "").allow]

    def cleaned(self, page: Page, counts: Counts) -> Page | None:
        """Return a page after the rules for lines, None if it is dropped."""
        return rules.clean(page, counts) if self.is_cleaned else page

    def middle_checks(self) -> list[Check]:
        """Return the checks of the newest page of each URL, before it is cleaned."""
        if self.variant != "webtextlike":
            return []
        return [_addresses(self.web_addresses or "").allow]

    def check(self) -> None:
        """Raise ConfigError for missing files and packages."""
        if self.is_cleaned:
            rules.sentences("")
        rules.is_english(Page("", "This is a sentence in English.", ""), Counts())
        for checks in (self.first_checks, self.middle_checks, self.last_checks):
            checks()


def passes(page: Page, checks: list[Check], counts: Counts) -> bool:
    """Return whether a page passes all checks; the first that fails counts the reason."""
    return all(check(page, counts) for check in checks)


@functools.cache
def _news(path: str) -> rules.NewsDomains:
    try:
        return rules.NewsDomains(json.loads(_content(path, "news_domains")))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}", "C4Recipe.news_domains") from None


@functools.cache
def _words(path: str) -> rules.BadWords:
    words = [word.strip() for word in _content(path, "bad_words").splitlines()]
    if not (words := [word for word in words if word]):
        raise ConfigError(f"{path} lists no word", "C4Recipe.bad_words")
    return rules.BadWords(words)


@functools.cache
def _addresses(pattern: str) -> rules.Addresses:
    listed = rules.Addresses(
        line for path in files.matching(pattern) for line in _content(path, "web_addresses").split()
    )
    if not len(listed):
        raise ConfigError(f"{pattern} lists no address", "C4Recipe.web_addresses")
    return listed


def _content(path: str, name: str) -> str:
    try:
        return files.read_bytes(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", f"C4Recipe.{name}") from None
