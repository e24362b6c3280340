"""Tasks that no token store can serve, through seqio's own pipeline, one example after another.

Such a pipeline has no addresses: to be at a place is to have come there. Every host runs all of it,
so that what is drawn is the same on any number of hosts, and each keeps the rows it feeds. A
position holds a marker: the pipeline's own checkpoint, taken every 8,192 examples, and how many
examples lie before it; from there to the place, the pipeline runs again.
"""

import base64
import dataclasses
import tempfile
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.stream.examples import random_stream
from t5x_lite.data.stream.trim_and_eos import FEATURES
from t5x_lite.errors import ConfigError
from t5x_lite.objectives import philox
from t5x_lite.objectives.spans import Rows

if TYPE_CHECKING:
    import seqio

_MARK_EVERY = 1 << 13
_MARKERS_KEPT = 4
_EXAMPLES_KEPT = 1 << 15


@dataclasses.dataclass(frozen=True)
class SeqioPipeline:
    """A split of a seqio task, in the place of its store. vocab_size: above all its ids."""

    task: "seqio.Task"
    split: str
    vocab_size: int


class IteratorCheckpoint(TypedDict):
    """A place in a pipeline, as JSON.

    drawn: how many examples lie before it. epoch: which it is in, after `epoch_drawn` examples.
    state: the pipeline's checkpoint; None is the beginning of the epoch.
    """

    drawn: int
    epoch: int
    epoch_drawn: int
    state: str | None


_START: IteratorCheckpoint = {"drawn": 0, "epoch": 0, "epoch_drawn": 0, "state": None}


