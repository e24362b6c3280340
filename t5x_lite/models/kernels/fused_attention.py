"""Fused attention as a differentiable function on any mesh.

It uses `attention_tpu` on TPUs, `attention_gpu` on NVIDIA GPUs, and `unfused_attention` on other
devices. The choice is made when a program is lowered, so one traced program suits every platform.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax

from t5x_lite.models.kernels import attention_gpu, attention_tpu
from t5x_lite.models.kernels.attention_tpu import TILE, max_queries_per_block
from t5x_lite.models.kernels.dot_product_attention import AttentionInputs, unfused_attention
from t5x_lite.partitioning import (
    is_logical_axes,
    mesh_axes,
    num_batch_shards,
    pad_to_multiple,
    partition_spec,
)

_LOGICAL_AXES = AttentionInputs(
    q_bqj=("batch", "length", "heads"),
    k_bkj=("batch", None, "heads"),
    v_bkj=("batch", None, "heads"),
    mask_bqk=("batch", "length", None),
    bias_hqk=("heads", "length", None),
)
# Index of the query axis, which a mesh may split, in each of `AttentionInputs`.
_QUERY_AXIS = AttentionInputs(q_bqj=1, k_bkj=None, v_bkj=None, mask_bqk=1, bias_hqk=1)


def can_fuse(rows: int, heads: int) -> bool:
    """Return whether the current mesh divides the rows of a batch and the heads.

    Args:
        rows: Rows of the global batch.
        heads: Number of heads.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return not rows % num_batch_shards(mesh) and not heads % _num_shards("heads")


def fused_attention(inputs: AttentionInputs, *, heads: int, scale: float = 1.0) -> jax.Array:
    """Compute softmax(scale * q k + bias) v where the mask is not 0, for any lengths.

    The backward pass recomputes the scores. A query all of whose keys are masked has a meaningless
    result and no gradient.

    Args:
        inputs: Queries, keys, values, mask and bias.
        heads: Number of heads.
        scale: Factor of the scores; T5 has 1.

    Returns:
        [batch, query, heads * head_dim].
    """
    _, length, joined = inputs.q_bqj.shape
    local_heads, length_shards = heads // _num_shards("heads"), _num_shards("length")
    max_queries = max_queries_per_block(
        inputs.k_bkj.shape[1], heads=local_heads, head_dim=joined // heads
    )
    # shard_map needs queries that the mesh divides, and the TPU's kernel whole tiles of them if a
    # device's queries do not fit into one block. Added queries see no key.
    fits = -(-length // length_shards) <= max_queries
    multiple = length_shards if fits else length_shards * TILE
    padded = AttentionInputs(
        *(
            x if x is None or axis is None else pad_to_multiple(x, axis, multiple)
            for x, axis in zip(inputs, _QUERY_AXIS, strict=True)
        )
    )
    y_bqj: Any = _attend(local_heads, scale, padded)
    return y_bqj[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(local_heads: int, scale: float, inputs: AttentionInputs) -> jax.Array:
    options = {"heads": local_heads, "scale": scale}

    def on_device(inputs: AttentionInputs) -> jax.Array:
        kernels = {"tpu": attention_tpu.forward, "default": unfused_attention}
        if attention_gpu.can_run(inputs, local_heads):
            kernels["cuda"] = attention_gpu.forward
        return _by_platform(kernels, options)(inputs)

    return _on_mesh(on_device, (_axes(inputs),), _LOGICAL_AXES.q_bqj)(inputs)


def _attend_backward(local_heads: int, scale: float, inputs: AttentionInputs, dy_bqj: jax.Array):
    options = {"heads": local_heads, "scale": scale}

    def on_device(inputs: AttentionInputs, dy_bqj: jax.Array) -> AttentionInputs:
        kernels = {"tpu": attention_tpu.backward, "default": _unfused_backward}
        if attention_gpu.can_run(inputs, local_heads):
            kernels["cuda"] = attention_gpu.backward
        gradients = _by_platform(kernels, options)(inputs, dy_bqj)
        dk, dv, dbias = gradients.k_bkj, gradients.v_bkj, gradients.bias_hqk
        # Keys and values are the same on all devices that share a row, which split its queries;
        # the bias is the same on all devices that share a head, which split the batch.
        if axes := _current_mesh_axes("length"):
            dk, dv = jax.lax.psum((dk, dv), axes)
        if dbias is not None and (axes := _current_mesh_axes("batch")):
            dbias = jax.lax.psum(dbias, axes)
        return gradients._replace(k_bkj=dk, v_bkj=dv, bias_hqk=dbias)

    axes = _axes(inputs)
    gradient_axes = axes._replace(mask_bqk=None)
    return (_on_mesh(on_device, (axes, _LOGICAL_AXES.q_bqj), gradient_axes)(inputs, dy_bqj),)


_attend.defvjp(
    lambda local_heads, scale, inputs: (_attend(local_heads, scale, inputs), inputs),
    _attend_backward,
)


def _unfused_backward(
    inputs: AttentionInputs, dy_bqj: jax.Array, **options: Any
) -> AttentionInputs:
    def forward(differentiable: AttentionInputs) -> jax.Array:
        return unfused_attention(differentiable._replace(mask_bqk=inputs.mask_bqk), **options)

    _, vjp = jax.vjp(forward, inputs._replace(mask_bqk=None))
    return vjp(dy_bqj)[0]


def _by_platform(kernels: dict[str, Callable], options: dict[str, Any]) -> Callable:
    """Select the kernel of the platform that the program is lowered for."""
    bound = {name: functools.partial(kernel, **options) for name, kernel in kernels.items()}
    return functools.partial(jax.lax.platform_dependent, **bound)


def _on_mesh(function: Callable, in_axes: Any, out_axes: Any) -> Callable:
    """Map a function over the mesh by logical axes; without a mesh, return it."""
    if jax.sharding.get_abstract_mesh().empty:
        return function

    def specs(axes_tree):
        return jax.tree.map(partition_spec, axes_tree, is_leaf=is_logical_axes)

    return jax.shard_map(
        function, in_specs=specs(in_axes), out_specs=specs(out_axes), check_vma=False
    )


def _axes(inputs: AttentionInputs) -> AttentionInputs:
    """The logical axes of the inputs that are present."""
    return AttentionInputs(
        *(x if x is None else axes for x, axes in zip(inputs, _LOGICAL_AXES, strict=True))
    )


def _current_mesh_axes(logical_axis: str) -> tuple[str, ...]:
    """The axes of the current mesh that split a logical axis; none outside a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return () if mesh.empty else mesh_axes(logical_axis)


def _num_shards(logical_axis: str) -> int:
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[name] for name in _current_mesh_axes(logical_axis))
