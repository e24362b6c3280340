"""`t5x_lite plan`: memory and time of a step on hardware that is not available."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from t5x_lite.console import Console
from t5x_lite.decoding.generation import Generation
from t5x_lite.errors import ConfigError
from t5x_lite.hardware.topologies import Topology, topology
from t5x_lite.io import atomic
from t5x_lite.models.config import TransformerConfig
from t5x_lite.planning.estimate import cost, estimate
from t5x_lite.planning.lowering import KINDS, Setting
from t5x_lite.planning.plan_report import draw, explanation, markdown
from t5x_lite.planning.plan_schema import check_schema
from t5x_lite.planning.plan_step import Planned, plan_step
from t5x_lite.planning.search import search as search_settings
from t5x_lite.training.optimizers import OptimizerConfig
from t5x_lite.training.schedules import Schedule
from t5x_lite.training.step import Loss, Update

_LOG = logging.getLogger(__name__)
_T5_TOKENS = 2.0**35  # T5's pretraining: 524,288 steps of 65,536 tokens


def plan(
    *,
    model: TransformerConfig,
    optimizer: OptimizerConfig,
    learning_rate: Schedule,
    loss: Loss,
    update: Update,
    mesh: Mapping[str, int],
    batch_size: int,
    lengths: Mapping[str, int],
    topology_name: str,
    slices: int = 1,
    mode: str = "train",
    training_tokens: float = _T5_TOKENS,
    training_steps: int | None = None,
    price: float | None = None,
    packed: bool = True,
    generation: Generation = Generation(),  # noqa: B008  (frozen)
    compiler_options: Mapping[str, Any] | None = None,
    explain: bool = False,
    search: bool = False,
    search_compiles: int = 4,
    output: str = "plan",
    cache: str = "~/.cache/t5x_lite/plans",
    describe_config: Callable[[], str] = str,
) -> None:
    """Plan a step on a topology: compile it from shapes alone, then print and write what it needs.

    No data is read, no weights are allocated, and no accelerator is used.

    Args:
        model: The architecture.
        optimizer: The optimizer, whose state takes memory.
        learning_rate: The schedule, a part of the compiled step.
        loss: The loss.
        update: How gradients are accumulated and applied.
        mesh: Sizes of the mesh axes by name; -1 takes the remaining devices.
        batch_size: Rows of the global batch.
        lengths: Tokens of a row by feature, such as {"inputs": 512, "targets": 114}.
        topology_name: Kind and shape of a TPU slice, "v5e:4x4" or "v5p:4x4x4"; or a number of GPUs,
            "h200:8", for which there is only an analytic plan, because the GPU compiler needs the
            GPU.
        slices: Number of TPU slices, connected by the data center network.
        mode: "train" for a training step, "eval" for an evaluation step, or "decode" for the
            generation of a batch of texts, from inputs of the length of "inputs".
        training_tokens: Tokens of the whole training, for days and chip-hours. The default is T5's
            pretraining: 524,288 steps of 65,536 tokens.
        training_steps: Steps of the whole training, instead of `training_tokens`.
        price: Price of a chip for an hour, for the cost; None computes no cost.
        packed: Whether rows are packed, which adds segment ids and positions to the batch.
        generation: How texts are generated in the mode "decode".
        compiler_options: XLA options by name, in addition to those of `train`.
        explain: Whether to list the most expensive source lines and draw plan.png.
        search: Whether to try meshes, remat policies and batch sizes around the given ones, and
            plan the best.
        search_compiles: Number of the most promising candidates that a search compiles. The default
            takes minutes; arithmetic ranks the others.
        output: Directory for plan.json and plan.md.
        cache: Directory of compiled programs, so that planning again is fast.
        describe_config: Not used.

    Raises:
        ConfigError: A setting is invalid, the mesh does not fit the topology, or nothing that was
            tried fits its memory.
    """
    jax.config.update(
        "jax_platforms", "cpu"
    )  # only shapes are needed: do not occupy an accelerator
    machine = topology(topology_name, slices)
    setting = Setting(
        model,
        optimizer,
        learning_rate,
        loss,
        update,
        mesh,
        batch_size,
        lengths,
        packed,
        mode,
        compiler_options or {},
        generation,
    )
    _check_settings(setting, machine, price=price, search=search)
    cache_dir, search_report = Path(cache).expanduser(), ""
    if search:
        search_report, best = search_settings(
            setting,
            machine,
            training_tokens,
            cache_dir,
            compile_best=search_compiles,
        )
        setting = best.setting
    planned = plan_step(setting, machine, training_tokens, cache_dir)
    _add_training_totals(planned.plan, machine, training_steps, price)
    _write(planned, machine, Path(output), search_report, explain=explain)


def _check_settings(
    setting: Setting, machine: Topology, *, price: float | None, search: bool
) -> None:
    if setting.mode not in KINDS:
        raise ConfigError(
            f"plan.mode is {setting.mode!r}; expected one of {sorted(KINDS)}", "plan.mode"
        )
    if price is not None and price <= 0:
        raise ConfigError(
            f"price is {price}; expected more than 0, for a chip for an hour", "plan.price"
        )
    if search and not machine.chip.torus:
        raise ConfigError(
            f"a search needs the TPU compiler; expected a TPU topology, not {machine.name}",
            "plan.topology_name",
        )
    if search and setting.mode == "decode":
        raise ConfigError("a search compares steps; expected the mode train or eval", "plan.mode")


def _add_training_totals(
    plan: dict[str, Any], machine: Topology, training_steps: int | None, price: float | None
) -> None:
    """Set the estimate for a number of training steps, and the cost, in the plan of a step."""
    is_step = plan["decoding"] is None and plan["estimate"] is not None
    if training_steps is not None and is_step:
        plan["estimate"] = estimate(plan, machine, training_steps * plan["batch"]["tokens"])
    if price is not None:
        plan["cost"] = cost(plan, price)
    check_schema(plan)


def _write(
    planned: Planned,
    machine: Topology,
    directory: Path,
    search_report: str,
    *,
    explain: bool,
) -> None:
    """Write plan.json, plan.md and, to explain, plan.png; print the plan."""
    directory.mkdir(parents=True, exist_ok=True)
    atomic.write_json(directory / "plan.json", planned.plan, indent=1)
    text = markdown(planned.plan)
    if explain:
        text += f"\n{_explanation(planned, machine, directory / 'plan.png')}"
    text = f"{text}\n{search_report}" if search_report else text
    atomic.write_text(directory / "plan.md", text)
    Console().print(text)
    _LOG.info(f"wrote {', '.join(sorted(p.name for p in directory.iterdir()))} to {directory}")


def _explanation(planned: Planned, machine: Topology, picture: Path) -> str:
    if not planned.costs:
        raise ConfigError(
            f"a plan for {machine.name} cannot be explained; expected a TPU slice on which the "
            f"step "
            f"fits",
            "plan.explain",
        )
    draw(planned.plan, picture)
    return explanation(planned.costs, machine.chip)
