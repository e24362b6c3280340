"""The stream: from any position, the batches that follow it, the same on any number of hosts.

The examples of a mixture come in windows of 1,024 draws. A window's rows are packed, shuffled and
emitted to the last, so nothing is carried from one window to the next, and a position is a few
integers: which window, how many of its rows are done, and how often each task had been drawn when
the window began.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data import converters, kernels, order, seqio_order
from t5x_lite.data.converters import Converter
from t5x_lite.data.examples import Examples, task_number
from t5x_lite.data.live import LiveExamples
from t5x_lite.data.opening import known, open_examples, size_so_far
from t5x_lite.data.packing import Segments, best_fit_decreasing
from t5x_lite.data.positions import FORMAT, Position, check_position
from t5x_lite.data.stream_tasks import StreamTask, check_packable, check_piecewise
from t5x_lite.data.windows import Identities, Placed, Window, cut_batches, lay_out, task_ids
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.spans import Sentinels

Batch = dict[str, NDArray]


class Stream:
    """A mixture of tasks as a sequence of batches, addressed by position.

    Each epoch of a task has a new order that meets every example once. With `exhaustion` "repeat"
    tasks are begun anew for ever. "stop" ends where a task is drawn that was gone through
    `num_epochs` times; "renormalise" goes on with the others until all were, so that every example
    comes exactly `num_epochs` times. The last batch is then filled up with empty rows.

    The order follows from the tasks, their rates and sizes, the feature lengths, the seed, `pack`,
    `exhaustion`, `in_blocks` and `window_examples`; the batch size only cuts it. `in_blocks` lets
    the first epoch begin before a store is complete (`order.visit_in_blocks`). Raises ConfigError
    for an empty store and for features that do not suit a task. `like_seqio` takes examples as they
    are stored, and tasks and noise as seqio's unshuffled pipeline does, bit for bit in the first
    epoch (`data.seqio_order`). `tell_tasks` adds the number of each target token's task as
    "task_ids" [batch, length], if there are several.
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
        exhaustion: order.Exhaustion = "repeat",
        num_epochs: int = 1,
        window_examples: int = 1024,
        in_blocks: bool = False,
        like_seqio: bool = False,
        tell_tasks: bool = False,
    ):
        if batch_size < 1:
            raise ConfigError(f"the batch size is {batch_size}: it takes 1 or more", "BATCH_SIZE")
        if exhaustion not in get_args(order.Exhaustion) or num_epochs < 1:
            raise ConfigError(
                f"exhaustion is {exhaustion!r} with {num_epochs} epochs: it takes "
                f"{', '.join(get_args(order.Exhaustion))}, and 1 epoch or more",
                "Data.exhaustion",
                "Data.num_epochs",
            )
        if in_blocks:
            check_piecewise(tasks)
        self.batch_size, self._in_blocks = batch_size, in_blocks
        self._names = [task.name for task in tasks]
        # The tasks by the numbers that batches tell; none where they tell nothing.
        self.told_tasks = self._names if tell_tasks and len(tasks) > 1 else []
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
                like_seqio=like_seqio,
            )
            for task in tasks
        ]
        self._live = {
            name: examples
            for name, examples in zip(self._names, self._examples, strict=True)
            if isinstance(examples, LiveExamples)
        }
        self._like_seqio = like_seqio
        self._lengths = _shared_widths(self._examples)
        if pack:
            check_packable(tasks)
        self._seed, self._pack, self._window_examples = seed, pack, window_examples
        self._converter = converter
        self._exhaustion: order.Exhaustion = exhaustion
        self._num_epochs = num_epochs
        self._planned: Window | None = None

    def start(self) -> Position:
        """Return the position of the first batch."""
        return self._position(0, 0, dict.fromkeys(self._names, 0))

    def batches(
        self, position: Position, rows: slice = slice(None)
    ) -> Iterator[tuple[Batch, Position]]:
        """Yield the batches from a position on, each with the position after it.

        `rows` are the rows of the global batch that this host feeds; all hosts see the same
        positions. Raises ConfigError for a position that is not of this mixture.
        """
        self._check(position)
        return kernels.begin_without(self._batches(position, rows))

    def identities(self, position: Position) -> Iterator[Identities]:
        """Yield of each batch from a position on which examples it holds, of all rows."""
        self._check(position)
        return (Identities(self._names, *placed[:4]) for placed, _ in self._placed(position))

    def examples(self, position: Position) -> dict[str, int]:
        """Return how many examples of each task lie before a position."""
        self._check(position)
        window = self._window(position["window"], position["drawn"])
        seen = np.searchsorted(window.placed.row_n, position["row"])
        counts = np.bincount(window.placed.task_n[:seen], minlength=len(self._names)).tolist()
        return {
            name: window.drawn[name] + count
            for name, count in zip(self._names, counts, strict=True)
        }

    def epochs(self, position: Position) -> dict[str, float]:
        """Return how often each task has been gone through before a position: 1.5 is half-way.

        A task whose size is not known yet, as its store is being made, is left out.
        """
        return self.passes(self.examples(position))

    def passes(self, counts: Mapping[str, int]) -> dict[str, float]:
        """Return how often so many examples of each task go through it (`epochs`)."""
        each = zip(self._names, self._examples, strict=True)
        sizes = {name: size_so_far(examples) for name, examples in each}
        return {name: counts[name] / size for name, size in sizes.items() if size is not None}

    def _check(self, position: Position) -> None:
        check_position(position, self._names, order.BLOCK if self._in_blocks else None)
        for name, marker in position.get("markers", {}).items():
            if (live := self._live.get(name)) is not None:
                live.accept(marker)

    def _position(self, window: int, row: int, drawn: Mapping[str, int]) -> Position:
        position: Position = {"format": FORMAT, "window": window, "row": row, "drawn": dict(drawn)}
        if self._in_blocks:
            position["block"] = order.BLOCK
        if self._live:
            position["markers"] = {
                name: live.marker(drawn[name]) for name, live in self._live.items()
            }
        return position

    def _batches(self, position: Position, rows: slice) -> Iterator[tuple[Batch, Position]]:
        for placed, after in self._placed(position):
            yield self._materialise(placed, np.arange(self.batch_size)[rows]), after

    def _placed(self, position: Position) -> Iterator[tuple[Placed, Position]]:
        """Yield the examples of each batch with their places, and the position after it."""
        first = self._window(position["window"], position["drawn"])
        following = lambda window: self._window(window.number + 1, window.drawn_after)  # noqa: E731
        for placed, window, row in cut_batches(first, position["row"], self.batch_size, following):
            yield placed, self._position(window.number, row, window.drawn)

    def _window(self, number: int, drawn: Mapping[str, int]) -> Window:
        """A window's plan; the one planned last is at hand, for those who look where others are."""
        window = self._planned
        if window is None or (window.number, window.drawn) != (number, drawn):
            self._planned = window = self._plan(number, drawn)
        return window

    def _plan(self, number: int, drawn: Mapping[str, int]) -> Window:
        """Draw a window's examples and give each a place in a row."""
        task_n = self._draw(number, drawn)
        epoch_n, index_n = np.empty_like(task_n), np.empty_like(task_n)
        lengths_n2 = np.zeros((len(task_n), 2), np.int64)
        drawn_after = dict(drawn)
        for task in np.unique(task_n):
            name, examples = self._names[task], self._examples[task]
            own = np.flatnonzero(task_n == task)
            drawn_after[name] += len(own)
            draws = np.arange(drawn[name], drawn_after[name])
            epoch_n[own], index_n[own] = self._visit(name, examples, draws)
            if self._pack:
                lengths_n2[own] = examples.lengths(epoch_n[own], index_n[own])
        row_n = self._rows(number, lengths_n2)
        by_row = np.argsort(row_n, kind="stable")
        segment_n, starts_n2 = lay_out(row_n[by_row], lengths_n2[by_row])
        placed = Placed(
            task_n[by_row], epoch_n[by_row], index_n[by_row], row_n[by_row], segment_n, starts_n2
        )
        num_rows = int(row_n.max(initial=-1)) + 1
        return Window(number, dict(drawn), drawn_after, num_rows, placed)

    def _visit(
        self, name: str, examples: Examples, draws: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the epoch and the example that each of a task's draws stands for."""
        if isinstance(examples, LiveExamples):
            return examples.visit(draws)
        if self._like_seqio:
            return np.divmod(draws, examples.size)
        keys = {"seed": self._seed, "stream": task_number(name)}
        if not self._in_blocks:
            return order.visit(draws, examples.size, **keys)
        wanted = order.end_of_block(int(draws[-1]) + 1)
        return order.visit_in_blocks(draws, known(examples, wanted), **keys)

    def _draw(self, number: int, drawn: Mapping[str, int]) -> NDArray[np.int64]:
        """Return the task of each example of a window, which has fewer or none at the end."""
        if self._like_seqio:
            first = number * self._window_examples
            rows_n = np.arange(first, first + self._window_examples)
            return seqio_order.mixture_tasks(self._rates, rows_n, seed=self._seed)
        left = None
        if self._exhaustion != "repeat":
            each = zip(self._names, self._examples, strict=True)
            left = np.array([self._left(examples, drawn[name]) for name, examples in each])
        return order.draw_tasks(
            self._rates,
            number,
            seed=self._seed,
            count=self._window_examples,
            left=left,
            exhaustion=self._exhaustion,
        )

    def _left(self, examples: Examples, drawn: int) -> int:
        """Return how many more draws a task has, or at least a window's."""
        if isinstance(examples, LiveExamples):
            return examples.draws(drawn + self._window_examples, self._num_epochs) - drawn
        there = known(examples, drawn + self._window_examples)
        if there < drawn + self._window_examples:
            there *= self._num_epochs
        return there - drawn

    def _rows(self, number: int, lengths_n2: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return each example's row: packed and shuffled, or one row each in the order drawn."""
        if not self._pack or not len(lengths_n2):
            return np.arange(len(lengths_n2))
        capacities = (self._lengths["inputs"], self._lengths["targets"])
        row_n = best_fit_decreasing(lengths_n2, capacities)
        return order.shuffle_rows(int(row_n.max()) + 1, number, seed=self._seed)[row_n]

    def _materialise(self, placed: Placed, rows_b: NDArray[np.int64]) -> Batch:
        """Read, corrupt and write those examples that lie in the given rows."""
        local_row = np.full(self.batch_size, -1)
        local_row[rows_b] = np.arange(len(rows_b))
        local_n = local_row[placed.row_n]
        local_task_n = np.where(local_n >= 0, placed.task_n, -1)
        segments = {
            feature: Segments.empty(len(rows_b), length)
            for feature, length in self._lengths.items()
        }
        for task in np.unique(local_task_n[local_n >= 0]):
            own, examples = np.flatnonzero(local_task_n == task), self._examples[task]
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
        batch = self._converter(segments, packed=self._pack)
        if self.told_tasks:
            batch["task_ids"] = task_ids(batch, placed, local_n)
        return batch


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
        examples.size if limit is None else min(limit, known(examples, limit)),
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


def _shared_widths(examples: Sequence[Examples]) -> dict[str, int]:
    """Return the features that the examples of every task have, and their widths."""
    first, *others = (each.widths for each in examples)
    return {name: width for name, width in first.items() if all(name in w for w in others)}
