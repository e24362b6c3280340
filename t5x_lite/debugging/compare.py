"""`t5x_lite compare`: the first step at which two runs diverge, and what differs first."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epath

from t5x_lite.console import Console, count
from t5x_lite.errors import ConfigError
from t5x_lite.io.run_records import read_json_lines
from t5x_lite.trainer.step_hashes import RECEIPTS

# What differs, by the field of a step's hashes, from cause to effect.
WHAT = {
    "ids": "the examples of the batch",
    "batch": "the bits of the batch, not its examples,",
    "loss": "the loss, not the batch,",
    "params": "the weights after the step, not batch or loss,",
}


class Divergence(NamedTuple):
    """The first difference of two runs.

    Attributes:
        step: The step.
        what: What differs first, a value of `WHAT`.
        since: The last step at which their weights are known to be equal; None if there is none.
    """

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
    hashes = [read_step_hashes(directory) for directory in (run_a, run_b)]
    both = sorted(hashes[0].keys() & hashes[1].keys())
    if not both:
        raise ConfigError(f"{run_a} and {run_b} have step hashes of no common step", "RUN_B")
    divergence = first_difference(*hashes)
    console = Console()
    if divergence is None:
        weights = [step for step in both if "params" in hashes[0][step]]
        console.print(
            f"the runs are identical in {count(len(both), 'common step')}, {both[0]:,} to "
            f"{both[-1]:,}; weights compared at {len(weights):,} of them"
        )
        return
    since = "" if divergence.since is None else f"; weights were equal at step {divergence.since:,}"
    console.print(f"the runs diverge at step {divergence.step:,}: {divergence.what} differ{since}")
    sys.exit(1)


def first_difference(one: dict[int, Any], other: dict[int, Any]) -> Divergence | None:
    """Return the first step whose hashes differ; None if all common steps are equal.

    Args:
        one: Hashes of a run by step.
        other: Hashes of another run by step.
    """
    since = None
    for step in sorted(one.keys() & other.keys()):
        left, right = one[step], other[step]
        for name, what in WHAT.items():
            if name in left and name in right and left[name] != right[name]:
                return Divergence(step, what, since)
        if "params" in left and "params" in right:
            since = step
    return None


def read_step_hashes(directory: str) -> dict[int, Any]:
    """Read the step hashes of a run, by step.

    Args:
        directory: Directory of the run.

    Raises:
        ConfigError: The directory has no step hashes.
    """
    path = epath.Path(directory) / RECEIPTS
    if not path.exists():
        raise ConfigError(
            f"{path} does not exist; expected the directory of a run with step hashes"
        )
    return {line["step"]: line for line in read_json_lines(path)}
