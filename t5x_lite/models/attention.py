"""Attention: masks, the module for self- and cross-attention, and its key-value cache.

Array names: b batch, l length, q queries, k keys, h heads, d head_dim, e embed, j all heads side by
side, c queries of a chunk, n chunks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.kernels.dot_product_attention import AttentionInputs, dot_product_attention
from t5x_lite.models.kernels.fused_attention import can_fuse, fused_attention
from t5x_lite.models.layers import Dense, apply_dropout, fan_in_normal
from t5x_lite.models.position import apply_rotary
from t5x_lite.partitioning import shard


class KeyValue(NamedTuple):
    """Keys and values that queries attend to; also a decoder layer's cache.

    Attributes:
        k_bkhd: Keys [batch, key, kv_heads, head_dim], already rotated if positions are rotary.
        v_bkhd: Values [batch, key, kv_heads, head_dim].
    """

    k_bkhd: jax.Array
    v_bkhd: jax.Array

    def update_at(self, index: jax.Array, new: "KeyValue") -> "KeyValue":
        """Return a copy with new keys and values written from a position on.

        Args:
            index: First position, a traced scalar.
            new: What is written, of any length that fits.
        """
        write = jax.lax.dynamic_update_slice_in_dim
        return KeyValue(
            write(self.k_bkhd, new.k_bkhd, index, axis=1),
            write(self.v_bkhd, new.v_bkhd, index, axis=1),
        )


def segment_mask(query_segments_bq: jax.Array, key_segments_bk: jax.Array) -> jax.Array:
    """Return the mask by which queries attend to keys of their own segment.

    Segment 0 is padding. A padding query attends to padding keys, so that no row of the softmax is
    empty; its result is not used.

    Args:
        query_segments_bq: Segment ids of the queries [batch, query].
        key_segments_bk: Segment ids of the keys [batch, key].

    Returns:
        bool [batch, 1, query, key], True where a query attends.
    """
    return (query_segments_bq[:, :, None] == key_segments_bk[:, None, :])[:, None]


def causal_mask(length: int, prefix_bl: jax.Array | None = None) -> jax.Array:
    """Return the causal mask, by which position i attends to positions up to i.

    Args:
        length: Number of positions.
        prefix_bl: Non-zero for positions that attend to each other in both directions, the inputs
            of a prefix LM [batch, length]; None for none.

    Returns:
        bool [1 or batch, 1, query, key], True where a query attends.
    """
    causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
    if prefix_bl is None:
        return causal
    is_prefix_bl = prefix_bl.astype(bool)
    return causal | (is_prefix_bl[:, None, :, None] & is_prefix_bl[:, None, None, :])


class Attention(nnx.Module):
    """Multi-head attention, grouped-query attention if there are fewer heads of keys and values.

    T5 does not divide scores by sqrt(head_dim). The factor is in the initializer of the query
    projection, whose standard deviation is (emb_dim * head_dim)**-0.5; key and value have
    emb_dim**-0.5, out (heads * head_dim)**-0.5, all as in T5X.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        joined, joined_kv = (h * config.head_dim for h in (config.num_heads, config.kv_heads))
        query_scale = 1.0 if config.scale_attention else config.head_dim**-0.5

        def dense(sizes, axes, **options):
            return Dense(config, sizes, axes, rngs=rngs, **options)

        in_axes = ("embed", "joined_kv")
        self.query = dense(
            (config.emb_dim, joined), in_axes, init=lambda *a: fan_in_normal(*a) * query_scale
        )
        self.key = dense((config.emb_dim, joined_kv), in_axes)
        self.value = dense((config.emb_dim, joined_kv), in_axes)
        self.out = dense((joined, config.emb_dim), ("joined_kv", "embed"), into_residual=True)

    def keys_and_values(self, x_bke: jax.Array, positions_bk: jax.Array | None = None) -> KeyValue:
        """Project activations to keys and values.

        Args:
            x_bke: Activations [batch, key, embed].
            positions_bk: Positions [batch, key], which rotate keys if positions are rotary.
        """
        k_bkhd = self._split_heads(self.key(x_bke), positions_bk)
        return KeyValue(k_bkhd, self._split_heads(self.value(x_bke)))

    def __call__(
        self,
        x_bqe: jax.Array,
        kv: KeyValue,
        *,
        mask_bhqk: jax.Array,
        bias_bhqk: jax.Array | None = None,
        positions_bq: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Attend from `x` to `kv`; scores and softmax are float32.

        Args:
            x_bqe: Activations of the queries [batch, query, embed].
            kv: Keys and values.
            mask_bhqk: bool, True where a query attends; broadcast to the scores.
            bias_bhqk: Position bias [1, heads, query, key]; None for none.
            positions_bq: Positions [batch, query], which rotate queries if positions are rotary.
            key: Dropout key; None in evaluation.

        Returns:
            [batch, query, embed].
        """
        q_bqhd = self._split_heads(self.query(x_bqe), positions_bq)
        groups = self.config.num_heads // self.config.kv_heads
        kv = KeyValue(*(jnp.repeat(x, groups, axis=2) if groups > 1 else x for x in kv))
        length, chunk = q_bqhd.shape[1], self.config.query_chunk
        if self._can_fuse(q_bqhd, mask_bhqk, bias_bhqk, key):
            y_bqhd = self._attend_fused(q_bqhd, kv, mask_bhqk, bias_bhqk)
        elif chunk is None or length <= chunk or mask_bhqk.shape[2] != length:
            y_bqhd = self._attend(q_bqhd, kv, mask_bhqk, bias_bhqk, key)
        else:
            y_bqhd = self._attend_in_chunks(q_bqhd, kv, mask_bhqk, bias_bhqk, key)
        y_bqj = shard(y_bqhd.reshape(*y_bqhd.shape[:2], -1), "batch", "length", "heads")
        return self.out(checkpoint_name(y_bqj, "attention"))

    @property
    def _scale(self) -> float:
        return self.config.head_dim**-0.5 if self.config.scale_attention else 1.0

    def _attend(self, q_bqhd, kv: KeyValue, mask_bhqk, bias_bhqk, key) -> jax.Array:
        config = self.config
        return dot_product_attention(
            q_bqhd,
            *kv,
            mask_bhqk,
            bias_bhqk,
            scale=self._scale,
            dropout=lambda x_bhqk: apply_dropout(
                x_bhqk, config, key, config.attention_dropout_rate
            ),
        )

    def _can_fuse(self, q_bqhd, mask_bhqk, bias_bhqk, key) -> bool:
        """Return whether the kernel supports this call.

        It has no dropout, one mask for all heads and one bias for all rows. Single queries, as in
        decoding, are not worth a kernel.
        """
        rows, length, heads, _ = q_bqhd.shape
        config = self.config
        rate = config.attention_dropout_rate
        drops = key is not None and (config.dropout_rate if rate is None else rate) > 0
        shared = mask_bhqk.shape[1] == 1 and (bias_bhqk is None or bias_bhqk.shape[0] == 1)
        has_mask_per_query = length > 1 and mask_bhqk.shape[2] == length
        return (
            config.fused_attention
            and has_mask_per_query
            and shared
            and not drops
            and can_fuse(rows, heads)
        )

    def _attend_fused(self, q_bqhd, kv: KeyValue, mask_bhqk, bias_bhqk) -> jax.Array:
        """`_attend` as one kernel, which takes heads side by side."""
        q_bqj, k_bkj, v_bkj = (x.reshape(*x.shape[:2], -1) for x in (q_bqhd, *kv))
        mask_bqk = jnp.broadcast_to(mask_bhqk[:, 0], (len(q_bqhd), *mask_bhqk.shape[2:]))
        bias_hqk = None if bias_bhqk is None else bias_bhqk[0].astype(jnp.float32)
        inputs = AttentionInputs(q_bqj, k_bkj, v_bkj, mask_bqk.astype(jnp.int8), bias_hqk)
        y_bqj = fused_attention(inputs, heads=self.config.num_heads, scale=self._scale)
        return y_bqj.reshape(q_bqhd.shape)

    def _attend_in_chunks(self, q_bqhd, kv: KeyValue, mask_bhqk, bias_bhqk, key) -> jax.Array:
        """`_attend`, a chunk of queries at a time; the backward pass recomputes its scores."""
        length, chunk = q_bqhd.shape[1], self.config.query_chunk
        count = -(-length // chunk)

        def split(x: jax.Array | None, axis: int):
            """[..., q, ...] -> [n, ..., c, ...]; queries added at the end see no key."""
            if x is None:
                return None
            padding = [(0, count * chunk - length if i == axis else 0) for i in range(x.ndim)]
            x = jnp.pad(x, padding)
            x = x.reshape(*x.shape[:axis], count, chunk, *x.shape[axis + 1 :])
            return jnp.moveaxis(x, axis, 0)

        def attend(item):
            q_bchd, mask_bhck, bias_bhck, number = item
            # A dropout mask that all queries share must be the same in every chunk.
            chunk_key = key
            if key is not None and not self.config.dropout_shared_along_length:
                chunk_key = jax.random.fold_in(key, number)
            return self._attend(q_bchd, kv, mask_bhck, bias_bhck, chunk_key)

        chunks = (split(q_bqhd, 1), split(mask_bhqk, 2), split(bias_bhqk, 2), jnp.arange(count))
        y_nbchd = jax.lax.map(jax.checkpoint(attend, prevent_cse=False), chunks)
        # [n, b, c, h, d] -> [b, n, c, h, d] -> [b, n * c, h, d] -> without padding
        y_bqhd = jnp.moveaxis(y_nbchd, 0, 1).reshape(len(q_bqhd), -1, *q_bqhd.shape[2:])
        return y_bqhd[:, :length]

    def _split_heads(self, y_blj: jax.Array, positions_bl: jax.Array | None = None) -> jax.Array:
        """[b, l, j] -> [b, l, h, d], rotated if positions are given and rotary."""
        # The constraint comes before the reshape: a kernel that takes heads side by side then gets
        # the projection's output as it is.
        y_blj = shard(y_blj, "batch", "length", "heads")
        y_blhd = y_blj.reshape(*y_blj.shape[:2], -1, self.config.head_dim)
        if positions_bl is not None and self.config.positions == "rotary":
            y_blhd = apply_rotary(y_blhd, positions_bl, self.config.rope_theta)
        return y_blhd
