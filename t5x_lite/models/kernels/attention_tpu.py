"""Fused attention for TPUs (Pallas, Mosaic) with T5's position bias, any mask, and its gradient.

The scores of a head exist in on-chip memory (VMEM) only. T5's sequences are short, so all keys of a
head fit into VMEM beside a block of queries. The softmax therefore needs no running maximum, and
the backward pass recomputes the weights from the inputs: nothing else is kept for it.

The grid is (groups of heads, blocks of queries, rows of the batch), rows innermost. All rows share
the bias, so a head's block of it is fetched once for all of them, and its gradient is accumulated
in VMEM over them.

Queries, keys and values have all heads of a token side by side, as projections compute them. A
block has a multiple of 128 lanes, so heads of 64 are processed in pairs.

Any length is supported if all queries fit into one block (`max_queries_per_block`); longer ones
must be a multiple of 128.

Array names: b batch, q queries, k keys, h heads, d head_dim, j all heads side by side.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from t5x_lite.models.kernels.dot_product_attention import MASK_VALUE, AttentionInputs

TILE = 128  # lanes of a vector register, and rows and columns of a matrix unit
# Bounds on a block: several arrays of scores, in float32, are alive at once beside the inputs.
MAX_SCORES_PER_BLOCK = 2**18  # of a head: 1 MiB
MAX_BIASES_PER_BLOCK = 2**19  # of all heads that are processed together: 2 MiB

# Heads and query blocks are independent; rows accumulate the gradient of the bias.
_DIMENSION_SEMANTICS = ("parallel", "parallel", "arbitrary")


def forward(
    inputs: AttentionInputs, *, heads: int, scale: float, interpret: bool = False
) -> jax.Array:
    """Compute softmax(scale * q k + bias) v.

    Args:
        inputs: Queries, keys, values, mask and bias.
        heads: Number of heads.
        scale: Factor of the scores.
        interpret: Run in Pallas' interpreter, on any device.

    Returns:
        [batch, query, heads * head_dim].
    """
    grid = _Grid.for_inputs(inputs, heads)
    kernel = functools.partial(_forward_kernel, head_dim=grid.head_dim, scale=scale)
    if inputs.bias_hqk is None:
        kernel = functools.partial(_forward_without_bias, kernel)
    return pl.pallas_call(
        kernel,
        grid=grid.shape,
        in_specs=grid.input_specs(inputs),
        out_specs=grid.query_spec,
        out_shape=jax.ShapeDtypeStruct(inputs.q_bqj.shape, inputs.q_bqj.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=_DIMENSION_SEMANTICS),
        cost_estimate=_cost(inputs, grid, products=2, passes=1),
        interpret=interpret,
        name="attention",
    )(*_present(inputs))


def backward(
    inputs: AttentionInputs,
    dy_bqj: jax.Array,
    *,
    heads: int,
    scale: float,
    interpret: bool = False,
) -> AttentionInputs:
    """Compute the gradients of `forward`.

    Args:
        inputs: As given to `forward`.
        dy_bqj: Gradient of its result [batch, query, heads * head_dim].
        heads: Number of heads.
        scale: Factor of the scores.
        interpret: Run in Pallas' interpreter, on any device.

    Returns:
        Gradients of queries, keys, values and bias; None for the mask and for an absent bias.
    """
    grid = _Grid.for_inputs(inputs, heads)
    kernel = functools.partial(_backward_kernel, head_dim=grid.head_dim, scale=scale)
    has_bias = inputs.bias_hqk is not None
    if not has_bias:
        kernel = functools.partial(_backward_without_bias, kernel)
    q, k, bias = inputs.q_bqj, inputs.k_bkj, inputs.bias_hqk
    # Every block of queries contributes to all keys and values. Each block writes its contribution
    # to an array of its own [blocks, b, k, j], which are summed afterwards.
    partial_shape = (grid.num_blocks, *k.shape)
    partial_type = k.dtype if grid.num_blocks == 1 else jnp.float32
    shapes = [
        jax.ShapeDtypeStruct(q.shape, q.dtype),
        jax.ShapeDtypeStruct(partial_shape, partial_type),
        jax.ShapeDtypeStruct(partial_shape, partial_type),
        *([jax.ShapeDtypeStruct(bias.shape, jnp.float32)] if has_bias else []),
    ]
    specs = [
        grid.query_spec,
        grid.partial_key_spec,
        grid.partial_key_spec,
        *([grid.bias_spec] if has_bias else []),
    ]
    dq, dk, dv, *dbias = pl.pallas_call(
        kernel,
        grid=grid.shape,
        in_specs=[*grid.input_specs(inputs), grid.query_spec],
        out_specs=specs,
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(dimension_semantics=_DIMENSION_SEMANTICS),
        cost_estimate=_cost(inputs, grid, products=5, passes=2),
        interpret=interpret,
        name="attention_backward",
    )(*_present(inputs), dy_bqj)
    dk, dv = (jnp.sum(x, axis=0).astype(k.dtype) for x in (dk, dv))
    return AttentionInputs(dq, dk, dv, None, dbias[0] if has_bias else None)


def max_queries_per_block(keys: int, *, heads: int, head_dim: int) -> int:
    """Return the largest number of queries of a block; more must be a multiple of 128.

    Args:
        keys: Number of keys.
        heads: Number of heads on a device.
        head_dim: Width of a head.
    """
    biases_per_head = MAX_BIASES_PER_BLOCK // _heads_per_block(heads, head_dim)
    return min(MAX_SCORES_PER_BLOCK, biases_per_head) // keys


def _heads_per_block(heads: int, head_dim: int) -> int:
    """The smallest divisor of the number of heads whose lanes fill tiles, or all heads."""
    fitting = (n for n in range(1, heads) if not heads % n and not n * head_dim % TILE)
    return next(fitting, heads)


class _Grid(NamedTuple):
    """The grid of a kernel, and the block of each array that a grid cell (h, i, b) works on.

    Attributes:
        shape: Groups of heads, blocks of queries, rows of the batch.
        block_queries: Queries of a block.
        keys: Keys of a row, all of which are in every block.
        head_dim: Width of a head.
        block_heads: Heads of a group.
    """

    shape: tuple[int, int, int]
    block_queries: int
    keys: int
    head_dim: int
    block_heads: int

    @classmethod
    def for_inputs(cls, inputs: AttentionInputs, heads: int) -> "_Grid":
        rows, queries, joined = inputs.q_bqj.shape
        keys, head_dim = inputs.k_bkj.shape[1], joined // heads
        block_heads, block_queries = _heads_per_block(heads, head_dim), queries
        max_queries = max_queries_per_block(keys, heads=heads, head_dim=head_dim)
        if queries > max_queries:
            # The largest multiple of a tile that divides the queries and fits.
            tiles = queries // TILE
            fitting = (n for n in range(1, tiles + 1) if not tiles % n and n * TILE <= max_queries)
            block_queries = TILE * max(fitting, default=1)
        shape = (heads // block_heads, queries // block_queries, rows)
        return cls(shape, block_queries, keys, head_dim, block_heads)

    @property
    def num_blocks(self) -> int:
        return self.shape[1]

    @property
    def width(self) -> int:
        """Lanes of a group of heads."""
        return self.block_heads * self.head_dim

    @property
    def query_spec(self) -> pl.BlockSpec:
        """Of [b, q, j]: queries, the result and their gradients."""
        return pl.BlockSpec((None, self.block_queries, self.width), lambda h, i, b: (b, i, h))

    @property
    def key_spec(self) -> pl.BlockSpec:
        """Of [b, k, j]: keys and values."""
        return pl.BlockSpec((None, self.keys, self.width), lambda h, i, b: (b, 0, h))

    @property
    def partial_key_spec(self) -> pl.BlockSpec:
        """Of [blocks, b, k, j]: a query block's contributions to gradients of keys and values."""
        shape = (None, None, self.keys, self.width)
        return pl.BlockSpec(shape, lambda h, i, b: (i, b, 0, h))

    @property
    def bias_spec(self) -> pl.BlockSpec:
        """Of [h, q, k]: the same block for all rows, so it stays in VMEM."""
        shape = (self.block_heads, self.block_queries, self.keys)
        return pl.BlockSpec(shape, lambda h, i, b: (h, i, 0))

    def input_specs(self, inputs: AttentionInputs) -> list[pl.BlockSpec]:
        mask = pl.BlockSpec((None, self.block_queries, self.keys), lambda h, i, b: (b, i, 0))
        bias = [] if inputs.bias_hqk is None else [self.bias_spec]
        return [self.query_spec, self.key_spec, self.key_spec, mask, *bias]


