"""Roofline bounds and memory of a training step by arithmetic, without a compiler."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from t5x_lite.hardware.chips import Chip
from t5x_lite.models import transformer
from t5x_lite.models.config import TransformerConfig
from t5x_lite.partitioning import LOGICAL_TO_MESH, is_logical_axes, partition_spec
from t5x_lite.training.optimizers import OptimizerConfig


class Roofline(NamedTuple):
    """Seconds of a step if one resource alone limited it, each at its published peak.

    Attributes:
        compute: model FLOPs at the chip's peak.
        memory: bytes read and written at the bandwidth of HBM.
        network: bytes sent at the bandwidth of the links between chips.
    """

    compute: float
    memory: float
    network: float

    @property
    def bound(self) -> str:
        """The name of the slowest resource."""
        return max(self._fields, key=lambda name: getattr(self, name))


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

    Counted from the traced model with its remat policy; copies of weights are not counted. XLA may
    keep less, and needs working memory in addition.

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
    return size // parts("batch", mesh)


def roofline(
    chip: Chip,
    model: TransformerConfig,
    *,
    mesh: Mapping[str, int],
    step_flops: float,
    tokens: int,
    state: Mapping[str, int],
    activations: int,
) -> Roofline:
    """Compute lower bounds of a step's time on a mesh of devices of a chip.

    Compute is model FLOPs at the peak. Memory traffic: weights are read three times in the dtype of
    activations, the state is read and written, gradients are written and read, and so are
    activations. Network traffic: fsdp gathers weights twice and scatters gradients once; data
    reduces gradients; tensor reduces the output of every sub-layer twice; expert moves tokens four
    times. All links of a chip are assumed to be busy.

    Args:
        chip: the kind of chip.
        model: the architecture.
        mesh: sizes of mesh axes.
        step_flops: FLOPs of the step over all devices.
        tokens: tokens of the global batch, inputs and targets.
        state: bytes of a device, as `state_bytes` counts them.
        activations: bytes of a device, as `activation_bytes` counts them.
    """
    devices = math.prod(mesh.values())
    itemsize = 2 if model.dtype == "bfloat16" else 4
    fsdp, data, tensor = (mesh.get(name, 1) for name in ("fsdp", "data", "tensor"))
    gathered = state["weights"] * fsdp * itemsize / 4  # weights are stored in float32
    traffic = 3 * gathered + 2 * sum(state.values()) + 2 * activations
    sent = (2 * gathered + state["weights"] * fsdp) * (fsdp - 1) / fsdp
    sent += 2 * state["weights"] * (data - 1) / data
    row = tokens / devices * tensor * model.emb_dim * itemsize
    sublayers = 2 * model.num_encoder_layers + (3 - model.decoder_only) * model.num_decoder_layers
    sent += 4 * row * sublayers / 2 * (tensor - 1) / tensor
    if model.moe is not None:
        sparse = (model.num_encoder_layers + model.num_decoder_layers) // model.moe.every
        experts = mesh.get("expert", 1)
        sent += 4 * row * model.moe.train_capacity_factor * sparse * (experts - 1) / experts
    return Roofline(
        compute=step_flops / devices / (chip.peak / chip.devices),
        memory=traffic / (chip.hbm_bandwidth / chip.devices),
        network=sent / (chip.ici / chip.devices),
    )


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


def parts(logical: str, mesh: Mapping[str, int]) -> int:
    """Return the number of shards that a mesh makes of a logical axis."""
    return _product(LOGICAL_TO_MESH[logical], mesh)


def _product(entry: Any, mesh: Mapping[str, int]) -> int:
    names = (entry,) if isinstance(entry, str) else entry or ()
    return math.prod(mesh.get(name, 1) for name in names)
