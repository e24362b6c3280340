"""A task's examples by number: how many there are, how long they are, and what they hold.

The features leave here finished: cut to one token less than their length, EOS appended (or, for an
objective with EOS after documents, cut to their length).
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
from t5x_lite.objectives.sentinels import Sentinels, check_sentinels
from t5x_lite.objectives.span_corruption import Objective, PairObjective, RandomLengthObjective
from t5x_lite.objectives.spans import Rows

_OTHER_PIECE = 0x4F544852  # folded into an example's key to draw the piece beside it
_PIECE_LENGTH = 0x504C454E  # folded into a group's key to draw how long its pieces are


class Store(Protocol):
    """Where tokens come from: a `TokenStore`, or anything that reads like one."""

    @property
    def num_examples(self) -> int:
        """How many examples there are."""
        ...

    @property
    def features(self) -> Collection[str]:
        """The names of the features."""
        ...

    def tokens(self, feature: str) -> NDArray[np.integer]:
        """Return all tokens of a feature, end to end."""
        ...

    def offsets(self, feature: str) -> NDArray[np.int64]:
        """Return where each example begins and, last, where the last one ends."""
        ...

    def groups(self, feature: str) -> NDArray[np.int64] | None:
        """Return the table of `data.store.document_groups`, if there is one."""
        ...


class Examples(Protocol):
    """A task's examples, addressed by epoch and number in [0, size).

    The epoch matters to what is random in an example, such as its noise mask.
    """

    @property
    def size(self) -> int:
        """How many examples an epoch has."""
        ...

    @property
    def widths(self) -> Mapping[str, int]:
        """The features, of which two are "inputs" and "targets", and how wide their rows are."""
        ...

    def lengths(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the lengths of inputs and targets, EOS included: [n, 2]."""
        ...

    def features(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> dict[str, Rows]:
        """Return the features, each as wide as `widths` says."""
        ...


class PairTrimmer(Protocol):
    """How the pairs of a task end where they are too long, if not by losing their last tokens."""

    def open(
        self, name: str, store: Store, feature_lengths: Mapping[str, int], *, seed: int
    ) -> Examples:
        """Return the examples of a task's store."""
        ...


class PairExamples:
    """The pairs of a supervised task, as they are stored."""

    def __init__(self, store: Store, feature_lengths: Mapping[str, int]):
        self.size = store.num_examples
        self.widths = {feature: feature_lengths[feature] for feature in FEATURES}
        self._tokens = {feature: read_only(store.tokens(feature)) for feature in FEATURES}
        self._offsets = {feature: read_only(store.offsets(feature)) for feature in FEATURES}

    def lengths(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the lengths of inputs and targets, EOS included: [n, 2]."""
        del epochs_n
        lengths = [self._spans(feature, indices_n)[1] + 1 for feature in FEATURES]
        return np.stack(lengths, axis=1)

    def features(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> dict[str, Rows]:
        """Return "inputs" and "targets", each as wide as its feature length."""
        del epochs_n
        made = {}
        for feature, length in self.widths.items():
            starts_n, lengths_n = self._spans(feature, indices_n)
            tokens, starts_n = read_ranges(self._tokens[feature], starts_n, lengths_n)
            made[feature] = gather_rows_with_eos(tokens, starts_n, lengths_n, length)
        return made

    def _spans(
        self, feature: str, indices_n: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        starts_n = self._offsets[feature][indices_n]
        lengths_n = self._offsets[feature][indices_n + 1] - starts_n
        return starts_n, np.minimum(lengths_n, self.widths[feature] - 1)


class TextExamples:
    """Pieces of running text, corrupted by an objective.

    `objective.documents_per_group` consecutive documents are joined, empty ones left out, and cut
    into pieces of `objective.raw_length`, the last piece of a group being shorter; with 2 documents
    a group and pieces of 4:

        documents   abc defghi | jk (empty) l | m
        pieces      abcd efgh i | jkl | m

    This is the T5 library's `reduce_concat_tokens` and `split_tokens` without its shuffling; only
    its cutting of documents above 65,536 tokens to a random part is not done: nothing is lost.
    For an objective with EOS after documents, each counts as one token longer.
    In memory are 24 bytes a group (C4 in groups of 128 documents: 68 MB).
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
        self._first_documents, self._group_starts = group_documents(
            store, "targets", objective.documents_per_group
        )
        groups = np.arange(len(self._group_starts) - 1)
        self._piece_lengths = np.broadcast_to(np.int64(raw_length), len(groups))
        if isinstance(objective, RandomLengthObjective):
            keys_g2 = philox.fold_in(self._keys(np.zeros_like(groups), groups), _PIECE_LENGTH)
            self._piece_lengths = objective.chunk_lengths(raw_length, keys_g2)
        pieces = -(-self._group_lengths(groups) // self._piece_lengths)
        self._first_pieces = np.concatenate([[0], np.cumsum(pieces)])
        self.size = int(self._first_pieces[-1])

    def lengths(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the lengths of inputs and targets, EOS included: [n, 2]."""
        lengths_n, keys_n2 = self._spans(indices_n)[2], self._keys(epochs_n, indices_n)
        if isinstance(self._objective, PairObjective):
            others_n = self._spans(self._others(keys_n2, indices_n))[2]
            made = self._objective.pair_lengths(lengths_n, others_n, keys_n2)
        else:
            made = self._objective.lengths(lengths_n, keys_n2)
        made_n2 = np.stack([made[name] for name in FEATURES], axis=1)
        widths = np.array([self.widths[name] for name in FEATURES])
        if self._eos_after_documents:
            return np.clip(made_n2, 1, widths)
        return np.minimum(made_n2, widths - 1) + 1

    def features(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> dict[str, Rows]:
        """Return the features, each as wide as `widths` says."""
        keys_n2 = self._keys(epochs_n, indices_n)
        if has_numba_kernel(self._objective):
            group_n, starts_n, lengths_n = self._spans(indices_n)
            return corrupt_spans(
                *read_ranges(self._tokens, self._group_starts[group_n] + starts_n, lengths_n),
                lengths_n,
                objective=self._objective,
                keys_n2=keys_n2,
                sentinels=self._sentinels,
                widths=self.widths,
            )
        rows = self.pieces(indices_n)
        if isinstance(self._objective, PairObjective):
            others = self.pieces(self._others(keys_n2, indices_n))
            made = self._objective.pair(rows, others, keys_n2, self._sentinels)
        else:
            made = self._objective(rows, keys_n2, self._sentinels)
        return finish_features(made, self._objective, self.widths)

    def pieces(self, indices_n: NDArray[np.int64]) -> Rows:
        """Return the text before the objective, EOS in it where documents have one."""
        group_n, starts_n, lengths_n = self._spans(indices_n)
        if self._eos_after_documents:
            return self._gather_with_eos(group_n, starts_n, lengths_n)
        starts_n = self._group_starts[group_n] + starts_n
        return gather_rows(*read_ranges(self._tokens, starts_n, lengths_n), lengths_n)

    def _others(
        self, keys_n2: NDArray[np.uint32], indices_n: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Draw another piece of the task for each, all others equally likely."""
        bits_n = philox.random_bits(philox.fold_in(keys_n2, _OTHER_PIECE), 1)[:, 0]
        return (indices_n + 1 + bits_n % max(self.size - 1, 1)) % self.size

    def _keys(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> NDArray[np.uint32]:
        if self._match_seqio:
            return shuffle.seqio_noise_keys(self._seed, epochs_n * self.size + indices_n)
        return example_keys(self._seed, self._stream, epochs_n, indices_n)

    def _spans(
        self, indices_n: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the group of each piece, where in the group it starts, and its length."""
        group_n = np.searchsorted(self._first_pieces, indices_n, side="right") - 1
        longest_n = self._piece_lengths[group_n]
        starts_n = (indices_n - self._first_pieces[group_n]) * longest_n
        return group_n, starts_n, np.minimum(self._group_lengths(group_n) - starts_n, longest_n)

    def _group_lengths(self, group_n: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many tokens a group has, the EOS of its documents included if they get one."""
        lengths_n = self._group_starts[group_n + 1] - self._group_starts[group_n]
        if not self._eos_after_documents:
            return lengths_n
        last = len(self._first_documents) - 2
        in_last = len(self._document_ends(last)) if last >= 0 else 0
        return lengths_n + np.where(group_n == last, in_last, self._objective.documents_per_group)

    def _document_ends(self, group: int) -> NDArray[np.int64]:
        """Return where the documents of a group end, empty ones left out."""
        first, last = self._first_documents[group : group + 2]
        bounds = self._offsets[first : last + 1]
        return bounds[1:][np.diff(bounds) > 0]

    def _gather_with_eos(
        self, group_n: NDArray[np.int64], starts_n: NDArray[np.int64], lengths_n: NDArray[np.int64]
    ) -> Rows:
        """Return pieces, of groups in which every document is followed by EOS, as rows.

        The groups of the pieces are laid end to end; from the places of all EOS in that line follow
        which places hold one, and how many lie before each of the others.
        """
        groups, number_n = np.unique(group_n, return_inverse=True)
        lengths_g = self._group_lengths(groups)
        line_g = np.cumsum(lengths_g) - lengths_g
        ends = [self._document_ends(group) for group in groups]
        counts_g = np.array([len(each) for each in ends], np.int64)
        eos_k = np.concatenate(
            [
                line + each - self._group_starts[group] + np.arange(len(each))
                for line, group, each in zip(line_g, groups, ends, strict=True)
            ]
        )
        place_l = np.arange(lengths_n.max(initial=0))
        place_nl = np.minimum(starts_n[:, None] + place_l, lengths_g[number_n, None] - 1)
        line_nl = line_g[number_n, None] + place_nl
        before_nl = np.searchsorted(eos_k, line_nl)
        is_eos_nl = eos_k[before_nl] == line_nl
        skipped_nl = before_nl - (np.cumsum(counts_g) - counts_g)[number_n, None]
        source_nl = self._group_starts[group_n][:, None] + place_nl - skipped_nl
        source_nl = np.clip(source_nl, 0, len(self._tokens) - 1)
        first_n = source_nl.min(axis=1)
        tokens, starts_n = read_ranges(self._tokens, first_n, source_nl.max(axis=1) - first_n + 1)
        source_nl += (starts_n - first_n)[:, None]
        tokens_nl = tokens[source_nl].astype(np.int32)
        tokens_nl[is_eos_nl] = EOS_ID
        tokens_nl[place_l >= lengths_n[:, None]] = 0
        return Rows(tokens_nl, lengths_n.astype(np.int32))


def random_stream(name: str) -> int:
    """Return the number that tells a task's random choices from those of the other tasks."""
    return zlib.crc32(name.encode())
