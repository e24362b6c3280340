"""The four passes of a C4 build on one machine, each over one part; `local` runs them in order.

    read       WET file   -> pages, in buckets by address
    clean      bucket     -> the newest page of each address, cleaned; hashes of its lines
    choose     hashes     -> which page keeps each line
    finish     bucket     -> pages without duplicates, in English ..., as a shard

A part is a file that appears when it is complete, and existing parts are not computed again. Memory
contains the table of one bucket, not the corpus.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.c4 import duplicates, rules, spill
from t5x_lite.data.c4.recipe import C4Recipe, passes
from t5x_lite.data.c4.wet import Counts, Page, read_pages
from t5x_lite.data.sources.jsonl_and_tsv import STRICT, LineStats, MalformedLines, check_line_stats
from t5x_lite.io import atomic, files

# The MD5 of a line and of the URL of a page with it, in two halves each; and the page's bucket.
KEY = np.dtype([(name, "u8") for name in ("line_0", "line_1", "page_0", "page_1", "bucket")])


@dataclass(frozen=True)
class BuildJob:
    """A build of C4 on one machine.

    Attributes:
        recipe: The variant.
        wet: The WET files.
        out: The directory to write.
        buckets: Into how many parts the pages are divided, by URL.
        bad_pages: The tolerance for malformed pages.
    """

    recipe: C4Recipe
    wet: tuple[str, ...]
    out: Path
    buckets: int
    bad_pages: MalformedLines = STRICT

    @property
    def work(self) -> Path:
        """The directory with the files of the passes."""
        return self.out / ".work"

    @property
    def finished(self) -> Path:
        """The name of that directory when the build is complete and it is to be removed."""
        digest = hashlib.sha256(json.dumps(self.described()).encode()).hexdigest()
        return self.out / f".finished-{digest[:16]}"

    def described(self) -> dict[str, Any]:
        """Return what decides the result, as JSON."""
        described = {
            "recipe": dataclasses.asdict(self.recipe),
            "wet": [[path, files.size(path)] for path in self.wet],
            "buckets": self.buckets,
        }
        return json.loads(json.dumps(described))

    def pages(self, number: int) -> Path:
        """Return the spill of a WET file."""
        return self.work / f"pages.{number:05d}"

    def cleaned(self, bucket: int) -> Path:
        """Return the spill of a bucket's cleaned pages."""
        return self.work / f"cleaned.{bucket:05d}"

    def keys(self, bucket: int) -> Path:
        """Return the hashes of a bucket's lines."""
        return self.work / f"keys.{bucket:05d}.npy"

    def kept(self, bucket: int) -> Path:
        """Return which page keeps each line whose hash is in a bucket."""
        return self.work / f"kept.{bucket:05d}.npy"

    def shard(self, bucket: int, split: str) -> Path:
        """Return a bucket's part of a split."""
        return self.work / f"{split}.{bucket:05d}.json.gz"

    def counts(self, done: Path) -> Path:
        """Return the file with the counts of a pass, which is written last."""
        return done.with_name(f"{done.name}.counts.json")


def read(job: BuildJob, number: int) -> Counts:
    """Put the pages of a WET file into buckets."""

    def work(counts: Counts) -> None:
        path, checks, line_stats = job.wet[number], job.recipe.first_checks(), LineStats()
        with files.open_bytes(path) as file, spill.open_spill(job.pages(number)) as written:
            for page in read_pages(file, path, counts, line_stats):
                if passes(page, checks, counts):
                    written.write(page, _bucket(rules.normalized_url(page.url), job.buckets))
            check_line_stats(line_stats, path, job.bad_pages)
        for reason, count in line_stats.bad.items():
            counts[f"read: {reason}"] += count

    return _once(job.counts(job.pages(number)), work)


def clean(job: BuildJob, bucket: int) -> Counts:
    """Keep the newest page of each address, clean it, and hash its lines."""

    def work(counts: Counts) -> None:
        keys: list[tuple[int, ...]] = []
        with spill.open_spill(job.cleaned(bucket)) as written:
            for page in _newest_pages(job, bucket, counts):
                if not passes(page, job.recipe.middle_checks(), counts):
                    continue
                if (cleaned := job.recipe.cleaned(page, counts)) is None:
                    continue
                written.write(cleaned)
                if job.recipe.is_cleaned:
                    owner = _halves(duplicates.hashed(page.url))
                    hashes = duplicates.keys(cleaned, job.recipe.unit)
                    keys += [(*_halves(key), *owner, bucket) for key in hashes]
        table = np.array(keys, KEY)
        spill.write_array(job.keys(bucket), table[np.argsort(_bucket_of(table, job.buckets))])

    return _once(job.counts(job.cleaned(bucket)), work)


def _newest_pages(job: BuildJob, bucket: int, counts: Counts) -> Iterator[Page]:
    """Yield the newest page of each URL of a bucket.

    The bucket is read twice, for dates and for pages, so that memory contains URLs and not pages.
    """
    best: dict[str, tuple[tuple[str, bytes], int]] = {}
    number = -1
    for number, page in enumerate(_bucket_pages(job, bucket)):
        url, candidate = rules.normalized_url(page.url), (rules.age(page), number)
        best[url] = max(best.get(url, candidate), candidate)
    chosen = {number for _, number in best.values()}
    counts["address: page kept"] += len(chosen)
    counts["address: older page of one address"] += number + 1 - len(chosen)
    for number, page in enumerate(_bucket_pages(job, bucket)):
        if number in chosen:
            yield page


