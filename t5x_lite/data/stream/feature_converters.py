"""From features to what a model takes; the names and values are those of seqio's converters."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.stream.packing import Segments

Converter = Callable[..., dict[str, NDArray]]


def unconverted(features: Mapping[str, Segments], *, packed: bool) -> dict[str, NDArray]:
    """Return the features themselves, int32 [batch, length]: what generating and scoring take."""
    assert not packed, "only rows of one example can be told apart by their padding"
    return {name: feature.tokens for name, feature in features.items()}


def encoder_decoder(features: Mapping[str, Segments], *, packed: bool) -> dict[str, NDArray]:
    """Return the batch of an encoder-decoder model from "inputs" and "targets".

    int32 [batch, length], the loss weights float32. Two examples in a row, EOS being 1:

        inputs   7 8 5 1 8 4 9 1 0    encoder_input_tokens   7 8 5 1 8 4 9 1 0
                                      encoder_segment_ids    1 1 1 1 2 2 2 2 0
                                      encoder_positions      0 1 2 3 0 1 2 3 0
        targets  3 9 1 4 1 0 0        decoder_target_tokens  3 9 1 4 1 0 0
                                      decoder_input_tokens   0 3 9 0 4 0 0
                                      decoder_loss_weights   1 1 1 1 1 0 0
                                      decoder_segment_ids    1 1 1 2 2 0 0
                                      decoder_positions      0 1 2 0 1 0 0

    Rows that are not packed have no segment ids and positions, and their decoder inputs are simply
    shifted (the EOS is seen after the end, where nothing weighs). Padding is where no example is,
    never where a token is 0: seqio's `!= 0` drops a loss where an example holds id 0.
    """
    inputs, targets = features["inputs"], features["targets"]
    batch = {
        "encoder_input_tokens": inputs.tokens,
        "decoder_target_tokens": targets.tokens,
        "decoder_input_tokens": _shifted(targets, packed=packed),
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
    """Return the batch of a decoder without an encoder: each example's inputs, then its targets.

    Rows are as long as both features together. Two examples in a row, EOS being 1:

        inputs   7 8 5 1 8 4 1 0      decoder_target_tokens     7 8 5 1 3 9 1 8 4 1 4 1 0 0
        targets  3 9 1 4 1 0          decoder_input_tokens      0 7 8 5 1 3 9 0 8 4 1 4 0 0
                                      decoder_causal_attention  1 1 1 1 1 0 0 1 1 1 1 0 0 0
                                      decoder_loss_weights      0 0 0 0 1 1 1 0 0 0 1 1 0 0
                                      decoder_segment_ids       1 1 1 1 1 1 1 2 2 2 2 2 0 0
                                      decoder_positions         0 1 2 3 4 5 6 0 1 2 3 4 0 0

    decoder_causal_attention marks what a prefix LM (`prefix_visible`) may see both ways: the
    inputs, which stand one place later in the decoder's input tokens, so one place more. A language
    model has none. With `loss_on_inputs` the whole text weighs, which suits no prefix LM.
    """
    inputs, targets = features["inputs"], features["targets"]
    before_bs = np.cumsum(_counts(targets, inputs), axis=1)  # targets up to and with a segment
    until_bs = np.cumsum(_counts(inputs, targets), axis=1)
    joined = Segments.empty(len(inputs.tokens), inputs.tokens.shape[1] + targets.tokens.shape[1])
    weights_bl = np.zeros(joined.tokens.shape, np.float32)
    prefix_bl = np.zeros_like(joined.tokens)
    for part, is_target in ((inputs, False), (targets, True)):
        row_n, place_n = np.nonzero(part.segment_ids)
        segment_n = part.segment_ids[row_n, place_n]
        other_n = until_bs[row_n, segment_n] if is_target else before_bs[row_n, segment_n - 1]
        to_n = place_n + other_n
        own_inputs_n = (until_bs[row_n, segment_n] - until_bs[row_n, segment_n - 1]) * is_target
        position_n = part.positions[row_n, place_n] + own_inputs_n
        joined.tokens[row_n, to_n] = part.tokens[row_n, place_n]
        joined.segment_ids[row_n, to_n] = segment_n
        joined.positions[row_n, to_n] = position_n
        weights_bl[row_n, to_n] = is_target or loss_on_inputs
        prefix_bl[row_n, to_n] = ~np.bool_(is_target) | (part.positions[row_n, place_n] == 0)
    batch = {
        "decoder_target_tokens": joined.tokens,
        "decoder_input_tokens": _shifted(joined, packed=packed),
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
    """Return the batch of an encoder that predicts tokens where they stand.

        inputs   2 7 M 5 1 0    encoder_input_tokens   2 7 M 5 1 0
        targets  2 7 8 5 1 0    encoder_target_tokens  2 7 8 5 1 0
        weights  0 0 1 0 0 0    encoder_loss_weights   0 0 1 0 0 0

    Packed rows have segment ids and positions. `token_types` adds which of an example's two
    stretches a token is of, as encoder_token_types (BERT's segments); `next_sentence`, where the
    objective tells, whether the second follows the first, as next_sentence_labels [batch].
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


def _shifted(targets: Segments, *, packed: bool) -> NDArray[np.int32]:
    """Move tokens one place right; each example, or each row, begins with 0."""
    shifted_bl = np.zeros_like(targets.tokens)
    shifted_bl[:, 1:] = targets.tokens[:, :-1]
    if packed:
        shifted_bl[targets.positions == 0] = 0
    return shifted_bl


def _counts(of: Segments, beside: Segments) -> NDArray[np.int64]:
    """Return how many tokens of each segment a row holds: [b, segments + 1], none in segment 0."""
    segments = 1 + max(of.segment_ids.max(initial=0), beside.segment_ids.max(initial=0))
    rows = len(of.segment_ids)
    places_bl = of.segment_ids + segments * np.arange(rows)[:, None]
    counts_bs = np.bincount(places_bl.ravel(), minlength=rows * segments).reshape(rows, segments)
    counts_bs[:, 0] = 0
    return counts_bs
