"""Read tasks that no token store can serve through seqio's own pipeline, example by example.

Such tasks have random or unknown preprocessors after the cache placeholder. Their pipeline has no
random access: the n-th example is reached by producing all examples before it. Every host produces
all examples, so that draws are the same on any number of hosts, and keeps the rows that it feeds.

To resume without starting over, the position of a stream contains an iterator checkpoint: the
state of the `tf.data` iterator, taken every 8,192 examples. From there the pipeline runs forward to
the position.
"""

import base64
import dataclasses
import tempfile
import threading
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.stream.examples import random_stream
from t5x_lite.data.stream.trim_and_eos import FEATURES
from t5x_lite.errors import ConfigError
from t5x_lite.objectives import philox
from t5x_lite.objectives.objective import Rows

if TYPE_CHECKING:
    import seqio

Example = dict[str, NDArray[np.int32]]

_CHECKPOINT_EVERY = 1 << 13  # examples; one takes megabytes, as it contains the shuffle buffer
_CHECKPOINTS_KEPT = 4  # a prefetched batch may still need one before the last
_EXAMPLES_KEPT = 1 << 15  # in memory: a window is planned long before its rows are written
_UNLIMITED = 1 << 62


@dataclasses.dataclass(frozen=True)
class SeqioPipeline:
    """A split of a seqio task that takes the role of a token store.

    Attributes:
        task: the task, with the objective of the run if it is text.
        split: "train" is shuffled, all others are not.
        vocab_size: token ids must be smaller.
    """

    task: "seqio.Task"
    split: str
    vocab_size: int


class IteratorCheckpoint(TypedDict):
    """A position in a pipeline, as JSON.

    Attributes:
        drawn: how many examples come before it.
        epoch: the epoch it is in.
        epoch_drawn: how many examples come before that epoch.
        state: the files of the iterator's TensorFlow checkpoint, compressed and in base64; None for
            the start of the epoch, which needs no state.
    """

    drawn: int
    epoch: int
    epoch_drawn: int
    state: str | None


_START: IteratorCheckpoint = {"drawn": 0, "epoch": 0, "epoch_drawn": 0, "state": None}


