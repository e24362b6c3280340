"""One setting planned on one topology: traced, compiled where that works, and accounted for."""

import contextlib
import importlib.metadata
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from t5x_lite.errors import ConfigError
from t5x_lite.models import transformer
from t5x_lite.models.config import TransformerConfig
from t5x_lite.partitioning import MESH_AXES, resolve_mesh_shape
from t5x_lite.planning import analytic
from t5x_lite.planning.compilation import Compiled, compiled
from t5x_lite.planning.costs import Cost
from t5x_lite.planning.estimate import (
    analyse,
    check_schema,
    estimate,
    roofline_part,
    too_much_memory,
    unread_memory,
)
from t5x_lite.planning.flops import TRAINING, forward_flops
from t5x_lite.planning.network import Layout, Place
from t5x_lite.planning.report import duration
from t5x_lite.planning.topologies import Topology, tpu_devices
from t5x_lite.run.program import Program, build
from t5x_lite.run.shapes import batch_shapes, summed_loss
from t5x_lite.training.optimizers import OptimizerConfig
from t5x_lite.training.schedules import Schedule
from t5x_lite.training.step import Loss, Update, make_eval_step
from t5x_lite.trees import flat

STEPS = {"train": "training step", "eval": "evaluation step"}


class Setting(NamedTuple):
    """What decides about a step: the arguments of `run.program.build`, and the rows' lengths."""

    model: TransformerConfig
    optimizer: OptimizerConfig
    learning_rate: Schedule
    loss: Loss
    update: Update
    mesh: Mapping[str, int]
    batch_size: int
    lengths: Mapping[str, int]
    packed: bool
    what: str
    compiler_options: Mapping[str, Any]


class Planned(NamedTuple):
    """A plan, and the costs of every instruction behind it (none without a compiler)."""

    plan: dict[str, Any]
    costs: Sequence[Cost]


def plan_step(
    setting: Setting,
    wanted: Topology,
    training_tokens: float,
    cache: Path,
    *,
    report: Callable[[str], None],
) -> Planned:
    """Plan one setting on one topology; ConfigError where the two do not go together."""
    shape = fitting_mesh(setting.mesh, wanted)
    numbers = _analytic(setting, wanted, shape)
    if wanted.chip.torus:
        found, parts = _compile(setting, wanted, numbers, cache, report)
    else:
        found, parts = [], _without_compiler(numbers, wanted)
    made = {
        "version": 2,
        "what": STEPS[setting.what],
        "topology": {
            "name": wanted.name,
            "chip": wanted.chip.name,
            "chips": wanted.chips,
            "devices": wanted.devices,
            "slices": wanted.slices,
        },
        "mesh": shape,
        **numbers["facts"],
        "roofline": roofline_part(numbers["roofline"]),
        **parts,
    }
    fits = made["memory"]["fits"]
    made["estimate"] = estimate(made, wanted, training_tokens) if fits else None
    made["cost"] = None
    check_schema(made)
    return Planned(made, found)


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


def _analytic(setting: Setting, wanted: Topology, shape: Mapping[str, int]) -> dict[str, Any]:
    """What arithmetic says: facts for the plan, state, activations, roofline."""
    model, rows = setting.model, setting.batch_size
    batch = batch_shapes(model, setting.lengths, rows, packed=setting.packed)
    tokens = sum(
        math.prod(leaf.shape) for name, leaf in batch.items() if name.endswith("input_tokens")
    )
    forward = forward_flops(model, batch_size=rows, lengths=setting.lengths).total
    training = setting.what == "train"
    flops = forward * (TRAINING if training else 1)
    state = analytic.state_bytes(model, setting.optimizer, shape)
    activations = 0
    if training:
        activations = analytic.activation_bytes(model, batch, shape, summed_loss(model))
    else:
        state = {"weights": state["weights"]}
    return {
        "facts": {
            "model": {
                "parameters": transformer.num_parameters(model),
                "dtype": model.dtype,
                "remat": model.remat if isinstance(model.remat, str) else "+".join(model.remat),
            },
            "batch": {
                "rows": rows,
                "rows_per_chip": rows / wanted.chips,
                "lengths": dict(setting.lengths),
                "tokens": tokens,
            },
            "flops": {
                "model_per_step": flops,
                "source": "analytic: matrix products, recomputation not counted",
            },
        },
        "state": state,
        "activations": activations,
        "roofline": analytic.roofline(
            wanted.chip,
            model,
            mesh=shape,
            step_flops=flops,
            tokens=tokens,
            state=state,
            activations=activations,
        ),
    }


