"""C4 on one machine, in several processes, that a kill only delays.

The work is that of `build_stages`, part by part; here is the order, and what becomes of the parts:
shards
in C4's layout, c4-train.00000-of-00064.json.gz and so on, none of them empty, and statistics.json.
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
    """Build C4 into `job.out` and return what every rule took and left out.

    The result does not depend on `processes`, nor on how often it was begun. Raises ConfigError for
    a directory that holds something else, for files that cannot be read or written, and where
    nothing is left.
    """
    try:
        return _build(job, processes)
    except (OSError, WorkerKilledError) as error:
        raise ConfigError(
            f"{error}: what is done is kept, and the same command goes on from there", "WET", "OUT"
        ) from None


def _build(job: BuildJob, processes: int) -> Counts:
    if job.finished.exists():  # killed when all was done but this
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
    """Make the directory, or see that what is there is this job, begun before."""
    described = job.described()
    path = job.work / "job.json"
    if path.exists():
        if read_json(path) != described:
            raise ConfigError(
                f"{job.out} holds the beginning of another build: delete it or go on with the same "
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
    """Give the parts their names and remove all else; raises ConfigError where nothing is left."""
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
    """Tell whether a gzipped file holds anything: its last four bytes are how much."""
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        return file.read() != b"\0\0\0\0"


def _join(parts: Sequence[Path], path: Path) -> None:
    """Write gzipped files one after another into one, which is a gzipped file too."""
    with atomic.open_binary(path) as joined:
        for part in parts:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, joined)
