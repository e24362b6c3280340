"""Attention as one kernel for TPUs (Pallas), with T5's position bias, any mask, and the gradient.

The scores [queries, keys] of a head live in on-chip memory only. T5's sequences are short: all keys
of a head fit beside a block of queries, so the softmax is plain, and nothing but its operands is
kept for the backward pass. The bias is shared by the rows of the batch, which the grid goes through
innermost: a head's block of it is fetched once, and so is its gradient added up. Queries, keys and
values lie as projections leave them, all heads of a token side by side; heads of 64 go in pairs.

Lengths are any, but a multiple of 128 where queries are done in several blocks (`at_once`).
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

MASKED = -1e10  # takes the place of a forbidden score before the softmax, as in T5X
TILE = 128
_SCORES = 2**18  # of a block, at most: a megabyte of float32, several of which are alive at once
_BIASES = 2**19  # of all heads that are done together


class Operands(NamedTuple):
    """What attention reads. mask: int8, 0 where a query may not look. bias: float32, or None.

    j is all heads side by side, as a projection makes them: nothing is turned for the kernel.
    """

    q_bqj: Any
    k_bkj: Any
    v_bkj: Any
    mask_bqk: Any
    bias_hqk: Any


def forward(operands: Operands, *, heads: int, scale: float, interpret: bool = False) -> jax.Array:
    """The mean of the values that each query looks at, [b, q, j]."""
    grid = _Grid.of(operands, heads)
    kernel = functools.partial(_forward, head_dim=grid.head_dim, scale=scale)
    if operands.bias_hqk is None:
        kernel = functools.partial(_without_bias, kernel)
    return pl.pallas_call(
        kernel,
        grid=grid.sizes,
        in_specs=grid.reads(operands),
        out_specs=grid.per_query,
        out_shape=jax.ShapeDtypeStruct(operands.q_bqj.shape, operands.q_bqj.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=_ORDER),
        cost_estimate=_cost(operands, grid, products=2, passes=1),
        interpret=interpret,
        name="attention",
    )(*grid.given(operands))


def backward(
    operands: Operands, slopes_bqj: jax.Array, *, heads: int, scale: float, interpret: bool = False
) -> Operands:
    """The gradient of every operand, from that of the result; none of the mask."""
    grid = _Grid.of(operands, heads)
    kernel = functools.partial(_backward, head_dim=grid.head_dim, scale=scale)
    has_bias = operands.bias_hqk is not None
    if not has_bias:
        kernel = functools.partial(_backward_without_bias, kernel)
    q, k, bias = operands.q_bqj, operands.k_bkj, operands.bias_hqk
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
        cost_estimate=_cost(operands, grid, products=5, passes=2),
        interpret=interpret,
        name="attention_backward",
    )(*grid.given(operands), slopes_bqj)
    dk, dv = (jnp.sum(x, axis=0).astype(k.dtype) for x in (dk, dv))
    return Operands(dq, dk, dv, None, dbias[0] if has_bias else None)


def plain(operands: Operands, *, heads: int, scale: float) -> jax.Array:
    """`forward`, without a kernel: what devices other than TPUs run, and what it means."""
    q_bqhd, k_bkhd, v_bkhd = (x.reshape(*x.shape[:2], heads, -1) for x in operands[:3])
    scores_bhqk = scale * jnp.einsum(
        "bqhd,bkhd->bhqk", q_bqhd, k_bkhd, preferred_element_type=jnp.float32
    )
    if operands.bias_hqk is not None:
        scores_bhqk += operands.bias_hqk
    seen_b1qk = operands.mask_bqk[:, None] != 0
    weights_bhqk = jax.nn.softmax(jnp.where(seen_b1qk, scores_bhqk, MASKED))
    y_bqhd = jnp.einsum("bhqk,bkhd->bqhd", weights_bhqk.astype(v_bkhd.dtype), v_bkhd)
    return y_bqhd.reshape(operands.q_bqj.shape)


_ORDER = ("parallel", "parallel", "arbitrary")  # heads, blocks of queries, rows of the batch


def at_once(keys: int, *, heads: int, head_dim: int) -> int:
    """How many queries can be done at once; of more there must be a multiple of 128."""
    return min(_SCORES, _BIASES // _together(heads, head_dim)) // keys


def _together(heads: int, head_dim: int) -> int:
    """How many heads are done at once: as few as fill tiles."""
    fit = (n for n in range(1, heads) if not heads % n and not n * head_dim % TILE)
    return next(fit, heads)


class _Grid(NamedTuple):
    """How the work is cut: for some heads and a block of queries, the rows of the batch in turn.

    together: how many heads are done at once; side by side they fill the 128 lanes of a tile.
    """

    sizes: tuple[int, int, int]
    block: int
    keys: int
    head_dim: int
    together: int

    @classmethod
    def of(cls, operands: Operands, heads: int) -> "_Grid":
        rows, queries, joined = operands.q_bqj.shape
        keys, head_dim = operands.k_bkj.shape[1], joined // heads
        together, block = _together(heads, head_dim), queries
        if queries > (most := at_once(keys, heads=heads, head_dim=head_dim)):
            tiles = queries // TILE
            fit = (n for n in range(1, tiles + 1) if not tiles % n and n * TILE <= most)
            block = TILE * max(fit, default=1)
        sizes = (heads // together, queries // block, rows)
        return cls(sizes, block, keys, head_dim, together)

    @property
    def blocks(self) -> int:
        return self.sizes[1]

    @property
    def width(self) -> int:
        return self.together * self.head_dim

    @property
    def per_query(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, self.block, self.width), lambda h, i, b: (b, i, h))

    @property
    def per_key(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, self.keys, self.width), lambda h, i, b: (b, 0, h))

    @property
    def part(self) -> pl.BlockSpec:
        shape = (None, None, self.keys, self.width)
        return pl.BlockSpec(shape, lambda h, i, b: (i, b, 0, h))

    @property
    def per_head(self) -> pl.BlockSpec:
        return pl.BlockSpec((self.together, self.block, self.keys), lambda h, i, b: (h, i, 0))

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


def _heads(joined: int, head_dim: int) -> Iterator[tuple[int, slice]]:
    """Number and lanes of every head in a block."""
    for head in range(joined // head_dim):
        yield head, slice(head * head_dim, (head + 1) * head_dim)


def _weights(q_qd, k_kd, seen_qk, bias_qk, scale: float) -> jax.Array:
    """The softmax of a block's scores, [q, k] in float32."""
    scores_qk = _product(q_qd, k_kd, (1, 1)) * scale
    if bias_qk is not None:
        scores_qk += bias_qk
    scores_qk = jnp.where(seen_qk, scores_qk, MASKED)
    raised_qk = jnp.exp(scores_qk - jnp.max(scores_qk, axis=1, keepdims=True))
    return raised_qk / jnp.sum(raised_qk, axis=1, keepdims=True)


