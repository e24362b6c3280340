"""Plan one setting on one topology: trace it, compile it for TPUs, and estimate memory and time."""

import contextlib
import importlib.metadata
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from t5x_lite.console import duration, logged_wait
from t5x_lite.errors import ConfigError
from t5x_lite.hardware.topologies import Topology, check_stack, tpu_devices
from t5x_lite.partitioning import MESH_AXES, resolve_mesh_shape
from t5x_lite.planning.analytic_plan import Arithmetic, arithmetic, without_compiler
from t5x_lite.planning.compilation import Compiled, compiled
from t5x_lite.planning.costs import Cost
from t5x_lite.planning.decode_plan import decoding_plan
from t5x_lite.planning.estimate import (
    Analysis,
    analyze,
    estimate,
    roofline_part,
    too_much_memory,
    unread_memory,
)
from t5x_lite.planning.lowering import KINDS, Setting, layout_of, trace
from t5x_lite.planning.plan_schema import VERSION, check_schema
from t5x_lite.tree_paths import flatten

_LOG = logging.getLogger(__name__)


class Planned(NamedTuple):
    """A plan with the costs that it was computed from.

    Attributes:
        plan: The plan, as `plan_schema.SCHEMA` describes it.
        costs: The cost of each instruction; empty without a compiler.
    """

    plan: dict[str, Any]
    costs: Sequence[Cost]


def plan_step(setting: Setting, machine: Topology, training_tokens: float, cache: Path) -> Planned:
    """Plan a setting on a topology.

    Args:
        setting: The step or generation.
        machine: The topology.
        training_tokens: Tokens of the whole training, for days and chip-hours.
        cache: Directory of compiled programs.

    Raises:
        ConfigError: The mesh or the batch does not fit the topology.
    """
    shape = fitting_mesh(setting.mesh, machine)
    analytic = arithmetic(setting, machine, shape)
    if machine.chip.torus:
        analysis = _compile(setting, machine, analytic, cache)
    else:
        analysis = Analysis([], without_compiler(analytic, machine), None)
    plan = {
        "version": VERSION,
        "what": KINDS[setting.mode],
        "topology": {
            "name": machine.name,
            "chip": machine.chip.name,
            "chips": machine.chips,
            "devices": machine.devices,
            "slices": machine.slices,
        },
        "mesh": shape,
        **analytic.facts,
        "roofline": roofline_part(analytic.roofline),
        **analysis.parts,
    }
    fits = plan["memory"]["fits"]
    plan["estimate"] = estimate(plan, machine, training_tokens) if fits else None
    plan["decoding"] = (
        _decoding_section(setting, machine, shape, analytic, analysis) if fits else None
    )
    plan["cost"] = None
    check_schema(plan)
    return Planned(plan, analysis.costs)


def _decoding_section(
    setting: Setting,
    machine: Topology,
    mesh: Mapping[str, int],
    analytic: Arithmetic,
    analysis: Analysis,
) -> dict[str, Any] | None:
    """Return the section "decoding" of a plan; None for a step."""
    if setting.decoding is None or analytic.phases is None:
        return None
    source = "analytic roofline, from perfect overlap of its parts to none"
    if analysis.phases is not None:
        source = "the compiled program, outside and inside its loop over tokens"
    seconds = analysis.phases or analytic.phases
    section = decoding_plan(
        setting.model, setting.decoding, mesh, seconds, chips=machine.chips, source=source
    )
    return section.to_json()


def fitting_mesh(mesh: Mapping[str, int], machine: Topology) -> dict[str, int]:
    """Return the sizes of all mesh axes on a topology.

    Args:
        mesh: Sizes by name; -1 takes the remaining devices.
        machine: The topology.

    Raises:
        ConfigError: The sizes do not multiply to the number of devices.
    """
    try:
        return resolve_mesh_shape(mesh, machine.devices)
    except ConfigError as error:
        if set(mesh) - set(MESH_AXES):
            raise
        raise ConfigError(
            f"the mesh {dict(mesh)} does not fit the {machine.devices} devices of {machine.name}: "
            f"the product of its sizes must be that number (-1 takes the remaining devices)",
            "MESH",
            "plan.topology_name",
        ) from error


# ---------------------------------------------------------------------------- with the compiler


def _compile(setting: Setting, machine: Topology, analytic: Arithmetic, cache: Path) -> Analysis:
    """Compile the program for a TPU topology and analyze the result.

    The compiler may reject a program for its size, and JAX may not be able to read a program of a
    newer libtpu. The analysis then has memory only.
    """
    devices = tpu_devices(machine)
    check_stack(machine)
    traced = trace(setting, devices)
    order = ",".join(str(device.id) for device in traced.mesh.devices.flat)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    with _logged_progress(f"compiling for {machine.name}"):
        program = compiled(
            traced.lowered,
            target=f"{machine.name} {order} {versions}",
            directory=cache,
            options={**traced.compiler_options, **setting.compiler_options},
        )
    limit = machine.chip.hbm / machine.chip.devices
    tokens = None if setting.decoding is None else setting.decoding.tokens
    if program.text:
        analysis = analyze(program, layout_of(traced.mesh, machine), tokens)
    elif program.too_large is None:
        analysis = _without_time(unread_memory(program, limit))
    else:
        arrays = _largest_arrays(traced.arguments)
        analysis = _without_time(too_much_memory(program.too_large, limit, analytic.memory, arrays))
    analysis.parts["compiler"] = {**versions, "seconds": program.seconds, "cached": program.cached}
    analysis.parts["notes"] = _notes(analysis.parts, program)
    return analysis


def _without_time(memory: dict[str, Any]) -> Analysis:
    """Return an analysis that has memory only."""
    return Analysis([], {"memory": memory, "compute": None, "collectives": None}, None)


def _largest_arrays(state: Any) -> list[tuple[float, str]]:
    """Return (bytes, name) of the largest arrays of a state on one device, largest first."""
    arrays = [
        (
            float(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize),
            path,
        )
        for path, leaf in flatten(state).items()
    ]
    return sorted(arrays, reverse=True)[:12]


def _notes(parts: Mapping[str, Any], program: Compiled) -> list[str]:
    notes = []
    if program.too_large is not None:
        notes.append("the compiler stops at a program that does not fit: no time is estimated")
    elif not program.text:
        notes.append(
            "this version of JAX cannot read programs of this libtpu: memory is the compiler's, "
            "time "
            "the analytic roofline; install the libtpu that belongs to the JAX release"
        )
    elif kernels := parts["compute"]["kernels_without_estimate"]:
        notes.append(f"{kernels} hand-written kernels state no cost: their time is missing above")
    if program.text and (seconds := parts["compute"]["kernels"]):
        notes.append(
            f"{1e3 * seconds:.3g} ms are of hand-written kernels, computed from the FLOPs and "
            f"bytes "
            f"that they state at the chip's peaks; the compiler has no estimate of them"
        )
    return notes


@contextlib.contextmanager
def _logged_progress(what: str) -> Iterator[None]:
    """Log what is running, and how long it has been running every 30 seconds."""
    start, done = time.perf_counter(), threading.Event()

    def repeat() -> None:
        while not done.wait(30.0):
            _LOG.info(f"{what} ... {duration(time.perf_counter() - start)}")

    with logged_wait(_LOG, what):
        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
