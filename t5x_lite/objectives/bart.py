"""BART's five transforms of a text, alone and together; the targets are always the text.

The order is fixed: sentences are permuted, then tokens masked, deleted or infilled, then the text
is rotated. Where fairseq works on whole words, tokens are meant here: how long a piece's inputs are
must follow from its length, before its tokens are read.

Source: Lewis et al. 2020 (BART), section 2.2, and fairseq's denoising dataset.
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
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import EosAfter
from t5x_lite.objectives.spans import Rows

Keys = NDArray[np.uint32]
_LEAST_PROBABILITY = 1e-7  # where the table of span lengths ends


@dataclass(frozen=True)
class Bart:
    """A text is to be restored from what noise leaves of it.

        text               A B C . D E .
        token masking      A M C . D M .        noise="masking"
        token deletion     A C . D .            noise="deletion"
        text infilling     A M . D M E .        noise="infilling" (B C; nothing)
        sentences permuted D E . A B C .        permuted_sentences=1.0
        rotation           C . D E . A B        rotation_probability=1.0

    noise: what happens to single tokens or spans; noise_ratio: to which share of the tokens.
    mean_span_length: of infilling, whose span lengths are Poisson distributed; each span becomes
    one mask, those of length 0 too.
    random_share: the share of masks in whose place a random token is put.
    permuted_sentences: the share of a piece's sentences that change places among themselves.
    full_stops: the ids of the tokens that end a sentence.
    rotation_probability: of a piece to begin at another of its tokens.

    The defaults, infilling of 30 % and all sentences permuted, are the released models'.
    """

    noise: Literal["infilling", "masking", "deletion", "none"] = "infilling"
    noise_ratio: float = 0.3
    mean_span_length: float = 3.0
    random_share: float = 0.0
    permuted_sentences: float = 1.0
    full_stops: tuple[int, ...] = ()
    rotation_probability: float = 0.0
    documents_per_group: int = 128

    eos_after: ClassVar[EosAfter] = "pieces"

    def __post_init__(self):
        """Refuse shares that are none and permutations of sentences that have no end."""
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
        """Return how many tokens of text fill the inputs where no noise shortens them."""
        inputs_length = length_of(feature_lengths, "inputs", least=3, objective="BART")
        length_of(feature_lengths, "targets", least=1, objective="BART")
        made_by = f"BART's noise on inputs of {inputs_length} tokens"
        check_targets(feature_lengths, inputs_length, made_by=made_by)
        return inputs_length - 1

    def sentinels_needed(self, feature_lengths: Mapping[str, int]) -> int:
        """Return 1: the mask token."""
        del feature_lengths
        return 1

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: Keys
    ) -> dict[str, NDArray[np.int64]]:
        """Return the lengths of "inputs" and "targets", from the spans drawn for each piece."""
        lengths_b = np.asarray(lengths_b, np.int64)
        inputs_b = lengths_b
        if self.noise == "deletion":
            inputs_b = lengths_b - _share_of(lengths_b, self.noise_ratio)
        elif self.noise == "infilling":
            holes = self._holes(lengths_b, keys_b2, int(lengths_b.max(initial=0)))
            inputs_b = lengths_b - np.count_nonzero(holes.removed, axis=1) + holes.insertions
        return {"inputs": inputs_b, "targets": lengths_b}

    def __call__(self, rows: Rows, keys_b2: Keys, sentinels: Sentinels) -> dict[str, Rows]:
        """Return the transformed text as "inputs" and the text as "targets"."""
        keys_bs2 = philox.split(keys_b2, 12)
        made = rows
        if self.permuted_sentences:
            made = permute_sentences(
                made, self.full_stops, keys_bs2[:, 4:6], share=self.permuted_sentences
            )
        made = self._with_noise(made, keys_b2, sentinels)
        if self.rotation_probability:
            made = rotate_rows(made, keys_bs2[:, 6:8], probability=self.rotation_probability)
        return {"inputs": made, "targets": rows}

    def _with_noise(self, rows: Rows, keys_b2: Keys, sentinels: Sentinels) -> Rows:
        keys_bs2 = philox.split(keys_b2, 12)
        width = rows.tokens.shape[1]
        if self.noise == "none":
            return rows
        if self.noise == "infilling":
            holes = self._holes(rows.lengths.astype(np.int64), keys_b2, width)
            kept = noise.compact(
                np.where(holes.masks, -1, rows.tokens), noise.valid_positions(rows) & ~holes.removed
            )
            made = insert_tokens(kept, -1, holes.insertions, keys_bs2[:, 8])
        else:
            count_b = _share_of(rows.lengths, self.noise_ratio)
            chosen_bl = masks.random_subset_mask(rows.lengths, count_b, keys_bs2[:, 1], width)
            if self.noise == "deletion":
                return noise.drop_noise(rows, chosen_bl)
            made = rows._replace(tokens=np.where(chosen_bl, np.int32(-1), rows.tokens))
        return noise.noise_to_random_token_or_mask(
            made, made.tokens == -1, sentinels, keys_bs2[:, 9:11], random_share=self.random_share
        )

    def _holes(self, lengths_b: NDArray[np.int64], keys_b2: Keys, max_length: int) -> "Holes":
        return poisson_holes(
            lengths_b,
            noise_ratio=self.noise_ratio,
            mean_span_length=self.mean_span_length,
            keys_b2=keys_b2,
            max_length=max_length,
        )


class Holes(NamedTuple):
    """What infilling does to rows: where masks stand, what is gone, how many masks are inserted."""

    masks: NDArray[np.bool_]
    removed: NDArray[np.bool_]
    insertions: NDArray[np.int64]


def poisson_holes(
    lengths_b: NDArray[np.integer],
    *,
    noise_ratio: float,
    mean_span_length: float,
    keys_b2: Keys,
    max_length: int,
) -> Holes:
    """Draw the spans of text infilling: masks and removed tokens [b, max_length], insertions [b].

    Span lengths are drawn from a Poisson distribution until their sum reaches ceil(n * ratio), and
    the last is shortened to meet it. Those of length 0 become insertions (at most as many as tokens
    are removed, so that no row grows); the others start at different tokens, drawn uniformly: the
    first becomes a mask, the following are removed. Spans that overlap remove less.
    """
    lengths_b = np.asarray(lengths_b, np.int64)
    keys_bs2 = philox.split(keys_b2, 2)
    budget_b = _share_of(lengths_b, noise_ratio)
    draws = max_length + 8
    table = poisson_cdf(mean_span_length)
    drawn_bd = np.searchsorted(table, philox.uniform(keys_bs2[:, 0], draws), side="right")
    before_bd = np.cumsum(drawn_bd, axis=1) - drawn_bd
    is_drawn_bd = before_bd < budget_b[:, None]
    is_drawn_bd &= np.arange(draws) < (lengths_b + 8)[:, None]  # whatever the batch's width
    span_bd = np.where(is_drawn_bd, np.minimum(drawn_bd, budget_b[:, None] - before_bd), 0)
    order_bl = masks.random_order(lengths_b, keys_bs2[:, 1], max_length)
    # The k-th span that is not empty starts at the k-th token of a random order.
    row_s, draw_s = np.nonzero(span_bd)
    number_s = (np.cumsum(span_bd > 0, axis=1) - 1)[row_s, draw_s]
    start_s = order_bl[row_s, number_s]
    end_s = np.minimum(start_s + span_bd[row_s, draw_s], lengths_b[row_s])
    steps_bl = np.zeros((len(lengths_b), max_length + 1), np.int64)
    np.add.at(steps_bl, (row_s, start_s + 1), 1)
    np.add.at(steps_bl, (row_s, np.maximum(end_s, start_s + 1)), -1)
    removed_bl = np.cumsum(steps_bl, axis=1)[:, :-1] > 0
    masks_bl = np.zeros_like(removed_bl)
    masks_bl[row_s, start_s] = True
    insertions_b = np.count_nonzero(is_drawn_bd & (drawn_bd == 0), axis=1)
    insertions_b = np.minimum(insertions_b, np.count_nonzero(removed_bl, axis=1))
    return Holes(masks_bl & ~removed_bl, removed_bl, insertions_b)


def poisson_cdf(mean: float) -> NDArray[np.float64]:
    """Return the distribution function of the span lengths: P(length <= k) for k = 0, 1, ...

    Lengths of a probability below 1e-7 beyond the mean are left out, and the rest made up to 1.
    """
    probabilities, length = [math.exp(-mean)], 0
    while length < mean or probabilities[-1] >= _LEAST_PROBABILITY:
        length += 1
        probabilities.append(probabilities[-1] * mean / length)
    return np.cumsum(probabilities[:-1])[:-1] / sum(probabilities[:-1])


def permute_sentences(
    rows: Rows, full_stops: tuple[int, ...], keys_bs2: Keys, *, share: float
) -> Rows:
    """Put a share of each row's sentences in random order, among their own places.

        A B C . D E . F G        ->        D E . F G A B C .

    A sentence ends after a full stop that follows no other; what comes after the last is one too.
    """
    valid_bl = noise.valid_positions(rows)
    stops_bl = np.isin(rows.tokens, full_stops) & valid_bl
    ends_bl = noise.run_starts(stops_bl)
    number_bl = np.cumsum(ends_bl, axis=1) - ends_bl
    sentences_b = np.where(
        rows.lengths > 0, number_bl.max(axis=1, initial=0, where=valid_bl) + 1, 0
    )
    most = int(sentences_b.max(initial=0))
    chosen_bs = masks.random_subset_mask(
        sentences_b, _share_of(sentences_b, share), keys_bs2[:, 0], most
    )
    numbers = Rows(
        np.tile(np.arange(most, dtype=np.int32), (len(sentences_b), 1)),
        sentences_b.astype(np.int32),
    )
    order_bs = noise.permute_noise(numbers, chosen_bs, keys_bs2[:, 1]).tokens
    place_bs = np.argsort(order_bs, axis=1, kind="stable")
    width = rows.tokens.shape[1]
    if not width or not most:
        return rows
    rank_bl = np.take_along_axis(place_bs, np.minimum(number_bl, most - 1), axis=1)
    rank_bl = np.where(valid_bl, rank_bl, width)
    tokens_bl = np.take_along_axis(rows.tokens, np.argsort(rank_bl, axis=1, kind="stable"), axis=1)
    return rows._replace(tokens=tokens_bl)


def rotate_rows(rows: Rows, keys_bs2: Keys, *, probability: float) -> Rows:
    """Let a share of the rows begin at another of their tokens, all others equally likely."""
    lengths_b = rows.lengths.astype(np.int64)
    is_turned_b = philox.uniform(keys_bs2[:, 0], 1)[:, 0] < np.float32(probability)
    offset_b = 1 + philox.random_bits(keys_bs2[:, 1], 1)[:, 0] % np.maximum(lengths_b - 1, 1)
    offset_b = np.where(is_turned_b & (lengths_b > 1), offset_b, 0)
    place_l = np.arange(rows.tokens.shape[1])
    source_bl = (place_l + offset_b[:, None]) % np.maximum(lengths_b, 1)[:, None]
    source_bl = np.where(noise.valid_positions(rows), source_bl, place_l)
    return rows._replace(tokens=np.take_along_axis(rows.tokens, source_bl, axis=1))


def insert_tokens(rows: Rows, token: int, count_b: NDArray[np.int64], keys_b2: Keys) -> Rows:
    """Insert a token into each row a number of times; all places are equally likely."""
    lengths_b = rows.lengths + count_b
    width = max(rows.tokens.shape[1], int(lengths_b.max(initial=0)))
    inserted_bl = masks.random_subset_mask(lengths_b, count_b, keys_b2, width)
    old_bl = (np.arange(width) < lengths_b[:, None]) & ~inserted_bl
    tokens_bl = np.zeros((len(lengths_b), width), np.int32)
    tokens_bl[inserted_bl] = token
    tokens_bl[old_bl] = rows.tokens[noise.valid_positions(rows)]
    return Rows(tokens_bl, lengths_b.astype(np.int32))


def _share_of(lengths_b: NDArray[np.integer], share: float) -> NDArray[np.int64]:
    """Return a share of each length, rounded up."""
    return np.ceil(np.asarray(lengths_b, np.float64) * share).astype(np.int64)
