"""Measure how fast C4 is built, and in how much memory: python benchmarks/c4.py [pages ...].

Pages consist of sentences of Python's own documentation; a third of the lines of each occur on
other pages too, and a fifth of the pages are not English. One process; 16 buckets, as by default.
Needs the extra [c4]. If NLTK's English sentence model is missing, an empty one replaces it.
"""

import gzip
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

SIZES = (1000, 4000)
GERMAN = "Die Bäume wachsen langsam. Der Fluss ist breit und tief. Wir mögen beide sehr gern."


def write_wet(path, pages):
    """Write a WET file with the given number of pages."""
    import pydoc_data.topics

    texts = " ".join(" ".join(pydoc_data.topics.topics.values()).split())
    sentences = [f"{part}." for part in texts.split(". ") if 5 <= len(part.split()) < 60]
    draw = random.Random(0)
    with gzip.open(path, "wt", compresslevel=1) as file:
        for number in range(pages):
            lines = [draw.choice(sentences) for _ in range(5)]
            lines += [f"{draw.choice(sentences)} Page {number}, line {n}." for n in range(10)]
            text = GERMAN if number % 5 == 0 else "\n".join(lines)
            file.write(
                f"WARC/1.0\r\nWARC-Target-URI: https://a.invalid/{number}\r\n"
                f"WARC-Date: 2019-04-20T00:00:00Z\r\n\r\n{text}\r\n\r\n"
            )


def build(directory, pages):
    """Build C4 from a number of pages in this process, and print time and memory."""
    from t5x_lite.data.c4 import local
    from t5x_lite.data.c4.build_stages import BuildJob
    from t5x_lite.data.c4.recipe import C4Recipe

    wet = directory / f"{pages}.wet.gz"
    write_wet(wet, pages)
    recipe = C4Recipe("en.noblocklist")
    recipe.check()
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = sum(before[:2])
    job = BuildJob(recipe, (str(wet),), directory / f"c4.{pages}", 16)
    counts = local.build(job, processes=1)
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = sum(after[:2]) - began
    print(
        f"{pages:>7,} pages   {pages / seconds:7.0f} pages/s of CPU   "
        f"peak {after.ru_maxrss / 1024:5.0f} MiB   {counts['written: train page']:,} written"
    )


def punkt(directory):
    """Make sure that NLTK finds a sentence model."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        model = directory / "nltk_data" / "tokenizers" / "punkt_tab" / "english"
        model.mkdir(parents=True)
        for name in ("abbrev_types.txt", "sent_starters.txt", "collocations.tab"):
            (model / name).write_text("")
        (model / "ortho_context.tab").write_text("")
        os.environ["NLTK_DATA"] = str(directory / "nltk_data")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--one":
        with tempfile.TemporaryDirectory() as name:
            build(Path(name), int(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as name:
            punkt(Path(name))
            for size in map(int, sys.argv[1:] or SIZES):
                subprocess.run([sys.executable, __file__, "--one", str(size)], check=True)
