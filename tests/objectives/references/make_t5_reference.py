"""Write t5_reference.npz: what the T5 library makes of pieces of random tokens, seed by seed.

The tests need neither the T5 library nor TensorFlow. To make the file again, from the root:

    python3.11 -m venv /tmp/t5 && /tmp/t5/bin/pip install t5==0.9.4
    /tmp/t5/bin/pip install --force-reinstall --no-deps seqio==0.0.20
    /tmp/t5/bin/python tests/objectives/references/make_t5_reference.py

Made with t5 0.9.4, seqio 0.0.20, tensorflow 2.21.0, numpy 2.4.6, Python 3.11.2 on a CPU. Seeds are
pairs of int32, as the T5 library's newest source has them (0.9.4 takes whatever it is given). Keys:

    seeds                                 int32 [seeds, 2]
    masks/<function>/<setting>/<length>   bool [seeds, length], packed bits of each row
    noise/<function>/<part>               what is left of a row of 60 tokens under an i.i.d. mask
    denoise/<objective>/<feature>         int32, rows end to end, with lengths beside
"""

import functools
import os
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import seqio
import tensorflow as tf
from t5.data import preprocessors as t5

SEEDS = np.array(
    [[0, 0], [1, 2], [-1, 7], [2**31 - 1, -(2**31)], [123456789, -987654321], [42, 0]], np.int32
)
LENGTHS = (1, 2, 3, 11, 100, 568)
MASKS = {
    "iid": [(0.15, {}), (0.5, {})],
    "regular": [(0.15, {}), (0.5, {})],
    "random_prefix": [(0.5, {}), (0.3, {})],
    "random_spans": [
        (0.15, {}),
        (0.15, {"random_roll": True}),
        (0.5, {"mean_noise_span_length": 8.0, "random_roll": True}),
        (0.25, {"mean_noise_span_length": 2.0}),
    ],
}
NOISE = (
    "noise_token_to_sentinel",
    "noise_span_to_sentinel",
    "noise_span_to_unique_sentinel",
    "drop_noise_tokens",
    "permute_noise_tokens",
    "noise_token_to_gathered_token",
    "noise_token_to_random_token",
    "noise_token_to_random_token_or_sentinel",
)
OBJECTIVES = {
    "span_corruption": (
        t5.random_spans_noise_mask,
        0.15,
        t5.noise_span_to_unique_sentinel,
        t5.nonnoise_span_to_unique_sentinel,
    ),
    "replace_spans": (
        t5.iid_noise_mask,
        0.15,
        t5.noise_span_to_unique_sentinel,
        t5.nonnoise_span_to_unique_sentinel,
    ),
    "drop_tokens": (t5.iid_noise_mask, 0.15, t5.drop_noise_tokens, t5.drop_nonnoise_tokens),
    "bert_style": (t5.iid_noise_mask, 0.15, t5.noise_token_to_random_token_or_sentinel, None),
    "mass_style": (t5.iid_noise_mask, 0.15, t5.noise_token_to_sentinel, None),
    "deshuffling": (t5.iid_noise_mask, 1.0, t5.permute_noise_tokens, None),
    "prefix_lm": (
        t5.random_prefix_noise_mask,
        0.5,
        t5.drop_nonnoise_tokens,
        t5.drop_noise_tokens,
    ),
    "regular_spans": (
        t5.regular_noise_mask,
        0.25,
        t5.noise_span_to_sentinel,
        t5.nonnoise_span_to_sentinel,
    ),
}
VOCABULARY = seqio.PassThroughVocabulary(32_100)
PIECES = (1, 30, 200)


def tokens_of(length: int) -> tf.Tensor:
    """The tokens of a piece: no generator's, so that the test can write them down again."""
    return tf.constant(3 + 7919 * np.arange(length) % 31_997, tf.int32)


def split(seed: np.ndarray, count: int = 6) -> list[tf.Tensor]:
    """The seeds that `single_example_denoise` makes of one."""
    return tf.unstack(tf.random.experimental.stateless_split(tf.constant(seed), count))


def rows(made: list[np.ndarray]) -> np.ndarray:
    """Rows end to end behind their number and lengths."""
    return np.concatenate([[len(made)], [len(row) for row in made], *made]).astype(np.int32)


def main() -> None:
    """Compute everything and write the file."""
    arrays = {"seeds": SEEDS}
    for name, settings in MASKS.items():
        function = getattr(t5, f"{name}_noise_mask")
        for number, (density, options) in enumerate(settings):
            for length in LENGTHS:
                made = [
                    function(tf.constant(length), density, seeds=split(seed)[:2], **options)
                    for seed in SEEDS
                ]
                arrays[f"masks/{name}/{number}/{length}"] = np.packbits(np.stack(made), axis=1)
    for name in NOISE:
        made = []
        for seed in SEEDS:
            seeds = split(seed)
            mask = t5.iid_noise_mask(tf.constant(60), 0.4, seeds=seeds[:2])
            made.append(getattr(t5, name)(tokens_of(60), mask, VOCABULARY, seeds[2:4]).numpy())
        arrays[f"noise/{name}"] = rows(made)
    for name, (mask, density, inputs, targets) in OBJECTIVES.items():
        features = [
            t5.single_example_denoise(
                {"targets": tokens_of(length)},
                tf.constant(seed),
                output_features={"targets": seqio.Feature(VOCABULARY)},
                noise_density=density,
                noise_mask_fn=mask,
                inputs_fn=inputs,
                targets_fn=targets,
            )
            for length in PIECES
            for seed in SEEDS
        ]
        for feature in ("inputs", "targets"):
            arrays[f"denoise/{name}/{feature}"] = rows([f[feature].numpy() for f in features])
    helper = functools.partial(
        t5.random_spans_helper, extra_tokens_per_span_inputs=1, extra_tokens_per_span_targets=1
    )
    arrays["lengths"] = np.array(
        [
            [inputs, percent, mean, *helper(inputs, percent / 100, mean)]
            for inputs in (64, 128, 256, 512, 1024)
            for percent in (10, 15, 25, 50)
            for mean in (1, 2, 3, 5, 8, 10, 20, 64)
        ],
        np.int32,
    )
    np.savez_compressed(Path(__file__).with_name("t5_reference.npz"), **arrays)


if __name__ == "__main__":
    main()
