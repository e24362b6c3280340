"""The parts of a plan that need no compiler: sizes, FLOPs, memory and roofline."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from t5x_lite.hardware.topologies import Topology
from t5x_lite.models import transformer
from t5x_lite.models.flops import TRAINING, forward_flops
from t5x_lite.planning import decode_plan, memory_estimate, roofline
from t5x_lite.planning.decode_plan import DecodingWorkload, Phases, Range
from t5x_lite.planning.estimate import KNOWN_GPU_BIAS
from t5x_lite.planning.lowering import Setting, batch_shapes, summed_loss
from t5x_lite.planning.roofline import Roofline


class Arithmetic(NamedTuple):
    """What arithmetic alone gives.

    Attributes:
        facts: sections of a plan: model, batch and FLOPs.
        memory: bytes of one device by kind.
        roofline: bounds of the step, or of a whole generation.
        phases: ranges of the seconds of a generation's phases; None for a step.
    """

    facts: dict[str, Any]
    memory: dict[str, int]
    roofline: Roofline
    phases: Phases[Range] | None = None


def arithmetic(setting: Setting, topology: Topology, mesh: Mapping[str, int]) -> Arithmetic:
    """Compute what needs no compiler.

    Args:
        setting: the step or generation to plan.
        topology: the machine.
        mesh: the sizes of all mesh axes.
    """
    if setting.decoding is not None:
        return _of_generation(setting, setting.decoding, topology, mesh)
    model, rows = setting.model, setting.batch_size
    batch = batch_shapes(model, setting.lengths, rows, packed=setting.packed)
    tokens = sum(
        math.prod(leaf.shape) for name, leaf in batch.items() if name.endswith("input_tokens")
    )
    training = setting.mode == "train"
    forward = forward_flops(model, batch_size=rows, lengths=setting.lengths).total
    flops = forward * (TRAINING if training else 1)
    state = memory_estimate.state_bytes(model, setting.optimizer, mesh)
    activations = 0
    if training:
        activations = memory_estimate.activation_bytes(model, batch, mesh, summed_loss(model))
    else:
        state = {"weights": state["weights"]}
    bounds = roofline.roofline(
        topology.chip,
        model,
        mesh=mesh,
        step_flops=flops,
        tokens=tokens,
        state=state,
        activations=activations,
    )
    facts = _facts(setting, topology, tokens=tokens, flops=flops)
    return Arithmetic(facts, {**state, "activations": activations}, bounds)


def _of_generation(
    setting: Setting, workload: DecodingWorkload, topology: Topology, mesh: Mapping[str, int]
) -> Arithmetic:
    model = setting.model
    flops = decode_plan.model_flops(model, workload)
    bounds = decode_plan.bounds(topology.chip, model, workload, mesh)
    cache = decode_plan.cache_bytes(model, workload, mesh)
    weights = memory_estimate.state_bytes(model, setting.optimizer, mesh)["weights"]
    facts = _facts(
        setting,
        topology,
        tokens=workload.texts * workload.tokens,
        flops=flops.prefill + workload.tokens * flops.token,
    )
    return Arithmetic(
        facts,
        {"weights": weights, "cached keys and values": sum(cache)},
        decode_plan.generation_roofline(bounds, workload.tokens),
        # From perfect overlap of compute, memory and network to none.
        Phases(*([max(bound), sum(bound)] for bound in bounds)),
    )


def _facts(setting: Setting, topology: Topology, *, tokens: int, flops: float) -> dict[str, Any]:
    model, lengths = setting.model, dict(setting.lengths)
    if setting.decoding is not None:
        lengths = {"inputs": setting.decoding.inputs, "targets": setting.decoding.tokens}
    return {
        "model": {
            "parameters": transformer.num_parameters(model),
            "dtype": model.dtype,
            "remat": model.remat if isinstance(model.remat, str) else "+".join(model.remat),
        },
        "batch": {
            "rows": setting.batch_size,
            "rows_per_chip": setting.batch_size / topology.chips,
            "lengths": lengths,
            "tokens": tokens,
        },
        "flops": {
            "model_per_step": flops,
            "source": "analytic: matrix products, recomputation not counted",
        },
    }


def without_compiler(counted: Arithmetic, topology: Topology) -> dict[str, Any]:
    """Return the sections of a plan that is made without a compiler."""
    limit = topology.chip.hbm / topology.chip.devices
    low, high = KNOWN_GPU_BIAS
    total = sum(counted.memory.values())
    saved = "no activations" if counted.phases else "activations that differentiation saves"
    return {
        "memory": {
            "source": f"analytic: state exact, {saved}, no working memory",
            "limit": limit,
            "total": total,
            "fits": total <= limit,
            "split": counted.memory,
            "largest": [],
        },
        "compute": None,
        "collectives": None,
        "compiler": None,
        "notes": [
            f"{topology.chip.name} has no compiler that works without the chip: this is the "
            f"analytic part alone, memory and roofline",
            f"known bias of that: training steps of T5 1.1 on one H200 took {low} to {high} times "
            f"the upper end of the time (benchmarks/gpu.md)",
        ],
    }
