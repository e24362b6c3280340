"""Self-supervised objectives: from pieces of text to inputs and targets.

An objective is a frozen value that says how long a piece of text fills the configured features, and
what becomes of such pieces. It neither tokenizes nor appends EOS.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from t5x_lite.errors import require_field
from t5x_lite.objectives import noise, spans
from t5x_lite.objectives.feature_lengths import check_targets, length_of
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.spans import Rows

EosAfter = Literal["pieces", "documents"]


class Objective(Protocol):
    """What the data path asks of an objective.

    `eos_after` says where EOS goes: after both features of every piece, or after every document. In
    the second case a piece's tokens include the EOS of the documents that end in it, and its
    features get none (but no feature is empty: an empty one becomes EOS alone).
    """

    eos_after: ClassVar[EosAfter]

    @property
    def documents_per_group(self) -> int:
        """How many consecutive documents are joined before they are cut into pieces."""
        ...

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Return how many tokens of text fill the features, EOS of each feature included.

        Raises ConfigError where the features cannot hold what the objective makes. Where the
        length of what it makes is random, the features must hold the average; what is longer is
        cut by the caller, which keeps its EOS.
        """
        ...

    def sentinels_needed(self, feature_lengths: Mapping[str, int]) -> int:
        """Return how many sentinels a piece takes at most; the vocabulary must have as many."""
        ...

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: NDArray[np.uint32]
    ) -> dict[str, NDArray[np.int64]]:
        """Return how long the features of pieces of these lengths are, without EOS: [b] each.

        What `__call__` makes of the same keys is as long; packing asks before any text is read.
        """
        ...

    def __call__(
        self, rows: Rows, keys_b2: NDArray[np.uint32], sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Return the features of each piece, without EOS. Row i depends on row i and key i only."""
        ...


@runtime_checkable
class PairObjective(Protocol):
    """An objective that also wants, with each piece, another one drawn from the same task."""

    def pair_lengths(
        self,
        lengths_b: NDArray[np.integer],
        other_lengths_b: NDArray[np.integer],
        keys_b2: NDArray[np.uint32],
    ) -> dict[str, NDArray[np.int64]]:
        """Return what `Objective.lengths` does, for pieces and others of these lengths."""
        ...

    def pair(
        self, rows: Rows, others: Rows, keys_b2: NDArray[np.uint32], sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Return what `Objective.__call__` does, from each piece and the other beside it."""
        ...


@runtime_checkable
class TokenLevelObjective(Protocol):
    """An objective of encoders, which gives more than "inputs" and "targets".

    beside_inputs: features with one number for each token of the inputs, and the number each has at
    the EOS that ends them; one is "weights", 1 where a prediction counts. labels: features of one
    number for a whole example.
    """

    beside_inputs: ClassVar[Mapping[str, int]]
    labels: ClassVar[tuple[str, ...]]


@runtime_checkable
class RandomLengthObjective(Protocol):
    """An objective whose pieces have a length of their own in every group of documents."""

    def piece_lengths(self, longest: int, keys_b2: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return how long the pieces of each group are, at most `longest` tokens: [b]."""
        ...


@dataclass(frozen=True)
class SpanCorruption:
    """T5's objective: random spans are cut out of the inputs and spelt out in the targets.

        text      Thank you for inviting me to your party last week
        inputs    Thank you <X> me to your party <Y> week
        targets   <X> for inviting <Y> last

    The default, 15 % of the tokens in spans of 3 on average, is the one T5 1.0, T5 1.1 and mT5 were
    trained with (Raffel et al. 2020, tables 5 to 7). `documents_per_group` documents are joined
    without a separator before they are cut; 1 keeps every piece inside one document.

    random_roll: turn the mask of a piece round, so that it may begin with noise or end with text.
    reserved_for_packing: tokens of the inputs that a piece leaves free, for others to be packed in.
    borrow_pieces: mark spans beyond the vocabulary's sentinels with its last pieces, as the T5
    library does; otherwise settings that need more than it has are refused.
    """

    noise_density: float = 0.15
    mean_noise_span_length: float = 3.0
    documents_per_group: int = 128
    random_roll: bool = False
    reserved_for_packing: int = 0
    borrow_pieces: bool = False

    eos_after: ClassVar[EosAfter] = "pieces"

    def __post_init__(self):
        """Refuse settings that no text could be corrupted by."""
        require_field(self, "noise_density", 0 < self.noise_density < 1, "in (0, 1)")
        for name in ("mean_noise_span_length", "documents_per_group"):
            require_field(self, name, getattr(self, name) >= 1, "at least 1")
        require_field(self, "reserved_for_packing", self.reserved_for_packing >= 0, "0 or more")

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Return how many tokens of text fill the inputs: 568 for 512 inputs and 114 targets."""
        cut = int(self.random_roll)  # a rolled mask may cut a span in two
        inputs_length = length_of(
            feature_lengths,
            "inputs",
            least=3 + cut + self.reserved_for_packing,  # a kept token, a sentinel, EOS
            objective="span corruption",
        )
        length_of(feature_lengths, "targets", least=1, objective="span corruption")
        filled_length = inputs_length - cut - self.reserved_for_packing
        raw_length, needed = spans.span_corruption_lengths(
            filled_length,
            noise_density=self.noise_density,
            mean_noise_span_length=self.mean_noise_span_length,
        )
        # The T5 library's arithmetic, in float64 and with no span at all for very little noise, is
        # off by a token here and there: what the masks make counts.
        inputs, targets = self._counts(raw_length)
        while inputs >= filled_length and raw_length > 1:
            raw_length -= 1
            inputs, targets = self._counts(raw_length)
        made_by = (
            f"span corruption of inputs of {inputs_length} tokens (noise_density "
            f"{self.noise_density}, mean_noise_span_length {self.mean_noise_span_length})"
        )
        needed = max(needed, targets + 1) + cut
        check_targets(feature_lengths, needed, made_by=made_by)
        return raw_length

    def sentinels_needed(self, feature_lengths: Mapping[str, int]) -> int:
        """Return the number of spans of a full piece, or 1 where pieces are borrowed."""
        if self.borrow_pieces:
            return 1
        raw_length = np.array([max(self.raw_length(feature_lengths), 2)])
        _, spans_b = spans.noise_counts(raw_length, self.noise_density, self.mean_noise_span_length)
        return int(spans_b[0]) + int(self.random_roll)

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: NDArray[np.uint32]
    ) -> dict[str, NDArray[np.int64]]:
        """Return the lengths of "inputs" and "targets", which chance touches only by a roll."""
        lengths_b = np.asarray(lengths_b, np.int64)
        if self.random_roll:
            mask_bl = self._mask(lengths_b, keys_b2, int(lengths_b.max(initial=0)))
            return {
                "inputs": noise.replaced_lengths("sentinels", lengths_b, mask_bl),
                "targets": noise.replaced_lengths("sentinels", lengths_b, ~mask_bl),
            }
        inputs_b, targets_b = self._unrolled_lengths(lengths_b)
        return {"inputs": inputs_b, "targets": targets_b}

    def __call__(
        self, rows: Rows, keys_b2: NDArray[np.uint32], sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Return "inputs" (noise spans as sentinels) and "targets" (kept spans as sentinels)."""
        mask_bl = self._mask(rows.lengths, keys_b2, rows.tokens.shape[1])
        if self.borrow_pieces:
            sentinels = noise.extend_sentinels(sentinels)
        return {
            "inputs": noise.noise_spans_to_unique_sentinel(rows, mask_bl, sentinels),
            "targets": noise.noise_spans_to_unique_sentinel(rows, ~mask_bl, sentinels),
        }

    def _mask(
        self, lengths_b: NDArray[np.integer], keys_b2: NDArray[np.uint32], max_length: int
    ) -> NDArray[np.bool_]:
        return spans.random_spans_mask(
            lengths_b,
            noise_density=self.noise_density,
            mean_noise_span_length=self.mean_noise_span_length,
            keys_b2=keys_b2,
            max_length=max_length,
            random_roll=self.random_roll,
        )

    def _counts(self, raw_length: int) -> tuple[int, int]:
        inputs_b, targets_b = self._unrolled_lengths(np.array([raw_length]))
        return int(inputs_b[0]), int(targets_b[0])

    def _unrolled_lengths(
        self, lengths_b: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        noise_b, spans_b = spans.noise_counts(
            np.maximum(lengths_b, 2), self.noise_density, self.mean_noise_span_length
        )
        # The noise of a single token is the second of the two that its mask is cut from.
        noise_b = np.where(lengths_b < 2, 0, noise_b)
        return (
            lengths_b - noise_b + np.where(lengths_b < 2, 0, spans_b),
            noise_b + np.where(lengths_b < 1, 0, spans_b),
        )
