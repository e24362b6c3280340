"""The batches of a mixture of tasks from any position, the same on any number of hosts.

The examples of a mixture are drawn in windows of 1,024. The rows of a window are packed, shuffled
and used up before the next window begins. So nothing is carried from one window to the next, and a
position is a few integers: which window, how many of its rows were used, and how often each task
had been drawn when the window began.

    draw a task for each example   shuffle.draw_tasks
    choose the example of a task   shuffle.shuffled_examples
    pack examples into rows        packing.best_fit_decreasing
    shuffle the rows               shuffle.shuffle_rows
    cut rows into batches          Stream._planned_batches
    read, corrupt, write rows      Stream._materialize
    name the arrays of the model   feature_converters
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
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
from t5x_lite.objectives.objective import Objective, PairObjective
from t5x_lite.objectives.sentinels import Sentinels

FORMAT = 1  # of a position

Batch = dict[str, NDArray]


class StreamTask(NamedTuple):
    """A task of a mixture.

    Attributes:
        name: decides the task's random numbers, together with the seed.
        store: where its tokens or examples come from.
        rate: how often it is drawn, in any unit.
        objective: what turns its text into inputs and targets; None for stored pairs.
        trimming: how pairs that are too long are trimmed; None: they lose their last tokens.
    """

    name: str
    store: AnyStore
    rate: float
    objective: Objective | None
    trimming: PairTrimmer | None = None


class StreamPosition(TypedDict):
    """A position between two batches, as JSON; it does not depend on the number of hosts.

    Attributes:
        format: the version of this layout.
        window: the number of the window that the next row comes from.
        row: how many rows of that window come before the position.
        drawn: how often each task had been drawn when the window began.
        block: how many examples the first epoch shuffles together; absent if it shuffles all.
        markers: the iterator checkpoints of tasks that run through seqio's own pipeline
            (`data.stream.seqio_pipeline`); absent if there are none.
    """

    format: int
    window: int
    row: int
    drawn: dict[str, int]
    block: NotRequired[int]
    markers: NotRequired[dict[str, IteratorCheckpoint]]


class ExampleIds(NamedTuple):
    """Which examples are in a batch.

    Attributes:
        names: the names of the tasks.
        task_n: the index of each example's task in `names` [n].
        epoch_n: the epoch of each example [n].
        index_n: the index of each example in its task [n].
        row_n: the row of each example in the batch [n].
    """

    names: Sequence[str]
    task_n: NDArray[np.int64]
    epoch_n: NDArray[np.int64]
    index_n: NDArray[np.int64]
    row_n: NDArray[np.int64]


class PackedExamples(NamedTuple):
    """Which examples go where, in the order of their rows.

    Attributes:
        task_n: the index of each example's task [n].
        epoch_n: the epoch of each example [n].
        index_n: the index of each example in its task [n].
        row_n: the row of each example, ascending [n].
        segment_n: the number of each example in its row, from 1 [n].
        starts_n2: where in the row its inputs and its targets start [n, 2].
    """

    task_n: NDArray[np.int64]
    epoch_n: NDArray[np.int64]
    index_n: NDArray[np.int64]
    row_n: NDArray[np.int64]
    segment_n: NDArray[np.int64]
    starts_n2: NDArray[np.int64]

    def rows(self, start: int, stop: int, *, first_row: int) -> "PackedExamples":
        """Return the examples of rows start ... stop - 1, renumbered from `first_row`."""
        first, last = np.searchsorted(self.row_n, [start, stop])
        part = PackedExamples(*(column[first:last] for column in self))
        return part._replace(row_n=part.row_n - start + first_row)


class Window(NamedTuple):
    """The plan of a window.

    Attributes:
        number: of the window, from 0.
        drawn: how often each task had been drawn before it.
        drawn_after: how often each task has been drawn after it.
        num_rows: how many rows its examples fill; 0 after the end of the stream.
        examples: its examples and their rows.
    """

    number: int
    drawn: dict[str, int]
    drawn_after: dict[str, int]
    num_rows: int
    examples: PackedExamples


class Stream:
    """A mixture of tasks as a sequence of batches, addressed by position.

    The sequence of rows depends on the tasks, their rates and sizes, and on the feature lengths,
    `seed`, `pack`, `on_task_exhausted`, `in_blocks` and `window_examples`. The batch size only
    decides where it is cut.

    Args:
        tasks: the tasks of the mixture.
        feature_lengths: the lengths of inputs and targets, in tokens, EOS included.
        batch_size: the number of rows of the global batch.
        seed: of the order, the draws among tasks and the noise.
        sentinels: the sentinel ids of the vocabulary.
        pack: whether rows may have several examples.
        converter: what makes the arrays of the model (`data.stream.feature_converters`).
        on_task_exhausted: "repeat" starts a task again in a new order, indefinitely. "stop" ends
            the stream where a task is drawn after `num_epochs` epochs. "renormalize" continues with
            the other tasks until all are exhausted: every example comes exactly `num_epochs` times,
            and empty rows complete the last batch.
        num_epochs: of each task; only for "stop" and "renormalize".
        window_examples: how many examples are drawn and packed together. 1,024 fill 97 % of the
            slots of a typical mixture, and more gains little.
        in_blocks: whether the first epoch shuffles within blocks, in the order of the store, so
            that it can start before the store is complete (`shuffle.block_shuffled_examples`).
        match_seqio: whether to take examples in the order of the store, and tasks and noise from
            the random numbers of seqio's unshuffled pipeline, bit for bit in the first epoch.
        return_task_ids: whether batches of several tasks contain the index of the task of each
            target token in `task_names`, as "task_ids" [batch, length].

    Raises:
        ConfigError: for invalid settings, an empty store, and features that do not suit a task.
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
        _check_settings(batch_size, on_task_exhausted, num_epochs)
        if in_blocks:
            _check_needs_no_complete_store(tasks)
        if pack:
            _check_packable(tasks)
        self.batch_size, self._seed, self._pack = batch_size, seed, pack
        self._in_blocks, self._match_seqio = in_blocks, match_seqio
        self._window_examples, self._converter = window_examples, converter
        self._exhaustion: shuffle.Exhaustion = on_task_exhausted
        self._num_epochs = num_epochs
        self._names = [task.name for task in tasks]
        # Empty if batches have no task ids.
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
        self._pipelines = {
            name: examples
            for name, examples in zip(self._names, self._examples, strict=True)
            if isinstance(examples, SeqioPipelineExamples)
        }
        self._widths = _common_widths(self._examples)
        self._last_window: Window | None = None

    def start(self) -> StreamPosition:
        """Return the position of the first batch."""
        return self._position(0, 0, dict.fromkeys(self._names, 0))

    def batches(
        self, position: StreamPosition, rows: slice = slice(None)
    ) -> Iterator[tuple[Batch, StreamPosition]]:
        """Yield the batches after a position, each with the position after it.

        Args:
            position: where to start.
            rows: the rows of the global batch that this host feeds. All hosts see the same
                positions.

        Yields:
            The arrays of the converter, with these rows, and the position after the batch.

        Raises:
            ConfigError: for a position of another mixture or another order.
        """
        self._check_position(position)
        return numba_loader.first_without_numba(self._batches(position, rows))

    def example_ids(self, position: StreamPosition) -> Iterator[ExampleIds]:
        """Yield which examples are in each batch after a position, in all rows of the batch."""
        self._check_position(position)
        planned = self._planned_batches(position)
        return (ExampleIds(self._names, *examples[:4]) for examples, _ in planned)

    def examples_seen(self, position: StreamPosition) -> dict[str, int]:
        """Return how many examples of each task come before a position."""
        self._check_position(position)
        window = self._window(position["window"], position["drawn"])
        used = np.searchsorted(window.examples.row_n, position["row"])
        counts = np.bincount(window.examples.task_n[:used], minlength=len(self._names)).tolist()
        return {
            name: window.drawn[name] + count
            for name, count in zip(self._names, counts, strict=True)
        }

    def epochs_seen(self, position: StreamPosition) -> dict[str, float]:
        """Return how many epochs of each task come before a position (`epochs_of`)."""
        return self.epochs_of(self.examples_seen(position))

    def epochs_of(self, counts: Mapping[str, int]) -> dict[str, float]:
        """Return how many epochs a number of examples of each task is, such as 1.5.

        A task is missing as long as its size is not known because its store is incomplete.
        """
        sizes = {name: size_if_known(examples) for name, examples in self._named_examples()}
        return {name: counts[name] / size for name, size in sizes.items() if size is not None}

    def _named_examples(self) -> Iterator[tuple[str, Examples]]:
        return zip(self._names, self._examples, strict=True)

    # Positions

    def _position(self, window: int, row: int, drawn: Mapping[str, int]) -> StreamPosition:
        position: StreamPosition = {
            "format": FORMAT,
            "window": window,
            "row": row,
            "drawn": dict(drawn),
        }
        if self._in_blocks:
            position["block"] = shuffle.BLOCK_EXAMPLES
        if self._pipelines:
            position["markers"] = {
                name: pipeline.checkpoint_before(drawn[name])
                for name, pipeline in self._pipelines.items()
            }
        return position

    def _check_position(self, position: StreamPosition) -> None:
        block = shuffle.BLOCK_EXAMPLES if self._in_blocks else None
        _check_same_order(position, self._names, block)
        for name, checkpoint in position.get("markers", {}).items():
            if (pipeline := self._pipelines.get(name)) is not None:
                pipeline.add_checkpoint(checkpoint)

    # Planning: which examples go where

    def _planned_batches(
        self, position: StreamPosition
    ) -> Iterator[tuple[PackedExamples, StreamPosition]]:
        """Yield the examples of each batch after a position, and the position after the batch.

        The stream ends where a window is empty. The last batch may have fewer rows.
        """
        window, row = self._window(position["window"], position["drawn"]), position["row"]
        while True:
            parts, filled = [], 0
            while filled < self.batch_size:
                if row >= window.num_rows:
                    following = self._window(window.number + 1, window.drawn_after)
                    if not following.num_rows:
                        break
                    window, row = following, 0
                count = min(self.batch_size - filled, window.num_rows - row)
                parts.append(window.examples.rows(row, row + count, first_row=filled))
                row, filled = row + count, filled + count
            if not parts:
                return
            examples = PackedExamples(*map(np.concatenate, zip(*parts, strict=True)))
            yield examples, self._position(window.number, row, window.drawn)

    def _window(self, number: int, drawn: Mapping[str, int]) -> Window:
        """Return the plan of a window.

        The last one is cached: `examples_seen` asks for the window that is being used.
        """
        window = self._last_window
        if window is None or (window.number, window.drawn) != (number, drawn):
            self._last_window = window = self._plan_window(number, drawn)
        return window

    def _plan_window(self, number: int, drawn: Mapping[str, int]) -> Window:
        """Draw the examples of a window and assign each to a row."""
        task_n = self._draw_tasks(number, drawn)
        epoch_n, index_n = np.empty_like(task_n), np.empty_like(task_n)
        lengths_n2 = np.zeros((len(task_n), 2), np.int64)
        drawn_after = dict(drawn)
        for task in np.unique(task_n):
            name, examples = self._names[task], self._examples[task]
            of_task = np.flatnonzero(task_n == task)
            drawn_after[name] += len(of_task)
            draws = np.arange(drawn[name], drawn_after[name])
            epoch_n[of_task], index_n[of_task] = self._epochs_and_indices(name, examples, draws)
            if self._pack:  # lengths matter to packing only
                lengths_n2[of_task] = examples.lengths(epoch_n[of_task], index_n[of_task])
        row_n = self._assign_rows(number, lengths_n2)
        by_row = np.argsort(row_n, kind="stable")
        segment_n, starts_n2 = _segments_and_starts(row_n[by_row], lengths_n2[by_row])
        examples = PackedExamples(
            task_n[by_row], epoch_n[by_row], index_n[by_row], row_n[by_row], segment_n, starts_n2
        )
        num_rows = int(row_n.max(initial=-1)) + 1
        return Window(number, dict(drawn), drawn_after, num_rows, examples)

    def _draw_tasks(self, number: int, drawn: Mapping[str, int]) -> NDArray[np.int64]:
        """Return the task of each example of a window, which is shorter at the stream's end."""
        if self._match_seqio:
            first = number * self._window_examples
            rows_n = np.arange(first, first + self._window_examples)
            return shuffle.seqio_mixture_tasks(self._rates, rows_n, seed=self._seed)
        remaining = None
        if self._exhaustion != "repeat":
            remaining = np.array(
                [
                    self._remaining(examples, drawn[name])
                    for name, examples in self._named_examples()
                ]
            )
        return shuffle.draw_tasks(
            self._rates,
            number,
            seed=self._seed,
            count=self._window_examples,
            remaining=remaining,
            on_task_exhausted=self._exhaustion,
        )

    def _remaining(self, examples: Examples, drawn: int) -> int:
        """Return how many draws a task has left in its epochs, exactly if fewer than a window."""
        needed = drawn + self._window_examples
        if isinstance(examples, SeqioPipelineExamples):
            return examples.draws_available(needed, self._num_epochs) - drawn
        available = wait_for_examples(examples, needed)
        if available < needed:  # then it is the size of an epoch
            available *= self._num_epochs
        return available - drawn

    def _epochs_and_indices(
        self, name: str, examples: Examples, draws_n: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which epoch and which example each draw of a task is: [n] each."""
        if isinstance(examples, SeqioPipelineExamples):
            return examples.epochs_and_indices(draws_n)
        if self._match_seqio:
            return np.divmod(draws_n, examples.size)
        keys = {"seed": self._seed, "stream": random_stream(name)}
        if not self._in_blocks:
            return shuffle.shuffled_examples(draws_n, examples.size, **keys)
        needed = shuffle.round_up_to_block(int(draws_n[-1]) + 1)
        available = wait_for_examples(examples, needed)
        return shuffle.block_shuffled_examples(draws_n, available, **keys)

    def _assign_rows(self, number: int, lengths_n2: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of each example: packed and shuffled, or one row each in drawn order."""
        if not self._pack or not len(lengths_n2):
            return np.arange(len(lengths_n2))
        capacities = (self._widths["inputs"], self._widths["targets"])
        row_n = best_fit_decreasing(lengths_n2, capacities)
        # Packing sorts by length: shuffle, so that batches do not differ in the kind of examples.
        return shuffle.shuffle_rows(int(row_n.max()) + 1, number, seed=self._seed)[row_n]

    # Making batches

    def _batches(
        self, position: StreamPosition, rows: slice
    ) -> Iterator[tuple[Batch, StreamPosition]]:
        for examples, after in self._planned_batches(position):
            yield self._materialize(examples, np.arange(self.batch_size)[rows]), after

    def _materialize(self, planned: PackedExamples, rows_b: NDArray[np.int64]) -> Batch:
        """Read, corrupt and write the examples of the given rows [b] of a planned batch."""
        # The row of each example in this host's part of the batch, -1 for rows of other hosts.
        local_rows = np.full(self.batch_size, -1)
        local_rows[rows_b] = np.arange(len(rows_b))
        local_n = local_rows[planned.row_n]
        local_task_n = np.where(local_n >= 0, planned.task_n, -1)
        segments = {
            feature: Segments.empty(len(rows_b), width) for feature, width in self._widths.items()
        }
        for task in np.unique(local_task_n[local_n >= 0]):
            of_task = np.flatnonzero(local_task_n == task)
            features = self._examples[task].features(
                planned.epoch_n[of_task], planned.index_n[of_task]
            )
            for feature in segments:
                if not self._pack:
                    segments[feature].write_one_per_row(features[feature], local_n[of_task])
                    continue
                column = int(feature == "targets")  # other features are aligned with the inputs
                segments[feature].write(
                    features[feature],
                    row_n=local_n[of_task],
                    start_n=planned.starts_n2[of_task, column],
                    segment_n=planned.segment_n[of_task],
                )
        batch = self._converter(segments, packed=self._pack)
        if self.task_names:
            batch["task_ids"] = _task_ids(batch, planned, local_n)
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
    """Yield the examples of a store once, in order, one per row.

    The noise of an example is the same at every evaluation.

    Args:
        task: the task, with the store of its validation split.
        feature_lengths: the lengths of inputs and targets, in tokens, EOS included.
        batch_size: the number of rows of the global batch.
        seed: of the noise.
        sentinels: the sentinel ids of the vocabulary.
        converter: what makes the arrays of the model.
        rows: the rows of each batch that this host feeds.
        limit: how many examples to take at most.

    Yields:
        Each batch, and how many examples its global batch has. Empty rows, whose loss weights are
        0, complete the last batch.

    Raises:
        ConfigError: for an empty store, and features that do not suit the task.
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
    size = examples.size if limit is None else min(limit, wait_for_examples(examples, limit))
    # A generator of its own, so that errors are raised by the call and not by the first batch.
    return _evaluation_batches(examples, batch_size, np.arange(batch_size)[rows], size, converter)


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
                segments[feature].write_one_per_row(features[feature], row_n)
        yield converter(segments, packed=False), count


def _segments_and_starts(
    row_n: NDArray[np.int64], lengths_n2: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each example's segment (from 1) and the starts of its features: [n] and [n, 2].

    The rows must ascend. With one of the two features shown:

        rows      0 0 0 1 1        segments  1 2 3 1 2
        lengths   3 1 2 4 2        starts    0 3 4 0 4
    """
    first_n = np.searchsorted(row_n, row_n)  # the first example of each example's row
    before_n2 = np.cumsum(lengths_n2, axis=0) - lengths_n2
    return np.arange(len(row_n)) - first_n + 1, before_n2 - before_n2[first_n]


def _task_ids(
    batch: Mapping[str, NDArray], planned: PackedExamples, local_n: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Return the task of each target position of a batch: [b, l].

    Padding gets the task of the first example of its row. With an example of task 2 and one of task
    5 in a row:

        segments  1 1 2 2 2 0        task_ids  2 2 5 5 5 2

    Args:
        batch: the arrays of the model; without segment ids, each row is one example.
        planned: the examples of the global batch.
        local_n: the row of each example in `batch`, -1 if it is in none [n].
    """
    side = "decoder" if "decoder_target_tokens" in batch else "encoder"
    targets_bl = batch[f"{side}_target_tokens"]
    packed = f"{side}_segment_ids" in batch
    segments_bl = batch[f"{side}_segment_ids"] if packed else np.ones_like(targets_bl)
    segment_n = planned.segment_n if packed else np.ones_like(planned.segment_n)
    is_local_n = local_n >= 0
    # A table of the task of each segment of each row, looked up by segment id.
    tasks_bs = np.zeros((len(targets_bl), 1 + int(segment_n.max(initial=1))), np.int32)
    tasks_bs[local_n[is_local_n], segment_n[is_local_n]] = planned.task_n[is_local_n]
    tasks_bs[:, 0] = tasks_bs[:, 1]
    return np.take_along_axis(tasks_bs, segments_bl, axis=1)


def _common_widths(examples: Sequence[Examples]) -> dict[str, int]:
    """Return the features that the examples of every task have, and their widths."""
    first, *others = (task_examples.widths for task_examples in examples)
    return {name: width for name, width in first.items() if all(name in w for w in others)}


def _check_settings(
    batch_size: int, on_task_exhausted: shuffle.Exhaustion, num_epochs: int
) -> None:
    if batch_size < 1:
        raise ConfigError(f"the batch size is {batch_size}: it takes 1 or more", "BATCH_SIZE")
    if on_task_exhausted not in get_args(shuffle.Exhaustion) or num_epochs < 1:
        raise ConfigError(
            f"on_task_exhausted is {on_task_exhausted!r} with {num_epochs} epochs: it takes "
            f"{', '.join(get_args(shuffle.Exhaustion))}, and 1 epoch or more",
            "Data.on_task_exhausted",
            "Data.num_epochs",
        )


def _check_packable(tasks: Sequence[StreamTask]) -> None:
    """Raise ConfigError for an objective with a label per row: its examples cannot share one."""
    for task in tasks:
        if labels := getattr(task.objective, "labels", ()):
            raise ConfigError(
                f"task {task.name!r} has one {' and one '.join(labels)} per row, so its examples "
                "cannot be packed: set pack = False",
                "Data.pack",
            )


def _check_needs_no_complete_store(tasks: Sequence[StreamTask]) -> None:
    """Raise ConfigError for an objective that combines chunks from anywhere in the text."""
    for task in tasks:
        if isinstance(task.objective, PairObjective):
            raise ConfigError(
                f"{type(task.objective).__name__} combines chunks from all of task {task.name!r}, "
                "so the store must be complete: set tokenization = 'before_training'",
                "Data.tokenization",
            )


def _check_same_order(position: StreamPosition, names: Collection[str], block: int | None) -> None:
    """Raise ConfigError for a position of another mixture or order, or of an unknown format."""
    if position["format"] != FORMAT:
        raise ConfigError(
            f"the saved position of the data has format {position['format']}: this version reads "
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
            "order of its first epoch: resume it with the same",
            "Data.tokenization",
        )
