"""Fused attention for NVIDIA GPUs (Pallas, Triton): the same function as `attention_tpu`.

Scores exist in registers only, one tile at a time. The forward kernel keeps a running maximum and
sum for each query (FlashAttention, Dao et al. 2022). Three backward kernels recompute the scores:
for the gradients of keys and values, of queries, and of the bias, which is summed over the rows of
the batch. Lengths are padded to whole tiles; the mask of padding is 0.

Array names: b batch, q queries, k keys, h heads, d head_dim, j all heads side by side, p parts of
the batch. `log_z` is the logarithm of the softmax's denominator.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from t5x_lite.models.kernels.dot_product_attention import MASK_VALUE, AttentionInputs

try:  # JAX 0.11 announces that a later version removes it; attention is not fused then
    from jax.experimental.pallas import triton
except ImportError:
    triton: Any = None

# Lower bound on the programs of the bias kernel, where the rows allow it: several for each of the
# 132 multiprocessors of an H100 or H200.
MIN_BIAS_PROGRAMS = 1024


class Tiling(NamedTuple):
    """How one kernel is tiled and compiled.

    Attributes:
        queries: Queries of a tile.
        keys: Keys of a tile.
        warps: Warps of a program (Triton's `num_warps`).
        stages: Stages of software pipelining (Triton's `num_stages`).
    """

    queries: int = 64
    keys: int = 64
    warps: int = 4
    stages: int = 2

    @property
    def compiler_params(self) -> Any:
        """Triton's compiler parameters."""
        return triton.CompilerParams(num_warps=self.warps, num_stages=self.stages)


class Tilings(NamedTuple):
    """The tiling of every kernel; `benchmarks/gpu_attention.py` measures others.

    Attributes:
        forward: Tiles of the forward kernel.
        keys: Tiles of the kernel for the gradients of keys and values.
        queries: Tiles of the kernel for the gradient of queries.
        bias: Tiles of the kernel for the gradient of the bias.
    """

    forward: Tiling = Tiling()
    keys: Tiling = Tiling()
    queries: Tiling = Tiling()
    bias: Tiling = Tiling()


TILINGS = Tilings()


def can_run(inputs: AttentionInputs, heads: int) -> bool:
    """Return whether the kernels support these inputs.

    Triton multiplies matrices whose inner dimension is a power of two from 16 to 256. The result is
    False as well if this JAX has no Pallas for Triton.

    Args:
        inputs: Queries, keys, values, mask and bias.
        heads: Number of heads.
    """
    head_dim = inputs.q_bqj.shape[-1] // heads
    return triton is not None and 16 <= head_dim <= 256 and not head_dim & (head_dim - 1)


def forward(
    inputs: AttentionInputs,
    *,
    heads: int,
    scale: float,
    interpret: bool = False,
    tilings: Tilings = TILINGS,
) -> jax.Array:
    """Compute softmax(scale * q k + bias) v.

    Args:
        inputs: Queries, keys, values, mask and bias.
        heads: Number of heads.
        scale: Factor of the scores.
        interpret: Run in Pallas' interpreter, on any device.
        tilings: Tilings of the kernels.

    Returns:
        [batch, query, heads * head_dim].
    """
    queries = inputs.q_bqj.shape[1]
    padded = _pad_to_tiles(inputs, tilings)
    y_bqj, _ = _KernelCalls(padded, heads, scale, interpret).forward(tilings.forward)
    return y_bqj[:, :queries]


def backward(
    inputs: AttentionInputs,
    dy_bqj: jax.Array,
    *,
    heads: int,
    scale: float,
    interpret: bool = False,
    tilings: Tilings = TILINGS,
) -> AttentionInputs:
    """Compute the gradients of `forward`.

    Args:
        inputs: As given to `forward`.
        dy_bqj: Gradient of its result [batch, query, heads * head_dim].
        heads: Number of heads.
        scale: Factor of the scores.
        interpret: Run in Pallas' interpreter, on any device.
        tilings: Tilings of the kernels.

    Returns:
        Gradients of queries, keys, values and bias; None for the mask and for an absent bias.
    """
    queries, keys = inputs.q_bqj.shape[1], inputs.k_bkj.shape[1]
    padded = _pad_to_tiles(inputs, tilings)
    calls = _KernelCalls(padded, heads, scale, interpret)
    y_bqj, log_z_bhq = calls.forward(tilings.forward)
    dy_bqj = jnp.pad(dy_bqj, ((0, 0), (0, y_bqj.shape[1] - queries), (0, 0)))
    # sum_k(weights * dweights) of each query, which the softmax's gradient subtracts, equals
    # sum_d(dy * y): no scores are needed for it.
    products_bqj = dy_bqj.astype(jnp.float32) * y_bqj
    mean_bqh = products_bqj.reshape(*y_bqj.shape[:2], heads, -1).sum(axis=-1)
    extra = _BackwardInputs(dy_bqj, log_z_bhq, jnp.moveaxis(mean_bqh, 2, 1))
    dk_bkj, dv_bkj = calls.keys_gradient(extra, tilings.keys)
    dq_bqj = calls.queries_gradient(extra, tilings.queries)
    dbias_hqk = None if padded.bias_hqk is None else calls.bias_gradient(extra, tilings.bias)
    return AttentionInputs(
        dq_bqj[:, :queries],
        dk_bkj[:, :keys],
        dv_bkj[:, :keys],
        None,
        None if dbias_hqk is None else dbias_hqk[:, :queries, :keys],
    )


def _pad_to_tiles(inputs: AttentionInputs, tilings: Tilings) -> AttentionInputs:
    """Pad lengths with zeros to multiples of every kernel's tiles; zeros of the mask hide them."""
    query_multiple = math.lcm(*(tiling.queries for tiling in tilings))
    key_multiple = math.lcm(*(tiling.keys for tiling in tilings))
    queries = -inputs.q_bqj.shape[1] % query_multiple
    keys = -inputs.k_bkj.shape[1] % key_multiple
    padding = AttentionInputs(
        (0, queries, 0), (0, keys, 0), (0, keys, 0), *[(0, queries, keys)] * 2
    )
    return AttentionInputs(
        *(
            x if x is None else jnp.pad(x, [(0, count) for count in counts])
            for x, counts in zip(inputs, padding, strict=True)
        )
    )


class _BackwardInputs(NamedTuple):
    """What the backward kernels read besides `AttentionInputs`.

    Attributes:
        dy_bqj: Gradient of the result.
        log_z_bhq: Logarithm of the softmax's denominator.
        mean_bhq: sum_k(weights * dweights) of each query.
    """

    dy_bqj: Any
    log_z_bhq: Any
    mean_bhq: Any


class _BlockIndex(NamedTuple):
    """Which block a program works on, by the letter of the axis."""

    b: Any
    h: Any
    q: Any
    k: Any

    @property
    def p(self) -> Any:
        """Parts of the batch are counted by the same grid dimension as its rows."""
        return self.b

    @property
    def j(self) -> Any:
        """Heads side by side: block h of width head_dim."""
        return self.h


class _BlockSpecs(NamedTuple):
    """Makes the block specs of a kernel's arrays from the names of their axes.

    Attributes:
        block_of: Maps a program's position in the grid to its block.
        queries: Queries of a block.
        keys: Keys of a block.
        head_dim: Width of a head.
        rows: Rows of a block; None for one row without an axis.
    """

    block_of: Callable[..., _BlockIndex]
    queries: int
    keys: int
    head_dim: int
    rows: int | None = None

    def spec(self, axes: str) -> pl.BlockSpec:
        """Return the spec of an array with these axes, such as "bqj"; a single head has no axis."""
        sizes = {"b": self.rows, "q": self.queries, "k": self.keys, "j": self.head_dim}

        def index_map(*position: Any) -> tuple[Any, ...]:
            block = self.block_of(*position)
            return tuple(getattr(block, axis) for axis in axes)

        return pl.BlockSpec(tuple(sizes.get(axis) for axis in axes), index_map)


class _KernelCalls(NamedTuple):
    """Calls of the kernels on inputs whose lengths are whole tiles."""

    inputs: AttentionInputs
    heads: int
    scale: float
    interpret: bool

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Rows, queries, keys, head_dim."""
        rows, queries, joined = self.inputs.q_bqj.shape
        return rows, queries, self.inputs.k_bkj.shape[1], joined // self.heads

    def forward(self, tiling: Tiling) -> tuple[jax.Array, jax.Array]:
        """Return y [b, q, j] and log_z [b, h, q]; a program has one tile of queries."""
        rows, queries, keys, head_dim = self.sizes
        q_bqj = self.inputs.q_bqj
        return self._call(
            functools.partial(_forward_kernel, scale=self.scale, tile=tiling.keys),
            tiling,
            grid=(rows, self.heads, queries // tiling.queries),
            specs=_BlockSpecs(
                lambda b, h, i: _BlockIndex(b, h, i, 0), tiling.queries, keys, head_dim
            ),
            outputs=[
                ("bqj", jax.ShapeDtypeStruct(q_bqj.shape, q_bqj.dtype)),
                ("bhq", jax.ShapeDtypeStruct((rows, self.heads, queries), jnp.float32)),
            ],
            name="attention",
        )

    def keys_gradient(self, extra: _BackwardInputs, tiling: Tiling) -> tuple[jax.Array, jax.Array]:
        """Return dk and dv [b, k, j]; a program has one tile of keys and loops over queries."""
        rows, queries, keys, head_dim = self.sizes
        k_bkj = self.inputs.k_bkj
        return self._call(
            functools.partial(_keys_gradient_kernel, scale=self.scale, tile=tiling.queries),
            tiling,
            grid=(rows, self.heads, keys // tiling.keys),
            specs=_BlockSpecs(
                lambda b, h, i: _BlockIndex(b, h, 0, i), queries, tiling.keys, head_dim
            ),
            extra=extra,
            outputs=[("bkj", jax.ShapeDtypeStruct(k_bkj.shape, k_bkj.dtype))] * 2,
            name="attention_keys_gradient",
        )

    def queries_gradient(self, extra: _BackwardInputs, tiling: Tiling) -> jax.Array:
        """Return dq [b, q, j]; a program has one tile of queries and loops over keys."""
        rows, queries, keys, head_dim = self.sizes
        q_bqj = self.inputs.q_bqj
        (dq_bqj,) = self._call(
            functools.partial(_queries_gradient_kernel, scale=self.scale, tile=tiling.keys),
            tiling,
            grid=(rows, self.heads, queries // tiling.queries),
            specs=_BlockSpecs(
                lambda b, h, i: _BlockIndex(b, h, i, 0), tiling.queries, keys, head_dim
            ),
            extra=extra,
            outputs=[("bqj", jax.ShapeDtypeStruct(q_bqj.shape, q_bqj.dtype))],
            name="attention_queries_gradient",
        )
        return dq_bqj

    def bias_gradient(self, extra: _BackwardInputs, tiling: Tiling) -> jax.Array:
        """Return dbias [h, q, k]; a program has one tile of it and loops over rows of the batch.

        If there are few tiles, the rows are split into parts, whose sums are added afterwards.
        """
        rows, queries, keys, head_dim = self.sizes
        key_tiles = keys // tiling.keys
        tiles = queries // tiling.queries * key_tiles
        parts = _num_parts(rows, self.heads * tiles)
        rows_per_part = rows // parts

        def block_of(part, head, tile):
            query_tile, key_tile = jax.lax.div(tile, key_tiles), jax.lax.rem(tile, key_tiles)
            return _BlockIndex(part, head, query_tile, key_tile)

        shape = (parts, self.heads, queries, keys)
        (dbias_phqk,) = self._call(
            functools.partial(_bias_gradient_kernel, scale=self.scale, rows=rows_per_part),
            tiling,
            grid=(parts, self.heads, tiles),
            specs=_BlockSpecs(block_of, tiling.queries, tiling.keys, head_dim, rows_per_part),
            extra=extra,
            outputs=[("phqk", jax.ShapeDtypeStruct(shape, jnp.float32))],
            name="attention_bias_gradient",
        )
        return dbias_phqk.sum(axis=0)

    def _call(
        self,
        kernel: Callable[..., None],
        tiling: Tiling,
        *,
        grid: tuple[int, ...],
        specs: _BlockSpecs,
        extra: _BackwardInputs | None = None,
        outputs: list[tuple[str, jax.ShapeDtypeStruct]],
        name: str,
    ) -> Any:
        """Call a kernel; the axes of each input are the suffix of its name in the NamedTuple."""
        arrays = {**self.inputs._asdict(), **({} if extra is None else extra._asdict())}
        if self.inputs.bias_hqk is None:
            kernel = functools.partial(_without_bias, kernel)
            del arrays["bias_hqk"]
        return pl.pallas_call(
            kernel,
            grid=grid,
            in_specs=[specs.spec(array_name.rsplit("_", 1)[1]) for array_name in arrays],
            out_specs=[specs.spec(axes) for axes, _ in outputs],
            out_shape=[shape for _, shape in outputs],
            compiler_params=tiling.compiler_params,
            interpret=self.interpret,
            name=name,
        )(*arrays.values())


def _num_parts(rows: int, programs: int) -> int:
    """The smallest divisor of the rows that makes enough programs, or all rows."""
    enough = (n for n in range(1, rows) if not rows % n and n * programs >= MIN_BIAS_PROGRAMS)
    return next(enough, rows)


def _without_bias(kernel, q_ref, k_ref, v_ref, mask_ref, *others, **options):
    """Pallas passes no reference for an absent bias; the kernels expect None in its position."""
    kernel(q_ref, k_ref, v_ref, mask_ref, None, *others, **options)


def _forward_kernel(q_ref, k_ref, v_ref, mask_ref, bias_ref, y_ref, log_z_ref, *, scale, tile):
    """Attention of a tile of queries, over all keys, a tile at a time."""
    q_qd = q_ref[...]
    queries, head_dim = q_qd.shape

    def body(number, carry):
        y_qd, max_q, sum_q = carry
        keys = pl.ds(number * tile, tile)
        bias_qk = None if bias_ref is None else bias_ref[:, keys]
        scores_qk = _scores(q_qd, k_ref[keys, :], bias_qk, scale)
        scores_qk = jnp.where(mask_ref[:, keys] != 0, scores_qk, MASK_VALUE)
        # Online softmax: results so far are relative to the old maximum and are rescaled.
        new_max_q = jnp.maximum(max_q, jnp.max(scores_qk, axis=1))
        exp_qk = jnp.exp(scores_qk - new_max_q[:, None])
        rescale_q = jnp.exp(max_q - new_max_q)
        v_kd = v_ref[keys, :]
        y_qd = y_qd * rescale_q[:, None] + _dot(exp_qk.astype(v_kd.dtype), v_kd)
        return y_qd, new_max_q, sum_q * rescale_q + jnp.sum(exp_qk, axis=1)

    start = (
        jnp.zeros((queries, head_dim), jnp.float32),
        # Below every score, masked ones included, but finite: inf - inf would be NaN.
        jnp.full((queries,), 2 * MASK_VALUE, jnp.float32),
        jnp.zeros((queries,), jnp.float32),
    )
    y_qd, max_q, sum_q = jax.lax.fori_loop(0, k_ref.shape[0] // tile, body, start)
    y_ref[...] = (y_qd / sum_q[:, None]).astype(y_ref.dtype)
    log_z_ref[...] = max_q + jnp.log(sum_q)


def _keys_gradient_kernel(q_ref, k_ref, v_ref, mask_ref, bias_ref, *others, scale, tile):
    """Gradients of a tile of keys and values, over all queries, a tile at a time."""
    dy_ref, log_z_ref, mean_ref, dk_ref, dv_ref = others
    k_kd, v_kd = k_ref[...], v_ref[...]

    def body(number, carry):
        dk_kd, dv_kd = carry
        queries = pl.ds(number * tile, tile)
        q_qd, dy_qd = q_ref[queries, :], dy_ref[queries, :]
        bias_qk = None if bias_ref is None else bias_ref[queries, :]
        scores_qk = _scores(q_qd, k_kd, bias_qk, scale)
        weights_qk = _weights(scores_qk, mask_ref[queries, :], log_z_ref[queries])
        dv_kd += _dot(weights_qk.astype(dy_qd.dtype), dy_qd, trans_a=True)
        dscores_qk = _scores_gradient(weights_qk, dy_qd, v_kd, mean_ref[queries])
        dproduct_qk = (dscores_qk * scale).astype(q_qd.dtype)
        return dk_kd + _dot(dproduct_qk, q_qd, trans_a=True), dv_kd

    zeros = jnp.zeros(k_kd.shape, jnp.float32)
    gradients = jax.lax.fori_loop(0, q_ref.shape[0] // tile, body, (zeros, zeros))
    dk_ref[...], dv_ref[...] = (x_kd.astype(dk_ref.dtype) for x_kd in gradients)


def _queries_gradient_kernel(q_ref, k_ref, v_ref, mask_ref, bias_ref, *others, scale, tile):
    """Gradient of a tile of queries, over all keys, a tile at a time."""
    dy_ref, log_z_ref, mean_ref, dq_ref = others
    q_qd, dy_qd, log_z_q, mean_q = q_ref[...], dy_ref[...], log_z_ref[...], mean_ref[...]

    def body(number, dq_qd):
        keys = pl.ds(number * tile, tile)
        k_kd = k_ref[keys, :]
        bias_qk = None if bias_ref is None else bias_ref[:, keys]
        weights_qk = _weights(_scores(q_qd, k_kd, bias_qk, scale), mask_ref[:, keys], log_z_q)
        dscores_qk = _scores_gradient(weights_qk, dy_qd, v_ref[keys, :], mean_q)
        return dq_qd + _dot((dscores_qk * scale).astype(k_kd.dtype), k_kd)

    zeros = jnp.zeros(q_qd.shape, jnp.float32)
    dq_qd = jax.lax.fori_loop(0, k_ref.shape[0] // tile, body, zeros)
    dq_ref[...] = dq_qd.astype(dq_ref.dtype)


def _bias_gradient_kernel(q_ref, k_ref, v_ref, mask_ref, bias_ref, *others, scale, rows):
    """Gradient of a tile of the bias, summed over some rows of the batch."""
    dy_ref, log_z_ref, mean_ref, dbias_ref = others
    bias_qk = bias_ref[...]

    def body(row, dbias_qk):
        scores_qk = _scores(q_ref[row], k_ref[row], bias_qk, scale)
        weights_qk = _weights(scores_qk, mask_ref[row], log_z_ref[row])
        return dbias_qk + _scores_gradient(weights_qk, dy_ref[row], v_ref[row], mean_ref[row])

    dbias_ref[...] = jax.lax.fori_loop(0, rows, body, jnp.zeros(bias_qk.shape, jnp.float32))


def _scores(q_qd, k_kd, bias_qk, scale: float):
    scores_qk = _dot(q_qd, k_kd, trans_b=True)
    scores_qk = scores_qk if scale == 1.0 else scores_qk * scale
    return scores_qk if bias_qk is None else scores_qk + bias_qk


def _weights(scores_qk, mask_qk, log_z_q):
    """The softmax, from the logarithm of its denominator; 0 where the mask is 0."""
    return jnp.where(mask_qk != 0, jnp.exp(scores_qk - log_z_q[:, None]), 0.0)


def _scores_gradient(weights_qk, dy_qd, v_kd, mean_q):
    """Weights * (dweights - sum_k(weights * dweights)), the gradient of the softmax."""
    return weights_qk * (_dot(dy_qd, v_kd, trans_b=True) - mean_q[:, None])


def _dot(a, b, *, trans_a: bool = False, trans_b: bool = False):
    """Matrix product accumulated in float32; float32 operands are not rounded to TF32."""
    precision = None if a.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    return triton.dot(a, b, trans_a=trans_a, trans_b=trans_b, precision=precision)
