"""What replaces noise: from rows and a mask of their noise tokens to rows (NumPy only).

The same functions make inputs and, of the negated mask, targets. They work on a batch at once and
draw nothing but from the keys they are given. Where the T5 library has the function, the tokens are
its own. What the mask says beyond a row's length does not matter.

With M, X, Y sentinels and "Thank you for inviting me" whose noise is "for inviting":

    noise_to_mask                   Thank you M M me
    noise_spans_to_mask             Thank you M me
    noise_spans_to_unique_sentinel  Thank you X me
    drop_noise                      Thank you me
    permute_noise                   Thank you inviting for me
    noise_to_gathered_token         Thank you me for me
    noise_to_random_token           Thank you lamp nine me

Source: Raffel et al. 2020 (T5), table 3; the T5 library's preprocessors.
"""

from typing import Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from t5x_lite.errors import ConfigError
from t5x_lite.objectives import philox
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.spans import Rows

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

FIRST_PIECE = 3  # padding, EOS and the unknown token are never drawn


def replace_noise(
    replacement: Replacement, rows: Rows, mask: Mask, sentinels: Sentinels, keys_bs2: Keys
) -> Rows:
    """Apply the function of that name; `keys_bs2` are two keys a row, of which it may use none."""
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
    """Return how long rows of these lengths are after `replace_noise`: [b]."""
    lengths_b = np.asarray(lengths_b, np.int64)
    if replacement not in ("mask_spans", "sentinels", "drop"):
        return lengths_b
    noise_bl = mask & (np.arange(mask.shape[1]) < lengths_b[:, None])
    kept_b = lengths_b - np.count_nonzero(noise_bl, axis=1)
    return kept_b if replacement == "drop" else kept_b + run_starts(noise_bl).sum(axis=1)


def extend_sentinels(sentinels: Sentinels) -> Sentinels:
    """Return sentinels that go on below the last of them, down to the first piece.

    So the T5 library numbers spans: a vocabulary of 32,100 with 100 extra ids marks the 101st span
    of a row by piece 31,999. Settings with more spans than sentinels need it to be reproduced.
    """
    return Sentinels(sentinels.first, sentinels.first + 1 - FIRST_PIECE)


def noise_to_mask(rows: Rows, mask: Mask, sentinels: Sentinels) -> Rows:
    """Replace every noise token by the mask token, which is the first sentinel."""
    noise_bl = mask & valid_positions(rows)
    return rows._replace(tokens=np.where(noise_bl, np.int32(sentinels.first), rows.tokens))


def noise_spans_to_mask(rows: Rows, mask: Mask, sentinels: Sentinels) -> Rows:
    """Replace every run of noise by one mask token, which is the first sentinel."""
    valid_bl = valid_positions(rows)
    noise_bl = mask & valid_bl
    marked_bl = np.where(noise_bl, np.int32(sentinels.first), rows.tokens)
    return compact(marked_bl, valid_bl & (~noise_bl | run_starts(noise_bl)))


def noise_spans_to_unique_sentinel(rows: Rows, mask: Mask, sentinels: Sentinels) -> Rows:
    """Replace the k-th noise span of each row by the k-th sentinel.

    With X, Y, Z the sentinels:

        tokens           Thank you for inviting me to your party last week
        mask             .     .   N   N        .  .  .    .     N    .
        result           Thank you X            me to your party Y    week
        with ~mask       X         for inviting Y                last Z

    The second use (the negated mask) makes the targets. Raises ConfigError where a row has more
    spans than there are sentinels.
    """
    valid_bl = valid_positions(rows)
    noise_bl = mask & valid_bl
    starts_bl = run_starts(noise_bl)
    span_bl = np.cumsum(starts_bl, axis=1, dtype=np.int32)
    if span_bl.size and (most := int(span_bl[:, -1].max())) > sentinels.count:
        raise ConfigError(
            f"a row holds {most} noise spans and the vocabulary has {sentinels.count} sentinels: "
            "use shorter rows, longer spans or more extra ids",
            "TASK_FEATURE_LENGTHS",
        )
    replaced_bl = np.where(starts_bl, sentinels.first + 1 - span_bl, rows.tokens)
    return compact(replaced_bl, valid_bl & (~noise_bl | starts_bl))


def drop_noise(rows: Rows, mask: Mask) -> Rows:
    """Leave the noise out; the rest moves together."""
    return compact(rows.tokens, valid_positions(rows) & ~mask)


