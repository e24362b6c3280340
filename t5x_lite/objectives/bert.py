"""Objectives for encoders, which predict masked tokens at their positions (BERT, SpanBERT).

The targets are as long as the inputs, and a third feature, "weights", is 1 for positions that are
predicted. An encoder-decoder can be trained with the first two; it then predicts the whole text.

Sources: Devlin et al. 2019 (BERT), section 3.1 and appendix A; Joshi et al. 2020 (SpanBERT); Clark
et al. 2020 (ELECTRA), section 3.4.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from t5x_lite.errors import require_field
from t5x_lite.objectives import masks, noise, philox
from t5x_lite.objectives.feature_lengths import check_targets, length_of
from t5x_lite.objectives.objective import EosAfter, Rows
from t5x_lite.objectives.sentinels import Sentinels

EOS_ID = 1
Keys = NDArray[np.uint32]


@dataclass(frozen=True)
class MaskedLM:
    """BERT's masked language modeling.

        inputs    Thank you M for me to your party apple week .
        targets   Thank you for for me to your party last week .
        weights   .     .   1   1   .  .  .    .     1    .    .

    Of n tokens, round(n * noise_density) are predicted, at least 1. 80 % of them are replaced with
    the mask token, 10 % with a random token, and 10 % are kept.

    Attributes:
        noise_density: Fraction of tokens that are predicted.
        documents_per_group: Number of documents that are concatenated before they are cut into
            chunks.
    """

    noise_density: float = 0.15
    documents_per_group: int = 128

    eos_after: ClassVar[EosAfter] = "chunks"
    aligned_features: ClassVar[Mapping[str, int]] = {"weights": 0}
    labels: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        """Check the settings."""
        require_field(self, "noise_density", 0 < self.noise_density < 1, "in (0, 1)")
        require_field(self, "documents_per_group", self.documents_per_group >= 1, "at least 1")

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Compute the chunk length: that of the inputs without EOS."""
        name = type(self).__name__
        inputs_length = length_of(feature_lengths, "inputs", least=5, objective=name)
        length_of(feature_lengths, "targets", least=1, objective=name)
        made_by = f"{name} of inputs of {inputs_length} tokens"
        check_targets(feature_lengths, inputs_length, made_by=made_by)
        return inputs_length - 1

    def sentinels_needed(self, feature_lengths: Mapping[str, int]) -> int:
        """Return 1, for the mask token."""
        del feature_lengths
        return 1

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: Keys
    ) -> dict[str, NDArray[np.int64]]:
        """Return the length of the text for "inputs" and "targets"."""
        del keys_b2
        lengths_b = np.asarray(lengths_b, np.int64)
        return {"inputs": lengths_b, "targets": lengths_b}

    def __call__(self, rows: Rows, keys_b2: Keys, sentinels: Sentinels) -> dict[str, Rows]:
        """Make "inputs", "targets" and "weights"."""
        mask_bl = self._mask(rows.lengths, keys_b2, rows.tokens.shape[1])
        return self._features(rows, mask_bl, keys_b2, sentinels)

    def _mask(
        self, lengths_b: NDArray[np.integer], keys_b2: Keys, max_length: int
    ) -> NDArray[np.bool_]:
        count_b = np.round(np.asarray(lengths_b, np.float64) * self.noise_density).astype(np.int64)
        count_b = np.minimum(np.maximum(count_b, 1), lengths_b)
        return masks.random_subset_mask(
            lengths_b, count_b, philox.split(keys_b2, 1)[:, 0], max_length
        )

    def _features(
        self, rows: Rows, mask_bl: NDArray[np.bool_], keys_b2: Keys, sentinels: Sentinels
    ) -> dict[str, Rows]:
        keys_bs2 = philox.split(keys_b2, 4)[:, 2:]
        return {
            "inputs": noise.noise_to_bert_mix(rows, mask_bl, sentinels, keys_bs2),
            "targets": rows,
            "weights": rows._replace(tokens=mask_bl.astype(np.int32)),
        }


