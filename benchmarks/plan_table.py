"""Make the table of docs/planning_table.md: every size of a family on three TPU slices.

    python benchmarks/plan_table.py --minutes=60 [t5_1_1/small ...]    (libtpu; minutes per cell)

Cells are compiled, small models first, until the time is up, each in a process of its own,
because libtpu's compiler can end the process. Finished cells, and those that ended their process,
are kept in plan_table.json, so the same command resumes from there; another version of libtpu
tries the latter again. The others are marked as not computed. The setting of a cell follows from
the size (`setting_of`): a reasonable one, without a search.
"""

import argparse
import dataclasses
import itertools
import json
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import gin
import jax

from t5x_lite import log_setup
from t5x_lite.cli import gin_config
from t5x_lite.cli.main import GIN_CONFIGS
from t5x_lite.hardware.topologies import Topology, topology
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.transformer import num_parameters
from t5x_lite.planning import memory_estimate
from t5x_lite.planning.lowering import Setting
from t5x_lite.planning.plan_report import table
from t5x_lite.planning.plan_step import plan_step
from t5x_lite.training.optimizers import Adafactor
from t5x_lite.training.schedules import InverseSquareRoot
from t5x_lite.training.step import Loss, Update

HERE = Path(__file__).parent
RESULTS, TABLE = HERE / "plan_table.json", HERE.parent / "docs" / "planning_table.md"
CACHE = Path("~/.cache/t5x_lite/plans").expanduser()
ENDED_BY = "ended_by"
TOPOLOGIES = ("v5e:16x16", "v5p:4x4x4", "v6e:16x16")
MODELS = (
    *(f"t5_1_1/{size}" for size in ("small", "base", "large", "xl", "xxl")),
    *(f"mt5/{size}" for size in ("small", "base", "large", "xl", "xxl")),
    *(f"switch/base_{experts}" for experts in (8, 16, 32, 64, 128, 256)),
)
HEAD = """# Sizes and slices

Made by `python benchmarks/plan_table.py`; 512/114 tokens a row, bfloat16, Adafactor, jax {jax}.
Step times are estimates, from every instruction at the chip's peaks to the compiler's estimate with
exposed collectives; nothing here was measured on a TPU. "-": not computed; a signal's name: what
ended libtpu's compiler on that cell.

"""


