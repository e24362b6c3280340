"""The rules, held against C4's public builder (TensorFlow Datasets) on the same pages."""

import hashlib
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.data.c4 import duplicates, rules
from t5x_lite.data.c4.wet import Counts, Page

THEIR_COUNTS = {
    "line-filtered:too_long_word": "clean: line with a word of more than 1,000 characters",
    "line-filtered:no_endmark": "clean: line without an end mark",
    "line-filtered:too_short": "clean: line of under five words",
    "line-filtered:javascript": "clean: line about JavaScript",
    "line-filtered:policy": "clean: line about a policy",
    "line-passed": "clean: line kept",
    "filtered:loremipsum": "clean: page with lorem ipsum",
    "filtered:squigglybracket": "clean: page with a brace",
    "filtered:too_few_sentences": "clean: page of under three sentences",
    "passed": "clean: page kept",
}
PHRASES = st.sampled_from(
    (
        *("A line of words ends here.", "no mark", "Too short.", "javascript is in this line."),
        *("Lorem ipsum is what this line says.", "We use cookies on all of our pages.", "Yes..."),
        *("Marks may hide the end.[12]", "Is this a question of many words?", "{", "", "\x0b"),
        *(
            'He "said so to us."',
            "A brace { in a line of many words.",
            "Dr. Who was here. He left!",
        ),
    )
)
URLS = st.text("ahtps:/w.?utm_refdx=&", max_size=30)


@pytest.fixture(scope="module")
def builder():
    """The builder's module, with our sentences and without Beam's counters."""
    module = pytest.importorskip("tensorflow_datasets.text.c4_utils")
    with pytest.MonkeyPatch.context() as patch:
        splitter = type("Splitter", (), {"tokenize": staticmethod(rules.sentences)})
        patch.setattr(module, "_SENTENCE_TOKENIZER", splitter)
        patch.setattr(module, "get_counter_inc_fn", lambda namespace: lambda name, amt=1: None)
        yield module


@pytest.fixture(scope="module")
def both(builder):
    """both(page) -> their page with theirs, for the builder's functions."""

    def make(page):
        return builder.PageFeatures(
            url=page.url,
            normalized_url=builder.normalize_url(page.url),
            text=page.text,
            timestamp=page.timestamp,
            language="en",
        )

    return make


def assert_cleaned_alike(builder, theirs, page):
    their_counts, counts = Counter(), Counts()
    their_page = next(
        iter(
            builder.get_clean_page_fn()(theirs, counter_inc_fn=lambda n: their_counts.update([n]))
        ),
        None,
    )
    found = rules.clean(page, counts)
    assert (found and found.text) == (their_page and their_page.text)
    assert counts == Counter({THEIR_COUNTS[name]: n for name, n in their_counts.items()})


@pytest.mark.filterwarnings("default")
@given(st.lists(PHRASES, max_size=12))
def test_pages_are_cleaned_as_the_builder_cleans_them(builder, both, lines):
    page = Page("https://a.invalid", "\n".join(lines), "2019")
    assert_cleaned_alike(builder, both(page), page)


@pytest.mark.filterwarnings("default")
def test_real_pages_and_every_edge_are_cleaned_alike(builder, both, real_pages, edges):
    seen = Counts()
    for url, lines in (*real_pages.items(), *edges.items()):
        page = Page(url, "\n".join(lines), "2019")
        assert_cleaned_alike(builder, both(page), page)
        rules.clean(page, seen)
    assert seen.keys() == set(THEIR_COUNTS.values())  # every rule had something to do


@pytest.mark.filterwarnings("default")
@given(URLS)
def test_addresses_are_normalized_as_the_builders(builder, url):
    assert rules.normalized_url(url) == builder.normalize_url(url)


def test_addresses_lose_what_does_not_tell_pages_apart():
    for url in ("http://a.org/b", "https://www.a.org/b/", "https://a.org/b?utm_source=c&d=e"):
        assert rules.normalized_url(url) == "a.org/b"
    assert rules.normalized_url("https://a.org/b?page=2") == "a.org/b?page=2"


@pytest.mark.filterwarnings("default")
@given(st.text(" .,abdworB-_\nß", max_size=40))
def test_the_block_list_is_the_builders(builder, both, text):
    words = ["bad", "a.b", "worb dad"]
    page = Page("https://a.invalid", f"{text} bad {text}", "2019")
    theirs = builder.get_badwords_filter_fn({"en": words})(both(page))
    assert rules.BadWords(words).allow(page, Counts()) == theirs


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("I asked for assistance polishing my cutlass.", True),
        ("He put it on his ass for travel.", False),
        ("Ass is a species of animals.", False),
        ('Donkey is one synonym for "ass"', False),
        ("one ass_ one", True),
    ],
)
def test_words_of_the_list_must_stand_alone(text, allowed):
    counts = Counts()
    assert rules.BadWords(["ass"]).allow(Page("", text, ""), counts) == allowed
    assert sum(counts.values()) == 1


@pytest.mark.filterwarnings("default")
def test_english_is_told_as_by_the_builder(builder, both, real_pages, edges):
    pages = [
        Page(url, "\n".join(lines), "") for url, lines in (*edges.items(), *real_pages.items())
    ]
    pages += [Page("", "1234", ""), Page("", "ok", "")]
    found = []
    for page in pages[:30] + pages[-2:]:
        theirs = bool(list(builder.detect_english(both(page))))
        found.append(rules.is_english(page, Counts()))
        assert found[-1] == theirs
    assert {True, False} == set(found)


