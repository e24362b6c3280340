"""The objectives of encoders: masked tokens are predicted where they stand (BERT, SpanBERT).

Their targets are as long as the inputs, and a third feature, "weights", is 1 where a prediction
counts. A model of inputs and targets alone may take the first two: it then predicts the whole text.

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
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import EosAfter
from t5x_lite.objectives.spans import Rows

EOS_ID = 1
Keys = NDArray[np.uint32]


@dataclass(frozen=True)
class MaskedLM:
    """BERT's masking: 15 % of the tokens are to be predicted, of which 80 % are masked.

        inputs    Thank you M for me to your party apple week .
        targets   Thank you for for me to your party last week .
        weights   .     .   1   1   .  .  .    .     1    .    .

    10 % are replaced by random tokens, 10 % are left as they are. Of n tokens round(n * density)
    are chosen, at least 1.
    """

    noise_density: float = 0.15
    documents_per_group: int = 128

    eos_after: ClassVar[EosAfter] = "pieces"
    beside_inputs: ClassVar[Mapping[str, int]] = {"weights": 0}
    labels: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        """Refuse settings that no text could be corrupted by."""
        require_field(self, "noise_density", 0 < self.noise_density < 1, "in (0, 1)")
        require_field(self, "documents_per_group", self.documents_per_group >= 1, "at least 1")

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Return how many tokens of text fill the inputs: one less than they hold."""
        name = type(self).__name__
        inputs_length = length_of(feature_lengths, "inputs", least=5, objective=name)
        length_of(feature_lengths, "targets", least=1, objective=name)
        made_by = f"{name} of inputs of {inputs_length} tokens"
        check_targets(feature_lengths, inputs_length, made_by=made_by)
        return inputs_length - 1

    def sentinels_needed(self, feature_lengths: Mapping[str, int]) -> int:
        """Return 1: the mask token."""
        del feature_lengths
        return 1

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: Keys
    ) -> dict[str, NDArray[np.int64]]:
        """Return the lengths of "inputs" and "targets": the text's."""
        del keys_b2
        lengths_b = np.asarray(lengths_b, np.int64)
        return {"inputs": lengths_b, "targets": lengths_b}

    def __call__(self, rows: Rows, keys_b2: Keys, sentinels: Sentinels) -> dict[str, Rows]:
        """Return "inputs", "targets" and "weights"."""
        mask_bl = self._mask(rows.lengths, keys_b2, rows.tokens.shape[1])
        return self._features(rows, mask_bl, keys_b2, sentinels)

    def _mask(
        self, lengths_b: NDArray[np.integer], keys_b2: Keys, max_length: int
    ) -> NDArray[np.bool_]:
        asked_b = np.round(np.asarray(lengths_b, np.float64) * self.noise_density).astype(np.int64)
        count_b = np.minimum(np.maximum(asked_b, 1), lengths_b)
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
    """SpanBERT's masking: 15 % of the tokens, in spans of geometric length (mean 3.8, at most 10).

        inputs    Thank you M M me to your party last week .
        targets   Thank you for inviting me to your party last week .
        weights   .     .   1   1        .  .  .    .     .    .    .

    A span is masked (80 %), random (10 %) or left as it is (10 %) as a whole. Spans are of tokens,
    where the original's are of whole words; where they begin and end, which the span boundary
    objective asks for, shows in the weights, as no two of them touch.
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
    """What ELECTRA's encoder reads, where no generator is trained beside it: tokens replaced.

        inputs    Thank you lamp nine me to your party me week .
        targets   Thank you for inviting me to your party last week .
        weights   .     .   1    1        .  .  .    .   1    .    .

    15 % of the tokens give way to tokens from elsewhere in the piece, so that they are drawn as
    often as they occur (a generator that knows only frequencies), and the encoder restores them:
    the "Replace MLM" of Clark et al. 2020 (ELECTRA), section 3.4. `everywhere` weighs all tokens,
    so that the encoder must find them too ("All-Tokens MLM").
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
    """BERT's own pretraining: two stretches of masked text; the second may follow the first.

        inputs         <CLS> Thank you M inviting me <SEP> M your apple last week .
        targets        <CLS> Thank you for inviting me <SEP> to your party last week .
        weights        .     .     .   1   .        .  .     1  .    1     .    .    .
        segments       0     0     0   0   0        0  0     1  1    1     1    1    1
        next_sentence  1

    For half of the pieces the second stretch is the rest of the piece; for the others it is the
    beginning of another piece, drawn from the whole task. <CLS> is `cls_id`, by default the second
    sentinel (the mask is the first); <SEP> is EOS, which also ends the inputs.
    """

    cls_id: int | None = None

    beside_inputs: ClassVar[Mapping[str, int]] = {"weights": 0, "segments": 1}
    labels: ClassVar[tuple[str, ...]] = ("next_sentence",)

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Return how many tokens of text fill the inputs beside <CLS> and two <SEP>."""
        return super().raw_length(feature_lengths) - 2

    def sentinels_needed(self, feature_lengths: Mapping[str, int]) -> int:
        """Return 2: the mask token and <CLS>."""
        del feature_lengths
        return 2

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: Keys
    ) -> dict[str, NDArray[np.int64]]:
        """Return the lengths of "inputs" and "targets" of pieces that go on undisturbed."""
        return super().lengths(np.asarray(lengths_b, np.int64) + 2, keys_b2)

    def __call__(self, rows: Rows, keys_b2: Keys, sentinels: Sentinels) -> dict[str, Rows]:
        """Return the features of pieces that go on undisturbed: all their sentences are next."""
        return self._pair(rows, rows, np.ones(len(rows.lengths), np.bool_), keys_b2, sentinels)

    def pair_lengths(
        self,
        lengths_b: NDArray[np.integer],
        other_lengths_b: NDArray[np.integer],
        keys_b2: Keys,
    ) -> dict[str, NDArray[np.int64]]:
        """Return the lengths of "inputs" and "targets" where another piece may take part."""
        _, second_b = self._stretches(lengths_b, other_lengths_b, _goes_on(keys_b2))
        return super().lengths((np.asarray(lengths_b, np.int64) + 1) // 2 + second_b + 2, keys_b2)

    def pair(
        self, rows: Rows, others: Rows, keys_b2: Keys, sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Return the features where the other piece takes part in half of the cases."""
        return self._pair(rows, others, _goes_on(keys_b2), keys_b2, sentinels)

    def _pair(
        self,
        rows: Rows,
        others: Rows,
        goes_on_b: NDArray[np.bool_],
        keys_b2: Keys,
        sentinels: Sentinels,
    ) -> dict[str, Rows]:
        first_b, second_b = self._stretches(rows.lengths, others.lengths, goes_on_b)
        body_b = first_b + second_b
        place_l = np.arange(rows.tokens.shape[1] + 2)
        is_second_bl = place_l > first_b[:, None] + 1
        # The stretches' tokens, counted through: <CLS> and <SEP> get places that do not matter.
        body_bl = np.maximum(place_l - 1 - is_second_bl, 0)
        is_body_bl = (place_l > 0) & (place_l != first_b[:, None] + 1)
        is_body_bl &= place_l < body_b[:, None] + 2
        width = rows.tokens.shape[1]
        from_other_bl = is_second_bl & ~goes_on_b[:, None]
        source_bl = np.where(from_other_bl, body_bl - first_b[:, None] + width, body_bl)
        both_bl = np.concatenate([rows.tokens, others.tokens], axis=1)
        source_bl = np.where(is_body_bl, source_bl, 0)
        if width:
            text_bl = np.take_along_axis(both_bl, source_bl, axis=1)
        else:
            text_bl = np.zeros(source_bl.shape, np.int32)
        tokens_bl = np.where(is_body_bl, text_bl, 0)
        tokens_bl[:, 0] = sentinels.first - 1 if self.cls_id is None else self.cls_id
        np.put_along_axis(tokens_bl, first_b[:, None] + 1, EOS_ID, axis=1)
        chosen_bl = self._mask(body_b, keys_b2, len(place_l))
        mask_bl = np.take_along_axis(chosen_bl, body_bl, axis=1) & is_body_bl
        laid_out = Rows(tokens_bl.astype(np.int32), (body_b + 2).astype(np.int32))
        made = self._features(laid_out, mask_bl, keys_b2, sentinels)
        segments_bl = (is_second_bl & noise.valid_positions(laid_out)).astype(np.int32)
        made["segments"] = laid_out._replace(tokens=segments_bl)
        label_b1 = goes_on_b[:, None].astype(np.int32)
        made["next_sentence"] = Rows(label_b1, np.ones(len(label_b1), np.int32))
        return made

    def _stretches(
        self,
        lengths_b: NDArray[np.integer],
        other_lengths_b: NDArray[np.integer],
        goes_on_b: NDArray[np.bool_],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the lengths of the first and of the second stretch: a piece is cut in halves."""
        lengths_b = np.asarray(lengths_b, np.int64)
        first_b = (lengths_b + 1) // 2
        rest_b = lengths_b - first_b
        return first_b, np.where(goes_on_b, rest_b, np.minimum(rest_b, other_lengths_b))


def _goes_on(keys_b2: Keys) -> NDArray[np.bool_]:
    """Draw for which pieces the second stretch is the one that follows."""
    return philox.uniform(philox.fold_in(keys_b2, 0x4E5350), 1)[:, 0] < 0.5
