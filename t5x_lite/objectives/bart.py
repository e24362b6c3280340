"""BART's denoising: five transformations of the text, whose original is the target.

The order is fixed: sentences are permuted, then tokens are masked, deleted or infilled, then the
text is rotated. fairseq selects whole words; here tokens are selected, because the length of the
inputs must be known from the length of a chunk, before its tokens are read.

Source: Lewis et al. 2020 (BART), section 2.2, and fairseq's `denoising_dataset`.

Array names: b chunks of the batch, l positions, d draws, s spans of all rows (or sentences of a
row; keys of a row in `keys_bs2`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from t5x_lite.errors import require, require_field
from t5x_lite.objectives import masks, noise, philox
from t5x_lite.objectives.feature_lengths import check_targets, length_of
from t5x_lite.objectives.objective import EosAfter, Rows
from t5x_lite.objectives.sentinels import Sentinels

Keys = NDArray[np.uint32]
_MIN_PROBABILITY = 1e-7  # of span lengths beyond the mean that are still drawn


@dataclass(frozen=True)
class Bart:
    """BART's objective: restore the text from a corrupted version of it.

        text                  A B C . D E .
        token masking         A M C . D M .     noise="masking"
        token deletion        A C . D .         noise="deletion"
        text infilling        A M . D M E .     noise="infilling" (spans "B C" and "")
        sentence permutation  D E . A B C .     permuted_sentences=1.0
        rotation              C . D E . A B     rotation_probability=1.0

    The defaults, infilling of 30 % and permutation of all sentences, are those of the released
    models.

    Attributes:
        noise: How tokens are corrupted.
        noise_ratio: Fraction of the tokens that are corrupted.
        mean_span_length: Mean of the Poisson distribution of infilled span lengths. Each span
            becomes one mask token, also a span of length 0.
        random_share: Fraction of mask tokens that are replaced by a random token.
        permuted_sentences: Fraction of a chunk's sentences that are permuted.
        full_stops: Ids of the tokens that end a sentence; needed to permute sentences.
        rotation_probability: Probability that a chunk is rotated to start at another token.
        documents_per_group: Number of documents that are concatenated before they are cut into
            chunks.
    """

    noise: Literal["infilling", "masking", "deletion", "none"] = "infilling"
    noise_ratio: float = 0.3
    mean_span_length: float = 3.0
    random_share: float = 0.0
    permuted_sentences: float = 1.0
    full_stops: tuple[int, ...] = ()
    rotation_probability: float = 0.0
    documents_per_group: int = 128

    eos_after: ClassVar[EosAfter] = "chunks"

    def __post_init__(self):
        """Check the settings."""
        require_field(self, "noise_ratio", 0 < self.noise_ratio <= 1, "in (0, 1]")
        require_field(self, "documents_per_group", self.documents_per_group >= 1, "at least 1")
        require_field(self, "mean_span_length", self.mean_span_length > 0, "positive")
        for name in ("random_share", "permuted_sentences", "rotation_probability"):
            require_field(self, name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        require(
            self.full_stops or not self.permuted_sentences,
            "permuting sentences needs the tokens that end a sentence: give the ids of full stops "
            "in full_stops, or set permuted_sentences = 0.0",
            "Bart.full_stops",
            "Bart.permuted_sentences",
        )

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Compute the chunk length that fills the inputs if the noise does not shorten them."""
        inputs_length = length_of(feature_lengths, "inputs", least=3, objective="BART")
        length_of(feature_lengths, "targets", least=1, objective="BART")
        made_by = f"BART's noise on inputs of {inputs_length} tokens"
        check_targets(feature_lengths, inputs_length, made_by=made_by)
        return inputs_length - 1

    def sentinels_needed(self, feature_lengths: Mapping[str, int]) -> int:
        """Return 1, for the mask token."""
        del feature_lengths
        return 1

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: Keys
    ) -> dict[str, NDArray[np.int64]]:
        """Compute the lengths of "inputs" and "targets" from the spans drawn for each chunk."""
        lengths_b = np.asarray(lengths_b, np.int64)
        inputs_b = lengths_b
        if self.noise == "deletion":
            inputs_b = lengths_b - _fraction_of(lengths_b, self.noise_ratio)
        elif self.noise == "infilling":
            spans = self._infilling_spans(lengths_b, keys_b2, int(lengths_b.max(initial=0)))
            inputs_b = lengths_b - np.count_nonzero(spans.removed, axis=1) + spans.insertions
        return {"inputs": inputs_b, "targets": lengths_b}

    def __call__(self, rows: Rows, keys_b2: Keys, sentinels: Sentinels) -> dict[str, Rows]:
        """Make "inputs", the transformed text, and "targets", the text."""
        # Of the 12 keys, 1 selects masked or deleted tokens, 4 and 5 permute sentences, 6 and 7
        # rotate, 8 inserts masks, 9 and 10 replace masks; infilling splits two from keys_b2 itself.
        keys_bs2 = philox.split(keys_b2, 12)
        inputs = rows
        if self.permuted_sentences:
            inputs = permute_sentences(
                inputs, self.full_stops, keys_bs2[:, 4:6], fraction=self.permuted_sentences
            )
        inputs = self._add_noise(inputs, keys_b2, sentinels)
        if self.rotation_probability:
            inputs = rotate_rows(inputs, keys_bs2[:, 6:8], probability=self.rotation_probability)
        return {"inputs": inputs, "targets": rows}

    def _add_noise(self, rows: Rows, keys_b2: Keys, sentinels: Sentinels) -> Rows:
        """Mask, delete or infill tokens. -1 marks a mask until it is decided what replaces it."""
        keys_bs2 = philox.split(keys_b2, 12)
        width = rows.tokens.shape[1]
        if self.noise == "none":
            return rows
        if self.noise == "infilling":
            spans = self._infilling_spans(rows.lengths.astype(np.int64), keys_b2, width)
            kept = noise.compact(
                np.where(spans.masks, -1, rows.tokens), noise.valid_positions(rows) & ~spans.removed
            )
            marked = insert_tokens(kept, -1, spans.insertions, keys_bs2[:, 8])
        else:
            count_b = _fraction_of(rows.lengths, self.noise_ratio)
            chosen_bl = masks.random_subset_mask(rows.lengths, count_b, keys_bs2[:, 1], width)
            if self.noise == "deletion":
                return noise.drop_noise(rows, chosen_bl)
            marked = rows._replace(tokens=np.where(chosen_bl, np.int32(-1), rows.tokens))
        return noise.noise_to_random_token_or_mask(
            marked,
            marked.tokens == -1,
            sentinels,
            keys_bs2[:, 9:11],
            random_prob=self.random_share,
        )

    def _infilling_spans(
        self, lengths_b: NDArray[np.int64], keys_b2: Keys, max_length: int
    ) -> "InfillingSpans":
        return draw_infilling_spans(
            lengths_b,
            noise_ratio=self.noise_ratio,
            mean_span_length=self.mean_span_length,
            keys_b2=keys_b2,
            max_length=max_length,
        )


