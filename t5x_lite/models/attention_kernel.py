"""Attention as one kernel for TPUs (Pallas), with T5's position bias, any mask, and the gradient.

The scores [queries, keys] of a head live in on-chip memory only. T5's sequences are short: all keys
of a head fit beside a block of queries, so the softmax is plain, and nothing but its operands is
kept for the backward pass. The bias is shared by the rows of the batch, which the grid goes through
innermost: a head's block of it is fetched once, and so is its gradient added up.

All lengths are multiples of 128 here (`fused_attention` fills them up).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

MASKED = -1e10  # takes the place of a forbidden score before the softmax, as in T5X
TILE = 128
_SCORES = 2**18  # of a block, at most: a megabyte of float32, several of which are alive at once


class Operands(NamedTuple):
    """What attention reads. mask: int8, 0 where a query may not look. bias: float32, or None."""

    q_bhqd: Any
    k_bhkd: Any
    v_bhkd: Any
    mask_bqk: Any
    bias_hqk: Any


def forward(operands: Operands, *, scale: float, interpret: bool = False) -> jax.Array:
    """The mean of the values that each query looks at, [b, h, q, d]."""
    grid = _Grid.of(operands)
    kernel = functools.partial(_forward, scale=scale)
    if operands.bias_hqk is None:
        kernel = functools.partial(_without_bias, kernel)
    return pl.pallas_call(
        kernel,
        grid=grid.sizes,
        in_specs=grid.reads(operands),
        out_specs=grid.per_query,
        out_shape=jax.ShapeDtypeStruct(operands.q_bhqd.shape, operands.q_bhqd.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=_ORDER),
        cost_estimate=_cost(operands, products=2, passes=1),
        interpret=interpret,
        name="attention",
    )(*grid.given(operands))


def backward(
    operands: Operands, slopes_bhqd: jax.Array, *, scale: float, interpret: bool = False
) -> Operands:
    """The gradient of every operand, from that of the result; none of the mask."""
    grid = _Grid.of(operands)
    kernel = functools.partial(_backward, scale=scale)
    has_bias = operands.bias_hqk is not None
    if not has_bias:
        kernel = functools.partial(_backward_without_bias, kernel)
    q, k, bias = operands.q_bhqd, operands.k_bhkd, operands.bias_hqk
    parts = (grid.blocks, *k.shape)  # of a block of queries each
    part_type = k.dtype if grid.blocks == 1 else jnp.float32
    shapes = [
        jax.ShapeDtypeStruct(q.shape, q.dtype),
        jax.ShapeDtypeStruct(parts, part_type),
        jax.ShapeDtypeStruct(parts, part_type),
        *([jax.ShapeDtypeStruct(bias.shape, jnp.float32)] if has_bias else []),
    ]
    specs = [grid.per_query, grid.part, grid.part, *([grid.per_head] if has_bias else [])]
    dq, dk, dv, *dbias = pl.pallas_call(
        kernel,
        grid=grid.sizes,
        in_specs=[*grid.reads(operands), grid.per_query],
        out_specs=specs,
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(dimension_semantics=_ORDER),
        cost_estimate=_cost(operands, products=5, passes=2),
        interpret=interpret,
        name="attention_backward",
    )(*grid.given(operands), slopes_bhqd)
    dk, dv = (jnp.sum(x, axis=0).astype(k.dtype) for x in (dk, dv))
    return Operands(dq, dk, dv, None, dbias[0] if has_bias else None)


def plain(operands: Operands, *, scale: float) -> jax.Array:
    """`forward`, without a kernel: what devices other than TPUs run, and what it means."""
    q_bhqd, k_bhkd, v_bhkd, mask_bqk, bias_hqk = operands
    scores_bhqk = scale * jnp.einsum(
        "bhqd,bhkd->bhqk", q_bhqd, k_bhkd, preferred_element_type=jnp.float32
    )
    if bias_hqk is not None:
        scores_bhqk += bias_hqk
    weights_bhqk = jax.nn.softmax(jnp.where(mask_bqk[:, None] != 0, scores_bhqk, MASKED))
    return jnp.einsum("bhqk,bhkd->bhqd", weights_bhqk.astype(v_bhkd.dtype), v_bhkd)


_ORDER = ("parallel", "parallel", "arbitrary")  # heads, blocks of queries, rows of the batch


class _Grid(NamedTuple):
    """How the work is cut: for each head and block of queries, the rows of the batch in turn."""

    sizes: tuple[int, int, int]
    block: int
    keys: int
    head_dim: int

    @classmethod
    def of(cls, operands: Operands) -> "_Grid":
        rows, heads, queries, head_dim = operands.q_bhqd.shape
        keys = operands.k_bhkd.shape[2]
        tiles = queries // TILE
        most = max(1, _SCORES // (keys * TILE))
        block = TILE * max(n for n in range(1, min(tiles, most) + 1) if tiles % n == 0)
        return cls((heads, queries // block, rows), block, keys, head_dim)

    @property
    def blocks(self) -> int:
        return self.sizes[1]

    @property
    def per_query(self) -> pl.BlockSpec:
        shape = (None, None, self.block, self.head_dim)
        return pl.BlockSpec(shape, lambda h, i, b: (b, h, i, 0))

    @property
    def per_key(self) -> pl.BlockSpec:
        shape = (None, None, self.keys, self.head_dim)
        return pl.BlockSpec(shape, lambda h, i, b: (b, h, 0, 0))

    @property
    def part(self) -> pl.BlockSpec:
        shape = (None, None, None, self.keys, self.head_dim)
        return pl.BlockSpec(shape, lambda h, i, b: (i, b, h, 0, 0))

    @property
    def per_head(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, self.block, self.keys), lambda h, i, b: (h, i, 0))

    def reads(self, operands: Operands) -> list[pl.BlockSpec]:
        mask = pl.BlockSpec((None, self.block, self.keys), lambda h, i, b: (b, i, 0))
        bias = [] if operands.bias_hqk is None else [self.per_head]
        return [self.per_query, self.per_key, self.per_key, mask, *bias]

    def given(self, operands: Operands) -> list[jax.Array]:
        return [x for x in operands if x is not None]


def _product(a, b, contract: tuple[int, int]) -> jax.Array:
    """A matrix product over one dimension of each, added up in float32."""
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _weights(q_qd, k_kd, mask_ref, bias_ref, scale: float) -> tuple[jax.Array, jax.Array]:
    """The softmax of a block's scores, [q, k] in float32, and where it may look."""
    scores_qk = _product(q_qd, k_kd, (1, 1)) * scale
    if bias_ref is not None:
        scores_qk += bias_ref[...]
    seen_qk = mask_ref[...].astype(jnp.int32) != 0
    scores_qk = jnp.where(seen_qk, scores_qk, MASKED)
    raised_qk = jnp.exp(scores_qk - jnp.max(scores_qk, axis=1, keepdims=True))
    return raised_qk / jnp.sum(raised_qk, axis=1, keepdims=True), seen_qk