@dataclass(frozen=True)
class SpanBert(MaskedLM):
    """SpanBERT's masking: spans of geometric length (mean 3.8, at most 10 tokens).

        inputs    Thank you M M me to your party last week .
        targets   Thank you for inviting me to your party last week .
        weights   .     .   1   1        .  .  .    .     .    .    .

    All tokens of a span are masked (80 %), replaced with random tokens (10 %) or kept (10 %). Spans
    consist of tokens; SpanBERT's consist of whole words. No two spans touch, so the weights show
    their boundaries, which the span boundary objective needs.

    Attributes:
        noise_density: Fraction of tokens that are predicted.
        documents_per_group: Number of documents that are concatenated before they are cut into
            chunks.
    """

    def _mask(
        self, lengths_b: NDArray[np.integer], keys_b2: Keys, max_length: int
    ) -> NDArray[np.bool_]:
        return masks.geometric_spans_mask(
            lengths_b, noise_density=self.noise_density, keys_b2=keys_b2, max_length=max_length
        )

    def _features(
        self, rows: Rows, mask_bl: NDArray[np.bool_], keys_b2: Keys, sentinels: Sentinels
    ) -> dict[str, Rows]:
        keys_bs2 = philox.split(keys_b2, 4)[:, 2:]
        return {
            "inputs": noise.noise_to_bert_mix(rows, mask_bl, sentinels, keys_bs2, by_span=True),
            "targets": rows,
            "weights": rows._replace(tokens=mask_bl.astype(np.int32)),
        }


@dataclass(frozen=True)
class ReplacedTokens(MaskedLM):
    """Replaced tokens are restored: "Replace MLM" of ELECTRA (Clark et al. 2020, section 3.4).

        inputs    Thank you lamp nine me to your party me week .
        targets   Thank you for inviting me to your party last week .
        weights   .     .   1    1        .  .  .    .     1  .    .

    Tokens are replaced with tokens from uniform positions of the chunk, that is, by their
    frequency. ELECTRA draws them from a generator, a small masked language model.

    Attributes:
        noise_density: Fraction of tokens that are replaced.
        documents_per_group: Number of documents that are concatenated before they are cut into
            chunks.
        everywhere: Predict all tokens, so that the encoder must also detect replaced ones
            ("All-Tokens MLM"); False predicts the replaced ones only.
    """

    everywhere: bool = False

    def _features(
        self, rows: Rows, mask_bl: NDArray[np.bool_], keys_b2: Keys, sentinels: Sentinels
    ) -> dict[str, Rows]:
        del sentinels
        weights_bl = noise.valid_positions(rows) if self.everywhere else mask_bl
        return {
            "inputs": noise.noise_to_gathered_token(rows, mask_bl, philox.split(keys_b2, 4)[:, 2]),
            "targets": rows,
            "weights": rows._replace(tokens=weights_bl.astype(np.int32)),
        }


