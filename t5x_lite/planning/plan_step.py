"""One setting planned on one topology: traced, compiled where that works, and accounted for."""

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
from t5x_lite.planning.decode_plan import decoding_part
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
    """A plan, and the costs of every instruction behind it (none without a compiler)."""

    plan: dict[str, Any]
    costs: Sequence[Cost]


def plan_step(setting: Setting, wanted: Topology, training_tokens: float, cache: Path) -> Planned:
    """Plan one setting on one topology; ConfigError where the two do not go together."""
    shape = fitting_mesh(setting.mesh, wanted)
    said = arithmetic(setting, wanted, shape)
    if wanted.chip.torus:
        found = _compile(setting, wanted, said, cache)
    else:
        found = Analysis([], without_compiler(said, wanted), None)
    made = {
        "version": VERSION,
        "what": KINDS[setting.mode],
        "topology": {
            "name": wanted.name,
            "chip": wanted.chip.name,
            "chips": wanted.chips,
            "devices": wanted.devices,
            "slices": wanted.slices,
        },
        "mesh": shape,
        **said.facts,
        "roofline": roofline_part(said.roofline),
        **found.parts,
    }
    fits = made["memory"]["fits"]
    made["estimate"] = estimate(made, wanted, training_tokens) if fits else None
    made["decoding"] = _decoding(setting, wanted, shape, said, found) if fits else None
    made["cost"] = None
    check_schema(made)
    return Planned(made, found.costs)


def _decoding(
    setting: Setting,
    wanted: Topology,
    mesh: Mapping[str, int],
    said: Arithmetic,
    found: Analysis,
) -> dict[str, Any] | None:
    if setting.texts is None or said.phases is None:
        return None
    source = "analytic roofline, its parts at once or in turn"
    if found.phases is not None:
        source = "the compiled program, outside and inside its loop over tokens"
    seconds = found.phases or said.phases
    return decoding_part(
        setting.model, setting.texts, mesh, seconds, chips=wanted.chips, source=source
    )


def fitting_mesh(mesh: Mapping[str, int], wanted: Topology) -> dict[str, int]:
    """The sizes of all mesh axes on a topology."""
    try:
        return resolve_mesh_shape(mesh, wanted.devices)
    except ConfigError as error:
        if set(mesh) - set(MESH_AXES):
            raise
        raise ConfigError(
            f"the mesh {dict(mesh)} does not fit the {wanted.devices} devices of {wanted.name}: "
            f"its sizes must multiply to that, -1 taking the rest",
            "MESH",
            "plan.topology_name",
        ) from error


# ---------------------------------------------------------------------------- with the compiler


def _compile(setting: Setting, wanted: Topology, said: Arithmetic, cache: Path) -> Analysis:
    devices = tpu_devices(wanted)
    check_stack(wanted)
    traced = trace(setting, devices)
    order = ",".join(str(device.id) for device in traced.mesh.devices.flat)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    with _logged_progress(f"compiling for {wanted.name}"):
        made = compiled(
            traced.lowered,
            target=f"{wanted.name} {order} {versions}",
            directory=cache,
            options={**traced.compiler_options, **setting.compiler_options},
        )
    limit = wanted.chip.hbm / wanted.chip.devices
    tokens = None if setting.texts is None else setting.texts.tokens
    if made.text:
        found = analyze(made, layout_of(traced.mesh, wanted), tokens)
    elif made.too_large is None:
        found = _without_time(unread_memory(made, limit))
    else:
        arrays = _largest_of(traced.arguments)
        found = _without_time(too_much_memory(made.too_large, limit, said.memory, arrays))
    found.parts["compiler"] = {**versions, "seconds": made.seconds, "cached": made.cached}
    found.parts["notes"] = _notes(found.parts, made)
    return found


def _without_time(memory: dict[str, Any]) -> Analysis:
    return Analysis([], {"memory": memory, "compute": None, "collectives": None}, None)


def _largest_of(state: Any) -> list[tuple[float, str]]:
    """The largest arrays of a state on one device, with their names."""
    arrays = [
        (
            float(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize),
            path,
        )
        for path, leaf in flatten(state).items()
    ]
    return sorted(arrays, reverse=True)[:12]


def _notes(parts: Mapping[str, Any], made: Compiled) -> list[str]:
    notes = []
    if made.too_large is not None:
        notes.append("the compiler stops at a program that does not fit: no time is estimated")
    elif not made.text:
        notes.append(
            "this version of JAX cannot read the program that this libtpu wrote: memory is the "
            "compiler's, time the analytic roofline alone; libtpu of JAX's own release may help"
        )
    elif kernels := parts["compute"]["kernels_without_estimate"]:
        notes.append(
            f"{kernels} hand-written kernels carry no estimate: their time is missing above"
        )
    if made.text and (seconds := parts["compute"]["kernels"]):
        notes.append(
            f"{1e3 * seconds:.3g} ms are of hand-written kernels, by the FLOPs and bytes that they "
            f"state and the chip's peaks; the compiler has no estimate of them"
        )
    return notes


@contextlib.contextmanager
def _logged_progress(what: str) -> Iterator[None]:
    """Log what is running, and every half minute for how long it has been."""
    began, done = time.perf_counter(), threading.Event()

    def repeat() -> None:
        while not done.wait(30.0):
            _LOG.info(f"{what} ... {duration(time.perf_counter() - began)}")

    with logged_wait(_LOG, what):
        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
