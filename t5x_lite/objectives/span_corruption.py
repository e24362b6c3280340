"""Span corruption, T5's objective (Raffel et al. 2020, section 3.1.4).

Array names: b chunks of the batch, l positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from t5x_lite.errors import require_field
from t5x_lite.objectives import noise, spans
from t5x_lite.objectives.feature_lengths import check_targets, length_of
from t5x_lite.objectives.objective import EosAfter, Rows
from t5x_lite.objectives.sentinels import Sentinels


@dataclass(frozen=True)
class SpanCorruption:
    """T5's objective: random spans of the text are replaced by sentinels and predicted.

        text      Thank you for inviting me to your party last week
        inputs    Thank you <X> me to your party <Y> week
        targets   <X> for inviting <Y> last

    The defaults are those of T5 1.0, T5 1.1 and mT5 (Raffel et al. 2020, tables 5 to 7).

    Attributes:
        noise_density: Fraction of tokens that are replaced.
        mean_noise_span_length: Mean length of the replaced spans, in tokens.
        documents_per_group: Number of documents that are concatenated, without a separator, before
            they are cut into chunks; 128 as in the T5 library. 1 keeps chunks within a document.
        random_roll: Rotate the mask of each chunk, so that it may start with noise or end with
            text.
        reserved_for_packing: Tokens of the inputs that a chunk leaves free, so that other examples
            can be packed into its row.
        borrow_pieces: Mark spans beyond the vocabulary's sentinels with its last pieces of text, as
            the T5 library does. False raises an error for settings that need more sentinels.
    """

    noise_density: float = 0.15
    mean_noise_span_length: float = 3.0
    documents_per_group: int = 128
    random_roll: bool = False
    reserved_for_packing: int = 0
    borrow_pieces: bool = False

    eos_after: ClassVar[EosAfter] = "chunks"

    def __post_init__(self):
        """Check the settings."""
        require_field(self, "noise_density", 0 < self.noise_density < 1, "in (0, 1)")
        for name in ("mean_noise_span_length", "documents_per_group"):
            require_field(self, name, getattr(self, name) >= 1, "at least 1")
        require_field(self, "reserved_for_packing", self.reserved_for_packing >= 0, "0 or more")

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Compute the chunk length; by default 568 for inputs of 512 and targets of 114 tokens."""
        cut = int(self.random_roll)  # a rotated mask may cut one span in two: one more sentinel
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
        # The T5 library's formula rounds in float64 and allows no span at all for very little
        # noise, so it can differ from its masks by a token. The masks' lengths are decisive.
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
        """Return the number of spans of a full chunk, or 1 if pieces are borrowed."""
        if self.borrow_pieces:
            return 1
        raw_length = np.array([max(self.raw_length(feature_lengths), 2)])
        _, spans_b = spans.noise_counts(raw_length, self.noise_density, self.mean_noise_span_length)
        return int(spans_b[0]) + int(self.random_roll)

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: NDArray[np.uint32]
    ) -> dict[str, NDArray[np.int64]]:
        """Compute the lengths of "inputs" and "targets"; they are random only if masks rotate."""
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
        """Make "inputs", with noise spans as sentinels, and "targets", with kept spans as such."""
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
        """Return the lengths of inputs and targets of one chunk, without EOS."""
        inputs_b, targets_b = self._unrolled_lengths(np.array([raw_length]))
        return int(inputs_b[0]), int(targets_b[0])

    def _unrolled_lengths(
        self, lengths_b: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the lengths of inputs and targets without EOS, where no mask is rotated."""
        noise_b, spans_b = spans.noise_counts(
            np.maximum(lengths_b, 2), self.noise_density, self.mean_noise_span_length
        )
        # A chunk of one token has the mask of the first of two, which is kept.
        noise_b = np.where(lengths_b < 2, 0, noise_b)
        return (
            lengths_b - noise_b + np.where(lengths_b < 2, 0, spans_b),
            noise_b + np.where(lengths_b < 1, 0, spans_b),
        )
