"""A window of draws: which example goes where."""

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


def task_ids(
    placed: Placed, local_n: NDArray[np.int64], rows: int, segments_bl: NDArray[np.int32] | None
) -> NDArray[np.int32]:
    """Return the task of every segment of a batch: [b, l], or [b, 1] where a row is one example.

    `local_n` are the examples' rows in this batch, -1 for those that lie in none. Padding gets the
    task of the row's first segment, or 0. With tasks 2 and 5 in a row:

        segments  1 1 2 2 2 0        task_ids  2 2 5 5 5 2
    """
    here_n = local_n >= 0
    most = 1 if segments_bl is None else int(placed.segment_n.max(initial=1))
    tasks_bs = np.zeros((rows, 1 + most), np.int32)
    segment_n = np.ones_like(placed.segment_n) if segments_bl is None else placed.segment_n
    tasks_bs[local_n[here_n], segment_n[here_n]] = placed.task_n[here_n]
    tasks_bs[:, 0] = tasks_bs[:, 1]
    return tasks_bs[:, :1] if segments_bl is None else np.take_along_axis(tasks_bs, segments_bl, 1)


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
