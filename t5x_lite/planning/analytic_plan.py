"""What arithmetic alone says of a setting on a topology: sizes, FLOPs, memory, roofline."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from t5x_lite.hardware.topologies import Topology
from t5x_lite.models import transformer
from t5x_lite.models.flops import TRAINING, forward_flops
from t5x_lite.planning import decode_plan, roofline
from t5x_lite.planning.decode_plan import PREFILL, TOKEN, DecodingWorkload
from t5x_lite.planning.estimate import KNOWN_GPU_BIAS
from t5x_lite.planning.lowering import Setting, batch_shapes, summed_loss
from t5x_lite.planning.roofline import Roofline


class Arithmetic(NamedTuple):
    """facts: parts of a plan. memory: bytes of a device by kind. phases: of a generation."""

    facts: dict[str, Any]
    memory: dict[str, int]
    roofline: Roofline
    phases: dict[str, list[float]] | None = None


def arithmetic(setting: Setting, wanted: Topology, mesh: Mapping[str, int]) -> Arithmetic:
    """Count what needs no compiler; a mesh with the sizes of all axes."""
    if setting.texts is not None:
        return _of_generation(setting, setting.texts, wanted, mesh)
    model, rows = setting.model, setting.batch_size
    batch = batch_shapes(model, setting.lengths, rows, packed=setting.packed)
    tokens = sum(
        math.prod(leaf.shape) for name, leaf in batch.items() if name.endswith("input_tokens")
    )
    training = setting.mode == "train"
    forward = forward_flops(model, batch_size=rows, lengths=setting.lengths).total
    flops = forward * (TRAINING if training else 1)
    state = roofline.state_bytes(model, setting.optimizer, mesh)
    activations = 0
    if training:
        activations = roofline.activation_bytes(model, batch, mesh, summed_loss(model))
    else:
        state = {"weights": state["weights"]}
    bounds = roofline.roofline(
        wanted.chip,
        model,
        mesh=mesh,
        step_flops=flops,
        tokens=tokens,
        state=state,
        activations=activations,
    )
    facts = _facts(setting, wanted, tokens=tokens, flops=flops)
    return Arithmetic(facts, {**state, "activations": activations}, bounds)


def _of_generation(
    setting: Setting, texts: DecodingWorkload, wanted: Topology, mesh: Mapping[str, int]
) -> Arithmetic:
    model = setting.model
    flops = decode_plan.model_flops(model, texts)
    prefill, token = decode_plan.bounds(wanted.chip, model, texts, mesh)
    cache = decode_plan.cache_bytes(model, texts, mesh)
    weights = roofline.state_bytes(model, setting.optimizer, mesh)["weights"]
    facts = _facts(
        setting,
        wanted,
        tokens=texts.written * texts.tokens,
        flops=flops[PREFILL] + texts.tokens * flops[TOKEN],
    )
    return Arithmetic(
        facts,
        {"weights": weights, "cached keys and values": sum(cache.values())},
        decode_plan.whole(prefill, token, texts.tokens),
        {kind: [max(each), sum(each)] for kind, each in ((PREFILL, prefill), (TOKEN, token))},
    )


def _facts(setting: Setting, wanted: Topology, *, tokens: int, flops: float) -> dict[str, Any]:
    model, lengths = setting.model, dict(setting.lengths)
    if setting.texts is not None:
        lengths = {"inputs": setting.texts.inputs, "targets": setting.texts.tokens}
    return {
        "model": {
            "parameters": transformer.num_parameters(model),
            "dtype": model.dtype,
            "remat": model.remat if isinstance(model.remat, str) else "+".join(model.remat),
        },
        "batch": {
            "rows": setting.batch_size,
            "rows_per_chip": setting.batch_size / wanted.chips,
            "lengths": lengths,
            "tokens": tokens,
        },
        "flops": {
            "model_per_step": flops,
            "source": "analytic: matrix products, recomputation not counted",
        },
    }


def without_compiler(said: Arithmetic, wanted: Topology) -> dict[str, Any]:
    """The parts of a plan where there is no compiler to ask."""
    limit = wanted.chip.hbm / wanted.chip.devices
    low, high = KNOWN_GPU_BIAS
    total = sum(said.memory.values())
    kept = "no activations" if said.phases else "activations what differentiation keeps"
    return {
        "memory": {
            "source": f"analytic: state exact, {kept}, no working memory",
            "limit": limit,
            "total": total,
            "fits": total <= limit,
            "split": said.memory,
            "largest": [],
        },
        "compute": None,
        "collectives": None,
        "compiler": None,
        "notes": [
            f"{wanted.chip.name} has no compiler that works without the chip: this is the analytic "
            f"part alone, memory and roofline",
            f"known bias of that: training steps of T5 1.1 on one H200 took {low} to {high} times "
            f"the upper end of the time (benchmarks/gpu.md)",
        ],
    }
