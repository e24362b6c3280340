"""C4 from WET files on one machine: what stays, what goes, and that a kill changes nothing."""

import gzip
import json
import subprocess
import sys

import pytest

from t5x_lite.data.c4 import build_stages, duplicates, local, rules, spill
from t5x_lite.data.c4.build_stages import BuildJob
from t5x_lite.data.c4.recipe import C4Recipe
from t5x_lite.data.c4.wet import Counts, Page, read_pages
from t5x_lite.data.sources.jsonl_and_tsv import LineStats, MalformedLines
from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic

# Builds C4 from the WET files that are named. For some n, a child is killed (-9) at its n-th file
# operation, another one goes on, and what it ends in is compared.
KILLED_AT_MANY_MOMENTS = """
import os, signal, sys
from pathlib import Path
from t5x_lite.data.c4 import local
from t5x_lite.data.c4.recipe import C4Recipe
from t5x_lite.data.c4.build_stages import BuildJob

root, moments = Path(sys.argv[1]), int(sys.argv[2])
recipe, wet = C4Recipe(bad_words=sys.argv[3]), tuple(sys.argv[4:])
WATCHED = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")

def build(name):
    local.build(BuildJob(recipe, wet, root / name, 3), processes=1)

def files(name):
    return {path.name: path.read_bytes() for path in (root / name).iterdir()}

def writes(event, arguments):
    if event != "open":
        return event in WATCHED
    return str(root) in str(arguments[0]) and arguments[2] & (os.O_WRONLY | os.O_RDWR)

done, last = 0, None

def hook(event, arguments):
    global done
    if writes(event, arguments):
        done += 1
        if done == last:
            os.kill(os.getpid(), signal.SIGKILL)

def kill_at(name, operation):
    global done, last
    child = os.fork()
    if not child:
        done, last = 0, operation
        build(name)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, operation

recipe.check()
sys.addaudithook(hook)
build("whole")
wanted, count = files("whole"), done
for moment in range(1, moments + 1):
    name, operation = f"cut{moment}", moment * count // moments
    kill_at(name, operation)
    build(name)
    assert files(name) == wanted, (operation, count)
print(count)
"""


@pytest.fixture
def recipe(wet_files):
    def make(**changes):
        return C4Recipe(**{"bad_words": str(wet_files / "bad_words.txt"), **changes})

    return make


@pytest.fixture
def job(wet_files, recipe, tmp_path):
    """job(directory, buckets=3, variant=...) -> a job over the two WET files."""
    wet = tuple(sorted(map(str, wet_files.glob("*.gz"))))

    def make(name="c4", *, buckets=3, wet=wet, **changes):
        return BuildJob(recipe(**changes), wet, tmp_path / name, buckets)

    return make


def written(directory):
    """Every page that was written, by address, and the split it is in."""
    found = {}
    for path in sorted(directory.glob("c4-*.json.gz")):
        with gzip.open(path, "rt") as file:
            for line in file:
                page = json.loads(line)
                assert set(page) == {"text", "timestamp", "url"}
                assert page["url"] not in found
                found[page["url"]] = (path.name.split("-")[1].split(".")[0], page["text"])
    return found


def all_at_once(wet, recipe):
    """The rules applied to all pages in memory, one after another, as the paper tells them."""
    counts, newest = Counts(), {}
    for path in wet:
        with open(path, "rb") as file:
            for page in read_pages(file, path, counts, LineStats()):
                if rules.is_short_enough(page, counts):
                    newest.setdefault(rules.normalized_url(page.url), []).append(page)
    pages = [rules.newest(found, counts) for found in newest.values()]
    if recipe.is_cleaned:
        pages = [p for page in pages if (p := rules.clean(page, counts))]
        owner = {}
        for page in pages:
            for key in duplicates.keys(page, recipe.unit):
                url = duplicates.hashed(page.url)
                owner[key] = min(owner.get(key, url), url)
        pages = [
            duplicates.without_duplicates(
                page,
                {key for key, url in owner.items() if url == duplicates.hashed(page.url)},
                recipe.unit,
                counts,
            )
            for page in pages
        ]
    return {
        page.url: ("validation" if rules.is_validation(page) else "train", page.text)
        for page in pages
        if page and all(check(page, counts) for check in recipe.last_checks())
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"unit": "three_sentences"},
        {"variant": "en.noclean", "bad_words": None},
        {"variant": "en.noblocklist", "bad_words": None},
    ],
    ids=["en", "three_sentences", "noclean", "noblocklist"],
)
def test_the_passes_over_the_disk_equal_the_rules_in_memory(changes, job):
    built = job(**changes)
    counts = local.build(built, processes=1)
    found = written(built.out)
    assert found == all_at_once(built.wet, built.recipe)
    assert len(found) > 20
    assert counts["written: train page"] + counts["written: validation page"] == len(found)
    assert json.loads((built.out / "statistics.json").read_text()) == counts
    assert not built.work.exists()