def _forward(q_ref, k_ref, v_ref, mask_ref, bias_ref, y_ref, *, head_dim: int, scale: float):
    seen_qk = mask_ref[...].astype(jnp.int32) != 0
    for head, own in _heads(y_ref.shape[-1], head_dim):
        bias_qk = None if bias_ref is None else bias_ref[head]
        weights_qk = _weights(q_ref[:, own], k_ref[:, own], seen_qk, bias_qk, scale)
        v_kd = v_ref[:, own]
        y_qd = _product(weights_qk.astype(v_kd.dtype), v_kd, (1, 0))
        y_ref[:, own] = y_qd.astype(y_ref.dtype)


def _without_bias(kernel, q_ref, k_ref, v_ref, mask_ref, *others):
    kernel(q_ref, k_ref, v_ref, mask_ref, None, *others)


def _backward(*refs: Any, head_dim: int, scale: float):
    q_ref, k_ref, v_ref, mask_ref, bias_ref, dy_ref, dq_ref, dk_ref, dv_ref, dbias_ref = refs
    seen_qk = mask_ref[...].astype(jnp.int32) != 0
    if dbias_ref is not None:

        @pl.when(pl.program_id(2) == 0)
        def _():
            dbias_ref[...] = jnp.zeros_like(dbias_ref)

    for head, own in _heads(q_ref.shape[-1], head_dim):
        q_qd, k_kd, dy_qd = q_ref[:, own], k_ref[:, own], dy_ref[:, own]
        bias_qk = None if bias_ref is None else bias_ref[head]
        weights_qk = _weights(q_qd, k_kd, seen_qk, bias_qk, scale)
        dv_kd = _product(weights_qk.astype(dy_qd.dtype), dy_qd, (0, 0))
        dv_ref[:, own] = dv_kd.astype(dv_ref.dtype)
        dweights_qk = _product(dy_qd, v_ref[:, own], (1, 1))
        mean_q1 = jnp.sum(weights_qk * dweights_qk, axis=1, keepdims=True)
        dscores_qk = jnp.where(seen_qk, weights_qk * (dweights_qk - mean_q1), 0.0)
        slopes_qk = (dscores_qk * scale).astype(q_qd.dtype)
        dq_ref[:, own] = _product(slopes_qk, k_kd, (1, 0)).astype(dq_ref.dtype)
        dk_ref[:, own] = _product(slopes_qk, q_qd, (0, 0)).astype(dk_ref.dtype)
        if dbias_ref is not None:
            dbias_ref[head] += dscores_qk


def _backward_without_bias(kernel, q_ref, k_ref, v_ref, mask_ref, *others):
    kernel(q_ref, k_ref, v_ref, mask_ref, None, *others, None)


def _cost(operands: Operands, grid: _Grid, *, products: int, passes: int) -> pl.CostEstimate:
    """The kernel's work: matrix products of scores' size, exponentials, bytes through memory.

    Heads narrower than a matrix unit leave the rest of it idle: products count at its width. A mask
    is fetched for every few heads; the bias once, and its gradient written once.
    """
    rows, queries, joined = operands.q_bqj.shape
    keys, heads = operands.k_bkj.shape[1], joined // grid.head_dim
    scores = rows * heads * queries * keys
    width = -(-grid.head_dim // TILE) * TILE
    of_sides = 2 * rows * (queries + keys) * joined * operands.q_bqj.dtype.itemsize
    of_bias = 0 if operands.bias_hqk is None else 4 * heads * queries * keys
    of_masks = scores // grid.together  # a byte each
    return pl.CostEstimate(
        flops=2 * products * scores * width,
        transcendentals=scores,
        bytes_accessed=passes * (of_sides + of_bias) + of_masks,
    )
