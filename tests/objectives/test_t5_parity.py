"""Bit for bit what the T5 library makes: see references/make_t5_reference.py."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.objectives import masks, noise, philox, spans
from t5x_lite.objectives.objective import Rows
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import SpanCorruption
from t5x_lite.objectives.t5_study import (
    BertStyle,
    Denoising,
    Deshuffling,
    DropTokens,
    MassStyle,
    PrefixLM,
    ReplaceSpans,
)

REFERENCE = dict(np.load(Path(__file__).parent / "references" / "t5_reference.npz"))
KEYS = REFERENCE["seeds"].view(np.uint32)
SENTINELS = Sentinels(first=32_099, count=100)
LENGTHS = (1, 2, 3, 11, 100, 568)
PIECES = (1, 30, 200)
SPANS = partial(spans.random_spans_mask, mean_noise_span_length=3.0)
MASKS = {
    "iid/0": partial(masks.iid_mask, noise_density=0.15),
    "iid/1": partial(masks.iid_mask, noise_density=0.5),
    "regular/0": partial(masks.regular_spans_mask, noise_density=0.15),
    "regular/1": partial(masks.regular_spans_mask, noise_density=0.5),
    "random_prefix/0": partial(masks.random_prefix_mask, noise_density=0.5),
    "random_prefix/1": partial(masks.random_prefix_mask, noise_density=0.3),
    "random_spans/0": partial(SPANS, noise_density=0.15),
    "random_spans/1": partial(SPANS, noise_density=0.15, random_roll=True),
    "random_spans/2": partial(
        SPANS, noise_density=0.5, mean_noise_span_length=8.0, random_roll=True
    ),
    "random_spans/3": partial(SPANS, noise_density=0.25, mean_noise_span_length=2.0),
}
NOISE = {
    "noise_token_to_sentinel": "mask_tokens",
    "noise_span_to_sentinel": "mask_spans",
    "noise_span_to_unique_sentinel": "sentinels",
    "drop_noise_tokens": "drop",
    "permute_noise_tokens": "permute",
    "noise_token_to_gathered_token": "gathered_tokens",
    "noise_token_to_random_token": "random_tokens",
    "noise_token_to_random_token_or_sentinel": "random_or_mask",
}
OBJECTIVES = {
    "span_corruption": SpanCorruption(),
    "replace_spans": ReplaceSpans(),
    "drop_tokens": DropTokens(),
    "bert_style": BertStyle(),
    "mass_style": MassStyle(),
    "deshuffling": Deshuffling(),
    "prefix_lm": PrefixLM(),
    "regular_spans": Denoising("regular", "mask_spans", "mask_spans", noise_density=0.25),
}


def pieces(lengths):
    """A batch of the reference's tokens: 3 + 7919 k mod 31997 at place k."""
    lengths = np.asarray(lengths, np.int32)
    place = np.arange(lengths.max())
    tokens = (3 + 7919 * place % 31_997) * (place < lengths[:, None])
    return Rows(tokens.astype(np.int32), lengths)


def stored(name):
    """The rows that the reference holds end to end behind their number and lengths."""
    count, *values = REFERENCE[name].tolist()
    ends = np.cumsum(values[:count]) + count
    starts = [count, *ends[:-1]]
    return [values[start:end] for start, end in zip(starts, ends, strict=True)]


def lists(rows):
    return [row[:length].tolist() for row, length in zip(rows.tokens, rows.lengths, strict=True)]


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_the_t5_librarys(name):
    count = len(KEYS)
    lengths = np.repeat(LENGTHS, count)
    made = MASKS[name](lengths, keys_b2=np.tile(KEYS, (len(LENGTHS), 1)), max_length=568)
    for number, length in enumerate(LENGTHS):
        expected = np.unpackbits(REFERENCE[f"masks/{name}/{length}"], axis=1)[:, :length]
        found = made[number * count : (number + 1) * count, :length]
        np.testing.assert_array_equal(found, expected.astype(bool), err_msg=f"length {length}")


@pytest.mark.parametrize("name", NOISE)
def test_what_replaces_noise_is_what_the_t5_library_puts_there(name):
    rows = pieces([60] * len(KEYS))
    mask = masks.iid_mask(rows.lengths, noise_density=0.4, keys_b2=KEYS, max_length=60)
    made = noise.replace_noise(NOISE[name], rows, mask, SENTINELS, philox.split(KEYS, 6)[:, 2:4])
    assert lists(made) == stored(f"noise/{name}")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_make_what_the_t5_library_makes_of_the_same_seeds(name):
    rows = pieces(np.repeat(PIECES, len(KEYS)))
    made = OBJECTIVES[name](rows, np.tile(KEYS, (len(PIECES), 1)), SENTINELS)
    assert lists(made["inputs"]) == stored(f"denoise/{name}/inputs")
    assert lists(made["targets"]) == stored(f"denoise/{name}/targets")


def test_lengths_are_those_of_the_t5_librarys_search():
    for inputs, percent, mean, raw_length, targets in REFERENCE["lengths"].tolist():
        lengths = spans.span_corruption_lengths(
            inputs, noise_density=percent / 100, mean_noise_span_length=mean
        )
        assert lengths == (raw_length, targets)
