"""The stream: from any position, the batches that follow it, the same on any number of hosts.

The examples of a mixture come in windows of 1,024 draws. A window's rows are packed, shuffled and
emitted to the last, so nothing is carried from one window to the next, and a position is a few
integers: which window, how many of its rows are done, and how often each task had been drawn when
the window began.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, NotRequired, TypedDict, get_args

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.stream import feature_converters, numba_loader, shuffle
from t5x_lite.data.stream.examples import Examples, PairTrimmer, random_stream
from t5x_lite.data.stream.feature_converters import Converter
from t5x_lite.data.stream.open_examples import (
    AnyStore,
    open_examples,
    size_if_known,
    wait_for_examples,
)
from t5x_lite.data.stream.packing import Segments, best_fit_decreasing
from t5x_lite.data.stream.seqio_pipeline import IteratorCheckpoint, SeqioPipelineExamples
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import Objective, PairObjective

FORMAT = 1


class StreamPosition(TypedDict):
    """Where a stream stands, as JSON; the same for any number of hosts.

    block: how many examples the first epoch shuffles at a time, where it does not shuffle them all.
    markers: of the tasks that run through seqio's own pipeline (`data.stream.seqio_pipeline`).
    """

    format: int
    window: int
    row: int
    drawn: dict[str, int]
    block: NotRequired[int]
    markers: NotRequired[dict[str, IteratorCheckpoint]]


def check_position(position: StreamPosition, names: Collection[str], block: int | None) -> None:
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
            f"the run to resume began with tokenization = '{began}_training', which decides the "
            "order of its first epoch: it must go on with the same",
            "Data.tokenization",
        )


class StreamTask(NamedTuple):
    """A task of a mixture: its store, its rate in any unit, its objective (None for pairs).

    trimming: of pairs that are not simply cut where they are too long.
    """

    name: str
    store: AnyStore
    rate: float
    objective: Objective | None
    trimming: PairTrimmer | None = None


def check_packable(tasks: Sequence[StreamTask]) -> None:
    """Raise ConfigError for an objective whose examples cannot share a row."""
    for task in tasks:
        if labels := getattr(task.objective, "labels", ()):
            raise ConfigError(
                f"{' and '.join(labels)} of task {task.name!r} is one number a row: wanted pack = "
                "False, so that no two examples share one",
                "Data.pack",
            )


def check_piecewise(tasks: Sequence[StreamTask]) -> None:
    """Raise ConfigError for an objective that needs the whole text to begin with."""
    for task in tasks:
        if isinstance(task.objective, PairObjective):
            raise ConfigError(
                f"{type(task.objective).__name__} puts pieces from all over task {task.name!r} "
                "together: wanted tokenization = 'before_training'",
                "Data.tokenization",
            )


class PackedExamples(NamedTuple):
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
    placed: PackedExamples


class ExampleIds(NamedTuple):
    """Which examples a batch holds, one a place: number of the task, epoch, index, row."""

    names: Sequence[str]
    task_n: NDArray[np.int64]
    epoch_n: NDArray[np.int64]
    index_n: NDArray[np.int64]
    row_n: NDArray[np.int64]


def cut_batches(
    window: Window, row: int, batch_size: int, following: Callable[[Window], Window]
) -> Iterator[tuple[PackedExamples, Window, int]]:
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
        yield (
            PackedExamples(*(np.concatenate(column) for column in zip(*parts, strict=True))),
            window,
            row,
        )


def task_ids(
    batch: Mapping[str, NDArray], placed: PackedExamples, local_n: NDArray[np.int64]
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


def cut(placed: PackedExamples, low: int, high: int, *, to: int) -> PackedExamples:
    """Return the examples of rows low ... high - 1, the first of which becomes row `to`."""
    first, last = np.searchsorted(placed.row_n, [low, high])
    part = PackedExamples(*(column[first:last] for column in placed))
    return part._replace(row_n=part.row_n - low + to)


def segments_and_starts(
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


Batch = dict[str, NDArray]


class Stream:
    """A mixture of tasks as a sequence of batches, addressed by position.

    Each epoch of a task has a new order that meets every example once. With `on_task_exhausted`
    "repeat"
    tasks are begun anew for ever. "stop" ends where a task is drawn that was gone through
    `num_epochs` times; "renormalize" goes on with the others until all were, so that every example
    comes exactly `num_epochs` times. The last batch is then filled up with empty rows.

    The order follows from the tasks, their rates and sizes, the feature lengths, the seed, `pack`,
    `on_task_exhausted`, `in_blocks` and `window_examples`; the batch size only cuts it.
    `in_blocks` lets the first epoch begin before a store is complete
    (`shuffle.block_shuffled_examples`). `match_seqio` takes examples in the order of the store, and
    tasks and noise as seqio's unshuffled pipeline does, bit for bit in the first epoch.
    `return_task_ids` adds the number of each target token's task as
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
        converter: Converter = feature_converters.encoder_decoder,
        on_task_exhausted: shuffle.Exhaustion = "repeat",
        num_epochs: int = 1,
        window_examples: int = 1024,
        in_blocks: bool = False,
        match_seqio: bool = False,
        return_task_ids: bool = False,
    ):
        if batch_size < 1:
            raise ConfigError(f"the batch size is {batch_size}: it takes 1 or more", "BATCH_SIZE")
        if on_task_exhausted not in get_args(shuffle.Exhaustion) or num_epochs < 1:
            raise ConfigError(
                f"on_task_exhausted is {on_task_exhausted!r} with {num_epochs} epochs: it takes "
                f"{', '.join(get_args(shuffle.Exhaustion))}, and 1 epoch or more",
                "Data.on_task_exhausted",
                "Data.num_epochs",
            )
        if in_blocks:
            check_piecewise(tasks)
        self.batch_size, self._in_blocks = batch_size, in_blocks
        self._names = [task.name for task in tasks]
        # The tasks by the numbers that batches tell; none where they tell nothing.
        self.task_names = self._names if return_task_ids and len(tasks) > 1 else []
        self._rates = np.array([task.rate for task in tasks], np.float64)
        self._examples = [
            open_examples(
                task.name,
                task.store,
                objective=task.objective,
                trimming=task.trimming,
                feature_lengths=feature_lengths,
                sentinels=sentinels,
                seed=seed,
                match_seqio=match_seqio,
            )
            for task in tasks
        ]
        self._live = {
            name: examples
            for name, examples in zip(self._names, self._examples, strict=True)
            if isinstance(examples, SeqioPipelineExamples)
        }
        self._match_seqio = match_seqio
        self._lengths = _shared_widths(self._examples)
        if pack:
            check_packable(tasks)
        self._seed, self._pack, self._window_examples = seed, pack, window_examples
        self._converter = converter
        self._exhaustion: shuffle.Exhaustion = on_task_exhausted
        self._num_epochs = num_epochs
        self._planned: Window | None = None

    def start(self) -> StreamPosition:
        """Return the position of the first batch."""
        return self._position(0, 0, dict.fromkeys(self._names, 0))

    def batches(
        self, position: StreamPosition, rows: slice = slice(None)
    ) -> Iterator[tuple[Batch, StreamPosition]]:
        """Yield the batches from a position on, each with the position after it.

        `rows` are the rows of the global batch that this host feeds; all hosts see the same
        positions. Raises ConfigError for a position that is not of this mixture.
        """
        self._check(position)
        return numba_loader.first_without_numba(self._batches(position, rows))

    def example_ids(self, position: StreamPosition) -> Iterator[ExampleIds]:
        """Yield of each batch from a position on which examples it holds, of all rows."""
        self._check(position)
        return (ExampleIds(self._names, *placed[:4]) for placed, _ in self._placed(position))

    def examples_seen(self, position: StreamPosition) -> dict[str, int]:
        """Return how many examples of each task lie before a position."""
        self._check(position)
        window = self._window(position["window"], position["drawn"])
        seen = np.searchsorted(window.placed.row_n, position["row"])
        counts = np.bincount(window.placed.task_n[:seen], minlength=len(self._names)).tolist()
        return {
            name: window.drawn[name] + count
            for name, count in zip(self._names, counts, strict=True)
        }

    def epochs_seen(self, position: StreamPosition) -> dict[str, float]:
        """Return how often each task has been gone through before a position: 1.5 is half-way.

        A task whose size is not known yet, as its store is being made, is left out.
        """
        return self.passes(self.examples_seen(position))

    def passes(self, counts: Mapping[str, int]) -> dict[str, float]:
        """Return how often so many examples of each task go through it (`epochs`)."""
        each = zip(self._names, self._examples, strict=True)
        sizes = {name: size_if_known(examples) for name, examples in each}
        return {name: counts[name] / size for name, size in sizes.items() if size is not None}

    def _check(self, position: StreamPosition) -> None:
        check_position(position, self._names, shuffle.BLOCK_EXAMPLES if self._in_blocks else None)
        for name, marker in position.get("markers", {}).items():
            if (live := self._live.get(name)) is not None:
                live.accept(marker)

    def _position(self, window: int, row: int, drawn: Mapping[str, int]) -> StreamPosition:
        position: StreamPosition = {
            "format": FORMAT,
            "window": window,
            "row": row,
            "drawn": dict(drawn),
        }
        if self._in_blocks:
            position["block"] = shuffle.BLOCK_EXAMPLES
        if self._live:
            position["markers"] = {
                name: live.marker(drawn[name]) for name, live in self._live.items()
            }
        return position

    def _batches(
        self, position: StreamPosition, rows: slice
    ) -> Iterator[tuple[Batch, StreamPosition]]:
        for placed, after in self._placed(position):
            yield self._materialize(placed, np.arange(self.batch_size)[rows]), after

    def _placed(self, position: StreamPosition) -> Iterator[tuple[PackedExamples, StreamPosition]]:
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
        segment_n, starts_n2 = segments_and_starts(row_n[by_row], lengths_n2[by_row])
        placed = PackedExamples(
            task_n[by_row], epoch_n[by_row], index_n[by_row], row_n[by_row], segment_n, starts_n2
        )
        num_rows = int(row_n.max(initial=-1)) + 1
        return Window(number, dict(drawn), drawn_after, num_rows, placed)

    def _visit(
        self, name: str, examples: Examples, draws: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the epoch and the example that each of a task's draws stands for."""
        if isinstance(examples, SeqioPipelineExamples):
            return examples.epochs_and_indices(draws)
        if self._match_seqio:
            return np.divmod(draws, examples.size)
        keys = {"seed": self._seed, "stream": random_stream(name)}
        if not self._in_blocks:
            return shuffle.shuffled_examples(draws, examples.size, **keys)
        wanted = shuffle.round_up_to_block(int(draws[-1]) + 1)
        return shuffle.block_shuffled_examples(draws, wait_for_examples(examples, wanted), **keys)

    def _draw(self, number: int, drawn: Mapping[str, int]) -> NDArray[np.int64]:
        """Return the task of each example of a window, which has fewer or none at the end."""
        if self._match_seqio:
            first = number * self._window_examples
            rows_n = np.arange(first, first + self._window_examples)
            return shuffle.seqio_mixture_tasks(self._rates, rows_n, seed=self._seed)
        left = None
        if self._exhaustion != "repeat":
            each = zip(self._names, self._examples, strict=True)
            left = np.array([self._left(examples, drawn[name]) for name, examples in each])
        return shuffle.draw_tasks(
            self._rates,
            number,
            seed=self._seed,
            count=self._window_examples,
            left=left,
            on_task_exhausted=self._exhaustion,
        )

    def _left(self, examples: Examples, drawn: int) -> int:
        """Return how many more draws a task has, or at least a window's."""
        if isinstance(examples, SeqioPipelineExamples):
            return examples.draws(drawn + self._window_examples, self._num_epochs) - drawn
        there = wait_for_examples(examples, drawn + self._window_examples)
        if there < drawn + self._window_examples:
            there *= self._num_epochs
        return there - drawn

    def _rows(self, number: int, lengths_n2: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return each example's row: packed and shuffled, or one row each in the order drawn."""
        if not self._pack or not len(lengths_n2):
            return np.arange(len(lengths_n2))
        capacities = (self._lengths["inputs"], self._lengths["targets"])
        row_n = best_fit_decreasing(lengths_n2, capacities)
        return shuffle.shuffle_rows(int(row_n.max()) + 1, number, seed=self._seed)[row_n]

    def _materialize(self, placed: PackedExamples, rows_b: NDArray[np.int64]) -> Batch:
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
        if self.task_names:
            batch["task_ids"] = task_ids(batch, placed, local_n)
        return batch


def evaluation_batches(
    task: StreamTask,
    *,
    feature_lengths: Mapping[str, int],
    batch_size: int,
    seed: int,
    sentinels: Sentinels,
    converter: Converter = feature_converters.encoder_decoder,
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
        trimming=task.trimming,
        feature_lengths=feature_lengths,
        sentinels=sentinels,
        seed=seed,
    )
    return _evaluation_batches(
        examples,
        batch_size,
        np.arange(batch_size)[rows],
        examples.size if limit is None else min(limit, wait_for_examples(examples, limit)),
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
