"""The examples of a task by index: how many there are, how long they are, and their features.

Two kinds of tasks are read from token stores: pairs of stored inputs and targets, and running text
that an objective (span corruption, language modeling ...) turns into inputs and targets. The
features are complete when they leave here: cut to their length and ended with EOS.
"""

import zlib
from collections.abc import Collection, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.store.document_groups import group_documents
from t5x_lite.data.stream import shuffle
from t5x_lite.data.stream.trim_and_eos import (
    EOS_ID,
    FEATURES,
    corrupt_spans,
    example_keys,
    feature_widths,
    finish_features,
    gather_rows,
    gather_rows_with_eos,
    has_numba_kernel,
    read_only,
    read_ranges,
)
from t5x_lite.objectives import philox
from t5x_lite.objectives.objective import Objective, PairObjective, RandomLengthObjective, Rows
from t5x_lite.objectives.sentinels import Sentinels, check_sentinels

# Folded into keys, so that no two uses of one key share random numbers.
_PARTNER = 0x4F544852  # into an example's key, to draw the second chunk of a pair of chunks
_CHUNK_LENGTH = 0x504C454E  # into a group's key, to draw the length of its chunks


class Store(Protocol):
    """Where tokens come from: a `TokenStore`, or anything with the same methods."""

    @property
    def num_examples(self) -> int:
        """The number of examples."""
        ...

    @property
    def features(self) -> Collection[str]:
        """The names of the features."""
        ...

    def tokens(self, feature: str) -> NDArray[np.integer]:
        """Return the tokens of a feature of all examples, one after another: [tokens]."""
        ...

    def offsets(self, feature: str) -> NDArray[np.int64]:
        """Return where each example starts and, last, where the last one ends: [examples + 1]."""
        ...

    def groups(self, feature: str) -> NDArray[np.int64] | None:
        """Return the table of `data.store.document_groups`, None for a store without one."""
        ...


