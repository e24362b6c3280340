"""The order and the random numbers of seqio's own pipeline when it does not shuffle, by number.

seqio numbers random numbers by where they stand in its pipeline. For a task whose third step is the
cache placeholder and whose fourth is T5's span corruption, everything can be computed for any row
at once. It is there to be held against seqio; a run is better shuffled.

Sources: seqio's `map_over_dataset` and `Mixture`; TensorFlow's `Dataset.random` (Philox under the
key of a graph without seed) and `stateless_multinomial`.
"""

import numpy as np
from numpy.typing import NDArray

from t5x_lite.objectives import philox

_GRAPH_SEED = 87654321  # TensorFlow's where nobody sets one
_SCRAMBLING_KEY = np.array([0x3EC8F720, 0x02461E29], np.uint32)
_CACHE_STEP = 2
_SEEDS_BEFORE = 4  # two for cutting documents above 65,536 tokens, two for cutting pieces


def noise_keys(seed: int, numbers_n: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return the key by which seqio corrupts the n-th piece of a task: uint32 [n, 2]."""
    first = seed + 42 * _CACHE_STEP + _SEEDS_BEFORE
    return np.stack([_words(first + half, numbers_n) for half in (0, 1)], axis=1)


def mixture_tasks(
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
