"""Random span masks of span corruption, and the resulting feature lengths.

All functions work on a batch and are pure functions of lengths and keys. With the same seeds the
masks equal those of the T5 library bit for bit.

Sources: Raffel et al. 2020 (T5), section 3.1.4 and table 3; the T5 library's preprocessors
(`random_spans_noise_mask`, `random_spans_helper`).

Array names: b rows of the batch, l positions, s spans, g gaps between items.
"""

import numpy as np
from numpy.typing import NDArray

from t5x_lite.objectives import philox


def random_spans_mask(
    lengths_b: NDArray[np.integer],
    *,
    noise_density: float,
    mean_noise_span_length: float,
    keys_b2: NDArray[np.uint32],
    max_length: int,
    random_roll: bool = False,
) -> NDArray[np.bool_]:
    """Draw the noise masks of span corruption.

    A row of n tokens has round(n * noise_density) noise tokens, at least 1 and at most n - 1, in
    round(noise tokens / mean_noise_span_length) spans, at least 1. All partitions of the noise
    tokens and of the kept tokens into that many positive parts are equally likely. Kept and noise
    spans alternate, starting with a kept one, so a row starts with kept tokens and ends with noise:

        length 11, noise_density 0.15, mean_noise_span_length 3   ->   . . . . . . . . . N N

    Rounding is half to even, in float32, as in TensorFlow. If there are fewer kept tokens than
    spans (very high densities), the number of spans is reduced to fit.

    Args:
        lengths_b: Length of each row [b].
        noise_density: Fraction of tokens that are noise.
        mean_noise_span_length: Mean length of noise spans, in tokens.
        keys_b2: Key of each row, uint32 [b, 2].
        max_length: Width of the masks.
        random_roll: Rotate each mask by a uniform number of positions. A row may then start with
            noise or end with kept tokens, and its ends may cut a span in two.

    Returns:
        bool [b, max_length], True for noise, False beyond a row's length.
    """
    lengths_b = np.asarray(lengths_b, np.int64)
    if noise_density == 0:
        return np.zeros((len(lengths_b), max_length), np.bool_)
    totals_b = np.maximum(lengths_b, 2)  # a row of one token has the first of two tokens' mask
    noise_b, spans_b = noise_counts(totals_b, noise_density, mean_noise_span_length)
    keys_bs2 = philox.split(keys_b2, 2)
    # End of each noise span counted in noise tokens, and of each kept span in kept tokens, [b, s].
    noise_ends_bs = _random_composition(noise_b, spans_b, keys_bs2[:, 0])
    kept_ends_bs = _random_composition(totals_b - noise_b, spans_b, keys_bs2[:, 1])

    # Mark where each noise span starts and ends in the row; then a position is noise if an odd
    # number of marks precede it, which a running exclusive-or computes.
    is_noise_bl = np.zeros((len(lengths_b), max_length + 1), np.bool_)
    row_b1 = np.arange(len(lengths_b))[:, None]
    noise_starts_bs = kept_ends_bs.copy()
    noise_starts_bs[:, 1:] += noise_ends_bs[:, :-1]
    is_noise_bl[row_b1, np.minimum(noise_starts_bs, max_length)] = True
    is_noise_bl[row_b1, np.minimum(kept_ends_bs + noise_ends_bs, max_length)] = True
    np.logical_xor.accumulate(is_noise_bl, axis=1, out=is_noise_bl)
    mask_bl = is_noise_bl[:, :-1] & (np.arange(max_length) < lengths_b[:, None])
    return _roll(mask_bl, lengths_b, keys_bs2) if random_roll else mask_bl


