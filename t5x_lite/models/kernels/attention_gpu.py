"""Attention as kernels for NVIDIA GPUs (Pallas, by Triton), with what `attention_kernel` computes.

Scores live in registers, a tile at a time: the forward kernel keeps a running maximum and sum of
each query (FlashAttention, Dao et al. 2022), and three kernels make the gradients, of keys and
values, of queries, and of the bias, each from scores made again. The bias is shared by the rows of
the batch, which the last one adds up. Lengths are filled up to whole tiles; nothing may look there.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from t5x_lite.models.kernels.attention_tpu import MASKED, Operands

try:  # JAX 0.11 says that a later one will not have it; attention is plain then
    from jax.experimental.pallas import triton
except ImportError:
    triton: Any = None


def _without_bias(kernel, q_ref, k_ref, v_ref, mask_ref, *others, **options):
    """A kernel for operands that have no bias."""
    kernel(q_ref, k_ref, v_ref, mask_ref, None, *others, **options)


def _forward_kernel(q_ref, k_ref, v_ref, mask_ref, bias_ref, y_ref, log_z_ref, *, scale, tile):
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


def _keys_gradient_kernel(q_ref, k_ref, v_ref, mask_ref, bias_ref, *others, scale, tile):
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


def _queries_gradient_kernel(q_ref, k_ref, v_ref, mask_ref, bias_ref, *others, scale, tile):
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


def _bias_gradient_kernel(q_ref, k_ref, v_ref, mask_ref, bias_ref, *others, scale, rows):
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


_PROGRAMS = 1024  # of the bias' kernel, at least, where rows allow: a GPU of today has 132 cores


class Tiling(NamedTuple):
    """How the work is cut: queries and keys of a tile, and how a tile's program runs."""

    queries: int = 64
    keys: int = 64
    warps: int = 4
    stages: int = 2

    @property
    def how(self) -> Any:
        """What Triton is told."""
        return triton.CompilerParams(num_warps=self.warps, num_stages=self.stages)


class Tilings(NamedTuple):
    """Of every kernel; benchmarks/gpu_attention.py tries others."""

    forward: Tiling = Tiling()
    keys: Tiling = Tiling()
    queries: Tiling = Tiling()
    bias: Tiling = Tiling()


TILINGS = Tilings()


def can_run(operands: Operands, heads: int) -> bool:
    """Whether this JAX has Triton, and heads a width that it multiplies: 16, 32, 64, 128 or 256."""
    head_dim = operands.q_bqj.shape[-1] // heads
    return triton is not None and 16 <= head_dim <= 256 and not head_dim & (head_dim - 1)


def forward(
    operands: Operands,
    *,
    heads: int,
    scale: float,
    interpret: bool = False,
    tilings: Tilings = TILINGS,
) -> jax.Array:
    """The mean of the values that each query looks at, [b, q, j]."""
    queries = operands.q_bqj.shape[1]
    whole = _whole_tiles(operands, tilings)
    y_bqj, _ = _Call(whole, heads, scale, interpret).forward(tilings.forward)
    return y_bqj[:, :queries]


def backward(
    operands: Operands,
    slopes_bqj: jax.Array,
    *,
    heads: int,
    scale: float,
    interpret: bool = False,
    tilings: Tilings = TILINGS,
) -> Operands:
    """The gradient of every operand, from that of the result; none of the mask."""
    queries, keys = operands.q_bqj.shape[1], operands.k_bkj.shape[1]
    whole = _whole_tiles(operands, tilings)
    call = _Call(whole, heads, scale, interpret)
    y_bqj, log_z_bhq = call.forward(tilings.forward)
    slopes_bqj = jnp.pad(slopes_bqj, ((0, 0), (0, y_bqj.shape[1] - queries), (0, 0)))
    products_bqj = slopes_bqj.astype(jnp.float32) * y_bqj
    means_bqh = products_bqj.reshape(*y_bqj.shape[:2], heads, -1).sum(axis=-1)
    slopes = _Slopes(slopes_bqj, log_z_bhq, jnp.moveaxis(means_bqh, 2, 1))
    dk_bkj, dv_bkj = call.of_keys(slopes, tilings.keys)
    dq_bqj = call.of_queries(slopes, tilings.queries)
    dbias_hqk = None if whole.bias_hqk is None else call.of_bias(slopes, tilings.bias)
    return Operands(
        dq_bqj[:, :queries],
        dk_bkj[:, :keys],
        dv_bkj[:, :keys],
        None,
        None if dbias_hqk is None else dbias_hqk[:, :queries, :keys],
    )


