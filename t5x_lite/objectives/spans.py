"""Noise masks made of spans, what replaces a noise span, and the lengths that come of it.

Everything works on a batch of rows at once and is a pure function of (tokens, keys). With the same
seeds the masks equal those of the T5 library bit for bit.

Sources: Raffel et al. 2020 (T5), section 3.1.4 and table 3; the T5 library's preprocessors.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t5x_lite.errors import ConfigError
from t5x_lite.objectives import philox


@dataclass(frozen=True)
class Sentinels:
    """The ids that mark spans: `first` marks a row's first span, then downwards, `count` in all."""

    first: int
    count: int


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
) -> NDArray[np.bool_]:
    """Return which tokens of each row are noise: [b, max_length], False beyond a row's length.

    A row of n tokens has round(n * density) noise tokens (at least 1, at most n - 1) in
    round(noise / mean length) spans (at least 1); all ways to cut the noise and the kept tokens
    into that many positive parts are equally likely. Kept and noise spans alternate, a kept one
    first, so a row begins with kept tokens and ends with noise:

        length 11, density 0.15, mean 3   ->   . . . . . . . . . N N

    Rounding is half to even, in float32, as TensorFlow does. Where the settings ask for more spans
    than there are kept tokens (very high densities), the spans are as many as fit.
    """
    lengths_b = np.asarray(lengths_b, np.int64)
    if noise_density == 0:
        return np.zeros((len(lengths_b), max_length), np.bool_)
    totals_b = np.maximum(lengths_b, 2)  # a row of one token is cut from a row of two
    noise_b, spans_b = _noise_counts(totals_b, noise_density, mean_noise_span_length)
    keys_bs2 = philox.split(keys_b2, 2)
    noise_lengths_bs = _random_composition(noise_b, spans_b, keys_bs2[:, 0])
    kept_lengths_bs = _random_composition(totals_b - noise_b, spans_b, keys_bs2[:, 1])
    span_ends_bs = np.cumsum(_interleave(kept_lengths_bs, noise_lengths_bs), axis=1)

    position_l = np.arange(max_length)
    boundaries_bl = _count_per_row(span_ends_bs, max_length)
    is_noise_bl = np.cumsum(boundaries_bl, axis=1) % 2 == 1
    return is_noise_bl & (position_l < lengths_b[:, None])


def noise_spans_to_unique_sentinel(
    rows: Rows, mask: NDArray[np.bool_], sentinels: Sentinels
) -> Rows:
    """Replace the k-th noise span of each row by the k-th sentinel.

    With X, Y, Z the sentinels:

        tokens           Thank you for inviting me to your party last week
        mask             .     .   N   N        .  .  .    .     N    .
        result           Thank you X            me to your party Y    week
        with ~mask       X         for inviting Y                last Z

    The second use (the negated mask) makes the targets. Raises ConfigError where a row has more
    spans than there are sentinels.
    """
    tokens_bl = rows.tokens
    valid_bl = np.arange(tokens_bl.shape[1]) < rows.lengths[:, None]
    noise_bl = mask & valid_bl
    starts_bl = noise_bl.copy()
    starts_bl[:, 1:] &= ~noise_bl[:, :-1]
    span_bl = np.cumsum(starts_bl, axis=1)
    if span_bl.size and (most := int(span_bl[:, -1].max())) > sentinels.count:
        raise ConfigError(
            f"a row holds {most} noise spans and the vocabulary has {sentinels.count} sentinels: "
            "use shorter rows, longer spans or more extra ids",
            "TASK_FEATURE_LENGTHS",
        )
    replaced_bl = np.where(starts_bl, sentinels.first + 1 - span_bl, tokens_bl)
    return _compact(replaced_bl, valid_bl & (~noise_bl | starts_bl))


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


def _noise_counts(
    totals_b: NDArray[np.int64], noise_density: float, mean_noise_span_length: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how many noise tokens and how many noise spans a row of each length has."""
    asked_b = np.round(totals_b.astype(np.float32) * np.float32(noise_density)).astype(np.int64)
    noise_b = np.clip(asked_b, 1, totals_b - 1)
    mean = np.float32(mean_noise_span_length)
    spans_b = np.round(noise_b.astype(np.float32) / mean).astype(np.int64)
    return noise_b, np.clip(spans_b, 1, np.minimum(noise_b, totals_b - noise_b))


def _random_composition(
    items_b: NDArray[np.int64], parts_b: NDArray[np.int64], keys_b2: NDArray[np.uint32]
) -> NDArray[np.int64]:
    """Cut `items` into `parts` positive parts, uniformly at random: [b, most parts], 0 beyond.

    The items - 1 places between two items are put in random order (argsort of uniforms); a cut is
    made where one of the first parts - 1 numbers landed.
    """
    gaps = max(int(items_b.max(initial=1)) - 1, 0)
    outside_bg = np.arange(gaps) >= (items_b - 1)[:, None]
    uniforms_bg = np.where(outside_bg, np.float32(2), philox.uniform(keys_b2, gaps))
    order_bg = np.argsort(uniforms_bg, axis=1, kind="stable")
    cuts_bg = (order_bg < (parts_b - 1)[:, None]) & ~outside_bg
    part_bi = np.zeros((len(items_b), gaps + 1), np.int64)
    np.cumsum(cuts_bg, axis=1, out=part_bi[:, 1:])
    part_bi[:, 1:][outside_bg] = -1
    return _count_per_row(part_bi, int(parts_b.max(initial=1)))


def _count_per_row(values_bn: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Count how often 0 ... size - 1 occurs in each row, other values left out: [b, size]."""
    rows = len(values_bn)
    counted_bn = (values_bn >= 0) & (values_bn < size)
    places_bn = values_bn + size * np.arange(rows)[:, None]
    counts = np.bincount(places_bn[counted_bn], minlength=rows * size)
    return counts.reshape(rows, size)


def _interleave(first_bs: NDArray[np.int64], second_bs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return first[0], second[0], first[1], second[1] ... of each row."""
    return np.stack([first_bs, second_bs], axis=-1).reshape(len(first_bs), -1)


def _compact(values_bl: NDArray[np.integer], keep_bl: NDArray[np.bool_]) -> Rows:
    """Move each row's kept values to its front and zero the rest; the rows keep their width."""
    tokens_bl = np.zeros(values_bl.shape, np.int32)
    row_of, _ = np.nonzero(keep_bl)
    place_of = np.cumsum(keep_bl, axis=1)[keep_bl] - 1
    tokens_bl[row_of, place_of] = values_bl[keep_bl]
    return Rows(tokens_bl, keep_bl.sum(axis=1, dtype=np.int32))