def span_corruption_lengths(
    inputs_length: int,
    *,
    noise_density: float,
    mean_noise_span_length: float,
    extra_tokens_per_span_inputs: int = 1,
    extra_tokens_per_span_targets: int = 1,
) -> tuple[int, int]:
    """Compute how much text fills the inputs, and how long the targets then are.

    Example: inputs of 512 tokens at noise density 0.15 and mean span length 3 give (568, 114):
    85 noise tokens in 28 spans. This is the T5 library's `random_spans_helper`, including its
    exception: at a density of exactly 0.5, both results are one less if the targets would be longer
    than the inputs.

    Args:
        inputs_length: Length of the inputs, EOS included.
        noise_density: Fraction of tokens that are noise.
        mean_noise_span_length: Mean length of noise spans, in tokens.
        extra_tokens_per_span_inputs: Tokens that replace a noise span in the inputs: a sentinel.
        extra_tokens_per_span_targets: Tokens that replace a kept span in the targets: a sentinel.

    Returns:
        Number of tokens of text, without EOS, and length of the targets, EOS included.
    """

    def lengths(raw_length: int) -> tuple[int, int]:
        noise = round(raw_length * noise_density)
        spans = round(noise / mean_noise_span_length)
        return (
            raw_length - noise + spans * extra_tokens_per_span_inputs + 1,
            noise + spans * extra_tokens_per_span_targets + 1,
        )

    raw_length = inputs_length - 1
    while lengths(raw_length + 1)[0] <= inputs_length:
        raw_length += 1
    filled_length, targets_length = lengths(raw_length)
    if noise_density == 0.5 and targets_length > filled_length:
        return raw_length - 1, targets_length - 1
    return raw_length, targets_length


def noise_counts(
    totals_b: NDArray[np.int64], noise_density: float, mean_noise_span_length: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Compute the number of noise tokens and of noise spans of each row.

    Args:
        totals_b: Length of each row [b], at least 2.
        noise_density: Fraction of tokens that are noise.
        mean_noise_span_length: Mean length of noise spans, in tokens.

    Returns:
        Noise tokens [b] and noise spans [b].
    """
    rounded_b = np.round(totals_b.astype(np.float32) * np.float32(noise_density)).astype(np.int64)
    noise_b = np.clip(rounded_b, 1, totals_b - 1)
    mean = np.float32(mean_noise_span_length)
    spans_b = np.round(noise_b.astype(np.float32) / mean).astype(np.int64)
    return noise_b, np.clip(spans_b, 1, np.minimum(noise_b, totals_b - noise_b))


def _roll(
    mask_bl: NDArray[np.bool_], lengths_b: NDArray[np.int64], keys_bs2: NDArray[np.uint32]
) -> NDArray[np.bool_]:
    """Rotate each row's mask to the right by a number of positions drawn below its length."""
    (a_b, b_b), (c_b, d_b) = keys_bs2.transpose(1, 2, 0)
    bits_b = philox.random_bits(np.stack([a_b + d_b, b_b - c_b], axis=1), 1)[:, 0]
    offset_b = bits_b % np.maximum(lengths_b, 2)
    source_bl = np.arange(mask_bl.shape[1]) - offset_b[:, None]
    source_bl %= np.maximum(lengths_b, 1)[:, None]
    inside_bl = np.arange(mask_bl.shape[1]) < lengths_b[:, None]
    return np.take_along_axis(mask_bl, np.where(inside_bl, source_bl, 0), axis=1) & inside_bl


def _random_composition(
    items_b: NDArray[np.int64], parts_b: NDArray[np.int64], keys_b2: NDArray[np.uint32]
) -> NDArray[np.int64]:
    """Split `items` into `parts` positive parts, uniformly at random; return their ends [b, s].

        items 5, parts 2, order of the gaps 2 0 3 1   ->   cut in gap 1   ->   ends 2 5

    There are items - 1 gaps between items. parts - 1 cuts are shuffled among them, as in the T5
    library: gap g is cut if a random order of the gaps has one of 0 ... parts - 2 at position g.
    Entries beyond a row's parts are the end of its last one.
    """
    gaps = max(int(items_b.max(initial=1)) - 1, 0)
    inside_bg = np.arange(gaps) < (items_b - 1)[:, None]
    order_bg = philox.random_order(keys_b2, items_b - 1, gaps)
    cuts_bg = (order_bg < (parts_b - 1)[:, None]) & inside_bg
    ends_bs = np.repeat(items_b[:, None], int(parts_b.max(initial=1)), axis=1)
    # Both masks have parts - 1 True entries per row, in the same order. A cut in gap g ends a part
    # after g + 1 items.
    is_cut_bs = np.arange(ends_bs.shape[1]) < (parts_b - 1)[:, None]
    ends_bs[is_cut_bs] = np.flatnonzero(cuts_bg) % max(gaps, 1) + 1
    return ends_bs
