"""The numbers of a plan: memory, compute, collectives, step time, each with its source.

A plan is a nested dictionary of plain values, written as JSON and shown as text (`plan_report`);
`plan_schema` describes its layout.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from t5x_lite.hardware.topologies import Topology
from t5x_lite.planning import decode_plan
from t5x_lite.planning.collectives import Collective, Layout, exposed_seconds
from t5x_lite.planning.compilation import Compiled, TooLarge
from t5x_lite.planning.compiled_memory import memory
from t5x_lite.planning.costs import Cost, costs, summed
from t5x_lite.planning.decode_plan import Phases, Range
from t5x_lite.planning.hlo import Module
from t5x_lite.planning.roofline import Roofline

# Measured over estimated step time of the one published run that was compared with the
# compiler's estimate (MaxText's 32B decoder on v5e-256, large matrix products), by a sketch of it
# and by this project's own step: see docs/planning.md and benchmarks/plan_calibration.py.
KNOWN_BIAS = (0.84, 0.97)
# The same of the upper end of a GPU's analytic range: seven steps on an H200, benchmarks/gpu.md.
KNOWN_GPU_BIAS = (2.0, 4.5)


def too_much_memory(
    error: TooLarge, limit: float, split: Mapping[str, int], arrays: Sequence[tuple[float, str]]
) -> dict[str, Any]:
    """Describe the memory of a program that the compiler rejects for its size.

    Args:
        error: the numbers in the compiler's error.
        limit: bytes of a device, where the compiler names none.
        split: analytic bytes by kind, where the compiler names none.
        arrays: the largest arrays of the state as (bytes, name), where the compiler names none.
    """
    used = error.used or max(float(sum(split.values())), limit)
    return {
        "source": "TPU compiler, which stopped at temporaries or all of its arrays; split analytic",
        "limit": error.limit or limit,
        "total": used,
        "fits": False,
        "split": dict(split),
        "largest": [
            {"bytes": size, "kind": "", "name": name} for size, name in error.buffers or arrays
        ],
    }


def unread_memory(program: Compiled, limit: float) -> dict[str, Any]:
    """Describe the memory of a compiled program whose HLO text cannot be parsed."""
    sizes = program.memory
    split = {
        "weights, optimizer state and batch": sizes["argument"],
        "temporaries": sizes["temp"],
        "metrics": sizes["output"] - sizes["alias"],
        "program": sizes["generated_code"],
    }
    return {
        "source": "TPU compiler; its program's text cannot be read by this version of JAX",
        "limit": limit,
        "total": sum(split.values()),
        "fits": sum(split.values()) <= limit,
        "split": split,
        "largest": [],
    }


def compiled_memory(module: Module, program: Compiled, limit: float) -> dict[str, Any]:
    """Describe the memory of a compiled program: totals by the compiler, kinds by a replay."""
    usage = memory(module, program.memory)
    return {
        "source": "TPU compiler; kinds of temporary arrays from a replay of its schedule",
        "limit": limit,
        "total": usage.total,
        "fits": usage.total <= limit,
        "split": dict(usage.split),
        "largest": [buffer._asdict() for buffer in usage.largest],
    }


def compiled_compute(instruction_costs: Sequence[Cost], topology: Topology) -> dict[str, Any]:
    """Add up the compiler's estimates of all instructions but collectives.

    "kernels" is the part of "seconds" that is not the compiler's: it is computed from the FLOPs and
    bytes that Pallas kernels state, at the chip's peaks.
    """
    chip = topology.chip
    assert chip.clock is not None
    peak, bandwidth = chip.peak / chip.devices, chip.hbm_bandwidth / chip.devices
    parts = summed(instruction_costs, lambda cost: (cost.part, cost.direction))
    return {
        "source": "compiler-estimated cycles of the scheduled program, loops multiplied out",
        "seconds": sum(cost.cycles for cost in instruction_costs) / chip.clock,
        "kernels": sum(cost.cycles for cost in instruction_costs if cost.kernel) / chip.clock,
        "instruction_roofline": sum(
            c.seconds(peak=peak, bandwidth=bandwidth) for c in instruction_costs
        ),
        "flops": sum(cost.flops for cost in instruction_costs),
        "bytes": sum(cost.bytes for cost in instruction_costs),
        "kernels_without_estimate": sum(c.kernel and not c.cycles for c in instruction_costs),
        "parts": [
            {
                "part": part,
                "direction": direction,
                "seconds": cost.cycles / chip.clock,
                "flops": cost.flops,
            }
            for (part, direction), cost in parts.items()
            if cost.cycles or cost.flops
        ],
    }


def compiled_collectives(collectives: Sequence[Collective], exposed: float) -> dict[str, Any]:
    """Group collectives by kind, mesh axis, and whether compute overlaps them."""
    kinds: dict[tuple[str, str, bool], dict[str, Any]] = {}
    for collective in collectives:
        key = (collective.kind, collective.axis, collective.asynchronous)
        empty = {"count": 0, "bytes": 0.0, "seconds": 0.0, "exposed": 0.0}
        total = kinds.setdefault(key, empty)
        total["count"] += collective.repeats
        for name in ("bytes", "seconds", "exposed"):
            total[name] += getattr(collective, name) * collective.repeats
    ordered = sorted(kinds.items(), key=lambda item: -item[1]["seconds"])
    return {
        "source": "estimated: bytes of the scheduled program over published link bandwidth",
        "seconds": sum(total["seconds"] for total in kinds.values()),
        "exposed": exposed,
        "kinds": [
            {"kind": kind, "axis": axis, "overlapped": overlapped, **total}
            for (kind, axis, overlapped), total in ordered
        ],
    }


class Analysis(NamedTuple):
    """What is read from a compiled program.

    Attributes:
        costs: the cost of every instruction.
        parts: sections of a plan: memory, compute, collectives.
        phases: ranges of the seconds of a generation's phases; None for a step.
    """

    costs: list[Cost]
    parts: dict[str, Any]
    phases: Phases[Range] | None


def analyze(program: Compiled, layout: Layout, tokens: int | None = None) -> Analysis:
    """Analyze a compiled program.

    Args:
        program: the compiled program.
        layout: its mesh on the topology.
        tokens: the number of tokens that it generates for each text; None for a step.
    """
    chip, module = layout.topology.chip, Module(program.text)
    assert chip.clock is not None
    rates = dict(
        clock=chip.clock,
        peak=chip.peak / chip.devices,
        bandwidth=chip.hbm_bandwidth / chip.devices,
    )
    loop = None if tokens is None else decode_plan.token_loop(module)
    phases = {}
    if loop is not None and tokens is not None:
        # The loop ends early when all texts have ended, so the program has no trip count.
        module.trips[loop.name] = tokens
        phases = {"": decode_plan.PREFILL, loop.name: decode_plan.TOKEN}
    instruction_costs = costs(
        module, lambda flops, moved: _kernel_cycles(flops, moved, **rates), phases
    )
    collectives, exposed = exposed_seconds(module, layout, clock=chip.clock)
    parts = {
        "memory": compiled_memory(module, program, chip.hbm / chip.devices),
        "compute": compiled_compute(instruction_costs, layout.topology),
        "collectives": compiled_collectives(collectives, exposed),
    }
    if loop is None or tokens is None:
        return Analysis(instruction_costs, parts, None)
    body = loop.called("body")
    in_loop = tokens * exposed_seconds(module, layout, clock=chip.clock, begin=body)[1]
    waiting = Phases(prefill=max(0.0, exposed - in_loop), token=in_loop)
    seconds = decode_plan.phase_seconds(instruction_costs, waiting, tokens=tokens, **rates)
    return Analysis(instruction_costs, parts, seconds)


def _kernel_cycles(
    flops: float, moved: float, *, clock: float, peak: float, bandwidth: float
) -> float:
    return clock * max(flops / peak, moved / bandwidth)


def estimate(plan: Mapping[str, Any], topology: Topology, training_tokens: float) -> dict[str, Any]:
    """Estimate the step time as a range, with MFU, days and chip-hours.

    With a compiler the range goes from every instruction at the chip's peaks (or the network, if
    that takes longer) to the compiler's estimate plus exposed collectives. Without one it goes from
    the maximum of the roofline's bounds to their sum.

    Args:
        plan: the sections of a plan that are known so far.
        topology: the machine.
        training_tokens: tokens of the whole training, for days and chip-hours.
    """
    roofline = plan["roofline"]
    bounds = [roofline[name] for name in ("compute", "memory", "network")]
    if plan["compute"] is None:
        seconds = [max(bounds), sum(bounds)]
        source = "analytic roofline, from perfect overlap of its parts to none"
    else:
        compute, network = plan["compute"], plan["collectives"]
        low = max(compute["instruction_roofline"], network["seconds"], roofline["compute"])
        high = compute["seconds"] + network["exposed"]
        seconds = sorted([low, high])
        source = (
            "from each instruction at the chip's peaks to the compiler's estimate and exposed "
            "collectives"
        )
    tokens, steps = plan["batch"]["tokens"], training_tokens / plan["batch"]["tokens"]
    peak = topology.chips * topology.chip.peak
    slow_first = seconds[::-1]
    return {
        "source": source,
        "step_seconds": seconds,
        "tokens_per_second": [tokens / s for s in slow_first],
        "mfu": [plan["flops"]["model_per_step"] / s / peak for s in slow_first],
        "training_tokens": training_tokens,
        "days": [steps * s / 86_400 for s in seconds],
        "chip_hours": [steps * s / 3600 * topology.chips for s in seconds],
    }


def cost(plan: Mapping[str, Any], price: float) -> dict[str, Any] | None:
    """Compute the cost of the training at a price for a chip-hour; None without an estimate."""
    if plan["estimate"] is None:
        return None
    return {
        "source": "chip-hours of the estimate times the price; storage, restarts not counted",
        "price_per_chip_hour": price,
        "cost": [hours * price for hours in plan["estimate"]["chip_hours"]],
    }


def roofline_part(bounds: Roofline) -> dict[str, Any]:
    """Return the roofline as a section of a plan."""
    return {
        "source": "analytic: model FLOPs, state and collectives of the mesh at published peaks",
        **bounds._asdict(),
        "bound": bounds.bound,
    }
