"""Positions in attention: T5's relative position bias, and rotary embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.layers import fan_average_uniform, make_param


def relative_position_buckets(
    query_positions: np.ndarray,
    key_positions: np.ndarray,
    *,
    bidirectional: bool,
    num_buckets: int = 32,
    max_distance: int = 128,
) -> np.ndarray:
    """Return the bucket of each (query, key) pair (T5 paper, section 2.1).

    Half of the buckets stand for one short distance each, the others for ranges of distances that
    grow logarithmically up to `max_distance`. Computed in NumPy's float64 at trace time: on
    accelerators the bucket edges would be rounded differently in float32.

    Args:
        query_positions: Positions [query].
        key_positions: Positions [key].
        bidirectional: Whether keys after the query have buckets of their own (half of all), as in
            an encoder. Otherwise they share the bucket of distance 0.
        num_buckets: Number of buckets.
        max_distance: Distance from which on all keys share the last bucket.

    Returns:
        int32 [query, key].
    """
    distance_qk = query_positions[:, None] - key_positions[None, :]  # positive: key before query
    offset_qk = np.zeros_like(distance_qk)
    if bidirectional:
        num_buckets //= 2
        offset_qk = np.where(distance_qk < 0, num_buckets, 0)
        distance_qk = np.abs(distance_qk)
    distance_qk = np.maximum(distance_qk, 0)
    num_exact = num_buckets // 2
    # Powers of two are exactly on an edge; 1e-9 keeps the rounding of log from moving them below.
    log_ratio = np.log(np.maximum(distance_qk, 1) / num_exact) / np.log(max_distance / num_exact)
    log_bucket = np.trunc(log_ratio * (num_buckets - num_exact) + 1e-9).astype(np.int64)
    coarse_qk = np.minimum(num_exact + log_bucket, num_buckets - 1)
    bucket_qk = np.where(distance_qk < num_exact, distance_qk, coarse_qk)
    return (offset_qk + bucket_qk).astype(np.int32)


class RelativePositionBias(nnx.Module):
    """T5's learned bias of attention scores, a table [heads, buckets]; one per stack or per layer.

    Initialized uniformly with standard deviation sqrt(2 / (heads + buckets)), as in T5X.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        shape = [config.num_heads, config.relpos_num_buckets]
        self.rel_embedding = make_param(
            fan_average_uniform, shape, ("heads", "relpos_buckets"), rngs
        )
        self.config = config

    def __call__(self, query_length: int, key_length: int, *, bidirectional: bool) -> jax.Array:
        """Return the bias of queries and keys at positions 0, 1, 2, ...

        Args:
            query_length: Number of queries.
            key_length: Number of keys.
            bidirectional: As in `relative_position_buckets`.

        Returns:
            float32 [1, heads, query, key].
        """
        buckets_qk = relative_position_buckets(
            np.arange(query_length),
            np.arange(key_length),
            bidirectional=bidirectional,
            num_buckets=self.config.relpos_num_buckets,
            max_distance=self.config.relpos_max_distance,
        )
        return jnp.take(self.rel_embedding[...], buckets_qk, axis=1)[None]

    def from_position(
        self, first_query: jax.Array, query_length: int, key_length: int, *, bidirectional: bool
    ) -> jax.Array:
        """Return the bias of queries that start at a traced position, as in decoding.

        Args:
            first_query: Position of the first query, a traced scalar.
            query_length: Number of queries.
            key_length: Number of keys; they are at positions 0, 1, 2, ...
            bidirectional: As in `relative_position_buckets`.

        Returns:
            float32 [1, heads, query, key].
        """
        # Buckets of all distances query - key from key_length - 1 down to 1 - key_length, computed
        # at trace time; the traced positions then only index this table.
        buckets_d = relative_position_buckets(
            np.arange(key_length - 1, -key_length, -1),
            np.zeros(1, int),
            bidirectional=bidirectional,
            num_buckets=self.config.relpos_num_buckets,
            max_distance=self.config.relpos_max_distance,
        )[:, 0]
        query_q = first_query + jnp.arange(query_length)
        index_qk = key_length - 1 - query_q[:, None] + jnp.arange(key_length)
        return jnp.take(self.rel_embedding[...], jnp.asarray(buckets_d)[index_qk], axis=1)[None]


def apply_rotary(x_blhd: jax.Array, positions_bl: jax.Array, theta: float) -> jax.Array:
    """Apply rotary position embeddings (RoPE, Su et al. 2021).

    Dimension i of the first half of a head is rotated together with dimension i of the second half,
    by the angle position * theta**(-2i / head_dim). This pairing is that of LLaMA's published
    weights; the paper pairs adjacent dimensions. Computed in float32.

    Args:
        x_blhd: Queries or keys [batch, length, heads, head_dim].
        positions_bl: Position of each token [batch, length].
        theta: Base of the frequencies.

    Returns:
        Rotated queries or keys, of the type of `x_blhd`.
    """
    half = x_blhd.shape[-1] // 2
    frequencies_d = theta ** -(jnp.arange(half, dtype=jnp.float32) / half)
    angles_bl1d = positions_bl[..., None, None].astype(jnp.float32) * frequencies_d
    cosine, sine = jnp.cos(angles_bl1d), jnp.sin(angles_bl1d)
    first, second = jnp.split(x_blhd.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(rotated, axis=-1).astype(x_blhd.dtype)
