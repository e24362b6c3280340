"""What a training step needs by arithmetic alone: the roofline, and memory without a compiler."""

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
    """Seconds of a step if one thing alone held it up, each at its published peak."""

    compute: float
    memory: float
    network: float

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(self._fields, key=lambda name: getattr(self, name))


def state_bytes(
    model: TransformerConfig, optimizer: OptimizerConfig, mesh: Mapping[str, int]
) -> dict[str, int]:
    """Weights, optimizer state and gradients on one device of a mesh, without tiles' padding."""
    _, shapes, axes = transformer.abstract_model(model)
    bound = optimizer.for_weights(shapes, axes)
    state = jax.eval_shape(bound.init, shapes)
    weights = _on_a_device(shapes, axes, mesh)
    return {
        "weights": weights,
        "optimizer state": _on_a_device(state, bound.state_axes, mesh),
        "gradients": weights,
    }


def activation_bytes(
    model: TransformerConfig,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    mesh: Mapping[str, int],
    loss: Callable[[Any, Any], jax.Array],
) -> int:
    """What differentiation keeps of the forward pass on one device, split as the batch is.

    Counted from the traced model, its remat policy included; copies of weights are left out. XLA
    may keep less, and needs working memory besides.
    """
    _, params, _ = transformer.abstract_model(model)
    kept = jax.eval_shape(lambda p, b: jax.vjp(lambda q: loss(q, b), p)[1], params, dict(batch))
    of_weights = {leaf.shape for leaf in jax.tree.leaves(params)}
    size = sum(
        math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(kept)
        if leaf.shape not in of_weights
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
    """Bounds of a step on a mesh of these chips' devices.

    compute: model FLOPs at the peak. memory: weights read three times in the activations' type,
    the state read and written, gradients written and read, activations likewise. network: fsdp
    gathers weights twice and scatters gradients once; data reduces gradients; tensor reduces the
    output of every sub-layer twice; expert moves tokens four times. All links are taken as busy.
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


def _on_a_device(shapes: Any, axes: Any, mesh: Mapping[str, int]) -> int:
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
    """Into how many parts a mesh splits what has this logical axis."""
    return _product(LOGICAL_TO_MESH[logical], mesh)


def _product(entry: Any, mesh: Mapping[str, int]) -> int:
    names = (entry,) if isinstance(entry, str) else entry or ()
    return math.prod(mesh.get(name, 1) for name in names)