class _Slopes(NamedTuple):
    """What the backward kernels read besides the operands.

    log_z: log of the softmax's denominator. means: of the weights' slopes, by the weights.
    """

    y_bqj: Any
    log_z_bhq: Any
    means_bhq: Any


class _Place(NamedTuple):
    """Which block of an axis a program works on; rows may be in parts (p)."""

    b: Any
    h: Any
    q: Any
    k: Any

    @property
    def p(self) -> Any:
        return self.b

    @property
    def j(self) -> Any:
        """Of heads side by side."""
        return self.h


class _View(NamedTuple):
    """What a program of a kernel sees of arrays: blocks of these sizes, at its place of the grid.

    rows: None for one row, without an axis for it.
    """

    at: Callable[..., _Place]
    queries: int
    keys: int
    head_dim: int
    rows: int | None = None

    def of(self, axes: str) -> pl.BlockSpec:
        """Its block of an array with these axes, such as "bqj"; one row or head has no axis."""
        sizes = {"b": self.rows, "q": self.queries, "k": self.keys, "j": self.head_dim}

        def block(*number: Any) -> tuple[Any, ...]:
            place = self.at(*number)
            return tuple(getattr(place, axis) for axis in axes)

        return pl.BlockSpec(tuple(sizes.get(axis) for axis in axes), block)