def test_every_rule_leaves_out_what_it_should(job):
    built = job()
    counts = local.build(built, processes=1)
    texts = {url: text for url, (_, text) in written(built.out).items()}
    edges = {url.rsplit("/", 1)[-1]: text for url, text in texts.items() if "edge" in url}
    assert set(edges) == {
        *("words", "marks", "short-brace", "badly", "same", "shares", "repeats", "policy")
    }
    assert "These are four words." not in edges["words"]
    assert "But these here are five." in edges["words"]
    assert "Or the end of that line." in edges["marks"]
    assert "ellipsis" not in edges["marks"]
    assert edges["policy"].splitlines() == [
        "A first sentence stays. A second one does, too.",
        "And so does a third, which is all it takes.",
    ]
    assert "newer version" in edges["same"]
    shared = [text for text in edges.values() if "stands on another page" in text]
    assert len(shared) == 1
    assert edges["repeats"].lower().count("repeated on its own page") == 1
    everywhere = [text for text in texts.values() if "on very many of these pages" in text]
    assert len(everywhere) == 1
    for rule in (
        "length: page longer than 190,000",
        "address: older page of one address",
        "clean: page with lorem ipsum",
        "clean: page with a brace",
        "clean: page of under three sentences",
        "duplicates: line of another page",
        "duplicates: line repeated on its page",
        "language: page not in English",
        "words: page with a word of the block list",
        "read: page without url",
    ):
        assert counts[rule] >= 1, rule


def test_neither_processes_nor_buckets_nor_the_order_of_files_change_what_is_written(job):
    one, other = job("one"), job("other", buckets=7, wet=job().wet[::-1])
    local.build(one, processes=1)
    local.build(other, processes=1)
    assert written(one.out) == written(other.out)
    again = job("again")
    local.build(again, processes=2)
    for path in one.out.iterdir():
        assert path.read_bytes() == (again.out / path.name).read_bytes()


def test_a_build_that_was_killed_goes_on_to_the_same_bytes(job, monkeypatch):
    whole = job("whole")
    local.build(whole, processes=1)
    wanted = {path.name: path.read_bytes() for path in whole.out.iterdir()}

    class Killed(BaseException):
        pass

    for place in (1, 3, 6, 9, 12):  # among 2 + 3 + 3 + 3 parts, and what comes before them
        left = [place]

        def write(path, content, keep=atomic.write_json, left=left):
            left[0] -= 1
            if not left[0]:
                raise Killed
            keep(path, content)

        cut = job(f"cut{place}")
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "write_json", write)
            with pytest.raises(Killed):
                local.build(cut, processes=1)
        local.build(cut, processes=1)
        assert {path.name: path.read_bytes() for path in cut.out.iterdir()} == wanted


def test_a_build_killed_at_many_moments_goes_on_to_the_same_bytes(job, wet_files, tmp_path):
    command = [sys.executable, "-c", KILLED_AT_MANY_MOMENTS, str(tmp_path), "6"]
    command += [str(wet_files / "bad_words.txt"), *job().wet]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


