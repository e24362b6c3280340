"""From features to what a model takes; the names and values are those of seqio's converters."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.packing import Segments


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
    decoder_inputs_bl = np.zeros_like(targets.tokens)
    decoder_inputs_bl[:, 1:] = targets.tokens[:, :-1]
    if packed:
        decoder_inputs_bl[targets.positions == 0] = 0
    batch = {
        "encoder_input_tokens": inputs.tokens,
        "decoder_target_tokens": targets.tokens,
        "decoder_input_tokens": decoder_inputs_bl,
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
