"""WET files made of real text (the embedded corpus) and of every rule's edge cases."""

import gzip

import pytest

PARAGRAPHS = 40
WORD = ("these-are-the-words-of-an-english-sentence-" * 30)[:1001]
EDGES = {
    "https://edge.invalid/words": (
        "These are four words.",
        "But these here are five.",
        f"A {WORD} is no word at all.",
        f"A {WORD[1:]} is one just yet.",
        "This line is the third to stay.",
        "And this is the fourth of them!",
        "There is more to be said about the words of the English language.",
        "Most of them are short, and some of those that are long are hard to read.",
    ),
    "https://edge.invalid/marks": (
        "A line may end in a question, may it not?",
        "A line may not end in an ellipsis, may it...",
        'A line may end in what somebody "says."',
        "A line must not end in a comma,",
        "A mark hides the end of this line.[3]",
        "Or the end of that line.[citation needed][edit]",
        "Empty brackets are marks too.[]",
    ),
    "https://edge.invalid/policy": (
        "You need to enable JavaScript to read this line.",
        "By reading this you accept our Terms of Use at once.",
        "This site uses cookies for all of its purposes.",
        "A first sentence stays. A second one does, too.",
        "And so does a third, which is all it takes.",
    ),
    "https://edge.invalid/lorem": (
        "A good line of text stands here. Another one follows.",
        "Lorem ipsum dolor sit amet, as they say.",
        "A good line of text stands here again.",
    ),
    "https://edge.invalid/brace": (
        "A good line stands here. Another one follows it.",
        "A brace in a line that stays, {, ends the page.",
        "A good line of text stands here again.",
    ),
    "https://edge.invalid/short-brace": (
        "The brace {",
        "A brace in a line that goes does no harm.",
        "A second sentence stands here, and it stays.",
        "A third sentence stands here, and it stays.",
    ),
    "https://edge.invalid/two": ("There are two sentences here. This is the second.",),
    "https://edge.invalid/long": ("All of these are words of one page. " * 6000,),
    "https://edge.invalid/german": (
        "Dies ist der erste Satz einer Seite auf Deutsch.",
        "Dies ist der zweite Satz, und er ist auch auf Deutsch.",
        "Dies ist der dritte Satz der Seite, der letzte von allen.",
    ),
    "https://edge.invalid/bad": (
        "The assistant was passing the class with a cutlass.",
        "This sentence has the badword, which is on the list.",
        "This sentence is the last of the three of this page.",
    ),
    "https://edge.invalid/badly": (
        "The badwords are not the word that is on the list.",
        "This sentence has mybadword in it, which is another.",
        "This sentence is the last of the three of the other page.",
    ),
    "https://www.edge.invalid/same/?utm_source=a": (
        "An older version of this page says so. It does.",
        "It has another line, which has many words.",
        "It has a third line, too, as all should have.",
    ),
    "http://edge.invalid/same": (
        "A newer version of this page says so. It does.",
        "It has another line with a good many words.",
        "It has a third line, too, as all of them should.",
    ),
    "https://edge.invalid/repeats": (
        "A line that is repeated on its own page.",
        "A line that stands on another page as well.",
        "a line that is Repeated on its own page. ",
        "A first line that stands here alone for once.",
        "A second line that stands here alone for once.",
    ),
    "https://edge.invalid/shares": (
        "A line that stands on another page as well.",
        "A line that only this one of the pages has.",
        "A second line that only this one of them has.",
        "A third line that only this one of them has.",
    ),
}
DATES = {"http://edge.invalid/same": "2019-04-24T09:23:58Z"}


def record(url, lines, *, date="2019-04-20T01:02:03Z"):
    text = "\n".join(lines)
    return (
        f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: {url}\r\nWARC-Date: {date}\r\n"
        f"WARC-Record-ID: <urn:uuid:0>\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(text.encode())}\r\n\r\n{text}\r\n\r\n"
    )


INFO = (
    "WARC/1.0\r\nWARC-Type: warcinfo\r\nWARC-Date: 2019-04-20T01:02:03Z\r\n"
    "Content-Type: application/warc-fields\r\nContent-Length: 21\r\n\r\nrobots: classic\r\n\r\n"
)


@pytest.fixture(scope="session")
def wet_record():
    """wet_record(url, lines, date="2019-...") -> the text of a record."""
    return record


@pytest.fixture(scope="session")
def edges():
    """Pages by address, made for the rules."""
    return EDGES


@pytest.fixture(scope="session")
def real_pages():
    """Pages of real English by address: documentation that Python carries, some lines shared."""
    import pydoc_data.topics

    texts = {
        f"https://docs.example.org/{name}": text.splitlines()
        for name, text in sorted(pydoc_data.topics.topics.items())[:PARAGRAPHS]
    }
    joined = {url: " ".join(lines).split("  ") for url, lines in texts.items()}
    shared = ("This line of text stands on very many of these pages.",)
    return {url: (*lines, *shared) for url, lines in joined.items()}


@pytest.fixture(scope="session")
def wet_files(tmp_path_factory, real_pages):
    """Two WET files, records gzipped one by one as Common Crawl does, and their pattern."""
    directory = tmp_path_factory.mktemp("wet")
    pages = [*EDGES.items(), *real_pages.items()]
    for number in range(2):
        with open(directory / f"{number}.warc.wet.gz", "wb") as file:
            file.write(gzip.compress(INFO.encode()))
            for url, lines in pages[number::2]:
                date = DATES.get(url, "2019-04-20T01:02:03Z")
                file.write(gzip.compress(record(url, lines, date=date).encode()))
    (directory / "bad_words.txt").write_text("badword\n")
    return directory


@pytest.fixture(scope="session", autouse=True)
def punkt(tmp_path_factory):
    """Punkt with a few English abbreviations, where NLTK and the processes it starts look."""
    nltk = pytest.importorskip("nltk")
    pytest.importorskip("langdetect")
    data = tmp_path_factory.mktemp("nltk_data")
    directory = data / "tokenizers" / "punkt_tab" / "english"
    directory.mkdir(parents=True)
    (directory / "abbrev_types.txt").write_text("dr\nmr\nmrs\ne.g\ni.e\netc\n")
    (directory / "sent_starters.txt").write_text("the\n")
    for name in ("collocations.tab", "ortho_context.tab"):
        (directory / name).write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NLTK_DATA", str(data))
        patch.setattr(nltk.data, "path", [str(data)])
        yield