class InfillingSpans(NamedTuple):
    """The spans that text infilling replaces with masks.

    Attributes:
        masks: bool [b, l], tokens that become a mask: the first token of each span.
        removed: bool [b, l], tokens that are removed: the other tokens of spans.
        insertions: int64 [b], number of masks that are inserted, for spans of length 0.
    """

    masks: NDArray[np.bool_]
    removed: NDArray[np.bool_]
    insertions: NDArray[np.int64]


def draw_infilling_spans(
    lengths_b: NDArray[np.integer],
    *,
    noise_ratio: float,
    mean_span_length: float,
    keys_b2: Keys,
    max_length: int,
) -> InfillingSpans:
    """Draw the spans of text infilling.

    Span lengths are drawn from a Poisson distribution until their sum reaches
    ceil(n * noise_ratio); the last one is shortened to meet it. Spans of length 0 become
    insertions, at most as many as tokens are removed, so that no row grows. The others start at
    distinct tokens, drawn uniformly. Overlapping spans remove fewer tokens.

    Args:
        lengths_b: Length of each row [b].
        noise_ratio: Fraction of the tokens that are in spans.
        mean_span_length: Mean of the Poisson distribution.
        keys_b2: Key of each row, uint32 [b, 2].
        max_length: Width of the masks.
    """
    lengths_b = np.asarray(lengths_b, np.int64)
    keys_bs2 = philox.split(keys_b2, 2)

    # Span lengths [b, d], 0 where the budget is used up. A row of n tokens has n + 8 draws, some of
    # which have length 0; the number must not depend on the width of the batch.
    budget_b = _fraction_of(lengths_b, noise_ratio)
    draws = max_length + 8
    uniform_bd = philox.uniform(keys_bs2[:, 0], draws)
    length_bd = np.searchsorted(poisson_cdf(mean_span_length), uniform_bd, side="right")
    before_bd = np.cumsum(length_bd, axis=1) - length_bd
    is_drawn_bd = before_bd < budget_b[:, None]
    is_drawn_bd &= np.arange(draws) < (lengths_b + 8)[:, None]
    span_bd = np.where(is_drawn_bd, np.minimum(length_bd, budget_b[:, None] - before_bd), 0)

    # Row, start and end of all spans that are not empty, [s]: the k-th span of a row starts at the
    # k-th token of a random order.
    order_bl = philox.random_order(keys_bs2[:, 1], lengths_b, max_length)
    row_s, draw_s = np.nonzero(span_bd)
    number_s = (np.cumsum(span_bd > 0, axis=1) - 1)[row_s, draw_s]
    start_s = order_bl[row_s, number_s]
    end_s = np.minimum(start_s + span_bd[row_s, draw_s], lengths_b[row_s])

    # Tokens after a span's first one are removed: the running sum counts the spans that cover each.
    changes_bl = np.zeros((len(lengths_b), max_length + 1), np.int64)
    np.add.at(changes_bl, (row_s, start_s + 1), 1)
    np.add.at(changes_bl, (row_s, np.maximum(end_s, start_s + 1)), -1)
    removed_bl = np.cumsum(changes_bl, axis=1)[:, :-1] > 0
    masks_bl = np.zeros_like(removed_bl)
    masks_bl[row_s, start_s] = True
    insertions_b = np.count_nonzero(is_drawn_bd & (length_bd == 0), axis=1)
    insertions_b = np.minimum(insertions_b, np.count_nonzero(removed_bl, axis=1))
    return InfillingSpans(masks_bl & ~removed_bl, removed_bl, insertions_b)