class Examples(Protocol):
    """The examples of a task, addressed by epoch and by index in [0, size).

    The epoch decides what is random in an example, such as its noise mask.
    """

    @property
    def size(self) -> int:
        """The number of examples of an epoch."""
        ...

    @property
    def widths(self) -> Mapping[str, int]:
        """The row width of each feature, of which two are "inputs" and "targets"."""
        ...

    def lengths(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the lengths of inputs and targets, EOS included: [n, 2]."""
        ...

    def features(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> dict[str, Rows]:
        """Return the features of the examples, each as wide as `widths` says."""
        ...


class PairTrimmer(Protocol):
    """How a task trims pairs that are too long, where cutting the last tokens is not enough."""

    def open(
        self, name: str, store: Store, feature_lengths: Mapping[str, int], *, seed: int
    ) -> Examples:
        """Return the trimmed examples of a task's store."""
        ...


def random_stream(name: str) -> int:
    """Return the number of a task's random stream, so that tasks share no random numbers.

    It is a hash of the name, so that it does not depend on the other tasks of the mixture.
    """
    return zlib.crc32(name.encode())


class PairExamples:
    """The examples of a task of pairs, whose inputs and targets are stored as they are.

    A feature that is too long loses its last tokens, and EOS follows. With inputs of length 4:

        stored   7 8 | 7 8 9 5       inputs   7 8 1 0
                                              7 8 9 1

    Args:
        store: a store with "inputs" and "targets".
        feature_lengths: the lengths of both features, in tokens, EOS included.
    """

    def __init__(self, store: Store, feature_lengths: Mapping[str, int]):
        self.size = store.num_examples
        self.widths = {feature: feature_lengths[feature] for feature in FEATURES}
        self._tokens = {feature: read_only(store.tokens(feature)) for feature in FEATURES}
        self._offsets = {feature: read_only(store.offsets(feature)) for feature in FEATURES}

    def lengths(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the lengths of inputs and targets, EOS included: [n, 2]."""
        del epochs_n  # nothing is random
        lengths = [self._ranges(feature, indices_n)[1] + 1 for feature in FEATURES]
        return np.stack(lengths, axis=1)

    def features(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> dict[str, Rows]:
        """Return "inputs" and "targets" as rows of their feature lengths."""
        del epochs_n
        features = {}
        for feature, width in self.widths.items():
            starts_n, lengths_n = self._ranges(feature, indices_n)
            tokens_t, starts_n = read_ranges(self._tokens[feature], starts_n, lengths_n)
            features[feature] = gather_rows_with_eos(tokens_t, starts_n, lengths_n, width)
        return features

    def _ranges(
        self, feature: str, indices_n: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where each example starts in the store, and its length without EOS."""
        starts_n = self._offsets[feature][indices_n]
        lengths_n = self._offsets[feature][indices_n + 1] - starts_n
        return starts_n, np.minimum(lengths_n, self.widths[feature] - 1)


class TextExamples:
    """The examples of a task of text: chunks of equal length, transformed by an objective.

    `objective.documents_per_group` consecutive documents are joined, without the empty ones, and
    cut into chunks of `objective.raw_length`. The last chunk of a group is shorter. With 2
    documents a group and chunks of 4 tokens:

        documents   abc defghi | jk (empty) l | m
        chunks      abcd efgh i | jkl | m

    This is the T5 library's `reduce_concat_tokens` and `split_tokens` without their shuffling, and
    without its cutting of documents above 65,536 tokens to a random part: no text is lost. For an
    objective with EOS after documents, each document counts as one token longer.

    24 bytes a group stay in memory (C4 in groups of 128 documents: 68 MB).

    Args:
        name: of the task; it decides the task's random numbers.
        store: a store with the documents as "targets".
        objective: what turns chunks into features.
        feature_lengths: the lengths of inputs and targets, in tokens, EOS included.
        sentinels: the sentinel ids of the vocabulary.
        seed: of the run.
        match_seqio: whether to corrupt with the random numbers of seqio's unshuffled pipeline.

    Raises:
        ConfigError: if the feature lengths are too short for the objective, or the vocabulary has
            too few sentinels.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        objective: Objective,
        feature_lengths: Mapping[str, int],
        *,
        sentinels: Sentinels,
        seed: int,
        match_seqio: bool = False,
    ):
        self._stream, self._seed, self._match_seqio = random_stream(name), seed, match_seqio
        self._objective, self._sentinels = objective, sentinels
        self.widths = feature_widths(objective, feature_lengths)
        raw_length = objective.raw_length(feature_lengths)
        check_sentinels(objective.sentinels_needed(feature_lengths), sentinels)
        self._tokens = read_only(store.tokens("targets"))
        self._offsets = read_only(store.offsets("targets"))
        self._eos_after_documents = objective.eos_after == "documents"
        # Of each group: its first document, and where its tokens start in the store.
        self._first_documents, self._group_starts = group_documents(
            store, "targets", objective.documents_per_group
        )
        groups = np.arange(len(self._group_starts) - 1)
        self._chunk_lengths = np.broadcast_to(np.int64(raw_length), len(groups))
        if isinstance(objective, RandomLengthObjective):
            keys_g2 = philox.fold_in(self._keys(np.zeros_like(groups), groups), _CHUNK_LENGTH)
            self._chunk_lengths = objective.chunk_lengths(raw_length, keys_g2)
        chunks = -(-self._group_lengths(groups) // self._chunk_lengths)  # rounded up
        # Of each group, the index of its first chunk; last, the number of all chunks.
        self._first_chunks = np.concatenate([[0], np.cumsum(chunks)])
        self.size = int(self._first_chunks[-1])

    def lengths(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the lengths of inputs and targets, EOS included: [n, 2]."""
        lengths_n, keys_n2 = self._ranges(indices_n)[2], self._keys(epochs_n, indices_n)
        if isinstance(self._objective, PairObjective):
            partners_n = self._ranges(self._partners(keys_n2, indices_n))[2]
            lengths = self._objective.pair_lengths(lengths_n, partners_n, keys_n2)
        else:
            lengths = self._objective.lengths(lengths_n, keys_n2)
        lengths_n2 = np.stack([lengths[name] for name in FEATURES], axis=1)
        widths = np.array([self.widths[name] for name in FEATURES])
        if self._eos_after_documents:  # an empty feature becomes EOS alone
            return np.clip(lengths_n2, 1, widths)
        return np.minimum(lengths_n2, widths - 1) + 1

    def features(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> dict[str, Rows]:
        """Return the features of the examples, each as wide as `widths` says."""
        keys_n2 = self._keys(epochs_n, indices_n)
        if has_numba_kernel(self._objective):
            group_n, starts_n, lengths_n = self._ranges(indices_n)
            return corrupt_spans(
                *read_ranges(self._tokens, self._group_starts[group_n] + starts_n, lengths_n),
                lengths_n,
                objective=self._objective,
                keys_n2=keys_n2,
                sentinels=self._sentinels,
                widths=self.widths,
            )
        rows = self.chunks(indices_n)
        if isinstance(self._objective, PairObjective):
            partners = self.chunks(self._partners(keys_n2, indices_n))
            features = self._objective.pair(rows, partners, keys_n2, self._sentinels)
        else:
            features = self._objective(rows, keys_n2, self._sentinels)
        return finish_features(features, self._objective, self.widths)

    def chunks(self, indices_n: NDArray[np.int64]) -> Rows:
        """Return chunks of text before the objective, including the EOS of documents, if any."""
        group_n, starts_n, lengths_n = self._ranges(indices_n)
        if self._eos_after_documents:
            return self._gather_with_document_eos(group_n, starts_n, lengths_n)
        starts_n = self._group_starts[group_n] + starts_n
        return gather_rows(*read_ranges(self._tokens, starts_n, lengths_n), lengths_n)

    def _partners(
        self, keys_n2: NDArray[np.uint32], indices_n: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Draw another chunk of the task for each chunk, all others with equal probability."""
        bits_n = philox.random_bits(philox.fold_in(keys_n2, _PARTNER), 1)[:, 0]
        return (indices_n + 1 + bits_n % max(self.size - 1, 1)) % self.size

    def _keys(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> NDArray[np.uint32]:
        """Return the random key of each example: [n, 2]."""
        if self._match_seqio:
            return shuffle.seqio_noise_keys(self._seed, epochs_n * self.size + indices_n)
        return example_keys(self._seed, self._stream, epochs_n, indices_n)

    def _ranges(
        self, indices_n: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the group of each chunk, where in the group it starts, and its length."""
        group_n = np.searchsorted(self._first_chunks, indices_n, side="right") - 1
        full_n = self._chunk_lengths[group_n]
        starts_n = (indices_n - self._first_chunks[group_n]) * full_n
        return group_n, starts_n, np.minimum(self._group_lengths(group_n) - starts_n, full_n)

    def _group_lengths(self, group_n: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many tokens groups have, including the EOS after documents, if any: [n]."""
        lengths_n = self._group_starts[group_n + 1] - self._group_starts[group_n]
        if not self._eos_after_documents:
            return lengths_n
        # Every group has all its documents except the last, whose documents are counted.
        last = len(self._first_documents) - 2
        in_last = len(self._document_ends(last)) if last >= 0 else 0
        return lengths_n + np.where(group_n == last, in_last, self._objective.documents_per_group)

    def _document_ends(self, group: int) -> NDArray[np.int64]:
        """Return where in the store the non-empty documents of a group end: [documents]."""
        first, last = self._first_documents[group : group + 2]
        bounds = self._offsets[first : last + 1]
        return bounds[1:][np.diff(bounds) > 0]

    def _gather_with_document_eos(
        self, group_n: NDArray[np.int64], starts_n: NDArray[np.int64], lengths_n: NDArray[np.int64]
    ) -> Rows:
        """Return chunks of groups in which EOS ($) follows every document.

        The store has no EOS. Starts and lengths count it, so each position of a chunk is either an
        EOS or a token of the store, further to the left by the number of EOS before it:

            stored group       a b c d e           (documents abc and de)
            with EOS           a b c $ d e $
            chunk (2, 4)           c $ d e         EOS before   0 0 1 1
                                                   source       2 - 3 4

        Args:
            group_n: the group of each chunk [n].
            starts_n: where in its group each chunk starts [n].
            lengths_n: the length of each chunk [n].

        Returns:
            The chunks as rows, as wide as the longest.
        """
        # The groups that occur, with their EOS, as one long line: where each group (g) starts in
        # it, and the positions of all EOS (k), which ascend.
        groups, inverse_n = np.unique(group_n, return_inverse=True)
        group_lengths_g = self._group_lengths(groups)
        line_starts_g = np.cumsum(group_lengths_g) - group_lengths_g
        ends = [self._document_ends(group) for group in groups]
        eos_counts_g = np.array([len(ends_d) for ends_d in ends], np.int64)
        eos_k = np.concatenate(
            [
                line_start + (ends_d - self._group_starts[group]) + np.arange(len(ends_d))
                for line_start, group, ends_d in zip(line_starts_g, groups, ends, strict=True)
            ]
        )
        # The position of each token of each row, in its group and in the line: [n, l]. Beyond the
        # end of a group its last position is repeated; those tokens are zeroed below.
        position_l = np.arange(lengths_n.max(initial=0))
        in_group_nl = np.minimum(
            starts_n[:, None] + position_l, group_lengths_g[inverse_n, None] - 1
        )
        line_nl = line_starts_g[inverse_n, None] + in_group_nl
        # How many EOS come before each position in the line; there is one at the position itself
        # if the next EOS is there.
        eos_before_nl = np.searchsorted(eos_k, line_nl)
        is_eos_nl = eos_k[eos_before_nl] == line_nl
        # The store has none of the EOS before a position in its group.
        eos_before_group_g = np.cumsum(eos_counts_g) - eos_counts_g
        eos_before_nl = eos_before_nl - eos_before_group_g[inverse_n, None]
        source_nl = self._group_starts[group_n][:, None] + in_group_nl - eos_before_nl
        # The source of the store's last EOS is one beyond the last token.
        source_nl = np.clip(source_nl, 0, len(self._tokens) - 1)
        # Each row needs one range of the store, from its smallest source to its largest.
        first_n = source_nl.min(axis=1)
        tokens_t, starts_n = read_ranges(self._tokens, first_n, source_nl.max(axis=1) - first_n + 1)
        source_nl += (starts_n - first_n)[:, None]
        tokens_nl = tokens_t[source_nl].astype(np.int32)
        tokens_nl[is_eos_nl] = EOS_ID
        tokens_nl[position_l >= lengths_n[:, None]] = 0
        return Rows(tokens_nl, lengths_n.astype(np.int32))
