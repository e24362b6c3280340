"""Counter-based random numbers (Philox4x32-10), vectorized over examples, equal to TensorFlow's.

A key is a pair of uint32 words and nothing is ever drawn from hidden state: the numbers of an
example depend on its key alone, whatever batch, host or order it is computed in.

Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), and the way in which
TensorFlow's stateless random operations make a Philox key and counter of a seed.
"""

import numpy as np
from numpy.typing import NDArray

UInt32s = NDArray[np.uint32]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_SCRAMBLING_KEY = np.array([0x3EC8F720, 0x02461E29], np.uint32)


def philox_4x32(counters: UInt32s, keys: UInt32s) -> UInt32s:
    """Return the Philox4x32-10 block of each counter under its key.

    Shapes [..., 4] and [..., 2], broadcast against each other in the leading axes; the result is
    [..., 4].
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
    """Return `count` random words per key: uint32 [b, count].

    Row i equals `tf.random.stateless_uniform([count], seed, None, None, tf.int32)` with seed the
    int32 view of key i. A longer draw begins with the shorter one.
    """
    streams_b4 = _scramble(keys_b2)
    blocks = -(-count // 4)
    counters_bk4 = np.zeros((len(keys_b2), blocks, 4), np.uint32)
    counters_bk4[:, :, 0] = np.arange(blocks, dtype=np.uint32)
    counters_bk4[:, :, 2:] = streams_b4[:, None, 2:]
    bits_bk4 = philox_4x32(counters_bk4, streams_b4[:, None, :2])
    return bits_bk4.reshape(len(keys_b2), 4 * blocks)[:, :count]


def uniform(keys_b2: UInt32s, count: int) -> NDArray[np.float32]:
    """Return `count` float32 numbers in [0, 1) per key: [b, count].

    Row i equals `tf.random.stateless_uniform([count], seed)`: the low 23 bits of each word become
    the mantissa of a number in [1, 2), from which 1 is subtracted.
    """
    words = mantissas(keys_b2, count) | np.uint32(0x3F800000)
    return words.view(np.float32) - np.float32(1)


def mantissas(keys_b2: UInt32s, count: int) -> UInt32s:
    """Return the 23-bit integers `uniform` is made of, in the same order: uint32 [b, count]."""
    return random_bits(keys_b2, count) & np.uint32(0x7FFFFF)


def split(keys_b2: UInt32s, count: int) -> UInt32s:
    """Return `count` new keys per key: uint32 [b, count, 2], as `stateless_split` of TensorFlow."""
    return random_bits(keys_b2, 2 * count).reshape(len(keys_b2), count, 2)


def fold_in(keys_b2: UInt32s, data: int) -> UInt32s:
    """Return one new key per key that depends on the number `data` too: uint32 [b, 2]."""
    counter = np.array([data & 0xFFFFFFFF, data >> 32 & 0xFFFFFFFF, 0, 0], np.uint32)
    return philox_4x32(counter, keys_b2)[:, :2]


def example_keys(
    seed: int, stream: int, epoch_b: NDArray[np.integer], index_b: NDArray[np.integer]
) -> UInt32s:
    """Return the key of each example of a stream: uint32 [b, 2].

    `seed` is the run's (64 bits), `stream` tells the tasks of one run apart (32 bits), `epoch_b`
    and `index_b` say which pass and which example. Nothing else enters, so all hosts agree.
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
    """Return TensorFlow's (key, counter's upper half) of each seed, side by side: uint32 [b, 4].

    A seed word is an int32 that TensorFlow widens with its sign, hence the words of ones.
    """
    counters_b4 = np.zeros((len(keys_b2), 4), np.uint32)
    counters_b4[:, 0::2] = keys_b2
    counters_b4[:, 1::2] = np.where(np.asarray(keys_b2) >> np.uint32(31), 0xFFFFFFFF, 0)
    return philox_4x32(counters_b4, _SCRAMBLING_KEY)
