"""Going back: which stretches of data a run skips, decided once and obeyed by every later start.

A decision says: what came after step `back_to` is given up; go on from there with the data at
`position`. It is written before anything is undone. A checkpoint knows how many decisions it was
made under, so a start can tell the checkpoints that were given up from those made since.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from t5x_lite import processes
from t5x_lite.data.stream import Position
from t5x_lite.training.writers import read_lines

DECISIONS = "decisions.jsonl"


class Decision(NamedTuple):
    """One line of decisions.jsonl. step: at which it was taken. why: in words."""

    step: int
    why: str
    back_to: int
    position: Position


class GoBack(Exception):  # noqa: N818 no error, as StopIteration is none
    """Ends the loop: a decision was written, and the run starts again where it says."""


def read(directory: epath.PathLike) -> list[Decision]:
    """The decisions of a run, as its first process finds them."""
    path = epath.Path(directory) / DECISIONS
    found = list(read_lines(path)) if processes.is_first() else None
    return [Decision(**line) for line in processes.broadcast(found)]


def write(directory: epath.PathLike, decisions: Sequence[Decision]) -> None:
    """Write all decisions of a run, at once or not at all."""
    if processes.is_first():
        path = epath.Path(directory) / DECISIONS
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(each._asdict()) + "\n" for each in decisions))
        temporary.replace(path)


def gave_up(decisions: Sequence[Decision], step: int, progress: Mapping[str, Any]) -> bool:
    """Whether a checkpoint of `step` belongs to what a later decision gave up."""
    return any(each.back_to < step for each in decisions[progress.get("decisions", 0) :])


def jumps(decisions: Sequence[Decision], step: int, known: int) -> dict[int, Position]:
    """Where a run that goes on after `step` leaves the order of the data: {step: position}.

    known: how many decisions had been taken when the data's position after `step` was noted.
    """
    found: dict[int, Position] = {}
    for each in decisions[known:]:
        found = {at: position for at, position in found.items() if at < each.back_to}
        found[each.back_to] = each.position
    return {at: position for at, position in found.items() if at >= step}
