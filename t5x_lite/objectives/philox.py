"""Counter-based random numbers (Philox4x32-10), vectorized over examples, equal to TensorFlow's.

A key is a pair of uint32 words, and there is no hidden state: the numbers of an example depend on
its key only, not on the batch, host or order in which they are computed.

Source: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3", and TensorFlow's
stateless random operations, which derive a Philox key and counter from a seed.

Array names: b keys (examples), k blocks of four words, l positions.
"""

import numpy as np
from numpy.typing import NDArray

UInt32s = NDArray[np.uint32]

# Constants of Philox4x32-10 (Salmon et al. 2011): multipliers, key increments, rounds.
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
# TensorFlow's constant key, under which a seed becomes a key and the upper half of a counter.
_SCRAMBLING_KEY = np.array([0x3EC8F720, 0x02461E29], np.uint32)


def philox_4x32(counters: UInt32s, keys: UInt32s) -> UInt32s:
    """Compute Philox4x32-10.

    Args:
        counters: Counters, uint32 [..., 4].
        keys: Keys, uint32 [..., 2]; leading axes are broadcast against those of `counters`.

    Returns:
        Random words, uint32 [..., 4].
    """
    c0, c1, c2, c3 = np.moveaxis(counters.astype(np.uint64), -1, 0)
    k0, k1 = np.moveaxis(keys.astype(np.uint64), -1, 0)
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ k0,
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0, k1 = (k0 + np.uint64(_WEYL[0])) & _LOW, (k1 + np.uint64(_WEYL[1])) & _LOW
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1).astype(np.uint32)


def random_bits(keys_b2: UInt32s, count: int) -> UInt32s:
    """Draw random words.

    Row i equals `tf.random.stateless_uniform([count], seed, None, None, tf.int32)`, where the seed
    is the int32 view of key i. The first words do not depend on `count`.

    Args:
        keys_b2: Keys, uint32 [b, 2].
        count: Number of words per key.

    Returns:
        uint32 [b, count].
    """
    streams_b4 = _scramble(keys_b2)
    blocks = -(-count // 4)
    counters_bk4 = np.zeros((len(keys_b2), blocks, 4), np.uint32)
    counters_bk4[:, :, 0] = np.arange(blocks, dtype=np.uint32)
    counters_bk4[:, :, 2:] = streams_b4[:, None, 2:]
    bits_bk4 = philox_4x32(counters_bk4, streams_b4[:, None, :2])
    return bits_bk4.reshape(len(keys_b2), 4 * blocks)[:, :count]


def uniform(keys_b2: UInt32s, count: int) -> NDArray[np.float32]:
    """Draw uniform numbers from [0, 1).

    Row i equals `tf.random.stateless_uniform([count], seed)`: the low 23 bits of each word become
    the mantissa of a number in [1, 2), from which 1 is subtracted.

    Args:
        keys_b2: Keys, uint32 [b, 2].
        count: Number of values per key.

    Returns:
        float32 [b, count].
    """
    words = mantissas(keys_b2, count) | np.uint32(0x3F800000)
    return words.view(np.float32) - np.float32(1)


def mantissas(keys_b2: UInt32s, count: int) -> UInt32s:
    """Draw the 23-bit integers that `uniform` is made of; they have the same order.

    Args:
        keys_b2: Keys, uint32 [b, 2].
        count: Number of integers per key.

    Returns:
        uint32 [b, count].
    """
    return random_bits(keys_b2, count) & np.uint32(0x7FFFFF)


def random_order(
    keys_b2: UInt32s, counts_b: NDArray[np.integer], max_count: int
) -> NDArray[np.int64]:
    """Draw a random permutation of 0 ... n - 1 for each key.

    Equals a stable argsort of `uniform(keys_b2, max_count)` over the first n values.

    Args:
        keys_b2: Keys, uint32 [b, 2].
        counts_b: n of each row [b].
        max_count: Width of the result, at least the largest n.

    Returns:
        int64 [b, max_count]: a permutation of the indices below n, then the others in order.
    """
    # One sort of 64-bit words, random number above and index below, is faster than an argsort.
    words_bl = mantissas(keys_b2, max_count).astype(np.uint64)
    words_bl[np.arange(max_count) >= np.asarray(counts_b)[:, None]] = _LOW  # sorted to the end
    words_bl = words_bl << _SHIFT | np.arange(max_count, dtype=np.uint64)
    words_bl.sort(axis=1)
    return (words_bl & _LOW).astype(np.int64)


def split(keys_b2: UInt32s, count: int) -> UInt32s:
    """Derive new keys, as TensorFlow's `stateless_split`.

    Args:
        keys_b2: Keys, uint32 [b, 2].
        count: Number of new keys per key.

    Returns:
        uint32 [b, count, 2].
    """
    return random_bits(keys_b2, 2 * count).reshape(len(keys_b2), count, 2)


def fold_in(keys_b2: UInt32s, data: int) -> UInt32s:
    """Derive a key from each key and a number.

    Args:
        keys_b2: Keys, uint32 [b, 2].
        data: The number, up to 64 bits.

    Returns:
        uint32 [b, 2].
    """
    counter = np.array([data & 0xFFFFFFFF, data >> 32 & 0xFFFFFFFF, 0, 0], np.uint32)
    return philox_4x32(counter, keys_b2)[:, :2]


def example_keys(
    seed: int, stream: int, epoch_b: NDArray[np.integer], index_b: NDArray[np.integer]
) -> UInt32s:
    """Derive the keys of examples, which therefore are the same on all hosts.

    Args:
        seed: Seed of the run, up to 64 bits.
        stream: Number of the task, up to 32 bits.
        epoch_b: Epoch of each example [b].
        index_b: Index of each example within the task [b].

    Returns:
        Keys, uint32 [b, 2].
    """
    index_b = np.asarray(index_b, np.uint64)
    counters_b4 = np.empty((len(index_b), 4), np.uint32)
    counters_b4[:, 0] = index_b & _LOW
    counters_b4[:, 1] = index_b >> _SHIFT
    counters_b4[:, 2] = np.asarray(epoch_b, np.uint64) & _LOW
    counters_b4[:, 3] = stream & 0xFFFFFFFF
    key = np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], np.uint32)
    return philox_4x32(counters_b4, key)[:, :2]


def _scramble(keys_b2: UInt32s) -> UInt32s:
    """Derive TensorFlow's (key, upper half of the counter) from each seed, uint32 [b, 4].

    TensorFlow sign-extends the int32 words of a seed to 64 bits, hence the words of ones.
    """
    counters_b4 = np.zeros((len(keys_b2), 4), np.uint32)
    counters_b4[:, 0::2] = keys_b2
    counters_b4[:, 1::2] = np.where(np.asarray(keys_b2) >> np.uint32(31), 0xFFFFFFFF, 0)
    return philox_4x32(counters_b4, _SCRAMBLING_KEY)
