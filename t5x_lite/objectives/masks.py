"""Noise masks other than random spans: which tokens of a row an objective corrupts.

All functions work on a batch and are pure functions of lengths and keys. Masks that the T5 library
has are equal to its own bit for bit.

Sources: Raffel et al. 2020 (T5), sections 3.3.1 to 3.3.4, and the T5 library's preprocessors; Song
et al. 2019 (MASS); Joshi et al. 2020 (SpanBERT).

Array names: b rows of the batch, l positions, d draws, r rows that still need noise.
"""

import numpy as np
from numpy.typing import NDArray

from t5x_lite.objectives import philox

Lengths = NDArray[np.integer]
Keys = NDArray[np.uint32]
Mask = NDArray[np.bool_]


def iid_mask(lengths_b: Lengths, *, noise_density: float, keys_b2: Keys, max_length: int) -> Mask:
    """Make each token noise with the same probability, independently (T5: `iid_noise_mask`).

    Args:
        lengths_b: Length of each row [b].
        noise_density: Probability that a token is noise.
        keys_b2: Key of each row, uint32 [b, 2].
        max_length: Width of the masks.

    Returns:
        bool [b, max_length], True for noise, False beyond a row's length.
    """
    uniform_bl = philox.uniform(_split_key(keys_b2, 0), max_length)
    return (uniform_bl < np.float32(noise_density)) & _inside(lengths_b, max_length)


def regular_spans_mask(
    lengths_b: Lengths,
    *,
    noise_density: float,
    keys_b2: Keys,
    max_length: int,
    min_span_length: int = 1,
    max_span_length: int = 5,
) -> Mask:
    """Make noise of equal spans at equal distances (T5: `regular_noise_mask`).

    Span length and offset are drawn for each row. Density 0.25 and a span length of 2 give a period
    of 8:

        N . . . . . . N N . . . . . . N N . . . . . . N N .

    Args:
        lengths_b: Length of each row [b].
        noise_density: Fraction of tokens that are noise.
        keys_b2: Key of each row, uint32 [b, 2].
        max_length: Width of the masks.
        min_span_length: Smallest span length; 1 as in the T5 library.
        max_span_length: Largest span length; 5 as in the T5 library.

    Returns:
        bool [b, max_length], True for noise, False beyond a row's length.
    """
    num_choices = max_span_length - min_span_length + 1
    bits_b1 = philox.random_bits(_split_key(keys_b2, 0), 1)
    span_b1 = min_span_length + bits_b1 % np.uint32(num_choices)
    period_b1 = regular_period(span_b1, noise_density)
    offset_b1 = philox.random_bits(_split_key(keys_b2, 1), 1) % period_b1.astype(np.uint32)
    phase_bl = (np.arange(max_length) + offset_b1) % period_b1
    return (phase_bl < span_b1) & _inside(lengths_b, max_length)


def regular_period(span_length: NDArray[np.integer], noise_density: float) -> NDArray[np.int64]:
    """Return the distance between the starts of regular spans: span_length / density, rounded.

    Args:
        span_length: Lengths of spans, of any shape.
        noise_density: Fraction of tokens that are noise.
    """
    ratio = span_length.astype(np.float32) / np.float32(noise_density)
    return np.round(ratio).astype(np.int64)


def random_prefix_mask(
    lengths_b: Lengths, *, noise_density: float, keys_b2: Keys, max_length: int
) -> Mask:
    """Mark a prefix of random length (T5: `random_prefix_noise_mask`).

    For prefix language models; "noise" is what the inputs keep. The prefix length of a row of n
    tokens is uniform between round((1 - 2 * noise_density) * (n - 1)), at least 1, and n - 1, so a
    density of 0.5 gives all lengths from 1 on.

    Args:
        lengths_b: Length of each row [b].
        noise_density: Mean fraction of tokens beyond the prefix, at most 0.5.
        keys_b2: Key of each row, uint32 [b, 2].
        max_length: Width of the masks.

    Returns:
        bool [b, max_length], True for the prefix.
    """
    longest_b = np.asarray(lengths_b, np.int64) - 1
    fraction = np.float32(1 - 2 * noise_density)
    shortest_b = np.round(fraction * longest_b.astype(np.float32)).astype(np.int64)
    shortest_b = np.minimum(longest_b, np.maximum(shortest_b, 1))
    bits_b = philox.random_bits(_split_key(keys_b2, 0), 1)[:, 0]
    prefix_b = shortest_b + bits_b % (longest_b + 1 - shortest_b)
    return np.arange(max_length) < prefix_b[:, None]


def block_mask(lengths_b: Lengths, *, noise_density: float, keys_b2: Keys, max_length: int) -> Mask:
    """Make one block of round(n * noise_density) tokens noise, at a uniform position (MASS).

    Args:
        lengths_b: Length of each row [b].
        noise_density: Fraction of tokens that are noise.
        keys_b2: Key of each row, uint32 [b, 2].
        max_length: Width of the masks.

    Returns:
        bool [b, max_length], True for noise.
    """
    lengths_b = np.asarray(lengths_b, np.int64)
    noise_b = np.round(lengths_b.astype(np.float32) * np.float32(noise_density)).astype(np.int64)
    bits_b = philox.random_bits(_split_key(keys_b2, 0), 1)[:, 0]
    start_b = bits_b % (lengths_b - noise_b + 1)
    offset_bl = np.arange(max_length) - start_b[:, None]
    return (offset_bl >= 0) & (offset_bl < noise_b[:, None])