def setting_of(model: TransformerConfig, wanted: Topology) -> Setting:
    """Fewest fsdp parts whose state leaves the chip four fifths of its memory; the rest is data.

    16 rows a chip, 8 from 2 billion weights on; products are kept below 8 billion weights, above
    everything is recomputed. Experts are split as far as they go.
    """
    experts = 1 if model.moe is None else min(model.moe.num_experts, wanted.devices)
    fsdp = 1
    while fsdp * experts < wanted.devices:
        sizes = {"fsdp": fsdp, "expert": experts}
        state = memory_estimate.state_bytes(model, Adafactor(), sizes)
        if sum(state.values()) < 0.2 * wanted.chip.hbm / wanted.chip.devices:
            break
        fsdp *= 2
    weights = num_parameters(model) if model.moe is None else 0
    mesh = {"data": wanted.devices // (fsdp * experts), "fsdp": fsdp, "expert": experts}
    return Setting(
        model=dataclasses.replace(model, remat="full" if weights > 8e9 else "minimal"),
        optimizer=Adafactor(),
        learning_rate=InverseSquareRoot(base=1.0, warmup_steps=10_000),
        loss=Loss(),
        update=Update(),
        mesh={name: size for name, size in mesh.items() if size > 1},
        batch_size=wanted.devices * (16 if weights < 2e9 else 8),
        lengths={"inputs": 512, "targets": 114},
        packed=True,
        mode="train",
        compiler_options={},
    )


def shipped(name: str) -> TransformerConfig:
    """A model of gin_configs/models."""
    gin.clear_config()
    gin_config.parse([f"models/{name}.gin"], [], ["", str(GIN_CONFIGS)])
    return gin.get_configurable(TransformerConfig)()


def row_of(name: str, where: str, plan: dict | None) -> tuple[str, ...]:
    """A line of the table."""
    if plan is None:
        return (name, where, *["-"] * 9)
    if ENDED_BY in plan:
        return (name, where, *["-"] * 6, plan[ENDED_BY], "", plan["compiler"]["libtpu"])
    memory, estimate = plan["memory"], plan["estimate"]
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
    size = f"{memory['total'] / 1e9:.1f} of {memory['limit'] / 1e9:.0f}"
    times, mfu = "does not fit", ""
    if estimate is not None:
        times = " to ".join(f"{1e3 * s:,.0f}" for s in estimate["step_seconds"])
        mfu = " to ".join(f"{share:.0%}" for share in estimate["mfu"])
    return (
        name,
        where,
        f"{plan['model']['parameters'] / 1e6:,.0f}M",
        mesh,
        plan["model"]["remat"],
        f"{plan['batch']['rows_per_chip']:g}",
        size,
        f"{1e3 * plan['compute']['seconds']:,.0f}" if plan["compute"] else "",
        times,
        mfu,
        plan["compiler"]["libtpu"],
    )


def compile_here(name: str, where: str, path: Path) -> None:
    """Plan a cell in this process and write it."""
    jax.config.update("jax_platforms", "cpu")
    wanted = topology(where)
    planned = plan_step(setting_of(shipped(name), wanted), wanted, 2.0**35, CACHE)
    path.write_text(json.dumps(planned.plan))


def compile_apart(name: str, where: str) -> dict:
    """Plan a cell in a process of its own: its plan, or the signal that ended the process.

    Raises:
      subprocess.CalledProcessError: it ended with an error of its own.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "plan.json"
        command = [sys.executable, __file__, f"--cell={where}", f"--to={path}", name]
        ended = subprocess.run(command, check=False)
        if ended.returncode < 0:
            versions = {package: version(package) for package in ("jax", "libtpu")}
            return {ENDED_BY: signal.Signals(-ended.returncode).name, "compiler": versions}
        ended.check_returncode()
        return json.loads(path.read_text())


def to_do(plan: dict | None) -> bool:
    """Whether a cell was never computed, or ended another libtpu's compiler."""
    if plan is None:
        return True
    return ENDED_BY in plan and plan["compiler"]["libtpu"] != version("libtpu")


@log_setup.to_terminal()
def main() -> None:
    """Compile as many cells as time permits, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--cell", help="a slice: only its cell of one model, in this process")
    parser.add_argument("--to", type=Path, help="the file for the plan of --cell")
    parser.add_argument("models", nargs="*", default=MODELS)
    options = parser.parse_args()
    if options.cell:
        (name,) = options.models
        compile_here(name, options.cell, options.to)
        return
    end = time.time() + 60 * options.minutes
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    smallest_first = sorted(options.models, key=lambda name: num_parameters(shipped(name)))
    for name, where in itertools.product(smallest_first, TOPOLOGIES):
        key = f"{name} {where}"
        if not to_do(done.get(key)) or time.time() > end:
            continue
        print(key, flush=True)
        done[key] = compile_apart(name, where)
        RESULTS.write_text(json.dumps(done) + "\n")
        write(done)
    write(done)


def write(done: dict[str, dict]) -> None:
    """The table of all cells, finished or not."""
    columns = (
        *("model", "slice", "weights", "mesh", "remat", "rows a chip", "GB a chip"),
        *("compiler-estimated compute, ms", "step, ms (estimated)", "MFU (estimated)"),
        "libtpu",
    )
    rows = [
        row_of(name, where, done.get(f"{name} {where}")) for name in MODELS for where in TOPOLOGIES
    ]
    versions = sorted({plan["compiler"]["jax"] for plan in done.values()})
    TABLE.write_text(HEAD.format(jax=", ".join(versions)) + table(columns, rows) + "\n")


if __name__ == "__main__":
    main()
