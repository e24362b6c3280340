"""A window of draws: which example goes where."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Placed(NamedTuple):
    """Which example (task, epoch, number) goes where (row, segment, starts of its features)."""

    task_n: NDArray[np.int64]
    epoch_n: NDArray[np.int64]
    index_n: NDArray[np.int64]
    row_n: NDArray[np.int64]
    segment_n: NDArray[np.int64]
    starts_n2: NDArray[np.int64]


class Window(NamedTuple):
    """The plan of a window, its examples in the order of their rows."""

    number: int
    drawn: dict[str, int]
    drawn_after: dict[str, int]
    num_rows: int
    placed: Placed


class Identities(NamedTuple):
    """Which examples a batch holds, one a place: number of the task, epoch, index, row."""

    names: Sequence[str]
    task_n: NDArray[np.int64]
    epoch_n: NDArray[np.int64]
    index_n: NDArray[np.int64]
    row_n: NDArray[np.int64]


def cut_batches(
    window: Window, row: int, batch_size: int, following: Callable[[Window], Window]
) -> Iterator[tuple[Placed, Window, int]]:
    """Yield the examples of batch after batch, from a row of a window on.

    With each come the window and the row that follow it. Ends where the window that follows is
    empty; the last batch may have fewer rows.
    """
    while True:
        parts, filled = [], 0
        while filled < batch_size:
            if row >= window.num_rows:
                after = following(window)
                if not after.num_rows:
                    break
                window, row = after, 0
            taken = min(batch_size - filled, window.num_rows - row)
            parts.append(cut(window.placed, row, row + taken, to=filled))
            row, filled = row + taken, filled + taken
        if not parts:
            return
        yield Placed(*(np.concatenate(column) for column in zip(*parts, strict=True))), window, row


def task_ids(
    batch: Mapping[str, NDArray], placed: Placed, local_n: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Return of which task each target position of a batch is, [b, l]; `local_n` are the rows.

    A row without segments is one example; -1 stands for examples in no row. Padding gets the task
    of its row's first example. With an example of task 2 and one of task 5 in a row:

        segments  1 1 2 2 2 0        task_ids  2 2 5 5 5 2
    """
    side = "decoder" if "decoder_target_tokens" in batch else "encoder"
    targets_bl = batch[f"{side}_target_tokens"]
    segments_bl = batch.get(f"{side}_segment_ids", np.ones_like(targets_bl))
    here_n = local_n >= 0
    packed = f"{side}_segment_ids" in batch
    segment_n = placed.segment_n if packed else np.ones_like(placed.segment_n)
    tasks_bs = np.zeros((len(targets_bl), 1 + int(segment_n.max(initial=1))), np.int32)
    tasks_bs[local_n[here_n], segment_n[here_n]] = placed.task_n[here_n]
    tasks_bs[:, 0] = tasks_bs[:, 1]
    return np.take_along_axis(tasks_bs, segments_bl, axis=1)


def cut(placed: Placed, low: int, high: int, *, to: int) -> Placed:
    """Return the examples of rows low ... high - 1, the first of which becomes row `to`."""
    first, last = np.searchsorted(placed.row_n, [low, high])
    part = Placed(*(column[first:last] for column in placed))
    return part._replace(row_n=part.row_n - low + to)


def lay_out(
    row_n: NDArray[np.int64], lengths_n2: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each example's segment (from 1) and the starts of its features: [n] and [n, 2].

    The rows must ascend; with one of the two features shown:

        rows      0 0 0 1 1        segments  1 2 3 1 2
        lengths   3 1 2 4 2        starts    0 3 4 0 4
    """
    first_n = np.searchsorted(row_n, row_n)
    before_n2 = np.cumsum(lengths_n2, axis=0) - lengths_n2
    return np.arange(len(row_n)) - first_n + 1, before_n2 - before_n2[first_n]
