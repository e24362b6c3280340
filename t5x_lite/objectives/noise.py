"""Replacements of noise: from rows and a noise mask to corrupted rows (NumPy only).

The same functions make the inputs and, with the negated mask, the targets. They work on a batch and
are pure functions of rows, mask and keys. Functions that the T5 library has return the same tokens.
The mask is ignored beyond a row's length.

With M, X, Y sentinels and "Thank you for inviting me" whose noise is "for inviting":

    noise_to_mask                   Thank you M M me
    noise_spans_to_mask             Thank you M me
    noise_spans_to_unique_sentinel  Thank you X me
    drop_noise                      Thank you me
    permute_noise                   Thank you inviting for me
    noise_to_gathered_token         Thank you me for me
    noise_to_random_token           Thank you lamp nine me

Source: Raffel et al. 2020 (T5), table 3; the T5 library's preprocessors.

Array names: b rows of the batch, l positions, w noise tokens of a row, s keys of a row.
"""

from typing import Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from t5x_lite.errors import ConfigError
from t5x_lite.objectives import philox
from t5x_lite.objectives.objective import Rows
from t5x_lite.objectives.sentinels import Sentinels

Mask = NDArray[np.bool_]
Keys = NDArray[np.uint32]

Replacement = Literal[
    "mask_tokens",
    "mask_spans",
    "sentinels",
    "drop",
    "permute",
    "gathered_tokens",
    "random_tokens",
    "random_or_mask",
    "bert",
    "nothing",
]
SHORTENING: tuple[Replacement, ...] = ("mask_spans", "sentinels", "drop")
"""Replacements whose result has another length than the row; the others keep it."""

FIRST_PIECE = 3  # lowest id of text; 0, 1 and 2 are padding, EOS and the unknown token


def replace_noise(
    replacement: Replacement, rows: Rows, mask: Mask, sentinels: Sentinels, keys_bs2: Keys
) -> Rows:
    """Apply a replacement by name.

    Args:
        replacement: The name.
        rows: Token sequences.
        mask: bool [b, l], True for noise.
        sentinels: The vocabulary's sentinels.
        keys_bs2: Two keys per row, uint32 [b, 2, 2], of which a replacement may use none.

    Returns:
        The corrupted rows; "nothing" returns `rows`.
    """
    match replacement:
        case "mask_tokens":
            return noise_to_mask(rows, mask, sentinels)
        case "mask_spans":
            return noise_spans_to_mask(rows, mask, sentinels)
        case "sentinels":
            return noise_spans_to_unique_sentinel(rows, mask, sentinels)
        case "drop":
            return drop_noise(rows, mask)
        case "permute":
            return permute_noise(rows, mask, keys_bs2[:, 0])
        case "gathered_tokens":
            return noise_to_gathered_token(rows, mask, keys_bs2[:, 0])
        case "random_tokens":
            return noise_to_random_token(rows, mask, sentinels, keys_bs2[:, 0])
        case "random_or_mask":
            return noise_to_random_token_or_mask(rows, mask, sentinels, keys_bs2)
        case "bert":
            return noise_to_bert_mix(rows, mask, sentinels, keys_bs2)
        case "nothing":
            return rows
    assert_never(replacement)


def replaced_lengths(
    replacement: Replacement, lengths_b: NDArray[np.integer], mask: Mask
) -> NDArray[np.int64]:
    """Compute the lengths of the rows that `replace_noise` returns, without their tokens.

    Args:
        replacement: The name.
        lengths_b: Length of each row [b].
        mask: bool [b, l], True for noise.

    Returns:
        int64 [b].
    """
    lengths_b = np.asarray(lengths_b, np.int64)
    if replacement not in SHORTENING:
        return lengths_b
    noise_bl = mask & (np.arange(mask.shape[1]) < lengths_b[:, None])
    kept_b = lengths_b - np.count_nonzero(noise_bl, axis=1)
    return kept_b if replacement == "drop" else kept_b + run_starts(noise_bl).sum(axis=1)


def extend_sentinels(sentinels: Sentinels) -> Sentinels:
    """Return sentinels that continue below the last one, down to the first id of text.

    This is how the T5 library numbers spans: with 32,100 ids of which 100 are sentinels, the 101st
    span of a row is marked by id 31,999, a piece of text. Settings with more spans than sentinels
    can be reproduced only this way.
    """
    return Sentinels(sentinels.first, sentinels.first + 1 - FIRST_PIECE)


