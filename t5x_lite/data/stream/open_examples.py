"""From a task's store to its examples, also while the store is being made."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.store.partial_store import PartialStore, StorePrefix
from t5x_lite.data.stream.examples import Examples, PairExamples, PairTrimmer, Store, TextExamples
from t5x_lite.data.stream.seqio_pipeline import SeqioPipeline, SeqioPipelineExamples
from t5x_lite.data.stream.trim_and_eos import FEATURES
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import Objective
from t5x_lite.objectives.spans import Rows

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
    """Return the examples of a task: pieces of text if there is an objective, else stored pairs.

    `match_seqio` takes the noise from where seqio's unshuffled pipeline does
    (`data.stream.shuffle`).

    Raises ConfigError for a store without examples, and for features that are not stored, that
    have no length, or that are too short for the objective.
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


def wait_for_examples(examples: Examples, wanted: int) -> int:
    """Return how many examples are there: if fewer than wanted, there will never be more."""
    return (
        examples.wait_for_examples(wanted)
        if isinstance(examples, UnsizedExamples)
        else examples.size
    )


def size_if_known(examples: Examples) -> int | None:
    """Return how many examples an epoch has, None until that is known."""
    return examples.size_if_known if isinstance(examples, UnsizedExamples) else examples.size


class PartialExamples:
    """The examples of a store that is being made; an example that is there never changes."""

    def __init__(
        self,
        store: PartialStore,
        open_store: Callable[[Store], Examples],
        documents_per_group: int | None,
    ):
        self._store, self._open, self._group = store, open_store, documents_per_group
        self._examples: Examples | None = None
        self._is_whole = False

    @property
    def size(self) -> int:
        """How many examples an epoch has, which is waited for."""
        while not self._is_whole:
            self._look()
            if not self._is_whole:
                self._store.wait()
        return self._examples.size if self._examples else 0

    @property
    def size_if_known(self) -> int | None:
        """How many examples an epoch has; None until that is certain."""
        return self.size if self._is_whole else None

    @property
    def widths(self) -> Mapping[str, int]:
        """The features and how wide their rows are."""
        return self._there().widths

    def wait_for_examples(self, wanted: int) -> int:
        """Wait for so many examples, or for all; return how many there are."""
        while True:
            size = self._examples.size if self._examples else 0
            if size >= wanted or self._is_whole:
                return size
            self._look()
            if not self._is_whole and not (self._examples and self._examples.size > size):
                self._store.wait()

    def lengths(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the lengths of inputs and targets, EOS included: [n, 2]."""
        return self._there().lengths(epochs_n, indices_n)

    def features(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> dict[str, Rows]:
        """Return the features, each as wide as `widths` says."""
        return self._there().features(epochs_n, indices_n)

    def _there(self) -> Examples:
        self.wait_for_examples(1)
        assert self._examples is not None
        return self._examples

    def _look(self) -> None:
        """Open what has come since the last look."""
        if (found := self._store.read_available(self._group)) is None:
            return
        examples, before = self._open(found), self._examples
        if before is None or examples.size >= before.size:  # a builder that begins tells less
            self._examples = examples
        self._is_whole = self._is_whole or not isinstance(found, StorePrefix)


UnsizedExamples = PartialExamples | SeqioPipelineExamples
