"""Open a task's store as examples: text or pairs, complete or still being written, or seqio's own.

A store that is being written has fewer examples now than later, and nobody knows how many there
will be. `wait_for_examples` and `size_if_known` give one answer for all kinds.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.store.partial_store import PartialStore, StorePrefix
from t5x_lite.data.stream.examples import Examples, PairExamples, PairTrimmer, Store, TextExamples
from t5x_lite.data.stream.seqio_pipeline import SeqioPipeline, SeqioPipelineExamples
from t5x_lite.data.stream.trim_and_eos import FEATURES
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.objective import Objective, Rows
from t5x_lite.objectives.sentinels import Sentinels

AnyStore = Store | PartialStore | SeqioPipeline


def open_examples(
    name: str,
    store: AnyStore,
    *,
    objective: Objective | None,
    trimming: PairTrimmer | None = None,
    feature_lengths: Mapping[str, int],
    sentinels: Sentinels,
    seed: int,
    match_seqio: bool = False,
) -> Examples:
    """Return the examples of a task.

    Args:
        name: of the task; it decides the task's random numbers.
        store: a complete store, one that is still being written, or a seqio pipeline.
        objective: what turns text into inputs and targets; None for stored pairs.
        trimming: how pairs that are too long are trimmed; None: they lose their last tokens.
        feature_lengths: the lengths of inputs and targets, in tokens, EOS included.
        sentinels: the sentinel ids of the vocabulary.
        seed: of the run.
        match_seqio: whether to corrupt with the random numbers of seqio's unshuffled pipeline.

    Raises:
        ConfigError: for a store without examples, and for features that are not stored, have no
            length, or are too short for the objective.
    """
    if missing := [feature for feature in FEATURES if feature_lengths.get(feature, 0) < 1]:
        raise ConfigError(
            f"the feature lengths {dict(feature_lengths)} lack {' and '.join(missing)}, "
            "which take 1 token or more",
            "TASK_FEATURE_LENGTHS",
        )

    def open_store(store: Store) -> Examples:
        needed = FEATURES if objective is None else ("targets",)
        if missing := [feature for feature in needed if feature not in store.features]:
            raise ConfigError(
                f"task {name!r} stores the features {', '.join(store.features)}: it lacks "
                f"{' and '.join(missing)}",
                "MIXTURE_OR_TASK_NAME",
            )
        if objective is not None:
            settings = {"sentinels": sentinels, "seed": seed, "match_seqio": match_seqio}
            return TextExamples(name, store, objective, feature_lengths, **settings)
        if trimming is not None:
            return trimming.open(name, store, feature_lengths, seed=seed)
        return PairExamples(store, feature_lengths)

    if isinstance(store, SeqioPipeline):
        examples: Examples = SeqioPipelineExamples(store, feature_lengths, seed=seed)
    elif isinstance(store, PartialStore):
        group = None if objective is None else objective.documents_per_group
        examples = PartialExamples(store, open_store, group)
    else:
        examples = open_store(store)
    if not wait_for_examples(examples, 1):
        raise ConfigError(f"the token store of task {name!r} holds no example", "DATA_DIR")
    return examples


def wait_for_examples(examples: Examples, count: int) -> int:
    """Wait until `count` examples can be read, or all there will be; return how many can be."""
    if isinstance(examples, UnsizedExamples):
        return examples.wait_for_examples(count)
    return examples.size


def size_if_known(examples: Examples) -> int | None:
    """Return the number of examples of an epoch, None while it is not known."""
    return examples.size_if_known if isinstance(examples, UnsizedExamples) else examples.size


class PartialExamples:
    """The examples of a store that another process is writing.

    Methods wait for examples that are not written yet. An example never changes once it can be
    read.

    Args:
        store: the store.
        open_store: opens what is complete of it as examples.
        documents_per_group: of text, whose groups must be complete; None for pairs.
    """

    def __init__(
        self,
        store: PartialStore,
        open_store: Callable[[Store], Examples],
        documents_per_group: int | None,
    ):
        self._store, self._open_store = store, open_store
        self._documents_per_group = documents_per_group
        self._examples: Examples | None = None
        self._is_complete = False

    @property
    def size(self) -> int:
        """The number of examples of an epoch. It waits until the store is complete."""
        while not self._is_complete:
            self._refresh()
            if not self._is_complete:
                self._store.wait()
        return self._examples.size if self._examples else 0

    @property
    def size_if_known(self) -> int | None:
        """The number of examples of an epoch; None until the store is complete."""
        return self.size if self._is_complete else None

    @property
    def widths(self) -> Mapping[str, int]:
        """The row width of each feature."""
        return self._opened().widths

    def wait_for_examples(self, count: int) -> int:
        """Wait until `count` examples can be read, or all; return how many can be."""
        while True:
            size = self._examples.size if self._examples else 0
            if size >= count or self._is_complete:
                return size
            self._refresh()
            has_grown = self._examples is not None and self._examples.size > size
            if not self._is_complete and not has_grown:
                self._store.wait()

    def lengths(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the lengths of inputs and targets, EOS included: [n, 2]."""
        return self._opened().lengths(epochs_n, indices_n)

    def features(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> dict[str, Rows]:
        """Return the features of the examples, each as wide as `widths` says."""
        return self._opened().features(epochs_n, indices_n)

    def _opened(self) -> Examples:
        self.wait_for_examples(1)
        assert self._examples is not None
        return self._examples

    def _refresh(self) -> None:
        """Open what has been written since the last time."""
        if (available := self._store.read_available(self._documents_per_group)) is None:
            return
        examples, before = self._open_store(available), self._examples
        # A builder that starts again reports less than the one before it: keep what was read.
        if before is None or examples.size >= before.size:
            self._examples = examples
        self._is_complete = self._is_complete or not isinstance(available, StorePrefix)


UnsizedExamples = PartialExamples | SeqioPipelineExamples
