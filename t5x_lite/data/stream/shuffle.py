"""In which order examples are seen: the draws of a mixture, a new permutation for every epoch.

Everything is addressed by number: nothing is shuffled in a buffer and no state is kept, so any
place of a run of any length is reached at once, on any host.
"""

import functools
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.stream import numba_loader
from t5x_lite.objectives import philox

_GRAPH_SEED = 87654321  # TensorFlow's where nobody sets one
_SCRAMBLING_KEY = np.array([0x3EC8F720, 0x02461E29], np.uint32)
_CACHE_STEP = 2
_SEEDS_BEFORE = 4  # two for cutting documents above 65,536 tokens, two for cutting pieces


def seqio_noise_keys(seed: int, numbers_n: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return the key by which seqio corrupts the n-th piece of a task: uint32 [n, 2]."""
    first = seed + 42 * _CACHE_STEP + _SEEDS_BEFORE
    return np.stack([_words(first + half, numbers_n) for half in (0, 1)], axis=1)


def seqio_mixture_tasks(
    shares: NDArray[np.floating], rows_n: NDArray[np.int64], *, seed: int
) -> NDArray[np.int64]:
    """Return the task from which seqio takes each row of a mixture, for tasks that do not end."""
    if len(shares) == 1:
        return np.zeros(len(rows_n), np.int64)
    seeds_n4 = np.zeros((len(rows_n), 4), np.uint32)  # two int64, the lower halves first
    seeds_n4[:, 0], seeds_n4[:, 2] = _words(seed, 2 * rows_n), _words(seed, 2 * rows_n + 1)
    streams_n4 = philox.philox_4x32(seeds_n4, _SCRAMBLING_KEY)
    counters_n4 = np.zeros_like(streams_n4)
    counters_n4[:, 2:] = streams_n4[:, 2:]
    bits_n4 = philox.philox_4x32(counters_n4, streams_n4[:, :2]).astype(np.uint64)
    mantissas_n = (bits_n4[:, 0] & np.uint64(0xFFFFF)) << np.uint64(32) | bits_n4[:, 1]
    uniforms_n = (mantissas_n | np.uint64(1023 << 52)).view(np.float64) - 1
    logits = np.log(np.asarray(shares, np.float32))
    ends = np.cumsum(np.exp((logits - logits.max()).astype(np.float64)))
    return np.searchsorted(ends, uniforms_n * ends[-1], side="right")


def _words(seed: int, places_n: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return elements of TensorFlow's `Dataset.random(seed)`."""
    counters_n4 = np.zeros((len(places_n), 4), np.uint32)
    counters_n4[:, 0] = places_n // 4
    counters_n4[:, 2] = seed
    blocks_n4 = philox.philox_4x32(counters_n4, np.array([_GRAPH_SEED, 0], np.uint32))
    return blocks_n4[np.arange(len(places_n)), places_n % 4]


# What a mixture does about a task that has no more examples: begin it anew, end, go on without it.
Exhaustion = Literal["repeat", "stop", "renormalize"]

BLOCK_EXAMPLES = 1 << 14  # examples of a first epoch that begins before all are there

# What a key is folded with, so that no two uses of one seed share random numbers.
_MIXTURE, _ROWS, _EPOCH, _BLOCK = 1, 2, 3, 4
_ROUNDS = 8


def draw_tasks(
    shares: NDArray[np.floating],
    window: int,
    *,
    seed: int,
    count: int,
    left: NDArray[np.int64] | None = None,
    on_task_exhausted: Exhaustion = "repeat",
) -> NDArray[np.int64]:
    """Return the task of each of a window's `count` examples: numbers in [0, len(shares)).

    `shares` are the tasks' rates in any unit; each example is drawn by itself. `left` is how many
    more examples each task has to give. Where one without any is drawn, the window ends ("stop"),
    or the draws from there on are made among the others ("renormalize"):

        shares [3, 1], count 8   ->   e.g.              0 0 1 0 0 0 1 0
        left [4, 9]              ->   "stop"            0 0 1 0 0
                                      "renormalize"     0 0 1 0 0 1 1 1
    """
    if len(shares) == 1:
        return np.zeros(count if left is None else min(count, left[0]), np.int64)
    uniforms = _window_bits(window, seed, _MIXTURE, count) * 2.0**-32
    shares = np.array(shares, np.float64)
    task_n = _pick(shares, uniforms)
    if left is None or on_task_exhausted == "repeat":
        return task_n
    while True:
        ended = [np.flatnonzero(task_n == task)[most:][:1] for task, most in enumerate(left)]
        if not (places := np.concatenate(ended)).size:
            return task_n
        first = int(places.min())
        shares[task_n[first]] = 0
        if on_task_exhausted == "stop" or not shares.any():
            return task_n[:first]
        task_n[first:] = _pick(shares, uniforms[first:])


def shuffle_rows(count: int, window: int, *, seed: int) -> NDArray[np.int64]:
    """Return a random order of a window's `count` rows."""
    return np.argsort(_window_bits(window, seed, _ROWS, count), kind="stable")


def shuffled_examples(
    draws_n: NDArray[np.int64], size: int, *, seed: int, stream: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the epoch and the example that a task's k-th draw stands for, for each k in `draws_n`.

    A task has `size` examples; draws 0 ... size - 1 are its first epoch and meet each example once,
    in an order of that epoch's own:

        size 4, draws 0 ... 9   ->   epochs   0 0 0 0 1 1 1 1 2 2
                                     examples 2 0 3 1 0 1 3 2 1 2   (for instance)

    `stream` tells the tasks of one run apart.
    """
    epochs_n, places_n = np.divmod(np.asarray(draws_n, np.int64), size)
    epochs_u, epoch_of_n = np.unique(epochs_n, return_inverse=True)
    if len(epochs_u) <= 2:
        keys = [_epoch_keys(seed, stream, epoch) for epoch in epochs_u.tolist()]
        round_keys_ur = np.array(keys, np.uint64).reshape(len(keys), _ROUNDS)
    else:
        round_keys_ur = _round_keys(seed, stream, epochs_u)
    return epochs_n, permute(places_n, size, round_keys_nr=round_keys_ur[epoch_of_n])


def round_up_to_block(draws: int) -> int:
    """Return how many examples must be known for so many draws of `block_shuffled_examples`."""
    return -(-draws // BLOCK_EXAMPLES) * BLOCK_EXAMPLES


def block_shuffled_examples(
    draws_n: NDArray[np.int64], known: int, *, seed: int, stream: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the same as `shuffled_examples` for a task that need not be there as a whole yet.

    Its first epoch takes blocks of examples as they lie, shuffled each for itself; later epochs are
    those of `shuffled_examples`. `known` is as many examples as `round_up_to_block` says, or all.
    With blocks of 4:

        size 6, draws 0 ... 11   ->   epochs   0 0 0 0 0 0 1 1 1 1 1 1
                                      examples 2 0 3 1 5 4 3 1 5 0 2 4   (for instance)
    """
    epochs_n, indices_n = np.divmod(np.asarray(draws_n, np.int64), known)
    if len(later := np.flatnonzero(epochs_n)):
        indices_n[later] = shuffled_examples(draws_n[later], known, seed=seed, stream=stream)[1]
    blocks_n = np.where(epochs_n == 0, indices_n // BLOCK_EXAMPLES, -1)
    for block in np.unique(blocks_n[blocks_n >= 0]).tolist():
        own, begin = np.flatnonzero(blocks_n == block), block * BLOCK_EXAMPLES
        round_keys_nr = np.tile(_epoch_keys(seed, stream, 0, block), (len(own), 1))
        size = min(BLOCK_EXAMPLES, known - begin)
        indices_n[own] = begin + permute(indices_n[own] - begin, size, round_keys_nr=round_keys_nr)
    return epochs_n, indices_n


def _pick(shares: NDArray[np.float64], uniforms: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the task in whose part of [0, 1) each number lies."""
    ends = np.cumsum(shares)
    return np.searchsorted(ends / ends[-1], uniforms, side="right")


def permute(
    places_n: NDArray[np.int64], size: int, *, round_keys_nr: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Return where a keyed bijection of [0, size) takes each place; every place has its own key.

    A Feistel network over pairs of digits (left < a, right < b, where a * b is `size` or a little
    more), walked on from results that are not below `size`. Black and Rogaway, "Ciphers with
    Arbitrary Finite Domains" (CT-RSA 2002), sections 4 and 5.
    """
    left_size = math.isqrt(size - 1) + 1
    right_size = -(-size // left_size)
    if (kernels := numba_loader.kernels()) is not None:
        moved_n = np.empty(len(places_n), np.int64)
        sizes = (np.uint64(each) for each in (size, left_size, right_size))
        kernels.permute(places_n, *sizes, round_keys_nr, moved_n)
        return moved_n
    result_n = _feistel(places_n.astype(np.uint64), left_size, right_size, round_keys_nr)
    while len(outside := np.flatnonzero(result_n >= size)):
        result_n[outside] = _feistel(
            result_n[outside], left_size, right_size, round_keys_nr[outside]
        )
    return result_n.astype(np.int64)


def _feistel(
    values_n: NDArray[np.uint64],
    left_size: int,
    right_size: int,
    round_keys_nr: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    left_n, right_n = np.divmod(values_n, np.uint64(right_size))
    for number in range(0, _ROUNDS, 2):
        left_n = (left_n + _mix(right_n + round_keys_nr[:, number])) % np.uint64(left_size)
        right_n = (right_n + _mix(left_n + round_keys_nr[:, number + 1])) % np.uint64(right_size)
    return left_n * np.uint64(right_size) + right_n


def _mix(values_n: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 63 well mixed bits of each value: the finalizer of SplitMix64 (Steele et al. 2014).

    The top bit is dropped so that adding a digit to the result cannot overflow.
    """
    values_n = (values_n ^ values_n >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values_n = (values_n ^ values_n >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return (values_n ^ values_n >> np.uint64(31)) >> np.uint64(1)


def _round_keys(
    seed: int, stream: int, epochs_u: NDArray[np.int64], block: int | None = None
) -> NDArray[np.uint64]:
    """Return the keys of the rounds of each epoch's permutation, or of its block's: [u, rounds]."""
    places_u = np.full_like(epochs_u, block or 0)
    keys_u2 = philox.example_keys(seed, stream, epochs_u, places_u)
    keys_u2 = philox.fold_in(keys_u2, _EPOCH if block is None else _BLOCK)
    bits_ur = philox.random_bits(keys_u2, 2 * _ROUNDS).astype(np.uint64)
    return bits_ur[:, ::2] << np.uint64(32) | bits_ur[:, 1::2]


@functools.lru_cache(4096)
def _epoch_keys(seed: int, stream: int, epoch: int, block: int | None = None) -> NDArray[np.uint64]:
    """Return the same for one epoch, or block, which a task is in for many windows."""
    return _round_keys(seed, stream, np.array([epoch]), block)[0]


def _window_bits(window: int, seed: int, purpose: int, count: int) -> NDArray[np.uint32]:
    """Return a window's random words for one of its purposes."""
    if (kernels := numba_loader.kernels()) is None:
        key_12 = philox.example_keys(seed, 0, np.zeros(1, np.int64), np.array([window]))
        return philox.random_bits(philox.fold_in(key_12, purpose), count)[0]
    bits_n = np.empty(count + 3, np.uint32)  # it writes whole blocks of four
    numbers = (np.uint64(each & 0xFFFFFFFFFFFFFFFF) for each in (seed, window, purpose))
    kernels.window_bits(*numbers, count, bits_n)
    return bits_n[:count]
