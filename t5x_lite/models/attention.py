"""Attention: masks from segments, one module for self- and cross-attention, and its cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.layers import dropout, fan_in_normal, weight
from t5x_lite.partitioning import shard

MASKED = -1e10  # added to a forbidden score before the softmax, as T5X does


class KeyValue(NamedTuple):
    """What a query looks at: keys and values, each [batch, key length, heads, head_dim]."""

    k_bkhd: jax.Array
    v_bkhd: jax.Array

    def written_at(self, index: jax.Array, new: "KeyValue") -> "KeyValue":
        """A copy in which the one position `index` holds `new` (key length 1)."""
        write = jax.lax.dynamic_update_slice_in_dim
        return KeyValue(
            write(self.k_bkhd, new.k_bkhd, index, axis=1),
            write(self.v_bkhd, new.v_bkhd, index, axis=1),
        )


def segment_mask(query_segments_bq: jax.Array, key_segments_bk: jax.Array) -> jax.Array:
    """Where a query may look: at keys of its own segment; bool [b, 1, q, k]. Segment 0 is padding.

    A padding query sees padding keys, so that no row of the softmax is empty; nobody reads it.
    """
    return (query_segments_bq[:, :, None] == key_segments_bk[:, None, :])[:, None]


def causal_mask(length: int) -> jax.Array:
    """Where position q may look without seeing what comes after it; bool [1, 1, q, k]."""
    return jnp.tril(jnp.ones((length, length), bool))[None, None]


class Attention(nnx.Module):
    """Multi-head attention without biases and without division by sqrt(head_dim).

    That factor sits in the initialiser of the query, whose standard deviation is
    (emb_dim * head_dim)**-0.5; key and value have emb_dim**-0.5, out (heads * head_dim)**-0.5.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        joined = config.num_heads * config.head_dim
        shape, axes = [config.emb_dim, joined], ("embed", "joined_kv")
        self.query = weight(lambda *a: fan_in_normal(*a) * config.head_dim**-0.5, shape, axes, rngs)
        self.key = weight(fan_in_normal, shape, axes, rngs)
        self.value = weight(fan_in_normal, shape, axes, rngs)
        self.out = weight(fan_in_normal, [joined, config.emb_dim], ("joined_kv", "embed"), rngs)

    def keys_and_values(self, x_bke: jax.Array) -> KeyValue:
        """Project what will be looked at."""
        return KeyValue(self._heads(x_bke, self.key), self._heads(x_bke, self.value))

    def __call__(
        self,
        x_bqe: jax.Array,
        kv: KeyValue,
        *,
        mask_bhqk: jax.Array,
        bias_bhqk: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Attend from `x` to `kv` where the mask is true; scores and softmax in float32."""
        q_bqhd = self._heads(x_bqe, self.query)
        scores_bhqk = jnp.einsum(
            "bqhd,bkhd->bhqk", q_bqhd, kv.k_bkhd, preferred_element_type=jnp.float32
        )
        if bias_bhqk is not None:
            scores_bhqk += bias_bhqk
        scores_bhqk = jnp.where(mask_bhqk, scores_bhqk, MASKED)
        weights_bhqk = jax.nn.softmax(scores_bhqk, axis=-1).astype(x_bqe.dtype)
        weights_bhqk = dropout(weights_bhqk, self.config.dropout_rate, key)
        y_bqhd = jnp.einsum("bhqk,bkhd->bqhd", weights_bhqk, kv.v_bkhd)
        y_bqhd = shard(y_bqhd, "batch", "length", "heads", "kv")
        y_bqj = y_bqhd.reshape(*y_bqhd.shape[:2], -1)
        return jnp.einsum("bqj,je->bqe", y_bqj, self.out[...].astype(x_bqe.dtype))

    def _heads(self, x_ble: jax.Array, kernel: nnx.Param) -> jax.Array:
        y_blj = jnp.einsum("ble,ej->blj", x_ble, kernel[...].astype(x_ble.dtype))
        y_blhd = y_blj.reshape(*y_blj.shape[:2], self.config.num_heads, self.config.head_dim)
        return shard(y_blhd, "batch", "length", "heads", "kv")
