"""The stream: from any position, the batches that follow it, the same on any number of hosts.

The examples of a mixture come in windows of 1,024 draws. A window's rows are packed, shuffled and
emitted to the last, so nothing is carried from one window to the next, and a position is a few
integers: which window, how many of its rows are done, and how often each task had been drawn when
the window began.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data import converters, order
from t5x_lite.data.converters import Converter
from t5x_lite.data.examples import Ending, Examples, Store, open_examples, task_number
from t5x_lite.data.packing import Segments, best_fit_decreasing
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.denoising import Objective
from t5x_lite.objectives.spans import Sentinels

FORMAT = 1
Batch = dict[str, NDArray]


class StreamTask(NamedTuple):
    """A task of a mixture: its store, its rate in any unit, its objective (None for pairs).

    ending: of pairs that are not simply cut where they are too long.
    """

    name: str
    store: Store
    rate: float
    objective: Objective | None
    ending: Ending | None = None


class Position(TypedDict):
    """Where a stream stands, as JSON; the same for any number of hosts."""

    format: int
    window: int
    row: int
    drawn: dict[str, int]


class _Placed(NamedTuple):
    """Which example (task, epoch, number) goes where (row, segment, starts of its features)."""

    task_n: NDArray[np.int64]
    epoch_n: NDArray[np.int64]
    index_n: NDArray[np.int64]
    row_n: NDArray[np.int64]
    segment_n: NDArray[np.int64]
    starts_n2: NDArray[np.int64]


class _Window(NamedTuple):
    """The plan of a window, its examples in the order of their rows."""

    number: int
    drawn: dict[str, int]
    drawn_after: dict[str, int]
    num_rows: int
    placed: _Placed


class Stream:
    """A mixture of tasks as an endless sequence of batches, addressed by position.

    Each task is repeated for ever, each epoch in a new order that meets every example once. The
    order follows from the tasks, their rates and sizes, the feature lengths, the seed, `pack` and
    `window_examples`; the batch size only cuts it. Raises ConfigError for an empty store and for
    features that do not suit a task.
    """

    def __init__(
        self,
        tasks: Sequence[StreamTask],
        *,
        feature_lengths: Mapping[str, int],
        batch_size: int,
        seed: int,
        sentinels: Sentinels,
        pack: bool,
        converter: Converter = converters.encoder_decoder,
        window_examples: int = 1024,
    ):
        if batch_size < 1:
            raise ConfigError(f"the batch size is {batch_size}: it takes 1 or more", "BATCH_SIZE")
        self.batch_size = batch_size
        self._names = [task.name for task in tasks]
        self._rates = np.array([task.rate for task in tasks], np.float64)
        self._examples = [
            open_examples(
                task.name,
                task.store,
                objective=task.objective,
                ending=task.ending,
                feature_lengths=feature_lengths,
                sentinels=sentinels,
                seed=seed,
            )
            for task in tasks
        ]
        self._lengths = _shared_widths(self._examples)
        if pack:
            _check_packable(tasks)
        self._seed, self._pack, self._window_examples = seed, pack, window_examples
        self._converter = converter

    def start(self) -> Position:
        """Return the position of the first batch."""
        drawn = dict.fromkeys(self._names, 0)
        return {"format": FORMAT, "window": 0, "row": 0, "drawn": drawn}

    def batches(
        self, position: Position, rows: slice = slice(None)
    ) -> Iterator[tuple[Batch, Position]]:
        """Yield the batches from a position on, each with the position after it.

        `rows` are the rows of the global batch that this host feeds; all hosts see the same
        positions. Raises ConfigError for a position that is not of this mixture.
        """
        self._check(position)
        return self._batches(position, rows)

    def examples(self, position: Position) -> dict[str, int]:
        """Return how many examples of each task lie before a position."""
        self._check(position)
        window = self._plan(position["window"], position["drawn"])
        seen = np.searchsorted(window.placed.row_n, position["row"])
        counts = np.bincount(window.placed.task_n[:seen], minlength=len(self._names)).tolist()
        return {
            name: window.drawn[name] + count
            for name, count in zip(self._names, counts, strict=True)
        }

    def epochs(self, position: Position) -> dict[str, float]:
        """Return how often each task has been gone through before a position: 1.5 is half-way."""
        counts = self.examples(position)
        return {
            name: counts[name] / examples.size
            for name, examples in zip(self._names, self._examples, strict=True)
        }

    def _check(self, position: Position) -> None:
        if position["format"] != FORMAT:
            raise ConfigError(
                f"the stream's position has format {position['format']}: this version reads "
                f"format {FORMAT}",
                "MODEL_DIR",
            )
        if set(position["drawn"]) != set(self._names):
            raise ConfigError(
                f"the run to resume drew from the tasks {sorted(position['drawn'])}, the mixture "
                f"now has {sorted(self._names)}",
                "MIXTURE_OR_TASK_NAME",
            )

    def _batches(self, position: Position, rows: slice) -> Iterator[tuple[Batch, Position]]:
        window = self._plan(position["window"], position["drawn"])
        row = position["row"]
        while True:
            parts, filled = [], 0
            while filled < self.batch_size:
                if row >= window.num_rows:
                    window, row = self._plan(window.number + 1, window.drawn_after), 0
                taken = min(self.batch_size - filled, window.num_rows - row)
                parts.append(_cut(window.placed, row, row + taken, to=filled))
                row, filled = row + taken, filled + taken
            placed = _Placed(*(np.concatenate(column) for column in zip(*parts, strict=True)))
            yield (
                self._materialise(placed, np.arange(self.batch_size)[rows]),
                {
                    "format": FORMAT,
                    "window": window.number,
                    "row": row,
                    "drawn": dict(window.drawn),
                },
            )

    def _plan(self, number: int, drawn: Mapping[str, int]) -> _Window:
        """Draw a window's examples and give each a place in a row."""
        task_n = order.draw_tasks(self._rates, number, seed=self._seed, count=self._window_examples)
        epoch_n, index_n = np.empty_like(task_n), np.empty_like(task_n)
        lengths_n2 = np.zeros((len(task_n), 2), np.int64)
        drawn_after = {}
        for task, (name, examples) in enumerate(zip(self._names, self._examples, strict=True)):
            own = np.flatnonzero(task_n == task)
            drawn_after[name] = drawn[name] + len(own)
            draws = np.arange(drawn[name], drawn_after[name])
            epoch_n[own], index_n[own] = order.visit(
                draws, examples.size, seed=self._seed, stream=task_number(name)
            )
            if self._pack:
                lengths_n2[own] = examples.lengths(epoch_n[own], index_n[own])
        row_n = self._rows(number, lengths_n2)
        by_row = np.argsort(row_n, kind="stable")
        segment_n, starts_n2 = _lay_out(row_n[by_row], lengths_n2[by_row])
        placed = _Placed(
            task_n[by_row], epoch_n[by_row], index_n[by_row], row_n[by_row], segment_n, starts_n2
        )
        num_rows = int(row_n.max()) + 1
        return _Window(number, dict(drawn), drawn_after, num_rows, placed)

    def _rows(self, number: int, lengths_n2: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return each example's row: packed and shuffled, or one row each in the order drawn."""
        if not self._pack:
            return np.arange(len(lengths_n2))
        capacities = (self._lengths["inputs"], self._lengths["targets"])
        row_n = best_fit_decreasing(lengths_n2, capacities)
        return order.shuffle_rows(int(row_n.max()) + 1, number, seed=self._seed)[row_n]

    def _materialise(self, placed: _Placed, rows_b: NDArray[np.int64]) -> Batch:
        """Read, corrupt and write those examples that lie in the given rows."""
        local_row = np.full(self.batch_size, -1)
        local_row[rows_b] = np.arange(len(rows_b))
        local_n = local_row[placed.row_n]
        segments = {
            feature: Segments.empty(len(rows_b), length)
            for feature, length in self._lengths.items()
        }
        for task, examples in enumerate(self._examples):
            own = np.flatnonzero((placed.task_n == task) & (local_n >= 0))
            if not len(own):
                continue
            features = examples.features(placed.epoch_n[own], placed.index_n[own])
            for feature in segments:
                column = int(feature == "targets")  # all others lie where the inputs are
                if self._pack:
                    segments[feature].write(
                        features[feature],
                        row_n=local_n[own],
                        start_n=placed.starts_n2[own, column],
                        segment_n=placed.segment_n[own],
                    )
                else:
                    segments[feature].fill(features[feature], local_n[own])
        return self._converter(segments, packed=self._pack)


def evaluation_batches(
    task: StreamTask,
    *,
    feature_lengths: Mapping[str, int],
    batch_size: int,
    seed: int,
    sentinels: Sentinels,
    converter: Converter = converters.encoder_decoder,
    rows: slice = slice(None),
    limit: int | None = None,
) -> Iterator[tuple[Batch, int]]:
    """Yield a store's examples once, in order, one a row; with each batch, how many are real.

    The last batch is filled up with empty rows whose loss weights are 0. The noise of an example is
    the same at every evaluation. `rows` are this host's rows of each batch (the count is the whole
    batch's), `limit` a number of examples to stop at.
    """
    examples = open_examples(
        task.name,
        task.store,
        objective=task.objective,
        ending=task.ending,
        feature_lengths=feature_lengths,
        sentinels=sentinels,
        seed=seed,
    )
    return _evaluation_batches(
        examples,
        batch_size,
        np.arange(batch_size)[rows],
        examples.size if limit is None else min(limit, examples.size),
        converter,
    )


def _evaluation_batches(
    examples: Examples,
    batch_size: int,
    rows_b: NDArray[np.int64],
    size: int,
    converter: Converter,
) -> Iterator[tuple[Batch, int]]:
    for first in range(0, size, batch_size):
        count = min(batch_size, size - first)
        segments = {
            feature: Segments.empty(len(rows_b), width)
            for feature, width in examples.widths.items()
        }
        row_n = np.flatnonzero(rows_b < count)
        if len(row_n):
            features = examples.features(np.zeros_like(row_n), first + rows_b[row_n])
            for feature in segments:
                segments[feature].fill(features[feature], row_n)
        yield converter(segments, packed=False), count


def _check_packable(tasks: Sequence[StreamTask]) -> None:
    for task in tasks:
        if labels := getattr(task.objective, "labels", ()):
            raise ConfigError(
                f"{' and '.join(labels)} of task {task.name!r} is one number a row: wanted pack = "
                "False, so that no two examples share one",
                "Data.pack",
            )


def _shared_widths(examples: Sequence[Examples]) -> dict[str, int]:
    """Return the features that the examples of every task have, and their widths."""
    first, *others = (each.widths for each in examples)
    return {name: width for name, width in first.items() if all(name in w for w in others)}


def _cut(placed: _Placed, low: int, high: int, *, to: int) -> _Placed:
    """Return the examples of rows low ... high - 1, the first of which becomes row `to`."""
    first, last = np.searchsorted(placed.row_n, [low, high])
    part = _Placed(*(column[first:last] for column in placed))
    return part._replace(row_n=part.row_n - low + to)


def _lay_out(
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
