from functools import partial

import numpy as np
import pytest

from t5x_lite.data.stream.feature_converters import decoder_only, encoder_decoder, encoder_only
from t5x_lite.data.stream.packing import Segments
from t5x_lite.objectives.objective import Rows

LENGTHS = {"inputs": 10, "targets": 7}
PAIRS = [
    ([7, 8, 5, 1], [3, 9, 1]),
    ([8, 4, 9, 3, 1], [4, 1]),
    ([6, 2, 2, 2, 2, 2, 2, 2, 2, 1], [9, 8, 7, 6, 5, 4, 1]),
    ([5, 1], [2, 2, 2, 1]),
]
ROWS = [[0, 1], [2], [3]]  # as seqio packs them: the next row begins where a feature is full


def _segments(rows):
    """Write the pairs to rows, as a list of the pairs in each."""
    features = {name: Segments.empty(len(rows), length) for name, length in LENGTHS.items()}
    for column, (name, length) in enumerate(LENGTHS.items()):
        for row, numbers in enumerate(rows):
            start = 0
            for segment, number in enumerate(numbers, 1):
                tokens = PAIRS[number][column]
                padded = np.array([tokens + [0] * (length - len(tokens))], np.int32)
                features[name].write(
                    Rows(padded, np.array([len(tokens)], np.int32)),
                    row_n=np.array([row]),
                    start_n=np.array([start]),
                    segment_n=np.array([segment]),
                )
                start += len(tokens)
    return features


@pytest.mark.filterwarnings("default")  # those of TensorFlow's and seqio's own imports
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (encoder_decoder, "EncDecFeatureConverter"),
        (partial(decoder_only, prefix_visible=True), "PrefixLMFeatureConverter"),
    ],
    ids=["encoder_decoder", "prefix_lm"],
)
def test_batches_equal_those_of_seqios_converters(ours, theirs, packed):
    import seqio
    import tensorflow as tf

    dataset = tf.data.Dataset.from_generator(
        lambda: ({"inputs": inputs, "targets": targets} for inputs, targets in PAIRS),
        output_signature={name: tf.TensorSpec([None], tf.int32) for name in LENGTHS},
    )
    converted = getattr(seqio, theirs)(pack=packed)(dataset, LENGTHS)
    expected = list(converted.as_numpy_iterator())
    rows = ROWS if packed else [[number] for number in range(len(PAIRS))]
    batch = ours(_segments(rows), packed=packed)
    assert len(expected) == len(rows)
    for number, row in enumerate(expected):
        assert batch.keys() == row.keys()
        for name, array in row.items():
            np.testing.assert_array_equal(batch[name][number], array, err_msg=name)


def test_tokens_are_int32_and_weights_float32():
    for name, array in encoder_decoder(_segments(ROWS), packed=True).items():
        assert array.dtype == (np.float32 if name == "decoder_loss_weights" else np.int32)


@pytest.mark.parametrize("packed", [False, True])
def test_the_id_0_inside_an_example_is_a_token_like_any_other(packed):
    features = {name: Segments.empty(1, length) for name, length in LENGTHS.items()}
    rows = Rows(np.array([[5, 0, 7, 1]], np.int32), np.array([4], np.int32))
    place = np.zeros(1, np.int64)
    for segments in features.values():
        segments.write(rows, row_n=place, start_n=place, segment_n=place + 1)
    batch = encoder_decoder(features, packed=packed)
    assert batch["decoder_target_tokens"].tolist() == [[5, 0, 7, 1, 0, 0, 0]]
    assert batch["decoder_loss_weights"].tolist() == [[1, 1, 1, 1, 0, 0, 0]]
    assert batch["decoder_input_tokens"][0, :4].tolist() == [0, 5, 0, 7]


@pytest.mark.parametrize("packed", [False, True])
def test_a_language_model_learns_inputs_and_targets_alike(packed):
    prefix = decoder_only(_segments(ROWS), packed=packed, prefix_visible=True)
    whole = decoder_only(_segments(ROWS), packed=packed, prefix_visible=False, loss_on_inputs=True)
    assert "decoder_causal_attention" not in whole
    np.testing.assert_array_equal(whole["decoder_target_tokens"], prefix["decoder_target_tokens"])
    lengths = [sum(len(a) + len(b) for a, b in (PAIRS[n] for n in row)) for row in ROWS]
    assert whole["decoder_loss_weights"].sum(axis=1).tolist() == lengths


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("packed", [False, True])
def test_an_encoders_batches_equal_those_of_seqios_converter(packed):
    """Which takes weights from where the inputs hold the mask; positions of padding are 0."""
    import seqio
    import tensorflow as tf

    mask = 99
    texts = [[7, 8, 5, 1], [8, 4, 9, 3, 1], [6, 2, 2, 2, 2, 2, 2, 2, 2, 1]]
    masked = [[7, mask, 5, 1], [mask, 4, 9, mask, 1], [6, 2, 2, 2, 2, mask, 2, 2, 2, 1]]
    dataset = tf.data.Dataset.from_generator(
        lambda: ({"inputs": a, "targets": b} for a, b in zip(masked, texts, strict=True)),
        output_signature={name: tf.TensorSpec([None], tf.int32) for name in LENGTHS},
    )
    lengths = dict.fromkeys(("inputs", "targets"), 10)
    converter = seqio.EncoderFeatureConverter(mask_id=mask, pack=packed)
    expected = list(converter(dataset, lengths).as_numpy_iterator())
    rows = [[0, 1], [2]] if packed else [[0], [1], [2]]
    features = {
        name: Segments.empty(len(rows), 10) for name in ("inputs", "targets", "weights", "segments")
    }
    weights = [[int(token == mask) for token in text] for text in masked]
    types = [[0] * 3 + [1] * (len(text) - 3) for text in texts]
    for name, lists in zip(features, (masked, texts, weights, types), strict=True):
        for row, numbers in enumerate(rows):
            start = 0
            for segment, number in enumerate(numbers, 1):
                tokens = np.array([lists[number]], np.int32)
                features[name].write(
                    Rows(tokens, np.array([tokens.size], np.int32)),
                    row_n=np.array([row]),
                    start_n=np.array([start]),
                    segment_n=np.array([segment]),
                )
                start += tokens.size
    batch = encoder_only(features, packed=packed)
    for number, row in enumerate(expected):
        assert batch.keys() == row.keys()
        for name, array in row.items():
            np.testing.assert_array_equal(batch[name][number], array, err_msg=name)
    assert batch["encoder_loss_weights"].dtype == np.float32
    typed = encoder_only(features, packed=packed, token_types=True, next_sentence=True)
    assert typed.keys() - batch.keys() == {"encoder_token_types"}
    assert typed["encoder_token_types"][0, :4].tolist() == [0, 0, 0, 1]
    features["next_sentence"] = Segments(*(np.arange(len(rows))[:, None],) * 3)
    labelled = encoder_only(features, packed=packed, next_sentence=True)
    assert labelled["next_sentence_labels"].tolist() == list(range(len(rows)))