class SeqioPipelineExamples:
    """The examples of a seqio pipeline, addressed by the number of the draw over all epochs.

    It has the methods of `data.stream.examples.Examples`; epochs are ignored there, as the number
    of the draw contains them. Each epoch of the train split is shuffled as the task says, with a
    seed of its own that depends on the seed of the run and on the task.

    Args:
        pipeline: the task and the split.
        feature_lengths: the lengths of "inputs" and "targets", in tokens, EOS included.
        seed: of the run.
    """

    def __init__(self, pipeline: SeqioPipeline, feature_lengths: Mapping[str, int], *, seed: int):
        self.widths = {feature: feature_lengths[feature] for feature in FEATURES}
        self._pipeline, self._lengths, self._seed = pipeline, dict(feature_lengths), seed
        self._checkpoints: list[IteratorCheckpoint] = [_START]
        self._kept: dict[int, Example] = {}  # by the number of the draw
        self._can_checkpoint = True
        self._epoch_size: int | None = None
        # The training loop asks for epochs while the prefetch thread produces batches.
        self._lock = threading.RLock()
        self._go_to(_START)

    @property
    def size(self) -> int:
        """The number of examples of the first epoch, which is produced to its end to count them."""
        return self.wait_for_examples(_UNLIMITED)

    @property
    def size_if_known(self) -> int | None:
        """The number of examples of an epoch; None until one has ended."""
        return self._epoch_size

    def wait_for_examples(self, count: int) -> int:
        """Return how many examples the first epoch has, or `count` if it has at least as many."""
        return self.draws_available(count, 1)

    def draws_available(self, count: int, num_epochs: int) -> int:
        """Return how many draws `num_epochs` epochs have, or `count` if at least as many."""
        with self._lock:
            if self._epoch_size is not None and count <= self._epoch_size:
                return count
            if self._drawn < count:
                self._run_to(count, num_epochs)
            return min(self._drawn, count) if self._epoch < num_epochs else self._epoch_drawn

    def epochs_and_indices(
        self, draws_n: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the epoch (always 0) and the index (the draw itself) of consecutive draws.

        The examples are produced here, so that a later draw of the same window finds them.
        """
        with self._lock:
            self._produce(int(draws_n[0]), int(draws_n[-1]) + 1)
        return np.zeros_like(draws_n), draws_n

    def lengths(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the lengths of inputs and targets: [n, 2]."""
        del epochs_n
        examples = self._examples(indices_n)
        lengths = [[len(example[name]) for name in FEATURES] for example in examples]
        return np.array(lengths, np.int64).reshape(-1, 2)

    def features(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> dict[str, Rows]:
        """Return "inputs" and "targets" as rows of their feature lengths."""
        del epochs_n
        examples = self._examples(indices_n)
        features = {}
        for name, width in self.widths.items():
            tokens_nl = np.zeros((len(examples), width), np.int32)
            for row_l, example in zip(tokens_nl, examples, strict=True):
                row_l[: len(example[name])] = example[name]
            lengths_n = np.array([len(example[name]) for example in examples], np.int32)
            features[name] = Rows(tokens_nl, lengths_n)
        return features

    def checkpoint_before(self, drawn: int) -> IteratorCheckpoint:
        """Return the last iterator checkpoint at or before a draw."""
        with self._lock:
            return _last(self._checkpoints_until(drawn))

    def add_checkpoint(self, checkpoint: IteratorCheckpoint) -> None:
        """Add an iterator checkpoint that an earlier run saved."""
        with self._lock:
            if all(checkpoint["drawn"] != known["drawn"] for known in self._checkpoints):
                self._checkpoints.append(checkpoint)

    def _checkpoints_until(self, drawn: int) -> list[IteratorCheckpoint]:
        return [_START, *(known for known in self._checkpoints if known["drawn"] <= drawn)]

    def _examples(self, indices_n: NDArray[np.int64]) -> list[Example]:
        with self._lock:
            if len(indices_n):
                self._produce(int(indices_n.min()), int(indices_n.max()) + 1)
            return [self._kept[index] for index in indices_n.tolist()]

    def _produce(self, first: int, stop: int) -> None:
        """Put the examples of draws first ... stop - 1 into memory."""
        checkpoint = _last(self._checkpoints_until(first))
        was_dropped = first < self._drawn and first not in self._kept
        # Go back if an example is no longer kept, and ahead if a checkpoint saves work.
        if was_dropped or checkpoint["drawn"] > self._drawn:
            self._go_to(checkpoint)
        self._run_to(stop)

    def _run_to(self, drawn: int, num_epochs: int | None = None) -> None:
        """Produce examples up to a number of draws, or to the end of `num_epochs` epochs."""
        while self._drawn < drawn and self._epoch != num_epochs:
            try:
                example = next(self._iterator)
            except StopIteration:
                self._start_next_epoch()
                continue
            self._kept[self._drawn] = self._checked(example)
            self._kept.pop(self._drawn - _EXAMPLES_KEPT, None)
            self._drawn += 1
            is_due = self._drawn - self._checkpoints[-1]["drawn"] >= _CHECKPOINT_EVERY
            if self._can_checkpoint and is_due and (state := self._save_iterator()) is not None:
                self._append_checkpoint(state)

    def _start_next_epoch(self) -> None:
        if self._drawn == self._epoch_drawn:
            raise ConfigError(
                f"task {self._pipeline.task.name!r}: the split {self._pipeline.split!r} holds no "
                "example",
                "MIXTURE_OR_TASK_NAME",
            )
        self._epoch_size = self._drawn - self._epoch_drawn
        self._open_epoch(self._epoch + 1, self._drawn)
        self._append_checkpoint(None)

    def _append_checkpoint(self, state: str | None) -> None:
        self._checkpoints.append(
            {
                "drawn": self._drawn,
                "epoch": self._epoch,
                "epoch_drawn": self._epoch_drawn,
                "state": state,
            }
        )
        del self._checkpoints[:-_CHECKPOINTS_KEPT]

    def _go_to(self, checkpoint: IteratorCheckpoint) -> None:
        self._kept.clear()
        self._open_epoch(checkpoint["epoch"], checkpoint["epoch_drawn"])
        # Without its state, the epoch is produced from its start, to the same examples.
        if checkpoint["state"] is not None and self._restore_iterator(checkpoint["state"]):
            self._drawn = checkpoint["drawn"]

    def _open_epoch(self, epoch: int, drawn: int) -> None:
        """Create the iterator of an epoch, at its start."""
        import tensorflow as tf

        task, split = self._pipeline.task, self._pipeline.split
        words_12 = philox.example_keys(
            self._seed, random_stream(task.name), np.array([epoch]), np.array([0])
        )
        dataset = task.get_dataset(
            self._lengths,
            split,
            shuffle=split == "train" and _can_shuffle(task),
            seed=int(words_12[0, 0] >> np.uint32(1)),  # seqio takes an int32
            try_in_mem_cache=False,
        )
        options = tf.data.Options()
        options.deterministic = True
        # Python functions count as external state, which a checkpoint would refuse; ours have none.
        options.experimental_external_state_policy = tf.data.experimental.ExternalStatePolicy.IGNORE
        self._iterator: Any = iter(dataset.with_options(options))
        self._epoch, self._epoch_drawn, self._drawn = epoch, drawn, drawn

    def _checked(self, example: Mapping[str, Any]) -> Example:
        """Return an example's features, cut to their lengths; a missing feature is empty."""
        name, features = self._pipeline.task.name, {}
        for feature, width in self.widths.items():
            tokens = example[feature].numpy() if feature in example else np.zeros(0, np.int32)
            if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
                raise ConfigError(
                    f"task {name!r}: feature {feature!r} is an array of {tokens.dtype} and rank "
                    f"{tokens.ndim}; expected token ids: integers of rank 1",
                    "MIXTURE_OR_TASK_NAME",
                )
            features[feature] = tokens = tokens[:width].astype(np.int32)
            if tokens.size and not 0 <= tokens.min() <= tokens.max() < self._pipeline.vocab_size:
                raise ConfigError(
                    f"task {name!r}: feature {feature!r} holds ids from {tokens.min()} to "
                    f"{tokens.max()}, but its vocabulary has {self._pipeline.vocab_size}",
                    "MIXTURE_OR_TASK_NAME",
                )
        return features

    def _save_iterator(self) -> str | None:
        """Return the state of the iterator; None if its pipeline cannot be saved.

        TensorFlow writes a checkpoint as files only: it is written to a temporary directory, whose
        files are joined as "name, length, content" each, compressed (the shuffle buffer has much
        redundancy) and encoded as text, because positions are JSON.
        """
        import tensorflow as tf

        with tempfile.TemporaryDirectory() as folder:
            try:
                tf.train.Checkpoint(iterator=self._iterator).write(f"{folder}/state")
            except tf.errors.OpError:
                # A generator, for example. Do not try again: restarts run from the epoch's start.
                self._can_checkpoint = False
                return None
            files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
        parts = [f"{name}\n{len(content)}\n".encode() + content for name, content in files.items()]
        return base64.b64encode(zlib.compress(b"".join(parts), 1)).decode()

    def _restore_iterator(self, state: str) -> bool:
        """Restore what `_save_iterator` returned; return False if this TensorFlow cannot."""
        import tensorflow as tf

        content = zlib.decompress(base64.b64decode(state))
        with tempfile.TemporaryDirectory() as folder:
            while content:
                name, size, content = content.split(b"\n", 2)
                Path(folder, name.decode()).write_bytes(content[: int(size)])
                content = content[int(size) :]
            checkpoint = tf.train.Checkpoint(iterator=self._iterator)
            try:
                checkpoint.read(f"{folder}/state").assert_consumed()
            except (tf.errors.OpError, AssertionError):
                # Written by another version of TensorFlow. The iterator may be half restored.
                self._open_epoch(self._epoch, self._epoch_drawn)
                return False
        return True


def _last(checkpoints: Iterable[IteratorCheckpoint]) -> IteratorCheckpoint:
    return max(checkpoints, key=lambda checkpoint: checkpoint["drawn"])


def _can_shuffle(task: "seqio.Task") -> bool:
    # None where the task's author declares that shuffling would be wrong.
    buffer_size = task._shuffle_buffer_size
    return buffer_size is not None or task.source.performs_internal_shuffling