def permute_noise(rows: Rows, mask: Mask, keys_b2: Keys) -> Rows:
    """Put the noise tokens in random order, among their own places."""
    noise_bl = mask & valid_positions(rows)
    noise = compact(rows.tokens, noise_bl)
    width = int(noise.lengths.max(initial=0))
    sorted_bw = philox.mantissas(keys_b2, width).astype(np.uint64) << np.uint64(32)
    sorted_bw |= np.arange(width, dtype=np.uint64)
    inside_bw = np.arange(width) < noise.lengths[:, None]
    sorted_bw[~inside_bw] = np.iinfo(np.uint64).max
    sorted_bw.sort(axis=1)
    order_bw = np.where(inside_bw, sorted_bw.astype(np.uint32), 0).astype(np.int64)
    tokens_bl = rows.tokens.copy()
    tokens_bl[noise_bl] = np.take_along_axis(noise.tokens, order_bw, axis=1)[inside_bw]
    return rows._replace(tokens=tokens_bl)


def noise_to_gathered_token(rows: Rows, mask: Mask, keys_b2: Keys) -> Rows:
    """Replace every noise token by one drawn from anywhere in the same row."""
    bits_bl = philox.random_bits(keys_b2, rows.tokens.shape[1])
    places_bl = (bits_bl % np.maximum(rows.lengths, 1)[:, None].astype(np.uint32)).astype(np.int64)
    gathered_bl = np.take_along_axis(rows.tokens, places_bl, axis=1)
    return rows._replace(tokens=np.where(mask & valid_positions(rows), gathered_bl, rows.tokens))


def noise_to_random_token(rows: Rows, mask: Mask, sentinels: Sentinels, keys_b2: Keys) -> Rows:
    """Replace every noise token by an id drawn uniformly from the vocabulary.

    The vocabulary ends with the first sentinel; sentinels are drawn too, the three special tokens
    are not.
    """
    ids = np.uint32(sentinels.first + 1 - FIRST_PIECE)
    drawn_bl = philox.random_bits(keys_b2, rows.tokens.shape[1]) % ids + np.uint32(FIRST_PIECE)
    tokens_bl = np.where(mask & valid_positions(rows), drawn_bl.astype(np.int32), rows.tokens)
    return rows._replace(tokens=tokens_bl)


def noise_to_random_token_or_mask(
    rows: Rows, mask: Mask, sentinels: Sentinels, keys_bs2: Keys, *, random_share: float = 0.1
) -> Rows:
    """Replace every noise token by a random token (10 %) or the mask token (90 %).

    The first of the two keys tells which, the second draws the random tokens.
    """
    uniform_bl = philox.uniform(keys_bs2[:, 0], rows.tokens.shape[1])
    is_random_bl = uniform_bl < np.float32(random_share)
    masked = noise_to_mask(rows, mask & ~is_random_bl, sentinels)
    return noise_to_random_token(masked, mask & is_random_bl, sentinels, keys_bs2[:, 1])


def noise_to_bert_mix(
    rows: Rows,
    mask: Mask,
    sentinels: Sentinels,
    keys_bs2: Keys,
    *,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    by_span: bool = False,
) -> Rows:
    """Mask 80 % of the noise tokens, replace 10 % by random tokens, leave 10 % as they are.

    Source: Devlin et al. 2019 (BERT), appendix A.1; `by_span`, all tokens of a run of noise alike:
    Joshi et al. 2020 (SpanBERT), section 3.1. The first of the two keys tells which, the second
    draws the random tokens.
    """
    uniform_bl = philox.uniform(keys_bs2[:, 0], rows.tokens.shape[1])
    if by_span:
        run_bl = np.cumsum(run_starts(mask & valid_positions(rows)), axis=1)
        uniform_bl = np.take_along_axis(uniform_bl, np.maximum(run_bl - 1, 0), axis=1)
    masked = noise_to_mask(rows, mask & (uniform_bl < np.float32(mask_share)), sentinels)
    is_random_bl = uniform_bl >= np.float32(1 - random_share)
    return noise_to_random_token(masked, mask & is_random_bl, sentinels, keys_bs2[:, 1])


def valid_positions(rows: Rows) -> Mask:
    """Return where a row has tokens: [batch, length]."""
    return np.arange(rows.tokens.shape[1]) < rows.lengths[:, None]


def run_starts(noise_bl: Mask) -> Mask:
    """Return where a run of noise begins: [batch, length]."""
    starts_bl = noise_bl.copy()
    starts_bl[:, 1:] &= ~noise_bl[:, :-1]
    return starts_bl


def compact(values_bl: NDArray[np.integer], keep_bl: Mask) -> Rows:
    """Move each row's kept values to its front and zero the rest; the rows keep their width."""
    tokens_bl = np.zeros(values_bl.shape, np.int32)
    lengths_b = np.count_nonzero(keep_bl, axis=1).astype(np.int32)
    tokens_bl[np.arange(values_bl.shape[1]) < lengths_b[:, None]] = values_bl[keep_bl]
    return Rows(tokens_bl, lengths_b)
