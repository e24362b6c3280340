"""Attention by kernels, as a function with a gradient, on any mesh.

TPUs have `attention_kernel`, NVIDIA's GPUs `attention_kernel_gpu`; other devices do it plainly.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from t5x_lite.models.kernels import attention_gpu, attention_tpu
from t5x_lite.models.kernels.attention_tpu import TILE, Operands, at_once
from t5x_lite.partitioning import batch_parts, is_axes, mesh_axes, partition_spec

_AXES = Operands(
    q_bqj=("batch", "length", "heads"),
    k_bkj=("batch", None, "heads"),
    v_bkj=("batch", None, "heads"),
    mask_bqk=("batch", "length", None),
    bias_hqk=("heads", "length", None),
)


def can_fuse(rows: int, heads: int) -> bool:
    """Whether the mesh at hand divides the rows of a batch and the heads."""
    mesh = jax.sharding.get_abstract_mesh()
    return not rows % batch_parts(mesh) and not heads % _parts("heads")


def fused_attention(operands: Operands, *, heads: int, scale: float = 1.0) -> jax.Array:
    """softmax(scale * q k + bias) v of every head where the mask is not 0: [b, q, j], any lengths.

    The backward pass makes the scores again. Where no key may be looked at, the result means
    nothing and has no gradient.
    """
    _, length, joined = operands.q_bqj.shape
    heads_here, parts = heads // _parts("heads"), _parts("length")
    most = at_once(operands.k_bkj.shape[1], heads=heads_here, head_dim=joined // heads)
    multiple = parts if -(-length // parts) <= most else parts * TILE
    filled = Operands(
        *(
            x if x is None else _filled(x, name.split("_")[1].find("q"), multiple)
            for name, x in operands._asdict().items()
        )
    )
    y_bqj: Any = _attend(heads_here, scale, filled)
    return y_bqj[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(heads: int, scale: float, operands: Operands) -> jax.Array:
    how = {"heads": heads, "scale": scale}  # of one device

    def local(operands: Operands) -> jax.Array:
        kernels = {"tpu": attention_tpu.forward, "default": attention_tpu.plain}
        if attention_gpu.can_run(operands, heads):
            kernels["cuda"] = attention_gpu.forward
        return _by_platform(kernels, how)(operands)

    return _sharded(local, (_axes(operands),), _AXES.q_bqj)(operands)


def _attend_backward(heads: int, scale: float, operands: Operands, slopes_bqj: jax.Array):
    how = {"heads": heads, "scale": scale}  # of one device

    def of_plain(operands: Operands, slopes_bqj: jax.Array, **how: Any) -> Operands:
        real = operands._replace(mask_bqk=None)
        _, pull = jax.vjp(
            lambda real: attention_tpu.plain(real._replace(mask_bqk=operands.mask_bqk), **how),
            real,
        )
        return pull(slopes_bqj)[0]

    def local(operands: Operands, slopes_bqj: jax.Array) -> Operands:
        kernels = {"tpu": attention_tpu.backward, "default": of_plain}
        if attention_gpu.can_run(operands, heads):
            kernels["cuda"] = attention_gpu.backward
        found = _by_platform(kernels, how)(operands, slopes_bqj)
        dk, dv, dbias = found.k_bkj, found.v_bkj, found.bias_hqk
        if axes := _live("length"):  # each device has some of the queries
            dk, dv = jax.lax.psum((dk, dv), axes)
        if dbias is not None and (axes := _live("batch")):
            dbias = jax.lax.psum(dbias, axes)
        return found._replace(k_bkj=dk, v_bkj=dv, bias_hqk=dbias)

    axes = _axes(operands)
    writes = axes._replace(mask_bqk=None)
    return (_sharded(local, (axes, _AXES.q_bqj), writes)(operands, slopes_bqj),)


_attend.defvjp(
    lambda heads, scale, operands: (_attend(heads, scale, operands), operands), _attend_backward
)


def _by_platform(kernels: dict[str, Callable], how: dict[str, Any]) -> Callable:
    """The function that takes the kernel of the platform it is compiled for."""
    chosen = {name: functools.partial(kernel, **how) for name, kernel in kernels.items()}
    return functools.partial(jax.lax.platform_dependent, **chosen)


def _sharded(function, reads, writes):
    """Every device's part of `function`, by logical axes; the function itself without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return function

    def specs(tree):
        return jax.tree.map(partition_spec, tree, is_leaf=is_axes)

    return jax.shard_map(function, in_specs=specs(reads), out_specs=specs(writes), check_vma=False)


def _axes(operands: Operands) -> Operands:
    """Logical axes of the operands there are."""
    return Operands(*(x if x is None else axes for x, axes in zip(operands, _AXES, strict=True)))


def _live(axis: str) -> tuple[str, ...]:
    """The mesh axes of a logical one that the mesh at hand has."""
    mesh = jax.sharding.get_abstract_mesh()
    return () if mesh.empty else mesh_axes(axis)


def _parts(axis: str) -> int:
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[name] for name in _live(axis))


def _filled(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """`x` with zeros behind it, up to a multiple along an axis; -1 is none."""
    missing = -x.shape[axis] % multiple if axis >= 0 else 0
    fill = [(0, missing if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, fill) if missing else x
