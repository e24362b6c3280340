"""Build C4 with Apache Beam on many machines, by the same rules as on one.

Beam's own options choose the runner. Without any, it runs on this machine. Dataflow, Flink and
Spark take `--runner=...` and their own options; their workers need this package with the extras
`beam` and `c4`.
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
    """Build C4 from WET files.

    Args:
        recipe: The variant.
        wet: A pattern of WET files that Beam can read.
        out: A directory or URL that Beam can write.
        train_shards: The number of files of the train split; None: the runner decides.
        validation_shards: The number of files of the validation split; None: the runner decides.
        bad_pages: The tolerance for malformed pages.
        options: Beam's pipeline options, such as "--runner=DataflowRunner".

    Returns:
        How many pages and lines each rule kept and dropped.

    Raises:
        ConfigError: If Beam is not installed, or a file has too many malformed pages.
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
    return Counts({counter.key.metric.name: counter.committed for counter in counters})


def pages_of_c4(pages: Any, recipe: C4Recipe) -> Any:
    """Return the pages of C4 from all pages that passed the first checks, as Beam collections."""
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
            | "to its page" >> beam.Map(lambda key_and_owner: key_and_owner[::-1])
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
    pages_of_url: tuple[str, Iterable[Page]], counts: Counts, *, recipe: C4Recipe
) -> Iterator[Page]:
    page = rules.newest(pages_of_url[1], counts)
    if passes(page, recipe.middle_checks(), counts):
        cleaned = recipe.cleaned(page, counts)
        if cleaned is not None:
            yield cleaned


def _keys(page: Page, *, recipe: C4Recipe) -> Iterator[tuple[bytes, bytes]]:
    owner = duplicates.hashed(page.url)
    for key in duplicates.keys(page, recipe.unit):
        yield key, owner


def _without_duplicates(
    owned: tuple[bytes, Mapping[str, Iterable[Any]]], counts: Counts, *, recipe: C4Recipe
) -> Iterator[Page]:
    kept = set(owned[1]["kept"])
    for page in owned[1]["pages"]:
        reduced = duplicates.without_duplicates(page, kept, recipe.unit, counts)
        if reduced is not None:
            yield reduced


def _last(page: Page, counts: Counts, *, recipe: C4Recipe) -> Iterator[Page]:
    if passes(page, recipe.last_checks(), counts):
        split = "validation" if rules.is_validation(page) else "train"
        counts[f"written: {split} page"] += 1
        yield page


def _is_of(page: Page, split: str) -> bool:
    return rules.is_validation(page) == (split == "validation")


def _counting(function: Callable[..., Iterator[Page]]) -> Callable[[Any], Iterator[Page]]:
    """Return a function of one argument that reports its counts to Beam's counters."""

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