class _Call(NamedTuple):
    """The kernels on some operands, whose lengths are whole tiles."""

    operands: Operands
    heads: int
    scale: float
    interpret: bool

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Rows, queries, keys, width of a head."""
        rows, queries, joined = self.operands.q_bqj.shape
        return rows, queries, self.operands.k_bkj.shape[1], joined // self.heads

    def forward(self, tiling: Tiling) -> tuple[jax.Array, jax.Array]:
        """The result [b, q, j], and log z [b, h, q] of its softmax."""
        rows, queries, keys, head_dim = self.sizes
        q_bqj = self.operands.q_bqj
        return self._run(
            functools.partial(_forward_kernel, scale=self.scale, tile=tiling.keys),
            tiling,
            grid=(rows, self.heads, queries // tiling.queries),
            view=_View(lambda b, h, i: _Place(b, h, i, 0), tiling.queries, keys, head_dim),
            writes=[
                ("bqj", jax.ShapeDtypeStruct(q_bqj.shape, q_bqj.dtype)),
                ("bhq", jax.ShapeDtypeStruct((rows, self.heads, queries), jnp.float32)),
            ],
            name="attention",
        )

    def of_keys(self, slopes: _Slopes, tiling: Tiling) -> tuple[jax.Array, jax.Array]:
        """Gradients of keys and values: a program has some keys, and goes through the queries."""
        rows, queries, keys, head_dim = self.sizes
        k_bkj = self.operands.k_bkj
        return self._run(
            functools.partial(_keys_gradient_kernel, scale=self.scale, tile=tiling.queries),
            tiling,
            grid=(rows, self.heads, keys // tiling.keys),
            view=_View(lambda b, h, i: _Place(b, h, 0, i), queries, tiling.keys, head_dim),
            slopes=slopes,
            writes=[("bkj", jax.ShapeDtypeStruct(k_bkj.shape, k_bkj.dtype))] * 2,
            name="attention_of_keys",
        )

    def of_queries(self, slopes: _Slopes, tiling: Tiling) -> jax.Array:
        """Gradient of queries: a program has some of them, and goes through the keys."""
        rows, queries, keys, head_dim = self.sizes
        q_bqj = self.operands.q_bqj
        (dq_bqj,) = self._run(
            functools.partial(_queries_gradient_kernel, scale=self.scale, tile=tiling.keys),
            tiling,
            grid=(rows, self.heads, queries // tiling.queries),
            view=_View(lambda b, h, i: _Place(b, h, i, 0), tiling.queries, keys, head_dim),
            slopes=slopes,
            writes=[("bqj", jax.ShapeDtypeStruct(q_bqj.shape, q_bqj.dtype))],
            name="attention_of_queries",
        )
        return dq_bqj

    def of_bias(self, slopes: _Slopes, tiling: Tiling) -> jax.Array:
        """Gradient of the bias [h, q, k]: a program has a tile of it, and goes through rows.

        Where there are few tiles, rows are split among several programs, and their sums added.
        """
        rows, queries, keys, head_dim = self.sizes
        across = keys // tiling.keys
        tiles = queries // tiling.queries * across
        parts = _parts(rows, self.heads * tiles)
        some = rows // parts

        def at(part, head, tile):
            return _Place(part, head, jax.lax.div(tile, across), jax.lax.rem(tile, across))

        shape = (parts, self.heads, queries, keys)
        (dbias_bhqk,) = self._run(
            functools.partial(_bias_gradient_kernel, scale=self.scale, rows=some),
            tiling,
            grid=(parts, self.heads, tiles),
            view=_View(at, tiling.queries, tiling.keys, head_dim, some),
            slopes=slopes,
            writes=[("phqk", jax.ShapeDtypeStruct(shape, jnp.float32))],
            name="attention_of_bias",
        )
        return dbias_bhqk.sum(axis=0)

    def _run(
        self,
        kernel: Callable[..., None],
        tiling: Tiling,
        *,
        grid: tuple[int, ...],
        view: _View,
        slopes: _Slopes | None = None,
        writes: list[tuple[str, jax.ShapeDtypeStruct]],
        name: str,
    ) -> Any:
        """Call a kernel on the operands there are, and slopes; it writes arrays of these axes."""
        given = {**self.operands._asdict(), **({} if slopes is None else slopes._asdict())}
        if self.operands.bias_hqk is None:
            kernel = functools.partial(_without_bias, kernel)
            del given["bias_hqk"]
        return pl.pallas_call(
            kernel,
            grid=grid,
            in_specs=[view.of(array_name.rsplit("_", 1)[1]) for array_name in given],
            out_specs=[view.of(axes) for axes, _ in writes],
            out_shape=[shape for _, shape in writes],
            compiler_params=tiling.how,
            interpret=self.interpret,
            name=name,
        )(*given.values())


def _whole_tiles(operands: Operands, tilings: Tilings) -> Operands:
    """Operands whose lengths every kernel divides: nothing looks at what is added."""
    of_queries = math.lcm(*(tiling.queries for tiling in tilings))
    of_keys = math.lcm(*(tiling.keys for tiling in tilings))
    queries = -operands.q_bqj.shape[1] % of_queries
    keys = -operands.k_bkj.shape[1] % of_keys
    added = Operands((0, queries, 0), (0, keys, 0), (0, keys, 0), *[(0, queries, keys)] * 2)
    return Operands(
        *(
            x if x is None else jnp.pad(x, [(0, number) for number in numbers])
            for x, numbers in zip(operands, added, strict=True)
        )
    )


def _parts(rows: int, programs: int) -> int:
    """Into how many parts rows are cut, so that there are enough programs."""
    enough = (n for n in range(1, rows) if not rows % n and n * programs >= _PROGRAMS)
    return next(enough, rows)
