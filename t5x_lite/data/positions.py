"""Where a stream stands."""

from collections.abc import Collection
from typing import NotRequired, TypedDict

from t5x_lite.data.live import Marker
from t5x_lite.errors import ConfigError

FORMAT = 1


class Position(TypedDict):
    """Where a stream stands, as JSON; the same for any number of hosts.

    block: how many examples the first epoch shuffles at a time, where it does not shuffle them all.
    markers: of the tasks that run through seqio's own pipeline (`data.live`).
    """

    format: int
    window: int
    row: int
    drawn: dict[str, int]
    block: NotRequired[int]
    markers: NotRequired[dict[str, Marker]]


def check_position(position: Position, names: Collection[str], block: int | None) -> None:
    """Raise ConfigError for a position of another mixture, of another order or unknown format."""
    if position["format"] != FORMAT:
        raise ConfigError(
            f"the stream's position has format {position['format']}: this version reads "
            f"format {FORMAT}",
            "MODEL_DIR",
        )
    if set(position["drawn"]) != set(names):
        raise ConfigError(
            f"the run to resume drew from the tasks {sorted(position['drawn'])}, the mixture "
            f"now has {sorted(names)}",
            "MIXTURE_OR_TASK_NAME",
        )
    if position.get("block") != block:
        began = "while" if "block" in position else "before"
        raise ConfigError(
            f"the run to resume began with tokenise = '{began}_training', which decides the "
            "order of its first epoch: it must go on with the same",
            "Data.tokenise",
        )
