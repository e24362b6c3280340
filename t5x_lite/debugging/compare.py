"""`t5x_lite compare`: the first step at which two runs part, and what parted first."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epath

from t5x_lite.console import Console, count
from t5x_lite.errors import ConfigError
from t5x_lite.io.json_lines import read_json_lines
from t5x_lite.trainer.step_hashes import RECEIPTS

# What parts, in the order in which one follows from the other.
WHAT = {
    "ids": "which examples the batch holds",
    "batch": "not which examples but the bits of the batch",
    "loss": "not the batch but the loss",
    "params": "neither batch nor loss but the weights after it",
}


class Divergence(NamedTuple):
    """Where two runs part. since: the last step after which their weights were seen to be equal."""

    step: int
    what: str
    since: int | None


def compare(*, run_a: str, run_b: str, describe_config: Callable[[], str] = str) -> None:
    """Print the first step at which two runs diverge; the exit code is 1 if they do, else 0.

    Args:
        run_a: Directory of a run.
        run_b: Directory of the run to compare with.
        describe_config: Not used.

    Raises:
        ConfigError: A run has no step hashes, or the two have no step in common.
    """
    receipts = [receipts_of(directory) for directory in (run_a, run_b)]
    both = sorted(receipts[0].keys() & receipts[1].keys())
    if not both:
        raise ConfigError(f"{run_a} and {run_b} have receipts of no step in common", "RUN_B")
    parting = first_difference(*receipts)
    console = Console()
    if parting is None:
        weights = [step for step in both if "params" in receipts[0][step]]
        console.print(
            f"the runs are identical in {count(len(both), 'common step')}, {both[0]:,} to "
            f"{both[-1]:,}; weights compared at {len(weights):,} of them"
        )
        return
    since = "" if parting.since is None else f"; weights were equal at step {parting.since:,}"
    console.print(f"the runs diverge at step {parting.step:,}: {parting.what} differ{since}")
    sys.exit(1)


def first_difference(one: dict[int, Any], other: dict[int, Any]) -> Divergence | None:
    """The first step whose receipts differ, and in what; None if there is none."""
    since = None
    for step in sorted(one.keys() & other.keys()):
        left, right = one[step], other[step]
        for name, what in WHAT.items():
            if name in left and name in right and left[name] != right[name]:
                return Divergence(step, what, since)
        if "params" in left and "params" in right:
            since = step
    return None


def receipts_of(directory: str) -> dict[int, Any]:
    """The receipts of a run by step; ConfigError if it has none."""
    path = epath.Path(directory) / RECEIPTS
    if not path.exists():
        raise ConfigError(f"{path} is not there: wanted the directory of a run with receipts")
    return {line["step"]: line for line in read_json_lines(path)}
