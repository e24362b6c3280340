"""Attention: masks from segments, one module for self- and cross-attention, and its cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.kernels.attention_tpu import MASKED, Operands
from t5x_lite.models.kernels.fused_attention import can_fuse, fused_attention
from t5x_lite.models.layers import Dense, drop, fan_in_normal
from t5x_lite.models.position import rotate
from t5x_lite.partitioning import shard


class KeyValue(NamedTuple):
    """What a query looks at: keys and values, each [batch, key length, kv heads, head_dim]."""

    k_bkhd: jax.Array
    v_bkhd: jax.Array

    def written_at(self, index: jax.Array, new: "KeyValue") -> "KeyValue":
        """A copy in which the positions from `index` on hold `new`."""
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


def causal_mask(length: int, prefix_bl: jax.Array | None = None) -> jax.Array:
    """Where position q may look without seeing what comes after it; bool [1 or b, 1, q, k].

    Positions marked in `prefix_bl` may all see each other (a prefix LM's inputs).
    """
    causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
    if prefix_bl is None:
        return causal
    inside_bl = prefix_bl.astype(bool)
    return causal | (inside_bl[:, None, :, None] & inside_bl[:, None, None, :])


@jax.custom_vjp
def add_bias(scores_bhqk: jax.Array, bias_1hqk: jax.Array) -> jax.Array:
    """Scores plus a bias that all rows of the batch share, with a quick gradient on every backend.

    XLA's CPU backend takes 30 times as long for a sum over the first axis as for the same sum
    written as a matrix product.
    """
    return scores_bhqk + bias_1hqk


def _add_bias_backward(_: None, slopes_bhqk: jax.Array) -> tuple[jax.Array, jax.Array]:
    def product(x_bhqk):
        return jnp.einsum("b,bhqk->hqk", jnp.ones(len(x_bhqk), x_bhqk.dtype), x_bhqk)[None]

    def plain(x_bhqk):
        return jnp.sum(x_bhqk, axis=0, keepdims=True)

    return slopes_bhqk, jax.lax.platform_dependent(slopes_bhqk, cpu=product, default=plain)


add_bias.defvjp(lambda scores, bias: (scores + bias, None), _add_bias_backward)


class Attention(nnx.Module):
    """Multi-head attention, with grouped keys and values if the config has fewer heads of them.

    T5 divides no scores by sqrt(head_dim): the factor sits in the initializer of the query, whose
    standard deviation is (emb_dim * head_dim)**-0.5; key and value have emb_dim**-0.5, out
    (heads * head_dim)**-0.5.
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
        """Project what will be looked at; positions turn rotary keys."""
        return KeyValue(self._heads(self.key(x_bke), positions_bk), self._heads(self.value(x_bke)))

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
        """Attend from `x` to `kv` where the mask is true; scores and softmax in float32."""
        q_bqhd = self._heads(self.query(x_bqe), positions_bq)
        groups = self.config.num_heads // self.config.kv_heads
        kv = KeyValue(*(jnp.repeat(x, groups, axis=2) if groups > 1 else x for x in kv))
        length, chunk = q_bqhd.shape[1], self.config.query_chunk
        if self._can_fuse(q_bqhd, mask_bhqk, bias_bhqk, key):
            y_bqhd = self._weigh_fused(q_bqhd, kv, mask_bhqk, bias_bhqk)
        elif chunk is None or length <= chunk or mask_bhqk.shape[2] != length:
            y_bqhd = self._weigh(q_bqhd, kv, mask_bhqk, bias_bhqk, key)
        else:
            y_bqhd = self._weigh_in_chunks(q_bqhd, kv, mask_bhqk, bias_bhqk, key)
        y_bqj = shard(y_bqhd.reshape(*y_bqhd.shape[:2], -1), "batch", "length", "heads")
        return self.out(checkpoint_name(y_bqj, "attention"))

    def _weigh(self, q_bqhd, kv: KeyValue, mask_bhqk, bias_bhqk, key) -> jax.Array:
        """The mean of the values that each query looks at."""
        scores_bhqk = jnp.einsum(
            "bqhd,bkhd->bhqk", q_bqhd, kv.k_bkhd, preferred_element_type=jnp.float32
        )
        if self.config.scale_attention:
            scores_bhqk *= self.config.head_dim**-0.5
        if bias_bhqk is not None:
            scores_bhqk = add_bias(scores_bhqk, bias_bhqk)
        scores_bhqk = jnp.where(mask_bhqk, scores_bhqk, MASKED)
        weights_bhqk = jax.nn.softmax(scores_bhqk, axis=-1).astype(q_bqhd.dtype)
        weights_bhqk = drop(weights_bhqk, self.config, key, self.config.attention_dropout_rate)
        return jnp.einsum("bhqk,bkhd->bqhd", weights_bhqk, kv.v_bkhd)

    def _can_fuse(self, q_bqhd, mask_bhqk, bias_bhqk, key) -> bool:
        """Whether the kernel may take the place of `_weigh`: for one mask and bias, no dropout."""
        rows, length, heads, _ = q_bqhd.shape
        config = self.config
        rate = config.attention_dropout_rate
        drops = key is not None and (config.dropout_rate if rate is None else rate) > 0
        shared = mask_bhqk.shape[1] == 1 and (bias_bhqk is None or bias_bhqk.shape[0] == 1)
        same = length > 1 and mask_bhqk.shape[2] == length
        return config.fused_attention and same and shared and not drops and can_fuse(rows, heads)

    def _weigh_fused(self, q_bqhd, kv: KeyValue, mask_bhqk, bias_bhqk) -> jax.Array:
        """`_weigh` as one kernel."""
        q_bqj, k_bkj, v_bkj = (x.reshape(*x.shape[:2], -1) for x in (q_bqhd, *kv))
        mask_bqk = jnp.broadcast_to(mask_bhqk[:, 0], (len(q_bqhd), *mask_bhqk.shape[2:]))
        bias_hqk = None if bias_bhqk is None else bias_bhqk[0].astype(jnp.float32)
        scale = self.config.head_dim**-0.5 if self.config.scale_attention else 1.0
        operands = Operands(q_bqj, k_bkj, v_bkj, mask_bqk.astype(jnp.int8), bias_hqk)
        y_bqj = fused_attention(operands, heads=self.config.num_heads, scale=scale)
        return y_bqj.reshape(q_bqhd.shape)

    def _weigh_in_chunks(self, q_bqhd, kv: KeyValue, mask_bhqk, bias_bhqk, key) -> jax.Array:
        """`_weigh`, some queries at a time; the backward pass makes their scores again."""
        length, chunk = q_bqhd.shape[1], self.config.query_chunk
        count = -(-length // chunk)

        def split(x: jax.Array | None, axis: int):
            if x is None:
                return None
            padding = [(0, count * chunk - length if i == axis else 0) for i in range(x.ndim)]
            x = jnp.pad(x, padding)
            x = x.reshape(*x.shape[:axis], count, chunk, *x.shape[axis + 1 :])
            return jnp.moveaxis(x, axis, 0)

        def weigh(item):
            q_bchd, mask_bhck, bias_bhck, number = item
            own = key  # one mask for all queries is the same in every chunk
            if key is not None and not self.config.dropout_shared_along_length:
                own = jax.random.fold_in(key, number)
            return self._weigh(q_bchd, kv, mask_bhck, bias_bhck, own)

        chunks = (split(q_bqhd, 1), split(mask_bhqk, 2), split(bias_bhqk, 2), jnp.arange(count))
        y_nbchd = jax.lax.map(jax.checkpoint(weigh, prevent_cse=False), chunks)
        y_bqhd = jnp.moveaxis(y_nbchd, 0, 1).reshape(len(q_bqhd), -1, *q_bqhd.shape[2:])
        return y_bqhd[:, :length]

    def _heads(self, y_blj: jax.Array, positions_bl: jax.Array | None = None) -> jax.Array:
        # Placed before it is split: a kernel that takes heads side by side then gets what was made.
        y_blj = shard(y_blj, "batch", "length", "heads")
        y_blhd = y_blj.reshape(*y_blj.shape[:2], -1, self.config.head_dim)
        if positions_bl is not None and self.config.positions == "rotary":
            y_blhd = rotate(y_blhd, positions_bl, self.config.rope_theta)
        return y_blhd
