"""Noise masks other than random spans: which tokens of a row an objective takes away.

A mask is bool [batch, max_length], False beyond each row's length. All functions work on a batch
and are pure: a row's mask follows from its length and its key. Where the T5 library has the mask,
the bits are its own.

Sources: Raffel et al. 2020 (T5), sections 3.3.1 to 3.3.4, and the T5 library's preprocessors; Song
et al. 2019 (MASS); Joshi et al. 2020 (SpanBERT).
"""

import numpy as np
from numpy.typing import NDArray

from t5x_lite.objectives import philox

Lengths = NDArray[np.integer]
Keys = NDArray[np.uint32]
Mask = NDArray[np.bool_]


def iid_mask(lengths_b: Lengths, *, noise_density: float, keys_b2: Keys, max_length: int) -> Mask:
    """Make every token noise with the same probability, whatever the others are."""
    uniform_bl = philox.uniform(_key(keys_b2, 0), max_length)
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
    """Make noise of equal spans at equal distances, length and offset drawn for each row.

    Density 0.25 and a span length of 2 give a period of 8:

        N . . . . . . N N . . . . . . N N . . . . . . N N .
    """
    kinds = max_span_length - min_span_length + 1
    span_b1 = min_span_length + philox.random_bits(_key(keys_b2, 0), 1) % np.uint32(kinds)
    period_b1 = regular_period(span_b1, noise_density)
    offset_b1 = philox.random_bits(_key(keys_b2, 1), 1) % period_b1.astype(np.uint32)
    phase_bl = (np.arange(max_length) + offset_b1) % period_b1
    return (phase_bl < span_b1) & _inside(lengths_b, max_length)


def regular_period(span_length: NDArray[np.integer], noise_density: float) -> NDArray[np.int64]:
    """Return the distance between the starts of regular spans: the nearest to length / density."""
    ratio = span_length.astype(np.float32) / np.float32(noise_density)
    return np.round(ratio).astype(np.int64)


def random_prefix_mask(
    lengths_b: Lengths, *, noise_density: float, keys_b2: Keys, max_length: int
) -> Mask:
    """Make a prefix of random length noise (which here means: what the inputs keep).

    The length is uniform between round((1 - 2 density) (n - 1)), at least 1, and n - 1. A density
    of 0.5 gives all lengths from 1 on; no density above it can be had.
    """
    most_b = np.asarray(lengths_b, np.int64) - 1
    share = np.float32(1 - 2 * noise_density)
    asked_b = np.round(share * most_b.astype(np.float32)).astype(np.int64)
    least_b = np.minimum(most_b, np.maximum(asked_b, 1))
    bits_b = philox.random_bits(_key(keys_b2, 0), 1)[:, 0]
    prefix_b = least_b + bits_b % (most_b + 1 - least_b)
    return np.arange(max_length) < prefix_b[:, None]


def block_mask(lengths_b: Lengths, *, noise_density: float, keys_b2: Keys, max_length: int) -> Mask:
    """Make one block of round(n * density) tokens noise, all starts equally likely (MASS)."""
    lengths_b = np.asarray(lengths_b, np.int64)
    noise_b = np.round(lengths_b.astype(np.float32) * np.float32(noise_density)).astype(np.int64)
    start_b = philox.random_bits(_key(keys_b2, 0), 1)[:, 0] % (lengths_b - noise_b + 1)
    place_bl = np.arange(max_length) - start_b[:, None]
    return (place_bl >= 0) & (place_bl < noise_b[:, None])


def geometric_spans_mask(
    lengths_b: Lengths,
    *,
    noise_density: float,
    keys_b2: Keys,
    max_length: int,
    stop_probability: float = 0.2,
    max_span_length: int = 10,
) -> Mask:
    """Make spans of geometric length noise until a share of the row is used up (SpanBERT).

    A span's length is drawn from a geometric distribution cut at `max_span_length` (10 and a
    probability of 0.2: mean 3.8), its start uniformly. Where it would overlap or touch an earlier
    span or leave the row, the start is drawn again, so every run of noise is one span; the last one
    is shortened to the budget of round(n * density) tokens, at least 1 where there are 2 tokens.
    After n draws a row that is still short of its budget stays so.
    """
    lengths_b = np.asarray(lengths_b, np.int64)
    left_b = np.round(lengths_b.astype(np.float32) * np.float32(noise_density)).astype(np.int64)
    left_b = np.where(lengths_b < 2, 0, np.clip(left_b, 1, np.maximum(lengths_b - 1, 1)))
    uniform_bd = philox.uniform(_key(keys_b2, 0), max_length)
    lengths_bd = geometric_lengths(uniform_bd, stop_probability, max_span_length)
    bits_bd = philox.random_bits(_key(keys_b2, 1), max_length)
    spans_b = np.zeros(len(lengths_b), np.int64)
    # One free place before and after the row stands for the neighbors of its ends.
    taken_bl = np.zeros((len(lengths_b), max_length + 2), np.bool_)
    place_l = np.arange(max_length + 2)
    for draw in range(max_length):
        rows = np.flatnonzero((left_b > 0) & (draw < lengths_b))
        span_r = np.minimum(lengths_bd[rows, spans_b[rows]], left_b[rows])
        start_r = 1 + bits_bd[rows, draw] % lengths_b[rows]
        distance_rl = place_l - start_r[:, None]
        near_rl = (distance_rl >= -1) & (distance_rl <= span_r[:, None])
        fits_r = ~(near_rl & taken_bl[rows]).any(axis=1)
        fits_r &= start_r + span_r <= lengths_b[rows] + 1
        span_rl = (distance_rl >= 0) & (distance_rl < span_r[:, None])
        taken_bl[rows] |= span_rl & fits_r[:, None]
        left_b[rows] -= span_r * fits_r
        spans_b[rows] += fits_r
    return taken_bl[:, 1:-1]


def geometric_lengths(
    uniform: NDArray[np.float32], stop_probability: float, max_length: int
) -> NDArray[np.int64]:
    """Return lengths 1 ... max_length with P(k) proportional to (1 - p)^(k - 1), by inversion."""
    weights = (1 - stop_probability) ** np.arange(max_length)
    return 1 + np.searchsorted(np.cumsum(weights)[:-1] / weights.sum(), uniform, side="right")


def random_subset_mask(
    lengths_b: Lengths, count_b: Lengths, keys_b2: Keys, max_length: int
) -> Mask:
    """Choose so many tokens of each row, all sets of them equally likely; the key is used as is."""
    order_bl = random_order(lengths_b, keys_b2, max_length)
    chosen_bl = np.zeros((len(order_bl), max_length), np.bool_)
    is_first_bl = np.arange(max_length) < np.asarray(count_b)[:, None]
    np.put_along_axis(chosen_bl, order_bl, is_first_bl, axis=1)
    return chosen_bl


def random_order(lengths_b: Lengths, keys_b2: Keys, max_length: int) -> NDArray[np.int64]:
    """Return the places of each row in random order, those beyond its length last."""
    drawn_bl = philox.uniform(keys_b2, max_length)
    drawn_bl[~_inside(lengths_b, max_length)] = 2
    return np.argsort(drawn_bl, axis=1, kind="stable")


def _key(keys_b2: Keys, number: int) -> Keys:
    """Return one of the two keys of a mask, the first two of those the T5 library splits off."""
    return philox.split(keys_b2, 2)[:, number]


def _inside(lengths_b: Lengths, max_length: int) -> Mask:
    return np.arange(max_length) < np.asarray(lengths_b)[:, None]