def noise_to_mask(rows: Rows, mask: Mask, sentinels: Sentinels) -> Rows:
    """Replace each noise token with the mask token.

    Args:
        rows: Token sequences.
        mask: bool [b, l], True for noise.
        sentinels: The first one is the mask token.
    """
    noise_bl = mask & valid_positions(rows)
    return rows._replace(tokens=np.where(noise_bl, np.int32(sentinels.first), rows.tokens))


def noise_spans_to_mask(rows: Rows, mask: Mask, sentinels: Sentinels) -> Rows:
    """Replace each run of noise with one mask token.

    Args:
        rows: Token sequences.
        mask: bool [b, l], True for noise.
        sentinels: The first one is the mask token.
    """
    valid_bl = valid_positions(rows)
    noise_bl = mask & valid_bl
    marked_bl = np.where(noise_bl, np.int32(sentinels.first), rows.tokens)
    return compact(marked_bl, valid_bl & (~noise_bl | run_starts(noise_bl)))


def noise_spans_to_unique_sentinel(rows: Rows, mask: Mask, sentinels: Sentinels) -> Rows:
    """Replace the k-th run of noise of each row with the k-th sentinel.

    With the negated mask it makes the targets; with X, Y, Z sentinels:

        tokens           Thank you for inviting me to your party last week
        mask             .     .   N   N        .  .  .    .     N    .
        result           Thank you X            me to your party Y    week
        with ~mask       X         for inviting Y                last Z

    Args:
        rows: Token sequences.
        mask: bool [b, l], True for noise.
        sentinels: The vocabulary's sentinels.

    Raises:
        ConfigError: A row has more runs of noise than there are sentinels.
    """
    valid_bl = valid_positions(rows)
    noise_bl = mask & valid_bl
    starts_bl = run_starts(noise_bl)
    span_bl = np.cumsum(starts_bl, axis=1, dtype=np.int32)  # number of the run, from 1 on
    if span_bl.size and (most := int(span_bl[:, -1].max())) > sentinels.count:
        raise ConfigError(
            f"a row has {most} noise spans, but the vocabulary has {sentinels.count} sentinels: "
            "use shorter rows, longer spans or more extra ids",
            "TASK_FEATURE_LENGTHS",
        )
    # The k-th sentinel has the id first + 1 - k. The other tokens of each run are removed.
    replaced_bl = np.where(starts_bl, sentinels.first + 1 - span_bl, rows.tokens)
    return compact(replaced_bl, valid_bl & (~noise_bl | starts_bl))


def drop_noise(rows: Rows, mask: Mask) -> Rows:
    """Remove the noise tokens.

    Args:
        rows: Token sequences.
        mask: bool [b, l], True for noise.
    """
    return compact(rows.tokens, valid_positions(rows) & ~mask)


def permute_noise(rows: Rows, mask: Mask, keys_b2: Keys) -> Rows:
    """Shuffle the noise tokens among their positions.

    Args:
        rows: Token sequences.
        mask: bool [b, l], True for noise.
        keys_b2: Key of each row, uint32 [b, 2].
    """
    noise_bl = mask & valid_positions(rows)
    noise = compact(rows.tokens, noise_bl)  # the noise tokens of each row, [b, w]
    width = int(noise.lengths.max(initial=0))
    order_bw = philox.random_order(keys_b2, noise.lengths, width)
    inside_bw = np.arange(width) < noise.lengths[:, None]
    tokens_bl = rows.tokens.copy()
    # Both sides enumerate the noise tokens of all rows in the same order.
    tokens_bl[noise_bl] = np.take_along_axis(noise.tokens, order_bw, axis=1)[inside_bw]
    return rows._replace(tokens=tokens_bl)


def noise_to_gathered_token(rows: Rows, mask: Mask, keys_b2: Keys) -> Rows:
    """Replace each noise token with the token at a uniform position of the same row.

    Args:
        rows: Token sequences.
        mask: bool [b, l], True for noise.
        keys_b2: Key of each row, uint32 [b, 2].
    """
    bits_bl = philox.random_bits(keys_b2, rows.tokens.shape[1])
    source_bl = bits_bl % np.maximum(rows.lengths, 1)[:, None].astype(np.uint32)
    gathered_bl = np.take_along_axis(rows.tokens, source_bl.astype(np.int64), axis=1)
    return rows._replace(tokens=np.where(mask & valid_positions(rows), gathered_bl, rows.tokens))