def poisson_cdf(mean: float) -> NDArray[np.float64]:
    """Return the cumulative distribution of span lengths, P(length <= k) for k = 0, 1, ...

    The Poisson distribution is truncated at the first length beyond the mean whose probability is
    below 1e-7, and renormalized. The last entry, 1, is omitted.
    """
    probabilities, length = [math.exp(-mean)], 0
    while length < mean or probabilities[-1] >= _MIN_PROBABILITY:
        length += 1
        probabilities.append(probabilities[-1] * mean / length)
    return np.cumsum(probabilities[:-1])[:-1] / sum(probabilities[:-1])


def permute_sentences(
    rows: Rows, full_stops: tuple[int, ...], keys_bs2: Keys, *, fraction: float
) -> Rows:
    """Permute a fraction of each row's sentences among their positions.

        A B C . D E . F G        ->        D E . F G A B C .

    A sentence ends with the first of a run of full stops. What follows the last one is a sentence.

    Args:
        rows: Token sequences.
        full_stops: Ids of the tokens that end a sentence.
        keys_bs2: Two keys per row, uint32 [b, 2, 2]: the first chooses sentences, the second
            permutes them.
        fraction: Fraction of the sentences that are permuted.
    """
    # Number of each token's sentence, [b, l], and of sentences, [b].
    valid_bl = noise.valid_positions(rows)
    stops_bl = np.isin(rows.tokens, full_stops) & valid_bl
    ends_bl = noise.run_starts(stops_bl)
    number_bl = np.cumsum(ends_bl, axis=1) - ends_bl
    sentences_b = np.where(
        rows.lengths > 0, number_bl.max(axis=1, initial=0, where=valid_bl) + 1, 0
    )
    most = int(sentences_b.max(initial=0))

    # Sentence that comes to each position, [b, s], and its inverse: new position of each sentence.
    chosen_bs = masks.random_subset_mask(
        sentences_b, _fraction_of(sentences_b, fraction), keys_bs2[:, 0], most
    )
    numbers = Rows(
        np.tile(np.arange(most, dtype=np.int32), (len(sentences_b), 1)),
        sentences_b.astype(np.int32),
    )
    order_bs = noise.permute_noise(numbers, chosen_bs, keys_bs2[:, 1]).tokens
    position_bs = np.argsort(order_bs, axis=1, kind="stable")
    width = rows.tokens.shape[1]
    if not width or not most:
        return rows

    # A stable sort of the tokens by the new position of their sentence; padding is last.
    rank_bl = np.take_along_axis(position_bs, np.minimum(number_bl, most - 1), axis=1)
    rank_bl = np.where(valid_bl, rank_bl, width)
    tokens_bl = np.take_along_axis(rows.tokens, np.argsort(rank_bl, axis=1, kind="stable"), axis=1)
    return rows._replace(tokens=tokens_bl)