def geometric_spans_mask(
    lengths_b: Lengths,
    *,
    noise_density: float,
    keys_b2: Keys,
    max_length: int,
    stop_probability: float = 0.2,
    max_span_length: int = 10,
) -> Mask:
    """Make spans of geometric length noise until a fraction of the row is noise (SpanBERT).

    A row of n tokens has a budget of round(n * noise_density) noise tokens, at least 1 if it has 2
    tokens. Span starts are uniform. A span that would overlap or touch an earlier one, or leave the
    row, is drawn at another start, so every run of noise is one span. The last span is shortened to
    the budget. After n draws a row keeps the noise it has, even if that is less than its budget.

    Args:
        lengths_b: Length of each row [b].
        noise_density: Fraction of tokens that are noise.
        keys_b2: Key of each row, uint32 [b, 2].
        max_length: Width of the masks.
        stop_probability: p of the geometric distribution of span lengths, truncated at
            `max_span_length`. 0.2 and 10 are SpanBERT's, with a mean of 3.8.
        max_span_length: Largest span length.

    Returns:
        bool [b, max_length], True for noise.
    """
    lengths_b = np.asarray(lengths_b, np.int64)
    budget_b = np.round(lengths_b.astype(np.float32) * np.float32(noise_density)).astype(np.int64)
    budget_b = np.where(lengths_b < 2, 0, np.clip(budget_b, 1, np.maximum(lengths_b - 1, 1)))
    uniform_bd = philox.uniform(_split_key(keys_b2, 0), max_length)
    span_lengths_bd = geometric_lengths(uniform_bd, stop_probability, max_span_length)
    bits_bd = philox.random_bits(_split_key(keys_b2, 1), max_length)
    num_spans_b = np.zeros(len(lengths_b), np.int64)
    # One extra position before and after the row, so that its ends have neighbors: token i is at
    # position i + 1.
    noise_bl = np.zeros((len(lengths_b), max_length + 2), np.bool_)
    position_l = np.arange(max_length + 2)
    # All rows make their draw d at once; [r] are the rows that still have a budget and draws.
    for draw in range(max_length):
        rows = np.flatnonzero((budget_b > 0) & (draw < lengths_b))
        span_r = np.minimum(span_lengths_bd[rows, num_spans_b[rows]], budget_b[rows])
        start_r = 1 + bits_bd[rows, draw] % lengths_b[rows]
        distance_rl = position_l - start_r[:, None]
        is_near_rl = (distance_rl >= -1) & (distance_rl <= span_r[:, None])
        fits_r = ~(is_near_rl & noise_bl[rows]).any(axis=1)
        fits_r &= start_r + span_r <= lengths_b[rows] + 1
        is_span_rl = (distance_rl >= 0) & (distance_rl < span_r[:, None])
        noise_bl[rows] |= is_span_rl & fits_r[:, None]
        budget_b[rows] -= span_r * fits_r
        num_spans_b[rows] += fits_r
    return noise_bl[:, 1:-1]


def geometric_lengths(
    uniform: NDArray[np.float32], stop_probability: float, max_length: int
) -> NDArray[np.int64]:
    """Map uniform numbers to a truncated geometric distribution by inversion.

    Args:
        uniform: Numbers from [0, 1), of any shape.
        stop_probability: p; the probability of length k is proportional to (1 - p)**(k - 1).
        max_length: Largest length.

    Returns:
        Lengths 1 ... max_length, of the same shape.
    """
    weights = (1 - stop_probability) ** np.arange(max_length)
    return 1 + np.searchsorted(np.cumsum(weights)[:-1] / weights.sum(), uniform, side="right")


def random_subset_mask(
    lengths_b: Lengths, count_b: Lengths, keys_b2: Keys, max_length: int
) -> Mask:
    """Choose a number of tokens of each row, all subsets of that size equally likely.

    Args:
        lengths_b: Length of each row [b].
        count_b: Number of tokens to choose from each row [b].
        keys_b2: Key of each row, uint32 [b, 2]; used as it is, without being split.
        max_length: Width of the masks.

    Returns:
        bool [b, max_length], True for chosen tokens.
    """
    order_bl = philox.random_order(keys_b2, lengths_b, max_length)
    mask_bl = np.zeros((len(order_bl), max_length), np.bool_)
    is_chosen_bl = np.arange(max_length) < np.asarray(count_b)[:, None]
    np.put_along_axis(mask_bl, order_bl, is_chosen_bl, axis=1)
    return mask_bl


def _split_key(keys_b2: Keys, index: int) -> Keys:
    """Return the first or second key that the T5 library splits off for a mask, [b, 2]."""
    return philox.split(keys_b2, 2)[:, index]


def _inside(lengths_b: Lengths, max_length: int) -> Mask:
    return np.arange(max_length) < np.asarray(lengths_b)[:, None]
