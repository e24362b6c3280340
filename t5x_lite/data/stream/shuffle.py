"""Decide the order of training examples: which task is drawn next, and how each epoch is shuffled.

Every choice is a function of the seed and of a number (the window, the draw, the epoch). Nothing is
shuffled in a buffer and no state is kept, so any position of a run of any length is reached at
once, on any host.

The last section computes the order and the random numbers of seqio's unshuffled pipeline instead,
for comparisons with seqio.
"""

import functools
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.stream import numba_loader
from t5x_lite.objectives import philox

# What a mixture does with a task whose examples are exhausted: start it again, end the run, or
# continue with the other tasks.
Exhaustion = Literal["repeat", "stop", "renormalize"]

# Examples that a first epoch shuffles together if it starts before the store is complete.
BLOCK_EXAMPLES = 1 << 14

# Folded into keys, so that no two uses of one seed share random numbers.
_TASK_DRAWS, _ROW_ORDER, _EPOCH_ORDER, _BLOCK_ORDER = 1, 2, 3, 4

_FEISTEL_ROUNDS = 8


def draw_tasks(
    rates: NDArray[np.floating],
    window: int,
    *,
    seed: int,
    count: int,
    remaining: NDArray[np.int64] | None = None,
    on_task_exhausted: Exhaustion = "repeat",
) -> NDArray[np.int64]:
    """Draw the task of each example of a window, independently and in proportion to the rates.

        rates [3, 1], count 8      ->   for example       0 0 1 0 0 0 1 0
        remaining [4, 9]           ->   "stop"            0 0 1 0 0
                                        "renormalize"     0 0 1 0 0 1 1 1

    Args:
        rates: the rate of each task [tasks], in any unit.
        window: the number of the window, which decides its random numbers together with the seed.
        seed: of the run.
        count: how many examples a window has.
        remaining: how many more examples each task can give [tasks]; None: without limit.
        on_task_exhausted: what happens where a task without examples is drawn: "stop" ends the
            window there, "renormalize" draws from there on among the other tasks.

    Returns:
        The index of the task of each example: int64 [n], with n <= count.
    """
    if len(rates) == 1:
        return np.zeros(count if remaining is None else min(count, remaining[0]), np.int64)
    uniforms_n = _window_bits(window, seed, _TASK_DRAWS, count) * 2.0**-32
    rates = np.array(rates, np.float64)
    task_n = _inverse_cdf(rates, uniforms_n)
    if remaining is None or on_task_exhausted == "repeat":
        return task_n
    while True:
        # For each task, the first draw beyond its remaining examples, if there is one.
        excess = [
            np.flatnonzero(task_n == task)[limit:][:1] for task, limit in enumerate(remaining)
        ]
        if not (draws := np.concatenate(excess)).size:
            return task_n
        first = int(draws.min())
        rates[task_n[first]] = 0
        if on_task_exhausted == "stop" or not rates.any():
            return task_n[:first]
        # The same uniform numbers under the new rates: the draws before `first` do not change.
        task_n[first:] = _inverse_cdf(rates, uniforms_n[first:])


def shuffle_rows(count: int, window: int, *, seed: int) -> NDArray[np.int64]:
    """Return a random permutation of the `count` rows of a window: int64 [count]."""
    return np.argsort(_window_bits(window, seed, _ROW_ORDER, count), kind="stable")