def noise_to_random_token(rows: Rows, mask: Mask, sentinels: Sentinels, keys_b2: Keys) -> Rows:
    """Replace each noise token with an id drawn uniformly from the vocabulary.

    Ids of text and of sentinels are drawn; padding, EOS and the unknown token are not.

    Args:
        rows: Token sequences.
        mask: bool [b, l], True for noise.
        sentinels: The vocabulary's sentinels; the first one is the highest id.
        keys_b2: Key of each row, uint32 [b, 2].
    """
    num_ids = np.uint32(sentinels.first + 1 - FIRST_PIECE)
    bits_bl = philox.random_bits(keys_b2, rows.tokens.shape[1])
    random_bl = (bits_bl % num_ids + np.uint32(FIRST_PIECE)).astype(np.int32)
    tokens_bl = np.where(mask & valid_positions(rows), random_bl, rows.tokens)
    return rows._replace(tokens=tokens_bl)


def noise_to_random_token_or_mask(
    rows: Rows, mask: Mask, sentinels: Sentinels, keys_bs2: Keys, *, random_prob: float = 0.1
) -> Rows:
    """Replace each noise token with a random token or the mask token.

    This is T5's `noise_token_to_random_token_or_sentinel`.

    Args:
        rows: Token sequences.
        mask: bool [b, l], True for noise.
        sentinels: The first one is the mask token.
        keys_bs2: Two keys per row, uint32 [b, 2, 2]: the first selects between the replacements,
            the second draws the random tokens.
        random_prob: Probability of a random token; 0.1 as in the T5 paper.
    """
    uniform_bl = philox.uniform(keys_bs2[:, 0], rows.tokens.shape[1])
    is_random_bl = uniform_bl < np.float32(random_prob)
    masked = noise_to_mask(rows, mask & ~is_random_bl, sentinels)
    return noise_to_random_token(masked, mask & is_random_bl, sentinels, keys_bs2[:, 1])


def noise_to_bert_mix(
    rows: Rows,
    mask: Mask,
    sentinels: Sentinels,
    keys_bs2: Keys,
    *,
    mask_prob: float = 0.8,
    random_prob: float = 0.1,
    by_span: bool = False,
) -> Rows:
    """Replace noise tokens as BERT does: by the mask token, by random tokens, or not at all.

    Source: Devlin et al. 2019 (BERT), appendix A.1; for `by_span`, Joshi et al. 2020 (SpanBERT),
    section 3.1.

    Args:
        rows: Token sequences.
        mask: bool [b, l], True for noise.
        sentinels: The first one is the mask token.
        keys_bs2: Two keys per row, uint32 [b, 2, 2]: the first selects between the replacements,
            the second draws the random tokens.
        mask_prob: Probability of the mask token.
        random_prob: Probability of a random token; the remaining noise is not replaced.
        by_span: Select once for all tokens of a run of noise.
    """
    uniform_bl = philox.uniform(keys_bs2[:, 0], rows.tokens.shape[1])
    if by_span:
        # All tokens of the k-th run use the k-th number.
        run_bl = np.cumsum(run_starts(mask & valid_positions(rows)), axis=1)
        uniform_bl = np.take_along_axis(uniform_bl, np.maximum(run_bl - 1, 0), axis=1)
    masked = noise_to_mask(rows, mask & (uniform_bl < np.float32(mask_prob)), sentinels)
    is_random_bl = uniform_bl >= np.float32(1 - random_prob)
    return noise_to_random_token(masked, mask & is_random_bl, sentinels, keys_bs2[:, 1])


def valid_positions(rows: Rows) -> Mask:
    """Return which positions hold tokens, bool [b, l]."""
    return np.arange(rows.tokens.shape[1]) < rows.lengths[:, None]


def run_starts(noise_bl: Mask) -> Mask:
    """Return which positions are the first of a run of noise, bool [b, l]."""
    starts_bl = noise_bl.copy()
    starts_bl[:, 1:] &= ~noise_bl[:, :-1]
    return starts_bl


def compact(values_bl: NDArray[np.integer], keep_bl: Mask) -> Rows:
    """Move the kept values of each row to its front.

        values  5 6 7 8
        keep    . K . K   ->   tokens 6 8 0 0, length 2

    Args:
        values_bl: Values [b, l].
        keep_bl: bool [b, l], True for values to keep.

    Returns:
        Rows of the same width, 0 beyond the kept values.
    """
    tokens_bl = np.zeros(values_bl.shape, np.int32)
    lengths_b = np.count_nonzero(keep_bl, axis=1).astype(np.int32)
    # Both sides enumerate the kept values of all rows in the same order.
    tokens_bl[np.arange(values_bl.shape[1]) < lengths_b[:, None]] = values_bl[keep_bl]
    return Rows(tokens_bl, lengths_b)
