"""The rows of a study as commands for an engine that runs them elsewhere."""

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
_OWN = ("--write_jobs", "--only", "--seed", "--jobs", "--budget")


def hand_off_rows(
    engine: str,
    path: Path,
    arguments: Sequence[str],
    jobs: Sequence[SweepJob],
) -> None:
    """Write one command for each row and seed, and log how to submit them to the engine.

    arguments: of the command that hands off; each row's is the same with --only and --seed. Any
    worker can do any row, and do it again: what is done in the shared output is not done twice.
    """
    kept = [a for a in arguments if not a.startswith(tuple(f"{flag}=" for flag in _OWN))]
    commands = {
        f"{slug(job.row)}-{job.seed}": ["explore", *kept, f"--only={job.row}", f"--seed={job.seed}"]
        for job in jobs
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    if engine == "slurm":
        file = path.with_suffix(".rows")
        atomic.write_text(file, "".join(f"{shlex.join(words)}\n" for words in commands.values()))
        _LOG.info(
            f"wrote {count(len(commands), 'command')} to {file}; submit them as an array of jobs:"
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
        f"wrote {count(len(commands), 'command')} to {file}; submit a JobSet each, in a checkout:"
    )
    more = " --cluster=C" if engine == "xpk" else ""
    _LOG.info(f"bash {file} --image=IMAGE --accelerator=v5e:2x4{more}")


def _label(name: str) -> str:
    """A name that Kubernetes takes."""
    found = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[-36:].strip("-")
    return found if found[0].isalpha() else f"row-{found}"
