"""`t5x_lite plan`: what a step would need on a machine that nobody has rented yet."""

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
    """Compile a step for a topology from shapes alone; print what it needs, and write it down.

    mesh, batch_size, lengths: as for training; no data is read. topology_name: "v5e:4x4",
    "v5p:4x4x4", or GPUs, "h200:8", which get the analytic part alone. mode: "train", "eval", or
    "decode": a batch of texts, written as `generation` says about inputs of the length of "inputs".
    training_tokens, or training_steps if given: what the days and chip-hours are for. price: of an
    hour of a chip, to tell the cost. compiler_options: XLA's, by name; they come on
    top of those that `train` uses. explain: also list the dearest places of the
    program, and draw plan.png. search: try meshes, remat policies and batches around the given
    ones, compile the `search_compiles` most promising, and plan the best. output: a directory for
    plan.json and plan.md. cache: a directory of what was compiled before.
    """
    jax.config.update("jax_platforms", "cpu")  # shapes alone: leave accelerators to others
    wanted = topology(topology_name, slices)
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
    _check(setting, wanted, price=price, search=search)
    compiled, found = Path(cache).expanduser(), ""
    if search:
        found, best = search_settings(
            setting,
            wanted,
            training_tokens,
            compiled,
            compile_best=search_compiles,
        )
        setting = best.setting
    planned = plan_step(setting, wanted, training_tokens, compiled)
    _complete(planned.plan, wanted, training_steps, price)
    _write(planned, wanted, Path(output), found, explain=explain)


def _check(setting: Setting, wanted: Topology, *, price: float | None, search: bool) -> None:
    if setting.mode not in KINDS:
        raise ConfigError(
            f"plan.mode is {setting.mode!r}; expected one of {sorted(KINDS)}", "plan.mode"
        )
    if price is not None and price <= 0:
        raise ConfigError(
            f"price is {price}; wanted more than 0, for an hour of a chip", "plan.price"
        )
    if search and not wanted.chip.torus:
        raise ConfigError(f"a search needs a compiler: wanted a TPU, not {wanted.name}")
    if search and setting.mode == "decode":
        raise ConfigError("a search compares steps: expected train or eval", "plan.mode")


def _complete(
    made: dict[str, Any], wanted: Topology, training_steps: int | None, price: float | None
) -> None:
    """Put in what the wishes for a whole training make of a plan of one step."""
    of_steps = made["decoding"] is None and made["estimate"] is not None
    if training_steps is not None and of_steps:
        made["estimate"] = estimate(made, wanted, training_steps * made["batch"]["tokens"])
    if price is not None:
        made["cost"] = cost(made, price)
    check_schema(made)


def _write(
    planned: Planned,
    wanted: Topology,
    directory: Path,
    found: str,
    *,
    explain: bool,
) -> None:
    """Write plan.json, plan.md and the picture, and print the plan. found: by the search."""
    directory.mkdir(parents=True, exist_ok=True)
    atomic.write_json(directory / "plan.json", planned.plan, indent=1)
    text = markdown(planned.plan)
    if explain:
        text += f"\n{_explained(planned, wanted, directory / 'plan.png')}"
    text = f"{text}\n{found}" if found else text
    atomic.write_text(directory / "plan.md", text)
    Console().print(text)
    _LOG.info(f"wrote {', '.join(sorted(p.name for p in directory.iterdir()))} to {directory}")


def _explained(planned: Planned, wanted: Topology, picture: Path) -> str:
    if not planned.costs:
        raise ConfigError(
            f"there is nothing to explain on {wanted.name}: wanted a TPU slice on which the step "
            f"fits",
            "plan.explain",
        )
    draw(planned.plan, picture)
    return explanation(planned.costs, wanted.chip)