def _present(inputs: AttentionInputs) -> list[jax.Array]:
    return [x for x in inputs if x is not None]


def _product(a, b, contract: tuple[int, int]) -> jax.Array:
    """Matrix product over one dimension of each operand, accumulated in float32."""
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _head_lanes(width: int, head_dim: int) -> Iterator[tuple[int, slice]]:
    """Index and lanes of each head of a block."""
    for head in range(width // head_dim):
        yield head, slice(head * head_dim, (head + 1) * head_dim)


def _weights(q_qd, k_kd, is_visible_qk, bias_qk, scale: float) -> jax.Array:
    """The softmax of a block's scores, float32 [q, k]."""
    scores_qk = _product(q_qd, k_kd, (1, 1)) * scale
    if bias_qk is not None:
        scores_qk += bias_qk
    scores_qk = jnp.where(is_visible_qk, scores_qk, MASK_VALUE)
    exp_qk = jnp.exp(scores_qk - jnp.max(scores_qk, axis=1, keepdims=True))
    return exp_qk / jnp.sum(exp_qk, axis=1, keepdims=True)


def _forward_kernel(q_ref, k_ref, v_ref, mask_ref, bias_ref, y_ref, *, head_dim: int, scale: float):
    is_visible_qk = mask_ref[...].astype(jnp.int32) != 0
    for head, lanes in _head_lanes(y_ref.shape[-1], head_dim):
        bias_qk = None if bias_ref is None else bias_ref[head]
        weights_qk = _weights(q_ref[:, lanes], k_ref[:, lanes], is_visible_qk, bias_qk, scale)
        v_kd = v_ref[:, lanes]
        y_qd = _product(weights_qk.astype(v_kd.dtype), v_kd, (1, 0))
        y_ref[:, lanes] = y_qd.astype(y_ref.dtype)


def _forward_without_bias(kernel, q_ref, k_ref, v_ref, mask_ref, *others):
    """Pallas passes no reference for an absent bias; the kernel expects None in its position."""
    kernel(q_ref, k_ref, v_ref, mask_ref, None, *others)


def _backward_kernel(*refs: Any, head_dim: int, scale: float):
    q_ref, k_ref, v_ref, mask_ref, bias_ref, dy_ref, dq_ref, dk_ref, dv_ref, dbias_ref = refs
    is_visible_qk = mask_ref[...].astype(jnp.int32) != 0
    if dbias_ref is not None:
        # The block of dbias is the same for all rows, grid dimension 2: the first one clears it.
        @pl.when(pl.program_id(2) == 0)
        def _():
            dbias_ref[...] = jnp.zeros_like(dbias_ref)

    for head, lanes in _head_lanes(q_ref.shape[-1], head_dim):
        q_qd, k_kd, dy_qd = q_ref[:, lanes], k_ref[:, lanes], dy_ref[:, lanes]
        bias_qk = None if bias_ref is None else bias_ref[head]
        weights_qk = _weights(q_qd, k_kd, is_visible_qk, bias_qk, scale)
        # y = weights v
        dv_kd = _product(weights_qk.astype(dy_qd.dtype), dy_qd, (0, 0))
        dv_ref[:, lanes] = dv_kd.astype(dv_ref.dtype)
        dweights_qk = _product(dy_qd, v_ref[:, lanes], (1, 1))
        # weights = softmax(scores): dscores = weights * (dweights - sum(weights * dweights))
        mean_q1 = jnp.sum(weights_qk * dweights_qk, axis=1, keepdims=True)
        dscores_qk = jnp.where(is_visible_qk, weights_qk * (dweights_qk - mean_q1), 0.0)
        # scores = scale * q k + bias
        dproduct_qk = (dscores_qk * scale).astype(q_qd.dtype)
        dq_ref[:, lanes] = _product(dproduct_qk, k_kd, (1, 0)).astype(dq_ref.dtype)
        dk_ref[:, lanes] = _product(dproduct_qk, q_qd, (0, 0)).astype(dk_ref.dtype)
        if dbias_ref is not None:
            dbias_ref[head] += dscores_qk


def _backward_without_bias(kernel, q_ref, k_ref, v_ref, mask_ref, *others):
    """As `_forward_without_bias`; the last output, dbias, is absent too."""
    kernel(q_ref, k_ref, v_ref, mask_ref, None, *others, None)


def _cost(inputs: AttentionInputs, grid: _Grid, *, products: int, passes: int) -> pl.CostEstimate:
    """Estimate the kernel's work, for XLA's scheduler and for plans.

    Heads narrower than the matrix unit leave the rest of it idle, so products count at its width.
    A mask is fetched once per group of heads; the bias once, and its gradient written once.

    Args:
        inputs: The kernel's arguments.
        grid: The kernel's grid.
        products: Number of matrix products of the size of the scores.
        passes: How often inputs or outputs of their size pass through memory.
    """
    rows, queries, joined = inputs.q_bqj.shape
    keys, heads = inputs.k_bkj.shape[1], joined // grid.head_dim
    scores = rows * heads * queries * keys
    width = -(-grid.head_dim // TILE) * TILE
    activation_bytes = 2 * rows * (queries + keys) * joined * inputs.q_bqj.dtype.itemsize
    bias_bytes = 0 if inputs.bias_hqk is None else 4 * heads * queries * keys
    mask_bytes = scores // grid.block_heads  # one byte each
    return pl.CostEstimate(
        flops=2 * products * scores * width,
        transcendentals=scores,
        bytes_accessed=passes * (activation_bytes + bias_bytes) + mask_bytes,
    )
