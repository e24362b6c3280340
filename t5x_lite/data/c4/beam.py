"""C4 on Apache Beam, for more than one machine: the same rules, between Beam's shuffles.

Beam's own options choose the runner: none is the one on this machine, and Dataflow, Flink or Spark
take `--runner=...` and what else they ask for; their workers need this package and its extras
`beam` and `c4` as well.
"""

import functools
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from t5x_lite.data.c4 import duplicates, rules
from t5x_lite.data.c4.build_stages import as_line
from t5x_lite.data.c4.recipe import C4Recipe, passes
from t5x_lite.data.c4.wet import Counts, Page, read_pages
from t5x_lite.data.sources.jsonl_and_tsv import STRICT, LineStats, MalformedLines, check_line_stats
from t5x_lite.errors import ConfigError


def build_with_beam(
    recipe: C4Recipe,
    wet: str,
    out: str,
    *,
    train_shards: int | None = None,
    validation_shards: int | None = None,
    bad_pages: MalformedLines = STRICT,
    options: Sequence[str] = (),
) -> Counts:
    """Build C4 from the WET files of a pattern into a directory or an address of Beam's.

    Shards of None are as many as the runner likes. Returns what every rule took and left out.
    """
    beam = _beam()
    settings = beam.options.pipeline_options.PipelineOptions(list(options))
    pipeline = beam.Pipeline(options=settings)
    files = pipeline | beam.io.fileio.MatchFiles(wet) | beam.Reshuffle()
    read = functools.partial(_read, recipe=recipe, bad_pages=bad_pages)
    pages = files | "read" >> beam.FlatMap(_counting(read))
    pages = pages_of_c4(pages, recipe)
    for split, shards in (("train", train_shards), ("validation", validation_shards)):
        _write(pages, split, out, shards)
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query()["counters"]
    return Counts({found.key.metric.name: found.committed for found in counters})


def pages_of_c4(pages: Any, recipe: C4Recipe) -> Any:
    """Return the collection of C4's pages from that of all pages that passed the first checks."""
    beam = _beam()
    pages = (
        pages
        | "by address" >> beam.Map(lambda page: (rules.normalized_url(page.url), page))
        | "pages of an address" >> beam.GroupByKey()
        | "newest and clean" >> beam.FlatMap(_counting(functools.partial(_clean, recipe=recipe)))
    )
    if recipe.is_cleaned:
        chosen = (
            pages
            | "hashes" >> beam.FlatMap(functools.partial(_keys, recipe=recipe))
            | "one page a hash" >> beam.CombinePerKey(min)
            | "to its page" >> beam.Map(lambda found: (found[1], found[0]))
        )
        by_owner = pages | "by owner" >> beam.Map(lambda p: (duplicates.hashed(p.url), p))
        pages = (
            {"pages": by_owner, "kept": chosen}
            | "pages and hashes" >> beam.CoGroupByKey()
            | "without duplicates"
            >> beam.FlatMap(_counting(functools.partial(_without_duplicates, recipe=recipe)))
        )
    return pages | "last" >> beam.FlatMap(_counting(functools.partial(_last, recipe=recipe)))


def _write(pages: Any, split: str, out: str, shards: int | None) -> Any:
    """Write the pages of a split as gzipped JSON lines."""
    beam = _beam()
    write = beam.io.WriteToText(
        f"{out.rstrip('/')}/c4-{split}",
        file_name_suffix=".json.gz",
        shard_name_template=".SSSSS-of-NNNNN",
        num_shards=shards or 0,
        compression_type=beam.io.filesystem.CompressionTypes.GZIP,
        skip_if_empty=True,
    )
    return (
        pages
        | f"only {split}" >> beam.Filter(_is_of, split=split)
        | f"as JSON, {split}" >> beam.Map(lambda page: as_line(page).rstrip("\n"))
        | f"write {split}" >> write
    )


def _read(
    file: Any, counts: Counts, *, recipe: C4Recipe, bad_pages: MalformedLines
) -> Iterator[Page]:
    path, line_stats, checks = file.path, LineStats(), recipe.first_checks()
    filesystems = _beam().io.filesystems
    with filesystems.FileSystems.open(
        path, compression_type=_beam().io.filesystem.CompressionTypes.UNCOMPRESSED
    ) as opened:
        for page in read_pages(opened, path, counts, line_stats):
            if passes(page, checks, counts):
                yield page
    check_line_stats(line_stats, path, bad_pages)
    for reason, count in line_stats.bad.items():
        counts[f"read: {reason}"] += count


def _clean(
    found: tuple[str, Iterable[Page]], counts: Counts, *, recipe: C4Recipe
) -> Iterator[Page]:
    page = rules.newest(found[1], counts)
    if passes(page, recipe.middle_checks(), counts):
        cleaned = recipe.cleaned(page, counts)
        if cleaned is not None:
            yield cleaned


def _keys(page: Page, *, recipe: C4Recipe) -> Iterator[tuple[bytes, bytes]]:
    owner = duplicates.hashed(page.url)
    for key in duplicates.keys(page, recipe.unit):
        yield key, owner


def _without_duplicates(
    found: tuple[bytes, Mapping[str, Iterable[Any]]], counts: Counts, *, recipe: C4Recipe
) -> Iterator[Page]:
    kept = set(found[1]["kept"])
    for page in found[1]["pages"]:
        left = duplicates.without_duplicates(page, kept, recipe.unit, counts)
        if left is not None:
            yield left


def _last(page: Page, counts: Counts, *, recipe: C4Recipe) -> Iterator[Page]:
    if passes(page, recipe.last_checks(), counts):
        split = "validation" if rules.is_validation(page) else "train"
        counts[f"written: {split} page"] += 1
        yield page


def _is_of(page: Page, split: str) -> bool:
    return rules.is_validation(page) == (split == "validation")


def _counting(function: Callable[..., Iterator[Page]]) -> Callable[[Any], Iterator[Page]]:
    """Return the function of one argument whose counts become Beam's counters."""

    def run(argument: Any) -> Iterator[Page]:
        counts = Counts()
        yield from function(argument, counts)
        for name, count in counts.items():
            _beam().metrics.Metrics.counter("c4", name).inc(count)

    return run


@functools.cache
def _beam() -> Any:
    try:
        for module in ("io.fileio", "io.filesystem", "io.filesystems", "options.pipeline_options"):
            importlib.import_module(f"apache_beam.{module}")
        return importlib.import_module("apache_beam")
    except ImportError as error:
        raise ConfigError(
            f"Beam is not installed: it comes with the extra 'beam' ({error})", "c4.runner"
        ) from None