def shuffled_examples(
    draws_n: NDArray[np.int64], size: int, *, seed: int, stream: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which epoch and which example each draw of a task is.

    Draws 0 ... size - 1 are the first epoch, the next `size` draws the second, and so on. Each
    epoch contains every example once, in a random order of its own:

        size 4, draws 0 ... 9   ->   epochs   0 0 0 0 1 1 1 1 2 2
                                     examples 2 0 3 1 0 1 3 2 1 2   (for example)

    Args:
        draws_n: numbers of draws of this task, from 0 [n].
        size: how many examples the task has.
        seed: of the run.
        stream: distinguishes the tasks of a run (`data.stream.examples.random_stream`).

    Returns:
        The epoch and the index of the example of each draw: int64 [n] each.
    """
    epoch_n, index_n = np.divmod(np.asarray(draws_n, np.int64), size)
    epochs_u, inverse_n = np.unique(epoch_n, return_inverse=True)
    if len(epochs_u) <= 2:  # the usual case, served from a cache
        keys = [_cached_round_keys(seed, stream, epoch) for epoch in epochs_u.tolist()]
        round_keys_ur = np.array(keys, np.uint64).reshape(len(keys), _FEISTEL_ROUNDS)
    else:
        round_keys_ur = _round_keys(seed, stream, epochs_u)
    return epoch_n, permute(index_n, size, round_keys_nr=round_keys_ur[inverse_n])


def round_up_to_block(draws: int) -> int:
    """Return how many examples must be available for `block_shuffled_examples` of this many draws.

    BLOCK_EXAMPLES 4, draws 6   ->   8
    """
    return -(-draws // BLOCK_EXAMPLES) * BLOCK_EXAMPLES


def block_shuffled_examples(
    draws_n: NDArray[np.int64], available: int, *, seed: int, stream: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return what `shuffled_examples` does, for a task whose store is still being written.

    The first epoch takes blocks of `BLOCK_EXAMPLES` examples in the order of the store and shuffles
    within each block. Later epochs are those of `shuffled_examples`. With blocks of 4:

        size 6, draws 0 ... 11   ->   epochs   0 0 0 0 0 0 1 1 1 1 1 1
                                      examples 2 0 3 1 5 4 3 1 5 0 2 4   (for example)

    Args:
        draws_n: numbers of draws of this task, from 0 [n].
        available: how many examples can be read: all, or at least `round_up_to_block` of the last
            draw. The result does not depend on which.
        seed: of the run.
        stream: distinguishes the tasks of a run.

    Returns:
        The epoch and the index of the example of each draw: int64 [n] each.
    """
    epoch_n, index_n = np.divmod(np.asarray(draws_n, np.int64), available)
    if len(later := np.flatnonzero(epoch_n)):
        index_n[later] = shuffled_examples(draws_n[later], available, seed=seed, stream=stream)[1]
    block_n = np.where(epoch_n == 0, index_n // BLOCK_EXAMPLES, -1)
    for block in np.unique(block_n[block_n >= 0]).tolist():
        rows, begin = np.flatnonzero(block_n == block), block * BLOCK_EXAMPLES
        round_keys_nr = np.tile(_cached_round_keys(seed, stream, 0, block), (len(rows), 1))
        size = min(BLOCK_EXAMPLES, available - begin)  # only a store's last block is smaller
        index_n[rows] = begin + permute(index_n[rows] - begin, size, round_keys_nr=round_keys_nr)
    return epoch_n, index_n


def permute(
    index_n: NDArray[np.int64], size: int, *, round_keys_nr: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Apply a keyed pseudorandom permutation of [0, size) to each index.

    It is a Feistel network over pairs of digits (left < a, right < b), where a * b is `size` or
    slightly more. A result outside [0, size) is permuted again until it is inside (cycle walking),
    which keeps the map a bijection.

    Args:
        index_n: indices in [0, size) [n].
        size: of the permuted range.
        round_keys_nr: the key of each index's permutation, one word a round [n, rounds].

    Returns:
        The permuted indices: int64 [n].

    Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002), sections 4
    and 5.
    """
    left_size = math.isqrt(size - 1) + 1
    right_size = -(-size // left_size)
    if (kernels := numba_loader.kernels()) is not None:
        permuted_n = np.empty(len(index_n), np.int64)
        sizes = (np.uint64(number) for number in (size, left_size, right_size))
        kernels.permute(index_n, *sizes, round_keys_nr, permuted_n)
        return permuted_n
    result_n = _feistel(index_n.astype(np.uint64), left_size, right_size, round_keys_nr)
    while len(outside := np.flatnonzero(result_n >= size)):
        result_n[outside] = _feistel(
            result_n[outside], left_size, right_size, round_keys_nr[outside]
        )
    return result_n.astype(np.int64)


def _feistel(
    value_n: NDArray[np.uint64],
    left_size: int,
    right_size: int,
    round_keys_nr: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    """Apply all rounds once; the result is in [0, left_size * right_size)."""
    left_n, right_n = np.divmod(value_n, np.uint64(right_size))
    for number in range(0, _FEISTEL_ROUNDS, 2):
        left_n = (left_n + _mix(right_n + round_keys_nr[:, number])) % np.uint64(left_size)
        right_n = (right_n + _mix(left_n + round_keys_nr[:, number + 1])) % np.uint64(right_size)
    return left_n * np.uint64(right_size) + right_n


def _mix(value_n: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 63 well mixed bits of each value: the finalizer of SplitMix64 (Steele et al. 2014).

    The top bit is dropped so that adding a digit to the result cannot overflow.
    """
    value_n = (value_n ^ value_n >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    value_n = (value_n ^ value_n >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return (value_n ^ value_n >> np.uint64(31)) >> np.uint64(1)


def _round_keys(
    seed: int, stream: int, epochs_u: NDArray[np.int64], block: int | None = None
) -> NDArray[np.uint64]:
    """Return the round keys of each epoch's permutation, or of one of its blocks: [u, rounds]."""
    block_u = np.full_like(epochs_u, block or 0)
    keys_u2 = philox.example_keys(seed, stream, epochs_u, block_u)
    keys_u2 = philox.fold_in(keys_u2, _EPOCH_ORDER if block is None else _BLOCK_ORDER)
    words_uw = philox.random_bits(keys_u2, 2 * _FEISTEL_ROUNDS).astype(np.uint64)
    return words_uw[:, ::2] << np.uint64(32) | words_uw[:, 1::2]  # two words of 32 bits a key


@functools.lru_cache(4096)
def _cached_round_keys(
    seed: int, stream: int, epoch: int, block: int | None = None
) -> NDArray[np.uint64]:
    """Return the round keys of one epoch or block [rounds]; many windows in a row need the same."""
    return _round_keys(seed, stream, np.array([epoch]), block)[0]


def _inverse_cdf(rates: NDArray[np.float64], uniforms_n: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the task whose interval of the cumulative rates contains each uniform number: [n]."""
    ends = np.cumsum(rates)
    return np.searchsorted(ends / ends[-1], uniforms_n, side="right")


def _window_bits(window: int, seed: int, purpose: int, count: int) -> NDArray[np.uint32]:
    """Return `count` random words of a window, different ones for each purpose: [count]."""
    if (kernels := numba_loader.kernels()) is None:
        key_12 = philox.example_keys(seed, 0, np.zeros(1, np.int64), np.array([window]))
        return philox.random_bits(philox.fold_in(key_12, purpose), count)[0]
    bits_n = np.empty(count + 3, np.uint32)  # the kernel writes whole blocks of four words
    words = (np.uint64(number & 0xFFFFFFFFFFFFFFFF) for number in (seed, window, purpose))
    kernels.window_bits(*words, count, bits_n)
    return bits_n[:count]


# The order and the random numbers of seqio (0.0.20) with shuffle=False.

_TF_GRAPH_SEED = 87654321  # TensorFlow's default where nobody calls tf.random.set_seed
_TF_SCRAMBLING_KEY = np.array([0x3EC8F720, 0x02461E29], np.uint32)
# seqio gives the first random step after the cache placeholder, which is preprocessor number 2 of
# our text tasks, the seed `seed + 42 * 2`. T5's own pipeline has two such steps before it corrupts
# (cutting documents above 65,536 tokens, cutting chunks), and each takes two seeds.
_SEQIO_CACHE_STEP = 2
_SEQIO_SEEDS_BEFORE = 4


def seqio_noise_keys(seed: int, number_n: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return the keys with which seqio corrupts chunks of text, by their number in the task.

    Args:
        seed: the seed that `seqio.get_dataset` is given.
        number_n: numbers of chunks, from 0 [n].

    Returns:
        The pairs of seeds of T5's `denoise`: uint32 [n, 2].
    """
    first = seed + 42 * _SEQIO_CACHE_STEP + _SEQIO_SEEDS_BEFORE
    return np.stack([_tf_random_words(first + half, number_n) for half in (0, 1)], axis=1)


def seqio_mixture_tasks(
    rates: NDArray[np.floating], row_n: NDArray[np.int64], *, seed: int
) -> NDArray[np.int64]:
    """Return the task from which seqio takes each row of a mixture of endless tasks.

    This is `tf.data.Dataset.sample_from_datasets`, whose choice for row n is a stateless
    categorical draw with a seed from the random dataset of the op.

    Args:
        rates: the rate of each task [tasks], in any unit.
        row_n: numbers of rows, from 0 [n].
        seed: the seed that `seqio.get_dataset` is given.

    Returns:
        The index of the task of each row: int64 [n].
    """
    if len(rates) == 1:
        return np.zeros(len(row_n), np.int64)
    # A row's seed is two int64 of which the random dataset sets the lower halves.
    seeds_n4 = np.zeros((len(row_n), 4), np.uint32)
    seeds_n4[:, 0] = _tf_random_words(seed, 2 * row_n)
    seeds_n4[:, 2] = _tf_random_words(seed, 2 * row_n + 1)
    # TensorFlow scrambles a seed into a Philox key (words 0, 1) and a counter (words 2, 3).
    streams_n4 = philox.philox_4x32(seeds_n4, _TF_SCRAMBLING_KEY)
    counters_n4 = np.zeros_like(streams_n4)
    counters_n4[:, 2:] = streams_n4[:, 2:]
    bits_n4 = philox.philox_4x32(counters_n4, streams_n4[:, :2]).astype(np.uint64)
    # A float64 in [0, 1): 52 random bits of mantissa with the exponent of [1, 2), minus 1.
    mantissa_n = (bits_n4[:, 0] & np.uint64(0xFFFFF)) << np.uint64(32) | bits_n4[:, 1]
    uniform_n = (mantissa_n | np.uint64(1023 << 52)).view(np.float64) - 1
    # The inverse CDF, with logits in float32 and sums in float64 as in TensorFlow's kernel.
    logits = np.log(np.asarray(rates, np.float32))
    ends = np.cumsum(np.exp((logits - logits.max()).astype(np.float64)))
    return np.searchsorted(ends, uniform_n * ends[-1], side="right")


def _tf_random_words(seed: int, number_n: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return elements of `tf.data.Dataset.random(seed)` by their number: uint32 [n]."""
    counters_n4 = np.zeros((len(number_n), 4), np.uint32)
    counters_n4[:, 0] = number_n // 4  # a Philox block is four elements
    counters_n4[:, 2] = seed
    blocks_n4 = philox.philox_4x32(counters_n4, np.array([_TF_GRAPH_SEED, 0], np.uint32))
    return blocks_n4[np.arange(len(number_n)), number_n % 4]