def _without_compiler(numbers: Mapping[str, Any], wanted: Topology) -> dict[str, Any]:
    """The parts of a plan where there is no compiler to ask."""
    split = {**numbers["state"], "activations": numbers["activations"]}
    limit = wanted.chip.hbm / wanted.chip.devices
    total = sum(split.values())
    return {
        "memory": {
            "source": "analytic: state exact, activations what differentiation keeps, no "
            "working memory",
            "limit": limit,
            "total": total,
            "fits": total <= limit,
            "split": split,
            "largest": [],
        },
        "compute": None,
        "collectives": None,
        "compiler": None,
        "notes": [
            f"{wanted.chip.name} has no compiler that works without the chip: this is the analytic "
            f"part alone, memory and roofline"
        ],
    }


# ---------------------------------------------------------------------------- with the compiler


def _compile(
    setting: Setting,
    wanted: Topology,
    numbers: Mapping[str, Any],
    cache: Path,
    report: Callable[[str], None],
) -> tuple[Sequence[Cost], dict[str, Any]]:
    devices = tpu_devices(wanted)
    program, lowered = lower(setting, devices)
    order = ",".join(str(device.id) for device in program.mesh.devices.flat)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    with _progress(f"compiling for {wanted.name}", report):
        made = compiled(
            lowered,
            target=f"{wanted.name} {order} {versions}",
            directory=cache,
            options={**program.compiler_options, **setting.compiler_options},
        )
    limit = wanted.chip.hbm / wanted.chip.devices
    if made.text:
        found, parts = analyse(made, layout_of(program, wanted))
    elif made.too_large is None:
        memory = unread_memory(made, limit)
        found, parts = [], {"memory": memory, "compute": None, "collectives": None}
    else:
        split = {**numbers["state"], "activations": numbers["activations"]}
        memory = too_much_memory(made.too_large, limit, split, _largest_of(program.abstract))
        found, parts = [], {"memory": memory, "compute": None, "collectives": None}
    parts["compiler"] = {**versions, "seconds": made.seconds, "cached": made.cached}
    parts["notes"] = _notes(parts, made)
    return found, parts


def _largest_of(state: Any) -> list[tuple[float, str]]:
    """The largest arrays of a state on one device, with their names."""
    arrays = [
        (
            float(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize),
            path,
        )
        for path, leaf in flat(state).items()
    ]
    return sorted(arrays, reverse=True)[:12]


def lower(setting: Setting, devices: Sequence[Any]) -> tuple[Program, Any]:
    """Trace the step of `train` (or of its evaluation) for these devices, from shapes alone."""
    # Source locations carry the whole way from the step to the layer.
    jax.config.update("jax_traceback_in_locations_limit", 100)
    program = build(
        setting.model,
        setting.optimizer,
        setting.learning_rate,
        setting.loss,
        setting.update,
        mesh=setting.mesh,
        batch_size=setting.batch_size,
        seed=0,
        devices=devices,
    )
    batch = batch_shapes(
        setting.model,
        setting.lengths,
        setting.batch_size,
        packed=setting.packed,
        sharding=program.batch_sharding,
    )
    with jax.set_mesh(program.mesh):
        if setting.what == "train":
            return program, program.step.lower(program.abstract, batch)
        step = jax.jit(make_eval_step(program.graphdef), out_shardings=program.replicated)
        return program, step.lower(program.abstract.params, batch)


def layout_of(program: Program, wanted: Topology) -> Layout:
    """The program's mesh, with the place of each of its devices."""
    places = [
        # Devices of a single slice do not know that they are in one.
        Place(getattr(device, "slice_index", 0) or 0, tuple(device.coords))
        for device in program.mesh.devices.flat
    ]
    return Layout(wanted, dict(program.mesh.shape), places)


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
def _progress(what: str, report: Callable[[str], None]) -> Iterator[None]:
    """Say what is going on, and every half minute for how long already."""
    report(f"{what} ...")
    began, done = time.perf_counter(), threading.Event()

    def speak() -> None:
        while not done.wait(30.0):
            report(f"{what} ... {duration(time.perf_counter() - began)}")

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    report(f"{what}: {duration(time.perf_counter() - began)}")
