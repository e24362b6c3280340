"""Where a token stands: T5's relative bias with its buckets, and rotary positions."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.layers import fan_average_uniform, weight


def relative_position_buckets(
    query_positions: np.ndarray,
    key_positions: np.ndarray,
    *,
    bidirectional: bool,
    num_buckets: int = 32,
    max_distance: int = 128,
) -> np.ndarray:
    """Bucket of each (query, key) pair, int32 [query, key], computed in NumPy at trace time.

    Short distances have a bucket each, longer ones share logarithmically growing buckets. Looking
    both ways, half of the buckets serve keys ahead of the query (T5 paper, section 2.1; the bucket
    edges round differently in float32 on accelerators, hence NumPy's float64 here).
    """
    behind = query_positions[:, None] - key_positions[None, :]
    buckets = np.zeros_like(behind)
    if bidirectional:
        num_buckets //= 2
        buckets = np.where(behind < 0, num_buckets, 0)
        behind = np.abs(behind)
    behind = np.maximum(behind, 0)
    num_exact = num_buckets // 2
    # Powers of two land exactly on an edge; the small term keeps log's rounding from losing them.
    log_ratio = np.log(np.maximum(behind, 1) / num_exact) / np.log(max_distance / num_exact)
    coarse = num_exact + np.trunc(log_ratio * (num_buckets - num_exact) + 1e-9).astype(np.int64)
    coarse = np.minimum(coarse, num_buckets - 1)
    return (buckets + np.where(behind < num_exact, behind, coarse)).astype(np.int32)


class RelativePositionBias(nnx.Module):
    """A learned [heads, buckets] table added to attention scores; one a stack, or one a layer.

    Uniform with standard deviation sqrt(2 / (heads + buckets)).
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        shape = [config.num_heads, config.relpos_num_buckets]
        self.rel_embedding = weight(fan_average_uniform, shape, ("heads", "relpos_buckets"), rngs)
        self.config = config

    def __call__(self, query_length: int, key_length: int, *, bidirectional: bool) -> jax.Array:
        """Bias [1, heads, query, key] in float32 for positions 0, 1, 2, ..."""
        buckets_qk = relative_position_buckets(
            np.arange(query_length),
            np.arange(key_length),
            bidirectional=bidirectional,
            num_buckets=self.config.relpos_num_buckets,
            max_distance=self.config.relpos_max_distance,
        )
        return jnp.take(self.rel_embedding[...], buckets_qk, axis=1)[None]

    def from_place(
        self, first: jax.Array, query_length: int, key_length: int, *, bidirectional: bool
    ) -> jax.Array:
        """The rows of `__call__` from query `first` on, which only the running program knows."""
        buckets_d = relative_position_buckets(
            np.arange(key_length - 1, -key_length, -1),  # how far behind the query a key is
            np.zeros(1, int),
            bidirectional=bidirectional,
            num_buckets=self.config.relpos_num_buckets,
            max_distance=self.config.relpos_max_distance,
        )[:, 0]
        place_q = first + jnp.arange(query_length)
        place_qk = key_length - 1 - place_q[:, None] + jnp.arange(key_length)
        return jnp.take(self.rel_embedding[...], jnp.asarray(buckets_d)[place_qk], axis=1)[None]


def rotate(x_blhd: jax.Array, positions_bl: jax.Array, theta: float) -> jax.Array:
    """Rotary positions (Su et al. 2021): the halves of each head turned by position * frequency.

    Dimension i of the first half turns together with i of the second, by theta**(-2i / head_dim)
    a position (the pairing of LLaMA's public weights). Angles in float32.
    """
    half = x_blhd.shape[-1] // 2
    frequencies_d = theta ** -(jnp.arange(half, dtype=jnp.float32) / half)
    angles_bl1d = positions_bl[..., None, None].astype(jnp.float32) * frequencies_d
    cosine, sine = jnp.cos(angles_bl1d), jnp.sin(angles_bl1d)
    first, second = jnp.split(x_blhd.astype(jnp.float32), 2, axis=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(turned, axis=-1).astype(x_blhd.dtype)
