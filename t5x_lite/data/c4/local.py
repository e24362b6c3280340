"""Run a C4 build on one machine in several processes, and resume it after an interruption.

`build_stages` computes the parts. This module runs them in order and joins the results: non-empty
files in C4's layout, such as c4-train.00000-of-00064.json.gz, and statistics.json.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from t5x_lite.console import count
from t5x_lite.data.c4 import build_stages, spill
from t5x_lite.data.c4.build_stages import BuildJob
from t5x_lite.data.c4.wet import Counts
from t5x_lite.distributed.process_pool import Pool, WorkerKilledError
from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic
from t5x_lite.io.safe_files import read_json

_LOG = logging.getLogger(__name__)
STATISTICS = "statistics.json"
_VALIDATION_SHARDS = 8


def build(job: BuildJob, *, processes: int) -> Counts:
    """Build C4 into `job.out`; return how many pages and lines each rule kept and dropped.

    The result does not depend on the number of processes, nor on interruptions.

    Raises:
        ConfigError: If the directory contains something else, a file cannot be read or written, or
            no page remains.
    """
    try:
        return _build(job, processes)
    except (OSError, WorkerKilledError) as error:
        raise ConfigError(
            f"{error}: finished parts are kept, and the same command resumes there", "WET", "OUT"
        ) from None


def _build(job: BuildJob, processes: int) -> Counts:
    if job.finished.exists():  # interrupted when only this was left to do
        shutil.rmtree(job.finished)
        return spill.read_counts(job.out / STATISTICS)
    _begin(job)
    every_bucket = range(job.buckets)
    order = [
        ("reading pages", "WET file", build_stages.read, range(len(job.wet))),
        ("cleaning pages", "bucket", build_stages.clean, every_bucket),
        *(
            [("finding duplicate lines", "bucket", build_stages.choose, every_bucket)]
            if job.recipe.is_cleaned
            else []
        ),
        ("detecting languages", "bucket", build_stages.finish, every_bucket),
    ]
    total = Counts()
    with Pool(processes) as pool:
        for what, unit, function, numbers in order:
            _LOG.info(f"{what}, {count(len(numbers), unit)} ...")
            for counts in pool.map(partial(function, job), numbers):
                total += counts or Counts()
    _complete(job, total)
    return total


def _begin(job: BuildJob) -> None:
    """Create the directory, or check that it contains a part of the same build."""
    described = job.described()
    path = job.work / "job.json"
    if path.exists():
        if read_json(path) != described:
            raise ConfigError(
                f"{job.out} contains a part of another build: delete it, or resume with the same "
                "WET files, recipe and buckets",
                "OUT",
            )
        return
    # A start that was killed before it wrote job.json has left the folder of its work alone.
    if job.out.exists() and any(other != job.work for other in job.out.iterdir()):
        raise ConfigError(f"{job.out} exists and is not empty: give another directory", "OUT")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(path, described)


def _complete(job: BuildJob, total: Counts) -> None:
    """Join the parts under their final names and remove all other files."""
    if not total["written: train page"]:
        raise ConfigError("no page passed all rules: nothing is written", "WET", "C4Recipe.variant")
    atomic.remove_temporaries(job.out)  # of a start that was killed here
    for split, most in (("train", job.buckets), ("validation", _VALIDATION_SHARDS)):
        parts = [
            path
            for path in map(partial(job.shard, split=split), range(job.buckets))
            if _holds(path)
        ]
        groups = [parts[first :: min(most, len(parts))] for first in range(min(most, len(parts)))]
        for number, group in enumerate(groups):
            name = f"c4-{split}.{number:05d}-of-{len(groups):05d}.json.gz"
            _join(group, job.out / name)
    atomic.write_json(job.out / STATISTICS, dict(sorted(total.items())))
    atomic.rename(job.work, job.finished)  # from here on a start only removes it
    shutil.rmtree(job.finished)


def _holds(path: Path) -> bool:
    """Return whether a gzipped file has content: its last four bytes are the length."""
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        return file.read() != b"\0\0\0\0"


def _join(parts: Sequence[Path], path: Path) -> None:
    """Concatenate gzipped files, which gives a gzipped file."""
    with atomic.open_binary(path) as joined:
        for part in parts:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, joined)
