"""Roofline bounds of the time of a training step, by arithmetic, without a compiler."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from t5x_lite.hardware.chips import Chip
from t5x_lite.models.config import TransformerConfig


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
