"""Packing: which examples share a row, and writing them there.

The plan is made from lengths alone, so every host can plan all rows and write only its own.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.stream import numba_loader
from t5x_lite.objectives.spans import Rows


class Segments(NamedTuple):
    """One feature of a batch, int32 [batch, length] each.

    `segment_ids` count the examples of a row from 1 and are 0 where there is none; `positions`
    count from 0 inside each example. Two examples, [7 8 1] and [5 0 6 1], in a row of 9:

        tokens       7 8 1 5 0 6 1 0 0
        segment_ids  1 1 1 2 2 2 2 0 0
        positions    0 1 2 0 1 2 3 0 0
    """

    tokens: NDArray[np.int32]
    segment_ids: NDArray[np.int32]
    positions: NDArray[np.int32]

    @classmethod
    def empty(cls, batch: int, length: int) -> "Segments":
        """Return rows that hold no example."""
        return cls(*(np.zeros((batch, length), np.int32) for _ in cls._fields))

    def fill(self, rows: Rows, row_n: NDArray[np.int64]) -> None:
        """Write each example to a row of its own; in NumPy several times faster than `write`."""
        if numba_loader.kernels() is not None:
            first_n = np.zeros_like(row_n)
            self.write(rows, row_n=row_n, start_n=first_n, segment_n=first_n + 1)
            return
        place_l = np.arange(rows.tokens.shape[1], dtype=np.int32)
        used_nl = place_l < rows.lengths[:, None]
        self.tokens[row_n, : len(place_l)] = rows.tokens
        self.segment_ids[row_n, : len(place_l)] = used_nl
        self.positions[row_n, : len(place_l)] = used_nl * place_l

    def write(
        self,
        rows: Rows,
        *,
        row_n: NDArray[np.int64],
        start_n: NDArray[np.int64],
        segment_n: NDArray[np.int64],
    ) -> None:
        """Write each example to its row, from its start on, as its segment."""
        if (kernels := numba_loader.kernels()) is not None:
            kernels.write_segments(*rows, row_n, start_n, segment_n, *self)
            return
        lengths_n = rows.lengths.astype(np.int64)
        length, width = self.tokens.shape[1], rows.tokens.shape[1]
        first_n = np.cumsum(lengths_n) - lengths_n
        each_t = np.arange(lengths_n.sum())
        place_t = np.repeat(row_n * length + start_n - first_n, lengths_n) + each_t
        used_nl = np.arange(width) < lengths_n[:, None]
        self.tokens.reshape(-1)[place_t] = rows.tokens[used_nl]
        self.segment_ids.reshape(-1)[place_t] = np.repeat(segment_n, lengths_n)
        self.positions.reshape(-1)[place_t] = each_t - np.repeat(first_n, lengths_n)


def best_fit_decreasing(
    lengths_n2: NDArray[np.integer], capacities: tuple[int, int]
) -> NDArray[np.int64]:
    """Return the row of each example such that two features of all its examples fit.

    The examples are taken in order of the largest share of a row that one of their features needs;
    each goes to the row it leaves the least free in the first feature, among those that have room
    in both, or to a new row:

        capacities (10, 6); lengths (4, 2) (6, 1) (5, 3) (5, 4)   ->   rows 1 1 2 0

    (The two of length 5 would fill a row's first feature, but their second makes 7.) No example may
    exceed the capacities. Some 0.2 million rows a second on one core: the rows with room lie in
    lists by their free space, and an integer has a bit for each list that is not empty.
    """
    if not len(lengths_n2):
        return np.zeros(0, np.int64)
    shares_n2 = lengths_n2 * capacities[::-1]  # over one denominator, so exact
    order = np.argsort(-shares_n2.max(axis=1), kind="stable")
    smallest, smallest_other = lengths_n2.min(axis=0).tolist()
    if (kernels := numba_loader.kernels()) is not None:
        row_n = np.empty(len(order), np.int64)
        kernels.best_fit(
            np.ascontiguousarray(lengths_n2, np.int64),
            order,
            *capacities,
            smallest,
            smallest_other,
            row_n,
        )
        return row_n
    rows_by_free: list[list[int]] = [[] for _ in range(capacities[0] + 1)]
    free_other: list[int] = []
    nonempty = 0
    row_of: list[int] = []
    for needed, needed_other in lengths_n2[order].tolist():
        row, free, candidates = len(free_other), capacities[0], nonempty >> needed
        while candidates:
            lowest = candidates & -candidates
            found = needed + lowest.bit_length() - 1
            rows = rows_by_free[found]
            place = _find(rows, free_other, needed_other)
            if place >= 0:
                row, free = rows.pop(place), found
                if not rows:
                    nonempty ^= 1 << found
                break
            candidates ^= lowest
        else:
            free_other.append(capacities[1])
        free -= needed
        free_other[row] -= needed_other
        if free >= smallest and free_other[row] >= smallest_other:
            rows_by_free[free].append(row)
            nonempty |= 1 << free
        row_of.append(row)
    result_n = np.empty(len(order), np.int64)
    result_n[order] = row_of
    return result_n


def _find(rows: list[int], free: list[int], needed: int) -> int:
    """Return the last place in `rows` of a row with enough free, or -1."""
    for place in range(len(rows) - 1, -1, -1):
        if free[rows[place]] >= needed:
            return place
    return -1
