"""Turn "inputs" and "targets" into the arrays that a model takes, and set the loss weights.

One function for each architecture. Names and values are those of seqio's feature converters
(EncDec, LM, PrefixLM, Encoder), with one difference: padding is where no example is, not where a
token is 0. seqio's `!= 0` drops the loss of a token with id 0.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.stream.packing import Segments

Converter = Callable[..., dict[str, NDArray]]


def unconverted(features: Mapping[str, Segments], *, packed: bool) -> dict[str, NDArray]:
    """Return the tokens of the features themselves, for generation and scoring.

    Args:
        features: the features of a batch.
        packed: must be False: without segment ids, only unpacked examples can be separated.

    Returns:
        By feature, int32 [batch, length].
    """
    assert not packed, "packed examples need segment ids"
    return {name: feature.tokens for name, feature in features.items()}


def encoder_decoder(features: Mapping[str, Segments], *, packed: bool) -> dict[str, NDArray]:
    """Return the batch of an encoder-decoder model, like `seqio.EncDecFeatureConverter`.

    Two examples in a row, EOS being 1:

        inputs   7 8 5 1 8 4 9 1 0    encoder_input_tokens   7 8 5 1 8 4 9 1 0
                                      encoder_segment_ids    1 1 1 1 2 2 2 2 0
                                      encoder_positions      0 1 2 3 0 1 2 3 0
        targets  3 9 1 4 1 0 0        decoder_target_tokens  3 9 1 4 1 0 0
                                      decoder_input_tokens   0 3 9 0 4 0 0
                                      decoder_loss_weights   1 1 1 1 1 0 0
                                      decoder_segment_ids    1 1 1 2 2 0 0
                                      decoder_positions      0 1 2 0 1 0 0

    Args:
        features: "inputs" and "targets" of a batch.
        packed: whether rows may have several examples. Rows that are not packed get no segment ids
            and positions, and their decoder inputs are only shifted: the EOS then also appears as
            an input, at a position without loss.

    Returns:
        Arrays [batch, length of the feature]: int32, the loss weights float32.
    """
    inputs, targets = features["inputs"], features["targets"]
    batch = {
        "encoder_input_tokens": inputs.tokens,
        "decoder_target_tokens": targets.tokens,
        "decoder_input_tokens": _shift_right(targets, packed=packed),
        "decoder_loss_weights": (targets.segment_ids > 0).astype(np.float32),
    }
    if packed:
        batch |= {
            "encoder_segment_ids": inputs.segment_ids,
            "encoder_positions": inputs.positions,
            "decoder_segment_ids": targets.segment_ids,
            "decoder_positions": targets.positions,
        }
    return batch


def decoder_only(
    features: Mapping[str, Segments],
    *,
    packed: bool,
    prefix_visible: bool,
    loss_on_inputs: bool = False,
) -> dict[str, NDArray]:
    """Return the batch of a decoder-only model: each example's inputs, then its targets.

    Rows are as long as both features together. Two examples in a row, EOS being 1:

        inputs   7 8 5 1 8 4 1 0      decoder_target_tokens     7 8 5 1 3 9 1 8 4 1 4 1 0 0
        targets  3 9 1 4 1 0          decoder_input_tokens      0 7 8 5 1 3 9 0 8 4 1 4 0 0
                                      decoder_causal_attention  1 1 1 1 1 0 0 1 1 1 1 0 0 0
                                      decoder_loss_weights      0 0 0 0 1 1 1 0 0 0 1 1 0 0
                                      decoder_segment_ids       1 1 1 1 1 1 1 2 2 2 2 2 0 0
                                      decoder_positions         0 1 2 3 4 5 6 0 1 2 3 4 0 0

    Args:
        features: "inputs" and "targets" of a batch.
        packed: whether rows may have several examples; as in `encoder_decoder`.
        prefix_visible: whether the model is a prefix LM, which attends to the inputs in both
            directions. It adds decoder_causal_attention, seqio's name for the mask of the visible
            prefix. Its last 1 is at the first target, because the input tokens are shifted by one.
        loss_on_inputs: whether inputs have loss weight 1 too, as in a plain language model. Not for
            a prefix LM, which sees the inputs it would predict.

    Returns:
        Arrays [batch, inputs length + targets length]: int32, the loss weights float32.
    """
    inputs, targets = features["inputs"], features["targets"]
    # How many tokens of each feature a row has in segments 0 ... s: [b, s].
    inputs_until_bs = np.cumsum(_segment_lengths(inputs, targets), axis=1)
    targets_until_bs = np.cumsum(_segment_lengths(targets, inputs), axis=1)
    joined = Segments.empty(len(inputs.tokens), inputs.tokens.shape[1] + targets.tokens.shape[1])
    weights_bl = np.zeros(joined.tokens.shape, np.float32)
    prefix_bl = np.zeros_like(joined.tokens)
    for feature, is_target in ((inputs, False), (targets, True)):
        # All n tokens of the feature: their row, their column, their segment.
        row_n, column_n = np.nonzero(feature.segment_ids)
        segment_n = feature.segment_ids[row_n, column_n]
        position_n = feature.positions[row_n, column_n]
        is_first_n = position_n == 0
        if is_target:
            # Before a target token come the inputs of its own and of all earlier segments.
            shift_n = inputs_until_bs[row_n, segment_n]
            position_n = position_n + shift_n - inputs_until_bs[row_n, segment_n - 1]
        else:
            # Before an input token come the targets of all earlier segments.
            shift_n = targets_until_bs[row_n, segment_n - 1]
        joined_n = column_n + shift_n  # the column in the joined row
        joined.tokens[row_n, joined_n] = feature.tokens[row_n, column_n]
        joined.segment_ids[row_n, joined_n] = segment_n
        joined.positions[row_n, joined_n] = position_n
        weights_bl[row_n, joined_n] = is_target or loss_on_inputs
        prefix_bl[row_n, joined_n] = is_first_n if is_target else True
    batch = {
        "decoder_target_tokens": joined.tokens,
        "decoder_input_tokens": _shift_right(joined, packed=packed),
        "decoder_loss_weights": weights_bl,
    }
    if prefix_visible:
        batch["decoder_causal_attention"] = prefix_bl
    if packed:
        batch["decoder_segment_ids"] = joined.segment_ids
        batch["decoder_positions"] = joined.positions
    return batch


def encoder_only(
    features: Mapping[str, Segments],
    *,
    packed: bool,
    token_types: bool = False,
    next_sentence: bool = False,
) -> dict[str, NDArray]:
    """Return the batch of an encoder that predicts masked tokens at their own positions (BERT).

        inputs   2 7 M 5 1 0    encoder_input_tokens   2 7 M 5 1 0
        targets  2 7 8 5 1 0    encoder_target_tokens  2 7 8 5 1 0
        weights  0 0 1 0 0 0    encoder_loss_weights   0 0 1 0 0 0

    Args:
        features: "inputs", "targets" and "weights" of a batch; "segments" and "next_sentence" where
            the objective makes them.
        packed: whether rows may have several examples. It adds segment ids and positions.
        token_types: whether to add encoder_token_types, which of an example's two segments each
            token belongs to (BERT's segment ids).
        next_sentence: whether to add next_sentence_labels [batch], 1 where the second segment
            follows the first in the text.

    Returns:
        Arrays [batch, length], if not stated otherwise: int32, the loss weights float32.
    """
    inputs, width = features["inputs"], features["inputs"].tokens.shape[1]
    batch: dict[str, NDArray] = {
        "encoder_input_tokens": inputs.tokens,
        "encoder_target_tokens": features["targets"].tokens[:, :width],
        "encoder_loss_weights": features["weights"].tokens.astype(np.float32),
    }
    if packed:
        batch |= {
            "encoder_segment_ids": inputs.segment_ids,
            "encoder_positions": inputs.positions,
        }
    if token_types and "segments" in features:
        batch["encoder_token_types"] = features["segments"].tokens
    if next_sentence and "next_sentence" in features:
        batch["next_sentence_labels"] = features["next_sentence"].tokens[:, 0]
    return batch


def _shift_right(targets: Segments, *, packed: bool) -> NDArray[np.int32]:
    """Move tokens one position to the right; each example, or each row, starts with 0 (BOS)."""
    shifted_bl = np.zeros_like(targets.tokens)
    shifted_bl[:, 1:] = targets.tokens[:, :-1]
    if packed:
        shifted_bl[targets.positions == 0] = 0
    return shifted_bl


def _segment_lengths(feature: Segments, other: Segments) -> NDArray[np.int64]:
    """Return how many tokens of a feature each segment of a row has: [b, segments + 1].

    Segment 0, the padding, counts as empty. The number of segments is the larger of both features.
    """
    segments = 1 + max(feature.segment_ids.max(initial=0), other.segment_ids.max(initial=0))
    rows = len(feature.segment_ids)
    # One bin for each pair of row and segment.
    bin_bl = feature.segment_ids + segments * np.arange(rows)[:, None]
    lengths_bs = np.bincount(bin_bl.ravel(), minlength=rows * segments).reshape(rows, segments)
    lengths_bs[:, 0] = 0
    return lengths_bs
