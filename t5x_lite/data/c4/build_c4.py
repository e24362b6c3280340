"""`t5x_lite c4`: build C4, or a variant of it, from Common Crawl's WET files."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from t5x_lite.console import Console, logged_wait
from t5x_lite.data.c4 import beam, local
from t5x_lite.data.c4.build_stages import BuildJob
from t5x_lite.data.c4.recipe import C4Recipe
from t5x_lite.data.c4.wet import Counts
from t5x_lite.data.sources.jsonl_and_tsv import STRICT, MalformedLines
from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic, files
from t5x_lite.io.urls import is_url

_LOG = logging.getLogger(__name__)


def c4(
    *,
    wet: str,
    out: str,
    recipe: C4Recipe,
    runner: Literal["local", "beam"] = "local",
    processes: int | None = None,
    buckets: int | None = None,
    bad_pages: MalformedLines = STRICT,
    beam_options: Sequence[str] = (),
    describe_config: Callable[[], str] = str,
) -> None:
    """Build C4 from WET files, in C4's layout of JSON lines.

    Args:
        wet: A pattern of WET files.
        out: The directory to write; for Beam also a URL.
        recipe: The variant of C4.
        runner: "local" uses this machine and resumes an interrupted build; "beam" uses Apache Beam.
        processes: Number of processes of the local runner; None: one per core.
        buckets: Into how many parts the local runner divides the pages, and at most how many files
            the train split has. None: one per WET file and at least 16, so that a part takes a few
            hundred megabytes. For Beam, the number of files of the train split.
        bad_pages: The tolerance for malformed pages.
        beam_options: Beam's pipeline options, which choose its runner.
        describe_config: Not used.

    Raises:
        ConfigError: For missing files, lists and packages, before any page is read.
    """
    if runner not in ("local", "beam"):
        raise ConfigError(f"the runner is {runner!r}; expected 'local' or 'beam'", "c4.runner")
    for name, number in (("processes", processes), ("buckets", buckets)):
        if number is not None and number < 1:
            raise ConfigError(f"{name} is {number}; expected 1 or more", f"c4.{name}")
    recipe.check()
    if runner == "beam":
        with logged_wait(_LOG, "running Beam"):
            counts = beam.build_with_beam(
                recipe, wet, out, train_shards=buckets, bad_pages=bad_pages, options=beam_options
            )
        if not is_url(out):
            atomic.write_json(Path(out, local.STATISTICS), dict(sorted(counts.items())))
    else:
        paths = files.matching(wet)
        if not paths:
            raise ConfigError(f"no file matches {wet}", "WET")
        job = BuildJob(recipe, tuple(paths), Path(out), buckets or max(len(paths), 16), bad_pages)
        counts = local.build(job, processes=processes or os.cpu_count() or 1)
    show(Console(), recipe, counts)


def show(console: Console, recipe: C4Recipe, counts: Counts) -> None:
    """Print how many pages and lines each rule kept and dropped, in the order of the rules."""
    stages = (
        *("read", "length", "news", "address", "addresses", "clean", "duplicates"),
        *("language", "words", "written"),
    )
    ordered = sorted(counts, key=lambda name: (stages.index(name.split(":")[0]), -counts[name]))
    rows = [(name, f"{counts[name]:,}") for name in ordered]
    duplicates = "three sentences" if recipe.unit == "three_sentences" else "lines"
    title = recipe.variant + (f", duplicates by {duplicates}" if recipe.is_cleaned else "")
    console.table(title, ("rule", "count"), rows)
