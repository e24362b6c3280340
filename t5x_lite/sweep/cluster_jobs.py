"""Write the rows of a study as jobs for Slurm, JobSet or XPK."""

import logging
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from t5x_lite.console import count
from t5x_lite.io import atomic
from t5x_lite.sweep.runner import SweepJob
from t5x_lite.sweep.spec import slug

_LOG = logging.getLogger(__name__)
# Flags that a job does not get: they choose rows and how many run at a time.
_FLAGS_OF_THE_SWEEP = ("--write_jobs", "--only", "--seed", "--jobs", "--budget")


def write_job_commands(
    engine: str,
    path: Path,
    arguments: Sequence[str],
    jobs: Sequence[SweepJob],
) -> None:
    """Write a command for each row and seed, and log how to submit them.

    A job may run on any worker and may be repeated: runs that are done in the shared output
    directory are not run again.

    Args:
        engine: "slurm", "jobset" or "xpk".
        path: File to write; its suffix is replaced.
        arguments: Arguments of this `explore` command. Those of a job have --only and --seed in
            addition.
        jobs: The rows and seeds.
    """
    kept = [
        a for a in arguments if not a.startswith(tuple(f"{flag}=" for flag in _FLAGS_OF_THE_SWEEP))
    ]
    commands = {
        f"{slug(job.row)}-{job.seed}": ["explore", *kept, f"--only={job.row}", f"--seed={job.seed}"]
        for job in jobs
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    if engine == "slurm":
        file = path.with_suffix(".rows")
        atomic.write_text(file, "".join(f"{shlex.join(words)}\n" for words in commands.values()))
        _LOG.info(
            f"wrote {count(len(commands), 'command')} to {file}; submit them as an array job:"
        )
        _LOG.info(f"sbatch --array=1-{len(commands)} launch/slurm/rows.sbatch {file}")
        return
    file = path.with_suffix(".sh")
    lines = []
    for name, words in commands.items():
        name = _label(name)
        if engine == "xpk":
            lines.append(f'launch/gke.py xpk {name} "$@" -- {shlex.join(words)}')
        else:
            manifest = f'launch/gke.py render {name} "$@" -- {shlex.join(words)}'
            lines.append(f"{manifest} | kubectl apply -f -")
    atomic.write_text(file, "\n".join(["#!/usr/bin/env bash", "set -euo pipefail", *lines]) + "\n")
    _LOG.info(
        f"wrote {count(len(commands), 'command')} to {file}; submit each as a JobSet, from a "
        f"checkout of this repository:"
    )
    cluster = " --cluster=C" if engine == "xpk" else ""
    _LOG.info(f"bash {file} --image=IMAGE --accelerator=v5e:2x4{cluster}")


def _label(name: str) -> str:
    """Return a valid Kubernetes name: lower case, digits and dashes, at most 40 characters."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[-36:].strip("-")
    return label if label[0].isalpha() else f"row-{label}"
