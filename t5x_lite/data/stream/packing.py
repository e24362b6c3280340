"""Pack several short examples into one row: which examples share a row, and how rows are written.

The plan is made from lengths alone, so every host can plan all rows and write only its own.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.stream import numba_loader
from t5x_lite.objectives.objective import Rows


class Segments(NamedTuple):
    """One feature of a batch of packed rows, with the segment and position of every token.

    Two examples, [7 8 1] and [5 0 6 1], in a row of 9:

        tokens       7 8 1 5 0 6 1 0 0
        segment_ids  1 1 1 2 2 2 2 0 0
        positions    0 1 2 0 1 2 3 0 0

    Attributes:
        tokens: token ids, int32 [batch, length].
        segment_ids: the examples of a row, counted from 1; 0 for padding. int32 [batch, length].
        positions: counted from 0 within each example. int32 [batch, length].
    """

    tokens: NDArray[np.int32]
    segment_ids: NDArray[np.int32]
    positions: NDArray[np.int32]

    @classmethod
    def empty(cls, batch: int, length: int) -> "Segments":
        """Return `batch` rows of `length` that contain no example."""
        return cls(*(np.zeros((batch, length), np.int32) for _ in cls._fields))

    def write_one_per_row(self, rows: Rows, row_n: NDArray[np.int64]) -> None:
        """Write each example to the start of a row that has no other example.

        Args:
            rows: the examples [n, l].
            row_n: the row of each example [n].
        """
        if numba_loader.kernels() is not None:
            start_n = np.zeros_like(row_n)
            self.write(rows, row_n=row_n, start_n=start_n, segment_n=start_n + 1)
            return
        # In NumPy, whole rows are copied several times faster than `write` scatters tokens.
        position_l = np.arange(rows.tokens.shape[1], dtype=np.int32)
        used_nl = position_l < rows.lengths[:, None]
        self.tokens[row_n, : len(position_l)] = rows.tokens
        self.segment_ids[row_n, : len(position_l)] = used_nl
        self.positions[row_n, : len(position_l)] = used_nl * position_l

    def write(
        self,
        rows: Rows,
        *,
        row_n: NDArray[np.int64],
        start_n: NDArray[np.int64],
        segment_n: NDArray[np.int64],
    ) -> None:
        """Write each example into its row, from its start, as its segment.

        Args:
            rows: the examples [n, l].
            row_n: the row of each example [n].
            start_n: the position in the row where each example starts [n].
            segment_n: the number of each example in its row, from 1 [n].
        """
        if (kernels := numba_loader.kernels()) is not None:
            kernels.write_segments(*rows, row_n, start_n, segment_n, *self)
            return
        # All tokens of all examples as one line of t tokens, scattered into the flattened batch.
        lengths_n = rows.lengths.astype(np.int64)
        length, width = self.tokens.shape[1], rows.tokens.shape[1]
        offset_n = np.cumsum(lengths_n) - lengths_n  # where each example starts in the line
        line_t = np.arange(lengths_n.sum())
        target_t = np.repeat(row_n * length + start_n - offset_n, lengths_n) + line_t
        used_nl = np.arange(width) < lengths_n[:, None]
        self.tokens.reshape(-1)[target_t] = rows.tokens[used_nl]
        self.segment_ids.reshape(-1)[target_t] = np.repeat(segment_n, lengths_n)
        self.positions.reshape(-1)[target_t] = line_t - np.repeat(offset_n, lengths_n)


def best_fit_decreasing(
    lengths_n2: NDArray[np.integer], capacities: tuple[int, int]
) -> NDArray[np.int64]:
    """Assign examples to rows so that both features of all examples of a row fit.

    Examples are taken in decreasing order of the larger fraction of a row that one of their
    features needs. Each goes to that row, among those with room for both features, which it leaves
    with the least free space in the first feature. If there is none, it starts a new row:

        capacities (10, 6); lengths (4, 2) (6, 1) (5, 3) (5, 4)   ->   rows 1 1 2 0

    The two examples of length 5 would fill the first feature of a row, but their second features
    need 7.

    About 0.2 million rows a second on one core without numba.

    Args:
        lengths_n2: the lengths of both features of each example, none above the capacities [n, 2].
        capacities: the lengths of the two features of a row.

    Returns:
        The row of each example, numbered from 0: int64 [n].
    """
    if not len(lengths_n2):
        return np.zeros(0, np.int64)
    # length / capacity of both features over one common denominator: integers compare exactly.
    fractions_n2 = lengths_n2 * capacities[::-1]
    order_n = np.argsort(-fractions_n2.max(axis=1), kind="stable")
    # A row with less free space than every example needs is never looked at again.
    smallest = lengths_n2.min(axis=0).tolist()
    row_n = np.empty(len(order_n), np.int64)
    if (kernels := numba_loader.kernels()) is not None:
        lengths_n2 = np.ascontiguousarray(lengths_n2, np.int64)
        kernels.best_fit(lengths_n2, order_n, *capacities, *smallest, row_n)
    else:
        row_n[order_n] = _best_fit(lengths_n2[order_n].tolist(), capacities, smallest)
    return row_n


def _best_fit(
    lengths: list[list[int]], capacities: tuple[int, int], smallest: list[int]
) -> list[int]:
    """Return the row of each example, taken in the given order.

    Rows with free space are kept in one list for each amount of free space in the first feature.
    Bit i of the integer `nonempty` is set if list i has a row, so that the next list with enough
    space is found by arithmetic instead of a search.
    """
    rows_by_free: list[list[int]] = [[] for _ in range(capacities[0] + 1)]
    free_second: list[int] = []  # of each row, in the second feature
    nonempty = 0
    row_of: list[int] = []
    for needed, needed_second in lengths:
        row, free, candidates = len(free_second), capacities[0], nonempty >> needed
        while candidates:
            lowest_bit = candidates & -candidates
            least_free = needed + lowest_bit.bit_length() - 1
            rows = rows_by_free[least_free]
            index = _last_with_room(rows, free_second, needed_second)
            if index >= 0:
                row, free = rows.pop(index), least_free
                if not rows:
                    nonempty ^= 1 << least_free
                break
            candidates ^= lowest_bit
        else:
            free_second.append(capacities[1])  # a new row
        free -= needed
        free_second[row] -= needed_second
        if free >= smallest[0] and free_second[row] >= smallest[1]:
            rows_by_free[free].append(row)
            nonempty |= 1 << free
        row_of.append(row)
    return row_of


def _last_with_room(rows: list[int], free: list[int], needed: int) -> int:
    """Return the last index in `rows` of a row with enough free space, or -1."""
    for index in range(len(rows) - 1, -1, -1):
        if free[rows[index]] >= needed:
            return index
    return -1