def test_news_and_listed_pages_make_variants(job, tmp_path):
    pytest.importorskip("tldextract")
    (tmp_path / "news.json").write_text(json.dumps({"example.org": ["docs"]}))
    (tmp_path / "urls.txt").write_text("https://edge.invalid/marks\nhttp://edge.invalid/words/\n")
    news = job("news", variant="realnewslike", news_domains=str(tmp_path / "news.json"))
    local.build(news, processes=1)
    found = written(news.out)
    assert found
    assert all(url.startswith("https://docs.example.org/") for url in found)
    web = job("web", variant="webtextlike", web_addresses=str(tmp_path / "urls*"))
    counts = local.build(web, processes=1)
    assert {url.rsplit("/", 1)[-1] for url in written(web.out)} == {"marks", "words"}
    assert counts["addresses: page that is not listed"] > 40


def test_bad_files_stop_a_build_unless_they_are_allowed(job, tmp_path, caplog):
    whole = job().wet[0]
    cut = tmp_path / "cut.warc.wet.gz"
    with open(whole, "rb") as file:
        content = file.read()
    cut.write_bytes(content[: len(content) - 40])
    with pytest.raises(ConfigError, match=r"cut\.warc\.wet\.gz: skipped 1 of \d+ lines"):
        local.build(job("strict", wet=(str(cut),)), processes=1)
    lenient = job("lenient", wet=(str(cut),))
    lenient = BuildJob(lenient.recipe, lenient.wet, lenient.out, 3, MalformedLines(0.2))
    counts = local.build(lenient, processes=1)
    assert counts["read: cut short"] == 1
    assert "cut.warc.wet.gz, page" in caplog.text


def test_a_full_disk_is_told_and_the_same_command_goes_on(job, monkeypatch):
    def full(path, array):
        raise OSError(28, "No space left on device")

    built = job(variant="en.noclean", bad_words=None)
    with monkeypatch.context() as patch:
        patch.setattr(spill, "write_array", full)
        with pytest.raises(ConfigError, match="No space left on device: finished parts are kept"):
            local.build(built, processes=1)
    local.build(built, processes=1)
    assert written(built.out)


def test_another_build_in_the_directory_is_refused(job, tmp_path):
    done = job()
    local.build(done, processes=1)
    with pytest.raises(ConfigError, match="exists and is not empty"):
        local.build(done, processes=1)
    begun = job("begun")
    begun.work.mkdir(parents=True)
    (begun.work / "job.json").write_text('{"recipe": "another"}')
    with pytest.raises(ConfigError, match="contains a part of another build"):
        local.build(begun, processes=1)


def test_nothing_left_is_an_error_and_leaves_no_shards(job, tmp_path, wet_record):
    path = tmp_path / "short.wet.gz"
    path.write_bytes(gzip.compress(wet_record("https://a.invalid", ["Two words."]).encode()))
    with pytest.raises(ConfigError, match="no page passed all rules"):
        local.build(job(wet=(str(path),)), processes=1)


def test_a_spill_gives_back_its_buckets_and_appears_when_complete(tmp_path):
    pages = [Page(f"u{n}", "täxt\n" * n, "2019") for n in range(9)]
    path = tmp_path / "spill"
    with spill.open_spill(path) as file:
        for number, page in enumerate(pages):
            file.write(page, number % 3)
        assert not path.exists()
    assert list(spill.read_spill(path, 1)) == pages[1::3]
    assert list(spill.read_spill(path, 5)) == []

    def write():
        with spill.open_spill(tmp_path / "broken") as file:
            file.write(pages[0])
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["spill", "spill.npy"]


def test_shards_without_a_page_are_not_written(job):
    built = job(buckets=60, variant="en.noclean", bad_words=None)
    local.build(built, processes=1)
    shards = sorted(built.out.glob("c4-train.*"))
    assert shards[-1].name == f"c4-train.{len(shards) - 1:05d}-of-{len(shards):05d}.json.gz"
    assert len(shards) < 60
    for shard in shards:
        assert gzip.decompress(shard.read_bytes())
    assert (
        build_stages.as_line(Page("u", "ä\nb", "t"))
        == '{"text": "\\u00e4\\nb", "timestamp": "t", "url": "u"}\n'
    )
