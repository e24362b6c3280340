"""Dot-product attention in plain JAX: the reference of the kernels, and what runs without them.

Array names: b batch, q queries, k keys, h heads, d head_dim, j all heads side by side.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Replaces masked scores before the softmax, as in T5X. It is finite, so that a query all of whose
# keys are masked yields a mean of the values and not NaN.
MASK_VALUE = -1e10


class AttentionInputs(NamedTuple):
    """Arguments of the fused kernels, or their gradients, shapes or logical axes.

    Heads are side by side in the last axis, as projections compute them: nothing is transposed.

    Attributes:
        q_bqj: Queries [batch, query, heads * head_dim].
        k_bkj: Keys [batch, key, heads * head_dim].
        v_bkj: Values [batch, key, heads * head_dim].
        mask_bqk: int8 [batch, query, key], 0 where a query may not attend to a key.
        bias_hqk: float32 [heads, query, key], added to the scores of every row; None for no bias.
    """

    q_bqj: Any
    k_bkj: Any
    v_bkj: Any
    mask_bqk: Any
    bias_hqk: Any


def dot_product_attention(
    q_bqhd: jax.Array,
    k_bkhd: jax.Array,
    v_bkhd: jax.Array,
    mask_bhqk: jax.Array,
    bias_1hqk: jax.Array | None = None,
    *,
    scale: float = 1.0,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Compute softmax(scale * q k + bias) v, with scores and softmax in float32.

    Args:
        q_bqhd: Queries [batch, query, heads, head_dim].
        k_bkhd: Keys [batch, key, heads, head_dim].
        v_bkhd: Values [batch, key, heads, head_dim].
        mask_bhqk: bool, True where a query may attend to a key; broadcast to the scores.
        bias_1hqk: Bias of the scores [1, heads, query, key]; None for no bias.
        scale: Factor of the scores; T5 has 1.
        dropout: Applied to the attention weights [batch, heads, query, key]; None for none.

    Returns:
        [batch, query, heads, head_dim], of the type of `q_bqhd`.
    """
    scores_bhqk = jnp.einsum("bqhd,bkhd->bhqk", q_bqhd, k_bkhd, preferred_element_type=jnp.float32)
    if scale != 1.0:
        scores_bhqk *= scale
    if bias_1hqk is not None:
        scores_bhqk = add_bias(scores_bhqk, bias_1hqk)
    scores_bhqk = jnp.where(mask_bhqk, scores_bhqk, MASK_VALUE)
    weights_bhqk = jax.nn.softmax(scores_bhqk, axis=-1).astype(q_bqhd.dtype)
    if dropout is not None:
        weights_bhqk = dropout(weights_bhqk)
    return jnp.einsum("bhqk,bkhd->bqhd", weights_bhqk, v_bkhd)


def unfused_attention(inputs: AttentionInputs, *, heads: int, scale: float) -> jax.Array:
    """Compute what the kernels compute, from the same arguments, by `dot_product_attention`.

    Args:
        inputs: Queries, keys, values, mask and bias.
        heads: Number of heads.
        scale: Factor of the scores.

    Returns:
        [batch, query, heads * head_dim].
    """
    q_bqhd, k_bkhd, v_bkhd = (
        x.reshape(*x.shape[:2], heads, -1) for x in (inputs.q_bqj, inputs.k_bkj, inputs.v_bkj)
    )
    bias_1hqk = None if inputs.bias_hqk is None else inputs.bias_hqk[None]
    mask_bhqk = inputs.mask_bqk[:, None] != 0
    y_bqhd = dot_product_attention(q_bqhd, k_bkhd, v_bkhd, mask_bhqk, bias_1hqk, scale=scale)
    return y_bqhd.reshape(inputs.q_bqj.shape)


@jax.custom_vjp
def add_bias(scores_bhqk: jax.Array, bias_1hqk: jax.Array) -> jax.Array:
    """Add a bias that all rows of the batch share, with a gradient that is fast on CPUs too.

    XLA's CPU backend takes 30 times as long for a sum over the first axis as for the same sum
    written as a matrix product.

    Args:
        scores_bhqk: Attention scores [batch, heads, query, key].
        bias_1hqk: Bias [1, heads, query, key].
    """
    return scores_bhqk + bias_1hqk


def _add_bias_backward(_: None, dscores_bhqk: jax.Array) -> tuple[jax.Array, jax.Array]:
    def matrix_product(x_bhqk):
        return jnp.einsum("b,bhqk->hqk", jnp.ones(len(x_bhqk), x_bhqk.dtype), x_bhqk)[None]

    def sum_over_batch(x_bhqk):
        return jnp.sum(x_bhqk, axis=0, keepdims=True)

    dbias_1hqk = jax.lax.platform_dependent(
        dscores_bhqk, cpu=matrix_product, default=sum_over_batch
    )
    return dscores_bhqk, dbias_1hqk


add_bias.defvjp(lambda scores, bias: (scores + bias, None), _add_bias_backward)