def rotate_rows(rows: Rows, keys_bs2: Keys, *, probability: float) -> Rows:
    """Rotate rows, with some probability, to start at another of their tokens.

    Args:
        rows: Token sequences.
        keys_bs2: Two keys per row, uint32 [b, 2, 2]: the first selects rows, the second draws the
            offset, uniform over the other tokens.
        probability: Probability that a row is rotated.
    """
    lengths_b = rows.lengths.astype(np.int64)
    is_rotated_b = philox.uniform(keys_bs2[:, 0], 1)[:, 0] < np.float32(probability)
    offset_b = 1 + philox.random_bits(keys_bs2[:, 1], 1)[:, 0] % np.maximum(lengths_b - 1, 1)
    offset_b = np.where(is_rotated_b & (lengths_b > 1), offset_b, 0)
    position_l = np.arange(rows.tokens.shape[1])
    source_bl = (position_l + offset_b[:, None]) % np.maximum(lengths_b, 1)[:, None]
    source_bl = np.where(noise.valid_positions(rows), source_bl, position_l)
    return rows._replace(tokens=np.take_along_axis(rows.tokens, source_bl, axis=1))


def insert_tokens(rows: Rows, token: int, count_b: NDArray[np.int64], keys_b2: Keys) -> Rows:
    """Insert a token into each row at uniform positions.

    Args:
        rows: Token sequences.
        token: The id to insert.
        count_b: Number of insertions into each row [b].
        keys_b2: Key of each row, uint32 [b, 2].

    Returns:
        Rows as wide as needed.
    """
    lengths_b = rows.lengths + count_b
    width = max(rows.tokens.shape[1], int(lengths_b.max(initial=0)))
    inserted_bl = masks.random_subset_mask(lengths_b, count_b, keys_b2, width)
    kept_bl = (np.arange(width) < lengths_b[:, None]) & ~inserted_bl
    tokens_bl = np.zeros((len(lengths_b), width), np.int32)
    tokens_bl[inserted_bl] = token
    tokens_bl[kept_bl] = rows.tokens[noise.valid_positions(rows)]
    return Rows(tokens_bl, lengths_b.astype(np.int32))


def _fraction_of(lengths_b: NDArray[np.integer], fraction: float) -> NDArray[np.int64]:
    """Return a fraction of each length, rounded up."""
    return np.ceil(np.asarray(lengths_b, np.float64) * fraction).astype(np.int64)