def _bucket_pages(job: BuildJob, bucket: int) -> Iterator[Page]:
    spills = (spill.read_spill(job.pages(number), bucket) for number in range(len(job.wet)))
    return itertools.chain.from_iterable(spills)


def choose(job: BuildJob, bucket: int) -> Counts:
    """Choose the page that keeps each line whose hash is in a bucket."""

    def work(counts: Counts) -> None:
        parts = []
        for other in range(job.buckets):
            table = np.load(job.keys(other), mmap_mode="r")
            first, last = np.searchsorted(_bucket_of(table, job.buckets), [bucket, bucket + 1])
            parts.append(np.array(table[first:last]))
        table = np.concatenate(parts)
        # Sort by line, then by page: of the pages with the same line, the first keeps it.
        order = np.lexsort([table[name] for name in ("page_1", "page_0", "line_1", "line_0")])
        table = table[order]
        is_first = np.ones(len(table), np.bool_)
        is_first[1:] = (table["line_0"][1:] != table["line_0"][:-1]) | (
            table["line_1"][1:] != table["line_1"][:-1]
        )
        counts["duplicates: hash seen"] += len(table)
        counts["duplicates: hash seen on several pages"] += len(table) - int(is_first.sum())
        kept = table[is_first]
        spill.write_array(job.kept(bucket), kept[np.argsort(kept["bucket"], kind="stable")])

    return _once(job.counts(job.kept(bucket)), work)


def finish(job: BuildJob, bucket: int) -> Counts:
    """Remove duplicates from the pages of a bucket, check their language, and write them."""

    def work(counts: Counts) -> None:
        kept, recipe = _kept_lines(job, bucket), job.recipe
        checks = recipe.last_checks()
        with (
            _gzipped(job.shard(bucket, "train")) as train,
            _gzipped(job.shard(bucket, "validation")) as validation,
        ):
            for page in spill.read_spill(job.cleaned(bucket)):
                if recipe.is_cleaned:
                    of_page = _lines_of_page(kept, page)
                    page = duplicates.without_duplicates(page, of_page, recipe.unit, counts)
                if page is None or not passes(page, checks, counts):
                    continue
                is_validation = rules.is_validation(page)
                counts[f"written: {'validation' if is_validation else 'train'} page"] += 1
                (validation if is_validation else train).write(as_line(page))

    return _once(job.counts(job.shard(bucket, "train")), work)


def as_line(page: Page) -> str:
    """Return a page as a line of C4's JSON."""
    return json.dumps({"text": page.text, "timestamp": page.timestamp, "url": page.url}) + "\n"


def _once(done: Path, work: Callable[[Counts], None]) -> Counts:
    """Run a part of a pass unless its counts exist, and return its counts."""
    if not done.exists():
        counts = Counts()
        work(counts)
        atomic.write_json(done, counts)
    return spill.read_counts(done)


def _bucket(address: str, buckets: int) -> int:
    return int.from_bytes(duplicates.hashed(address)[:8]) % buckets


def _bucket_of(keys: NDArray[Any], buckets: int) -> NDArray[np.uint64]:
    """Return the bucket in which each line is compared, by its hash."""
    return keys["line_1"] % np.uint64(buckets)


def _halves(digest: bytes) -> tuple[int, int]:
    return int.from_bytes(digest[:8]), int.from_bytes(digest[8:])


def _kept_lines(job: BuildJob, bucket: int) -> NDArray[Any]:
    """Return which lines the pages of a bucket keep, sorted by page."""
    if not job.recipe.is_cleaned:
        return np.zeros(0, KEY)
    parts = []
    for other in range(job.buckets):
        table = np.load(job.kept(other), mmap_mode="r")
        first, last = np.searchsorted(table["bucket"], [bucket, bucket + 1])
        parts.append(np.array(table[first:last]))
    table = np.concatenate(parts)
    return table[np.argsort(table["page_0"], kind="stable")]


def _lines_of_page(kept: NDArray[Any], page: Page) -> set[bytes]:
    """Return the hashes of the lines that a page keeps."""
    page_0, page_1 = _halves(duplicates.hashed(page.url))
    first = np.searchsorted(kept["page_0"], np.uint64(page_0))
    last = np.searchsorted(kept["page_0"], np.uint64(page_0), side="right")
    of_page = kept[first:last]
    of_page = of_page[of_page["page_1"] == np.uint64(page_1)]
    return {int(row["line_0"]).to_bytes(8) + int(row["line_1"]).to_bytes(8) for row in of_page}


@contextlib.contextmanager
def _gzipped(path: Path) -> Iterator[Any]:
    """Open a gzipped file that appears when it is complete; the same text, the same bytes."""
    with (
        atomic.open_binary(path) as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
    ):
        yield _Encoded(packed)


class _Encoded:
    def __init__(self, file: Any):
        self._file = file

    def write(self, text: str) -> None:
        self._file.write(text.encode())