class SeqioPipelineExamples:
    """A task's examples by the number of the draw, whatever the epoch: see the module.

    Those of the training split are shuffled as the task says, anew for every epoch, and what is
    random in them depends on seed, task and epoch.
    """

    def __init__(self, live: SeqioPipeline, feature_lengths: Mapping[str, int], *, seed: int):
        self.widths = {feature: feature_lengths[feature] for feature in FEATURES}
        self._live, self._lengths, self._seed = live, dict(feature_lengths), seed
        self._markers: list[IteratorCheckpoint] = [_START]
        self._kept: dict[int, dict[str, NDArray[np.int32]]] = {}
        self._can_mark = True
        self._epoch_size: int | None = None
        self._lock = threading.RLock()  # a thread fetches batches while another asks for epochs
        self._go_to(_START)

    @property
    def size(self) -> int:
        """How many examples the first epoch has, to the end of which this runs."""
        return self.wait_for_examples(1 << 62)

    @property
    def size_if_known(self) -> int | None:
        """How many examples an epoch has; None before one has ended."""
        return self._epoch_size

    def wait_for_examples(self, wanted: int) -> int:
        """Return how many examples the first epoch has, or at least as many as wanted."""
        return self.draws(wanted, 1)

    def draws(self, wanted: int, num_epochs: int) -> int:
        """Return how many draws so many epochs have, or at least as many as wanted."""
        with self._lock:
            if self._epoch_size is not None and wanted <= self._epoch_size:
                return wanted
            if self._drawn < wanted:
                self._run_to(wanted, num_epochs)
            return min(self._drawn, wanted) if self._epoch < num_epochs else self._epoch_drawn

    def epochs_and_indices(
        self, draws_n: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the epoch (which does not matter here) and the number of each draw."""
        with self._lock:
            self._fetch(int(draws_n[0]), int(draws_n[-1]) + 1)
        return np.zeros_like(draws_n), draws_n

    def lengths(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the lengths of inputs and targets: [n, 2]."""
        del epochs_n
        found = [[len(each[name]) for name in FEATURES] for each in self._examples(indices_n)]
        return np.array(found, np.int64).reshape(-1, 2)

    def features(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> dict[str, Rows]:
        """Return "inputs" and "targets", each as wide as its feature length."""
        del epochs_n
        examples = self._examples(indices_n)
        made = {}
        for name, width in self.widths.items():
            tokens_nl = np.zeros((len(examples), width), np.int32)
            for row_l, example in zip(tokens_nl, examples, strict=True):
                row_l[: len(example[name])] = example[name]
            lengths_n = np.array([len(example[name]) for example in examples], np.int32)
            made[name] = Rows(tokens_nl, lengths_n)
        return made

    def marker(self, drawn: int) -> IteratorCheckpoint:
        """Return the last marker that so many draws have passed."""
        with self._lock:
            return max(self._passed(drawn), key=lambda each: each["drawn"])

    def accept(self, marker: IteratorCheckpoint) -> None:
        """Take note of a marker of an earlier run."""
        with self._lock:
            if all(marker["drawn"] != each["drawn"] for each in self._markers):
                self._markers.append(marker)

    def _passed(self, drawn: int) -> list[IteratorCheckpoint]:
        return [_START, *(each for each in self._markers if each["drawn"] <= drawn)]

    def _examples(self, indices_n: NDArray[np.int64]) -> list[dict[str, NDArray[np.int32]]]:
        with self._lock:
            if len(indices_n):
                self._fetch(int(indices_n.min()), int(indices_n.max()) + 1)
            return [self._kept[index] for index in indices_n.tolist()]

    def _fetch(self, first: int, last: int) -> None:
        """Have the examples of some draws at hand, going back or ahead to a marker if need be."""
        marker = max(self._passed(first), key=lambda each: each["drawn"])
        is_gone = first < self._drawn and first not in self._kept
        if is_gone or marker["drawn"] > self._drawn:
            self._go_to(marker)
        self._run_to(last)

    def _run_to(self, drawn: int, num_epochs: int | None = None) -> None:
        """Draw up to a number, or to the end of so many epochs."""
        while self._drawn < drawn and self._epoch != num_epochs:
            try:
                example = next(self._iterator)
            except StopIteration:
                self._begin_next_epoch()
                continue
            self._kept[self._drawn] = self._checked(example)
            self._kept.pop(self._drawn - _EXAMPLES_KEPT, None)
            self._drawn += 1
            if self._can_mark and self._drawn - self._markers[-1]["drawn"] >= _MARK_EVERY:
                self._mark(self._state())

    def _begin_next_epoch(self) -> None:
        if self._drawn == self._epoch_drawn:
            raise ConfigError(
                f"task {self._live.task.name!r}: the split {self._live.split!r} holds no example",
                "MIXTURE_OR_TASK_NAME",
            )
        self._epoch_size = self._drawn - self._epoch_drawn
        self._open(self._epoch + 1, self._drawn)
        self._mark(None)

    def _mark(self, state: str | None) -> None:
        if state is None and self._drawn != self._epoch_drawn:
            return
        self._markers.append(
            {
                "drawn": self._drawn,
                "epoch": self._epoch,
                "epoch_drawn": self._epoch_drawn,
                "state": state,
            }
        )
        del self._markers[:-_MARKERS_KEPT]

    def _go_to(self, marker: IteratorCheckpoint) -> None:
        self._kept.clear()
        self._open(marker["epoch"], marker["epoch_drawn"])
        if marker["state"] is not None and self._restore(marker["state"]):
            self._drawn = marker["drawn"]

    def _open(self, epoch: int, drawn: int) -> None:
        """Begin an epoch."""
        import tensorflow as tf

        task, split = self._live.task, self._live.split
        is_train = split == "train"
        words = philox.example_keys(
            self._seed, random_stream(task.name), np.array([epoch]), np.array([0])
        )
        dataset = task.get_dataset(
            self._lengths,
            split,
            shuffle=is_train and _can_shuffle(task),
            seed=int(words[0, 0] >> np.uint32(1)),
            try_in_mem_cache=False,
        )
        options = tf.data.Options()
        options.deterministic = True
        options.experimental_external_state_policy = (
            tf.data.experimental.ExternalStatePolicy.IGNORE  # of functions in Python, which is none
        )
        self._iterator: Any = iter(dataset.with_options(options))
        self._epoch, self._epoch_drawn, self._drawn = epoch, drawn, drawn

    def _checked(self, example: Mapping[str, Any]) -> dict[str, NDArray[np.int32]]:
        """Return an example's features, cut to their lengths; one that is not there is empty."""
        name, found = self._live.task.name, {}
        for feature, width in self.widths.items():
            tokens = example[feature].numpy() if feature in example else np.zeros(0, np.int32)
            if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
                raise ConfigError(
                    f"task {name!r}: {feature} are {tokens.dtype} of rank {tokens.ndim}; wanted "
                    "token ids",
                    "MIXTURE_OR_TASK_NAME",
                )
            found[feature] = tokens = tokens[:width].astype(np.int32)
            if tokens.size and not 0 <= tokens.min() <= tokens.max() < self._live.vocab_size:
                raise ConfigError(
                    f"task {name!r}: feature {feature!r} holds ids from {tokens.min()} to "
                    f"{tokens.max()}, but its vocabulary has {self._live.vocab_size}",
                    "MIXTURE_OR_TASK_NAME",
                )
        return found

    def _state(self) -> str | None:
        """Return the pipeline's checkpoint, None for a pipeline that cannot give one."""
        import tensorflow as tf

        with tempfile.TemporaryDirectory() as folder:
            try:
                tf.train.Checkpoint(iterator=self._iterator).write(f"{folder}/state")
            except tf.errors.OpError:
                self._can_mark = False
                return None
            files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
        parts = [f"{name}\n{len(content)}\n".encode() + content for name, content in files.items()]
        return base64.b64encode(zlib.compress(b"".join(parts), 1)).decode()

    def _restore(self, state: str) -> bool:
        """Take up a checkpoint; return False where this version of TensorFlow cannot."""
        import tensorflow as tf

        content = zlib.decompress(base64.b64decode(state))
        with tempfile.TemporaryDirectory() as folder:
            while content:
                name, size, content = content.split(b"\n", 2)
                Path(folder, name.decode()).write_bytes(content[: int(size)])
                content = content[int(size) :]
            try:
                tf.train.Checkpoint(iterator=self._iterator).read(
                    f"{folder}/state"
                ).assert_consumed()
            except (tf.errors.OpError, AssertionError):
                self._open(self._epoch, self._epoch_drawn)
                return False
        return True


def _can_shuffle(task: "seqio.Task") -> bool:
    buffer = task._shuffle_buffer_size  # None, where shuffling would be wrong
    return buffer is not None or task.source.performs_internal_shuffling