@dataclass(frozen=True)
class Bert(MaskedLM):
    """BERT's pretraining: masked language modeling and next-sentence prediction.

        inputs         <CLS> Thank you M inviting me <SEP> M your apple last week .
        targets        <CLS> Thank you for inviting me <SEP> to your party last week .
        weights        .     .     .   1   .        .  .     1  .    1     .    .    .
        segments       0     0     0   0   0        0  0     1  1    1     1    1    1
        next_sentence  1

    Each example has two segments. The first is the first half of a chunk. The second is the other
    half for 50 % of the chunks; for the others it is the beginning of another chunk, drawn from the
    whole task. <SEP> is EOS, which also ends the inputs.

    Attributes:
        noise_density: Fraction of tokens that are predicted.
        documents_per_group: Number of documents that are concatenated before they are cut into
            chunks.
        cls_id: Id of <CLS>; None takes the second sentinel (the first is the mask token).
    """

    cls_id: int | None = None

    aligned_features: ClassVar[Mapping[str, int]] = {"weights": 0, "segments": 1}
    labels: ClassVar[tuple[str, ...]] = ("next_sentence",)

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Compute the chunk length: that of the inputs without <CLS> and two <SEP>."""
        return super().raw_length(feature_lengths) - 2

    def sentinels_needed(self, feature_lengths: Mapping[str, int]) -> int:
        """Return 2, for the mask token and <CLS>."""
        del feature_lengths
        return 2

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: Keys
    ) -> dict[str, NDArray[np.int64]]:
        """Compute the lengths of "inputs" and "targets" of chunks with both of their halves."""
        return super().lengths(np.asarray(lengths_b, np.int64) + 2, keys_b2)

    def __call__(self, rows: Rows, keys_b2: Keys, sentinels: Sentinels) -> dict[str, Rows]:
        """Make the features of chunks with both of their halves."""
        return self._pair(rows, rows, np.ones(len(rows.lengths), np.bool_), keys_b2, sentinels)

    def pair_lengths(
        self,
        lengths_b: NDArray[np.integer],
        other_lengths_b: NDArray[np.integer],
        keys_b2: Keys,
    ) -> dict[str, NDArray[np.int64]]:
        """Compute the lengths of "inputs" and "targets" with the drawn second segments."""
        _, second_b = self._segment_lengths(lengths_b, other_lengths_b, _is_next(keys_b2))
        return super().lengths((np.asarray(lengths_b, np.int64) + 1) // 2 + second_b + 2, keys_b2)

    def pair(
        self, rows: Rows, others: Rows, keys_b2: Keys, sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Make the features with the drawn second segments."""
        return self._pair(rows, others, _is_next(keys_b2), keys_b2, sentinels)

    def _pair(
        self,
        rows: Rows,
        others: Rows,
        is_next_b: NDArray[np.bool_],
        keys_b2: Keys,
        sentinels: Sentinels,
    ) -> dict[str, Rows]:
        """Make the features of <CLS> first segment <SEP> second segment.

        position   0      1 ... first   first + 1   first + 2 ... first + second + 1
        tokens     <CLS>  first         <SEP>       second
        text index        0 ... first-1             first ... first + second - 1
        """
        first_b, second_b = self._segment_lengths(rows.lengths, others.lengths, is_next_b)
        text_b = first_b + second_b
        width = rows.tokens.shape[1]
        position_l = np.arange(width + 2)
        is_second_bl = position_l > first_b[:, None] + 1
        # Index of each token in the text of both segments; those of <CLS> and <SEP> are not used.
        index_bl = np.maximum(position_l - 1 - is_second_bl, 0)
        is_text_bl = (position_l > 0) & (position_l != first_b[:, None] + 1)
        is_text_bl &= position_l < text_b[:, None] + 2

        # Gather the tokens from [chunk, other chunk], side by side.
        from_other_bl = is_second_bl & ~is_next_b[:, None]
        source_bl = np.where(from_other_bl, index_bl - first_b[:, None] + width, index_bl)
        both_bl = np.concatenate([rows.tokens, others.tokens], axis=1)
        source_bl = np.where(is_text_bl, source_bl, 0)
        if width:
            text_bl = np.take_along_axis(both_bl, source_bl, axis=1)
        else:
            text_bl = np.zeros(source_bl.shape, np.int32)
        tokens_bl = np.where(is_text_bl, text_bl, 0)
        tokens_bl[:, 0] = sentinels.first - 1 if self.cls_id is None else self.cls_id
        np.put_along_axis(tokens_bl, first_b[:, None] + 1, EOS_ID, axis=1)

        # The mask is drawn for the text and moved to its positions; special tokens are not masked.
        text_mask_bl = self._mask(text_b, keys_b2, len(position_l))
        mask_bl = np.take_along_axis(text_mask_bl, index_bl, axis=1) & is_text_bl
        example = Rows(tokens_bl.astype(np.int32), (text_b + 2).astype(np.int32))
        features = self._features(example, mask_bl, keys_b2, sentinels)
        segments_bl = (is_second_bl & noise.valid_positions(example)).astype(np.int32)
        features["segments"] = example._replace(tokens=segments_bl)
        label_b1 = is_next_b[:, None].astype(np.int32)
        features["next_sentence"] = Rows(label_b1, np.ones(len(label_b1), np.int32))
        return features

    def _segment_lengths(
        self,
        lengths_b: NDArray[np.integer],
        other_lengths_b: NDArray[np.integer],
        is_next_b: NDArray[np.bool_],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the lengths of both segments, at most half a chunk each."""
        lengths_b = np.asarray(lengths_b, np.int64)
        first_b = (lengths_b + 1) // 2
        rest_b = lengths_b - first_b
        return first_b, np.where(is_next_b, rest_b, np.minimum(rest_b, other_lengths_b))


def _is_next(keys_b2: Keys) -> NDArray[np.bool_]:
    """Draw for which chunks the second segment follows the first."""
    return philox.uniform(philox.fold_in(keys_b2, 0x4E5350), 1)[:, 0] < 0.5