def test_languages_are_told_one_page_at_a_time(monkeypatch):
    """As langdetect draws from Python's one generator, which threads would share."""
    from concurrent.futures import ThreadPoolExecutor

    import langdetect

    inside, most = [], []

    def detect(text):
        inside.append(text)
        most.append(len(inside))
        time.sleep(0)  # lets another thread in, if it may
        inside.remove(text)
        return []

    monkeypatch.setattr(langdetect, "detect_langs", detect)
    pages = [Page("", f"page {number}", "") for number in range(200)]
    with ThreadPoolExecutor(4) as pool:
        assert not any(pool.map(lambda page: rules.is_english(page, Counts()), pages))
    assert (len(most), max(most)) == (200, 1)


def test_one_page_in_a_thousand_is_for_validation_by_its_address():
    pages = [Page(f"https://www.a.org/{n}/", "", "") for n in range(20_000)]
    chosen = [page for page in pages if rules.is_validation(page)]
    digests = [hashlib.md5(f"a.org/{n}".encode()).hexdigest() for n in range(20_000)]
    assert chosen == [p for p, d in zip(pages, digests, strict=True) if int(d, 16) % 1000 == 0]
    assert 5 < len(chosen) < 50


def test_the_longest_page_has_190_000_characters():
    counts = Counts()
    assert rules.is_short_enough(Page("", "a" * 190_000, ""), counts)
    assert not rules.is_short_enough(Page("", "a" * 190_001, ""), counts)
    assert counts == {"length: page kept": 1, "length: page longer than 190,000": 1}


def test_the_newest_page_of_an_address_stays_in_whatever_order_they_come():
    pages = [Page("u", "a", "2019"), Page("u", "b", "2021"), Page("u", "c", "2020")]
    tied = [Page("u", "a", "2021"), Page("u", "b", "2021")]
    assert rules.newest(pages, Counts()) == rules.newest(pages[::-1], Counts()) == pages[1]
    assert rules.newest(tied, Counts()) == rules.newest(tied[::-1], Counts())


def test_news_are_of_listed_domains_and_subdomains():
    pytest.importorskip("tldextract")
    news = rules.NewsDomains({"bbc.co.uk": True, "cnn.com": ["edition", ""]})
    allowed = {
        "https://www.bbc.co.uk/a": True,
        "http://news.bbc.co.uk/a": True,
        "https://edition.cnn.com/a": True,
        "https://cnn.com": True,
        "https://shop.cnn.com/a": False,
        "https://bbc.com/a": False,
        "https://co.uk/": False,
    }
    counts = Counts()
    for url, expected in allowed.items():
        assert news.allow(Page(url, "", ""), counts) == expected, url
    assert counts == {"news: page kept": 4, "news: page of another domain": 3}


def test_addresses_are_found_whatever_their_form():
    listed = rules.Addresses(["https://a.org/b/", "c.org", "c.org"])
    assert len(listed) == 2
    for url, expected in {"http://www.a.org/b": True, "c.org/": True, "a.org": False}.items():
        assert listed.allow(Page(url, "", ""), Counts()) == expected
    assert not rules.Addresses([]).allow(Page("a.org", "", ""), Counts())


LINES = st.lists(
    st.sampled_from([f"This is line number {n} of all." for n in range(6)]), max_size=8
)


@pytest.mark.filterwarnings("default")
@given(LINES, st.sets(st.integers(0, 5)))
def test_duplicate_lines_go_as_in_the_builder(builder, both, lines, kept):
    page = Page("https://a.invalid", "\n".join(lines), "2019")
    hashes = {n: duplicates.hashed(f"this is line number {n} of all.") for n in kept}
    theirs = builder._remove_lines_from_text(
        (page.url, {"pages": [both(page)], "lines": [h.hex() for h in hashes.values()]}),
        counter_inc_fn=lambda name: None,
        min_num_sentences=3,
    )
    expected = next((found.text for found in theirs), None)
    found = duplicates.without_duplicates(page, set(hashes.values()), "lines", Counts())
    assert (found and found.text) == expected
    emitted = {key for key, _ in builder._emit_url_to_lines(page)}
    assert {key.hex() for key in duplicates.keys(page, "lines")} == emitted


def test_of_three_sentences_in_a_row_one_copy_stays():
    texts = "One is one. Two is two. Three is three.\nFour is four. Five is five. Six is six."
    page = Page("https://a.invalid", texts, "")
    keys = duplicates.keys(page, "three_sentences")
    assert len(keys) == 4
    whole = duplicates.without_duplicates(page, set(keys), "three_sentences", Counts())
    assert whole == page
    counts = Counts()
    part = duplicates.without_duplicates(page, set(keys[1:]), "three_sentences", counts)
    assert part is not None
    assert part.text == "Four is four. Five is five. Six is six."
    assert counts["duplicates: sentence removed"] == 3
    assert duplicates.without_duplicates(page, set(), "three_sentences", Counts()) is None
    twice = page._replace(text=f"{texts}\n{texts}")
    found = duplicates.without_duplicates(
        twice, set(duplicates.keys(twice, "three_sentences")), "three_sentences", Counts()
    )
    assert found is not None
    assert found.text == texts
