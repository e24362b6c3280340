"""Memory of a training step on one device by arithmetic, without a compiler."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from t5x_lite.models import transformer
from t5x_lite.models.config import TransformerConfig
from t5x_lite.partitioning import LOGICAL_TO_MESH, is_logical_axes, partition_spec
from t5x_lite.training.optimizers import OptimizerConfig


def state_bytes(
    model: TransformerConfig, optimizer: OptimizerConfig, mesh: Mapping[str, int]
) -> dict[str, int]:
    """Count the bytes of weights, optimizer state and gradients on one device of a mesh.

    The padding of arrays to the device's tiles is not counted.

    Args:
        model: the architecture.
        optimizer: decides the optimizer state.
        mesh: sizes of mesh axes; an axis that is missing has size 1.

    Returns:
        Bytes by kind: "weights", "optimizer state" and "gradients".
    """
    _, shapes, axes = transformer.abstract_model(model)
    bound = optimizer.for_weights(shapes, axes)
    state = jax.eval_shape(bound.init, shapes)
    weights = _bytes_on_a_device(shapes, axes, mesh)
    return {
        "weights": weights,
        "optimizer state": _bytes_on_a_device(state, bound.state_axes, mesh),
        "gradients": weights,
    }


def activation_bytes(
    model: TransformerConfig,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    mesh: Mapping[str, int],
    loss: Callable[[Any, Any], jax.Array],
) -> int:
    """Count the bytes of the forward pass that differentiation keeps, on one device.

    Counted from the traced model with its remat policy. Arrays of the shape of a weight count as
    copies of weights and are omitted: an activation of such a shape is missed. XLA may keep less,
    and needs working memory in addition.

    Args:
        model: the architecture.
        batch: shapes of the global batch by name.
        mesh: sizes of mesh axes; activations are taken as split like the batch.
        loss: a scalar function of (params, batch).
    """
    _, params, _ = transformer.abstract_model(model)
    kept = jax.eval_shape(lambda p, b: jax.vjp(lambda q: loss(q, b), p)[1], params, dict(batch))
    weight_shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
    size = sum(
        math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(kept)
        if leaf.shape not in weight_shapes
    )
    return size // num_shards("batch", mesh)


def _bytes_on_a_device(shapes: Any, axes: Any, mesh: Mapping[str, int]) -> int:
    leaves = jax.tree.leaves(shapes)
    names = jax.tree.leaves(axes, is_leaf=is_logical_axes)
    total = 0
    for leaf, logical in zip(leaves, names, strict=True):
        spec = partition_spec(logical)
        sizes = [
            -(-size // _product(entry, mesh)) for size, entry in zip(leaf.shape, spec, strict=True)
        ]
        total += math.prod(sizes) * np.dtype(leaf.dtype).itemsize
    return total


def num_shards(logical: str, mesh: Mapping[str, int]) -> int:
    """Return the number of shards that a mesh makes of a logical axis."""
    return _product(LOGICAL_TO_MESH[logical], mesh)


def _product(entry: Any, mesh: Mapping[str, int]) -> int:
    names = (entry,) if isinstance(entry, str) else entry or ()
    return math.prod(mesh.get(name, 1) for name in names)
