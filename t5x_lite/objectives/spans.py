"""The masks of random spans, and the lengths of what is made with them.

Everything works on a batch of rows at once and is a pure function of (tokens, keys). With the same
seeds the masks equal those of the T5 library bit for bit.

Sources: Raffel et al. 2020 (T5), section 3.1.4 and table 3; the T5 library's preprocessors.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t5x_lite.objectives import philox


class Rows(NamedTuple):
    """Token rows of unequal length: `tokens` int32 [batch, length], 0 beyond each of `lengths`."""

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]


def random_spans_mask(
    lengths_b: NDArray[np.integer],
    *,
    noise_density: float,
    mean_noise_span_length: float,
    keys_b2: NDArray[np.uint32],
    max_length: int,
    random_roll: bool = False,
) -> NDArray[np.bool_]:
    """Return which tokens of each row are noise: [b, max_length], False beyond a row's length.

    A row of n tokens has round(n * density) noise tokens (at least 1, at most n - 1) in
    round(noise / mean length) spans (at least 1); all ways to cut the noise and the kept tokens
    into that many positive parts are equally likely. Kept and noise spans alternate, a kept one
    first, so a row begins with kept tokens and ends with noise:

        length 11, density 0.15, mean 3   ->   . . . . . . . . . N N

    Rounding is half to even, in float32, as TensorFlow does. Where the settings ask for more spans
    than there are kept tokens (very high densities), the spans are as many as fit.

    `random_roll` turns each row's mask round by a uniform number of places: a row may then begin
    with noise or end with kept tokens, and a span may be cut in two by the row's ends.
    """
    lengths_b = np.asarray(lengths_b, np.int64)
    if noise_density == 0:
        return np.zeros((len(lengths_b), max_length), np.bool_)
    totals_b = np.maximum(lengths_b, 2)  # a row of one token is cut from a row of two
    noise_b, spans_b = noise_counts(totals_b, noise_density, mean_noise_span_length)
    keys_bs2 = philox.split(keys_b2, 2)
    noise_ends_bs = _random_composition(noise_b, spans_b, keys_bs2[:, 0])
    kept_ends_bs = _random_composition(totals_b - noise_b, spans_b, keys_bs2[:, 1])

    # A position is noise where an odd number of spans has ended; a row's last span ends with it.
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
    """Return (raw length, targets length): how much text fills inputs of `inputs_length` tokens.

    Both features end in EOS, which is counted. Example: 512 at density 0.15 and mean length 3 gives
    (568, 114): 85 noise tokens in 28 spans. At a density of exactly 0.5 where the targets come out
    longer than the inputs, both results are one less, as in the T5 library.
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
    """Return how many noise tokens and how many noise spans a row of each length has."""
    asked_b = np.round(totals_b.astype(np.float32) * np.float32(noise_density)).astype(np.int64)
    noise_b = np.clip(asked_b, 1, totals_b - 1)
    mean = np.float32(mean_noise_span_length)
    spans_b = np.round(noise_b.astype(np.float32) / mean).astype(np.int64)
    return noise_b, np.clip(spans_b, 1, np.minimum(noise_b, totals_b - noise_b))


def _roll(
    mask_bl: NDArray[np.bool_], lengths_b: NDArray[np.int64], keys_bs2: NDArray[np.uint32]
) -> NDArray[np.bool_]:
    """Turn each row's mask to the right by a number of places drawn from its length."""
    (a_b, b_b), (c_b, d_b) = keys_bs2.transpose(1, 2, 0)
    bits_b = philox.random_bits(np.stack([a_b + d_b, b_b - c_b], axis=1), 1)[:, 0]
    offset_b = bits_b % np.maximum(lengths_b, 2)
    place_bl = np.arange(mask_bl.shape[1]) - offset_b[:, None]
    place_bl %= np.maximum(lengths_b, 1)[:, None]
    inside_bl = np.arange(mask_bl.shape[1]) < lengths_b[:, None]
    return np.take_along_axis(mask_bl, np.where(inside_bl, place_bl, 0), axis=1) & inside_bl


def _random_composition(
    items_b: NDArray[np.int64], parts_b: NDArray[np.int64], keys_b2: NDArray[np.uint32]
) -> NDArray[np.int64]:
    """Cut `items` into `parts` positive parts, uniformly at random: their ends, [b, most parts].

    The items - 1 places between two items are put in random order (argsort of uniforms, by sorting
    each with its place below it); a cut is made where one of the first parts - 1 numbers landed.
    Beyond a row's parts stands the end of its last one.
    """
    gaps = max(int(items_b.max(initial=1)) - 1, 0)
    inside_bg = np.arange(gaps) < (items_b - 1)[:, None]
    sorted_bg = philox.mantissas(keys_b2, gaps).astype(np.uint64) << np.uint64(32)
    sorted_bg |= np.arange(gaps, dtype=np.uint64)
    sorted_bg[~inside_bg] = np.iinfo(np.uint64).max
    sorted_bg.sort(axis=1)
    order_bg = sorted_bg.astype(np.uint32)
    cuts_bg = (order_bg < (parts_b - 1)[:, None]) & inside_bg
    ends_bs = np.repeat(items_b[:, None], int(parts_b.max(initial=1)), axis=1)
    is_cut_bs = np.arange(ends_bs.shape[1]) < (parts_b - 1)[:, None]
    ends_bs[is_cut_bs] = np.flatnonzero(cuts_bg) % max(gaps, 1) + 1
    return ends_bs