def _forward(q_ref, k_ref, v_ref, mask_ref, bias_ref, y_ref, *, scale: float):
    weights_qk, _ = _weights(q_ref[...], k_ref[...], mask_ref, bias_ref, scale)
    v_kd = v_ref[...]
    y_ref[...] = _product(weights_qk.astype(v_kd.dtype), v_kd, (1, 0)).astype(y_ref.dtype)


def _without_bias(kernel, q_ref, k_ref, v_ref, mask_ref, *others):
    kernel(q_ref, k_ref, v_ref, mask_ref, None, *others)


def _backward(
    q_ref, k_ref, v_ref, mask_ref, bias_ref, dy_ref, dq_ref, dk_ref, dv_ref, dbias_ref, *, scale
):
    q_qd, k_kd, dy_qd = q_ref[...], k_ref[...], dy_ref[...]
    weights_qk, seen_qk = _weights(q_qd, k_kd, mask_ref, bias_ref, scale)
    dv_ref[...] = _product(weights_qk.astype(dy_qd.dtype), dy_qd, (0, 0)).astype(dv_ref.dtype)
    dweights_qk = _product(dy_qd, v_ref[...], (1, 1))
    mean_q1 = jnp.sum(weights_qk * dweights_qk, axis=1, keepdims=True)
    dscores_qk = jnp.where(seen_qk, weights_qk * (dweights_qk - mean_q1), 0.0)
    slopes_qk = (dscores_qk * scale).astype(q_qd.dtype)
    dq_ref[...] = _product(slopes_qk, k_kd, (1, 0)).astype(dq_ref.dtype)
    dk_ref[...] = _product(slopes_qk, q_qd, (0, 0)).astype(dk_ref.dtype)
    if dbias_ref is None:
        return

    @pl.when(pl.program_id(2) == 0)
    def _():
        dbias_ref[...] = jnp.zeros_like(dbias_ref)

    dbias_ref[...] += dscores_qk


def _backward_without_bias(kernel, q_ref, k_ref, v_ref, mask_ref, *others):
    kernel(q_ref, k_ref, v_ref, mask_ref, None, *others, None)


def _cost(operands: Operands, *, products: int, passes: int) -> pl.CostEstimate:
    """The kernel's work: matrix products of scores' size, exponentials, bytes through memory.

    Heads narrower than a matrix unit leave the rest of it idle: products count at its width. A mask
    is fetched for every head; the bias once, and its gradient written once.
    """
    rows, heads, queries, head_dim = operands.q_bhqd.shape
    keys = operands.k_bhkd.shape[2]
    scores = rows * heads * queries * keys
    width = -(-head_dim // TILE) * TILE  # as it lies in memory
    of_sides = 2 * rows * heads * (queries + keys) * width * operands.q_bhqd.dtype.itemsize
    of_bias = 0 if operands.bias_hqk is None else 4 * heads * queries * keys
    return pl.CostEstimate(
        flops=2 * products * scores * width,
        transcendentals=scores,
        bytes_accessed=passes * (of_sides + of_bias) + scores,  # of the mask, a byte each
    )
