"""What one program of each GPU attention kernel does (`attention_kernel_gpu` starts them).

References hold a program's part of the arrays: rows and heads are chosen, but for the bias' kernel,
which goes through rows. scale: of scores. tile: how many keys, or queries, are done at a time.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from t5x_lite.models.attention_kernel import MASKED

try:  # JAX 0.11 says that a later one will not have it; attention is plain then
    from jax.experimental.pallas import triton
except ImportError:
    triton: Any = None


def without_bias(kernel, q_ref, k_ref, v_ref, mask_ref, *others, **options):
    """A kernel for operands that have no bias."""
    kernel(q_ref, k_ref, v_ref, mask_ref, None, *others, **options)


def forward(q_ref, k_ref, v_ref, mask_ref, bias_ref, y_ref, log_z_ref, *, scale, tile):
    """The mean of the values that some queries look at, and log z of their softmax."""
    q_qd = q_ref[...]
    queries, head_dim = q_qd.shape

    def body(number, carry):
        y_qd, highest_q, sum_q = carry
        own = pl.ds(number * tile, tile)
        bias_qk = None if bias_ref is None else bias_ref[:, own]
        scores_qk = _scores(q_qd, k_ref[own, :], bias_qk, scale)
        scores_qk = jnp.where(mask_ref[:, own] != 0, scores_qk, MASKED)
        new_q = jnp.maximum(highest_q, jnp.max(scores_qk, axis=1))
        raised_qk = jnp.exp(scores_qk - new_q[:, None])
        shrunk_q = jnp.exp(highest_q - new_q)
        v_kd = v_ref[own, :]
        y_qd = y_qd * shrunk_q[:, None] + _dot(raised_qk.astype(v_kd.dtype), v_kd)
        return y_qd, new_q, sum_q * shrunk_q + jnp.sum(raised_qk, axis=1)

    start = (
        jnp.zeros((queries, head_dim), jnp.float32),
        jnp.full((queries,), 2 * MASKED, jnp.float32),
        jnp.zeros((queries,), jnp.float32),
    )
    y_qd, highest_q, sum_q = jax.lax.fori_loop(0, k_ref.shape[0] // tile, body, start)
    y_ref[...] = (y_qd / sum_q[:, None]).astype(y_ref.dtype)
    log_z_ref[...] = highest_q + jnp.log(sum_q)


def of_keys(q_ref, k_ref, v_ref, mask_ref, bias_ref, *others, scale, tile):
    """Gradients of some keys and values."""
    dy_ref, log_z_ref, means_ref, dk_ref, dv_ref = others
    k_kd, v_kd = k_ref[...], v_ref[...]

    def body(number, carry):
        dk_kd, dv_kd = carry
        own = pl.ds(number * tile, tile)
        q_qd, dy_qd = q_ref[own, :], dy_ref[own, :]
        bias_qk = None if bias_ref is None else bias_ref[own, :]
        weights_qk = _weights(_scores(q_qd, k_kd, bias_qk, scale), mask_ref[own, :], log_z_ref[own])
        dv_kd += _dot(weights_qk.astype(dy_qd.dtype), dy_qd, trans_a=True)
        dscores_qk = _slopes_of_scores(weights_qk, dy_qd, v_kd, means_ref[own])
        slopes_qk = (dscores_qk * scale).astype(q_qd.dtype)
        return dk_kd + _dot(slopes_qk, q_qd, trans_a=True), dv_kd

    zeros = jnp.zeros(k_kd.shape, jnp.float32)
    found = jax.lax.fori_loop(0, q_ref.shape[0] // tile, body, (zeros, zeros))
    dk_ref[...], dv_ref[...] = (x_kd.astype(dk_ref.dtype) for x_kd in found)


def of_queries(q_ref, k_ref, v_ref, mask_ref, bias_ref, *others, scale, tile):
    """Gradient of some queries."""
    dy_ref, log_z_ref, means_ref, dq_ref = others
    q_qd, dy_qd, log_z_q, means_q = q_ref[...], dy_ref[...], log_z_ref[...], means_ref[...]

    def body(number, dq_qd):
        own = pl.ds(number * tile, tile)
        k_kd = k_ref[own, :]
        bias_qk = None if bias_ref is None else bias_ref[:, own]
        weights_qk = _weights(_scores(q_qd, k_kd, bias_qk, scale), mask_ref[:, own], log_z_q)
        dscores_qk = _slopes_of_scores(weights_qk, dy_qd, v_ref[own, :], means_q)
        return dq_qd + _dot((dscores_qk * scale).astype(k_kd.dtype), k_kd)

    zeros = jnp.zeros(q_qd.shape, jnp.float32)
    dq_qd = jax.lax.fori_loop(0, k_ref.shape[0] // tile, body, zeros)
    dq_ref[...] = dq_qd.astype(dq_ref.dtype)


def of_bias(q_ref, k_ref, v_ref, mask_ref, bias_ref, *others, scale, rows):
    """Gradient of a tile of the bias, from some rows."""
    dy_ref, log_z_ref, means_ref, dbias_ref = others
    bias_qk = bias_ref[...]

    def body(row, dbias_qk):
        weights_qk = _weights(
            _scores(q_ref[row], k_ref[row], bias_qk, scale), mask_ref[row], log_z_ref[row]
        )
        return dbias_qk + _slopes_of_scores(weights_qk, dy_ref[row], v_ref[row], means_ref[row])

    dbias_ref[...] = jax.lax.fori_loop(0, rows, body, jnp.zeros(bias_qk.shape, jnp.float32))


def _scores(q_qd, k_kd, bias_qk, scale: float):
    scores_qk = _dot(q_qd, k_kd, trans_b=True)
    scores_qk = scores_qk if scale == 1.0 else scores_qk * scale
    return scores_qk if bias_qk is None else scores_qk + bias_qk


def _weights(scores_qk, mask_qk, log_z_q):
    """The softmax, from the logarithm of its denominator; 0 where nothing may be looked at."""
    return jnp.where(mask_qk != 0, jnp.exp(scores_qk - log_z_q[:, None]), 0.0)


def _slopes_of_scores(weights_qk, dy_qd, v_kd, means_q):
    return weights_qk * (_dot(dy_qd, v_kd, trans_b=True) - means_q[:, None])


def _dot(a, b, *, trans_a: bool = False, trans_b: bool = False):
    """A product added up in float32; one of float32 is not rounded to fewer bits."""
    exact = None if a.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    return triton.dot(a, b, trans_a=trans_a, trans_b=trans_b, precision=exact)
