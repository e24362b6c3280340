"""Measure T5 1.1 training steps in bfloat16 on one GPU, beside Hugging Face's PyTorch model.

    python benchmarks/gpu.py --output=/tmp/gpu      (jax for CUDA, torch and transformers)

Weights and optimizer state are float32 on both sides, products bfloat16 (autocast in PyTorch), as
`t5_steps` makes both. Every cell has a process of its own. They prepare in parallel, which is
compilation for ours; then they run one after another, alone on the GPU, each with the largest of
its numbers of rows that fits. Base starts from the same weights on both sides. A step is timed
from its call to the arrival of its loss; medians. MFU is relative to the peak in the chip's data
sheet; the rate of a single large product is printed as well. `--cells` measures other cells, as
JSON.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from t5_steps import (
    INPUTS,
    TARGETS,
    WEIGHTS,
    OurStep,
    TorchStep,
    load_config,
    torch_fields,
    write_batch,
)

SHARED_WEIGHTS = {"base", "tiny"}  # sizes both of whose sides begin alike
OURS, TORCH, COMPILED = "t5x_lite", "PyTorch", "PyTorch, blocks compiled"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """The measurement of one process.

    rows: tried in this order until one fits. model: changes of TransformerConfig (ours alone).
    """

    size: str
    code: str
    rows: tuple[int, ...]
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    logits_chunk: int | None = 1024


# The fastest settings that were tried on an H200 (gpu.md).
_FASTEST = {"remat": "none", "scan_layers": False, "fused_attention": True}
CELLS = tuple(
    cell
    for size, ours, compiled, eager in (
        ("base", (128,), (128, 64), (128, 64)),
        ("large", (96, 64), (64, 48, 32), (48, 32, 16)),
        ("xl", (48, 32), (32, 24, 16), (24, 16, 8)),
    )
    for cell in (
        Cell(size=size, code=OURS, rows=ours, model=_FASTEST),
        Cell(size=size, code=COMPILED, rows=compiled),
        Cell(size=size, code=TORCH, rows=eager),
    )
)


class Worker:
    """The process of a cell."""

    def __init__(self, cell: Cell, arguments: argparse.Namespace, end: float):
        command = [sys.executable, __file__, f"--worker={json.dumps(dataclasses.asdict(cell))}"]
        command += [
            f"--{name}={getattr(arguments, name)}" for name in ("output", "steps", "device")
        ]
        self.cell = cell
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._timer = threading.Timer(max(end - time.time(), 0), self._process.kill)
        self._timer.daemon = True  # a process that failed keeps nobody waiting
        self._timer.start()

    def answer(self) -> dict[str, Any]:
        """Return the next line of the process, or how it ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": f"ended with {self._process.wait()}"}

    def go(self) -> dict[str, Any]:
        """Let the process run to its end, and return its measurement."""
        assert self._process.stdin is not None
        if self._process.poll() is None:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        result = self.answer()
        self._process.wait()
        self._timer.cancel()
        return result


def work(cell: Cell, arguments: argparse.Namespace) -> None:
    """Prepare, report it, wait for the signal to start, measure."""
    began = time.perf_counter()
    run = run_ours if cell.code == OURS else run_torch
    measured = run(cell, arguments)
    ready = next(measured)
    print(json.dumps({**ready, "ready": time.perf_counter() - began}), flush=True)
    sys.stdin.readline()
    print(json.dumps(next(measured)), flush=True)


def run_ours(cell: Cell, arguments: argparse.Namespace):
    """Yields when compiled, and again when measured."""
    import jax

    config = load_config(cell.size, **{"dtype": "bfloat16", **cell.model})
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit", float("inf"))
    for rows in cell.rows:
        step = OurStep(config, rows=rows, logits_chunk=cell.logits_chunk)
        if step.bytes < limit:
            break
        print(f"{cell}: {rows} rows need {step.bytes:,} of {limit:,} bytes", file=sys.stderr)
    else:
        raise MemoryError(f"no number of rows of {cell} fits")
    yield {"rows": rows, "compiler_bytes": step.bytes}
    step.begin(arguments.output)
    found = timed(step, arguments.steps)
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    yield {**found, "rows": rows, "compiler_bytes": step.bytes, "peak_bytes": peak}


def run_torch(cell: Cell, arguments: argparse.Namespace):
    """Yields when imported, and again when measured."""
    import torch

    weights = arguments.output / cell.size / WEIGHTS
    source = weights if weights.exists() else torch_fields(load_config(cell.size))
    on_gpu = arguments.device == "cuda"
    yield {}
    step = TorchStep(source, device=arguments.device, bfloat16=True, compiled=cell.code == COMPILED)
    for rows in cell.rows:
        try:
            step.begin(arguments.output, rows)
            found = timed(step, arguments.steps)
            break
        except torch.OutOfMemoryError:
            print(f"{cell}: {rows} rows do not fit", file=sys.stderr)
        step.forget()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        raise MemoryError(f"no number of rows of {cell} fits")
    yield {**found, "rows": rows, "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else 0}


def timed(step: Any, steps: int) -> dict[str, Any]:
    """Seconds of steps after three that are not counted, and the losses of all."""
    losses, seconds = [], []
    for _ in range(3 + steps):
        began = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - began)
    return {"losses": losses, "seconds": seconds[3:], "first_seconds": seconds[0]}


def product_rate(arguments: argparse.Namespace) -> float:
    """FLOP/s of a product of two large random bfloat16 matrices, by PyTorch."""
    code = (
        "import time, torch; n, d = ({n}, '{d}')\n"
        "a, b = (torch.randn(n, n, device=d).to(torch.bfloat16) for _ in range(2))\n"
        "sync = torch.cuda.synchronize if d == 'cuda' else lambda: None\n"
        "def product():\n    t = time.perf_counter(); a @ b; sync()\n"
        "    return time.perf_counter() - t\n"
        "times = sorted(product() for _ in range(30))\nprint(2 * n**3 / times[15])"
    ).format(n=8192 if arguments.device == "cuda" else 256, d=arguments.device)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """The device and the versions of the packages."""
    from importlib.metadata import version

    names = ("jax", "flax", "torch", "transformers")
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    on_gpu = arguments.device == "cuda"
    device = subprocess.run(query, capture_output=True, text=True).stdout.strip() if on_gpu else ""
    return {"device": device, **{name: version(name) for name in names}}


def table(found: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """Markdown of all cells."""
    from t5x_lite.hardware.chips import chip_of
    from t5x_lite.models.flops import train_step_flops
    from t5x_lite.planning.plan_report import table as markdown

    chip = chip_of(about["device"])
    columns = ("size", "code", "rows", "step, ms", "range", "rows/s", "TFLOP/s", "MFU", "GB, peak")
    lines = []
    for record in found:
        cell = Cell(**record["cell"])
        changes = ", ".join(f"{name}={value}" for name, value in cell.model.items())
        name = f"{cell.code} ({changes})" if changes else cell.code
        if "error" in record:
            lines.append((cell.size, name, "", record["error"], *[""] * 5))
            continue
        seconds, rows = statistics.median(record["seconds"]), record["rows"]
        config = load_config(cell.size)
        lengths = {"inputs": INPUTS, "targets": TARGETS}
        rate = train_step_flops(config, batch_size=rows, lengths=lengths) / seconds
        lines.append(
            (
                *(cell.size, name, str(rows), f"{1e3 * seconds:.1f}"),
                f"{1e3 * min(record['seconds']):.1f} to {1e3 * max(record['seconds']):.1f}",
                f"{rows / seconds:.1f}",
                f"{rate / 1e12:.0f}",
                f"{rate / chip.peak:.1%}" if chip else "",
                f"{record['peak_bytes'] / 1e9:.1f}",
            )
        )
    return markdown(columns, lines)


def main() -> None:
    """Measure as many cells as time permits, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--cells", type=json.loads)
    parser.add_argument("--worker", type=json.loads)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        work(Cell(**arguments.worker), arguments)
        return
    end = time.time() + 60 * arguments.minutes
    arguments.output = arguments.output.resolve()
    # Several processes share the GPU while they prepare; ours compiles for nearly all of it.
    os.environ |= {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": ".94",
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    cells = CELLS if arguments.cells is None else [Cell(**cell) for cell in arguments.cells]
    smallest_vocab = min(load_config(cell.size).vocab_size for cell in cells)
    write_batch(arguments.output, max(max(cell.rows) for cell in cells), smallest_vocab)
    found, about = [], machine(arguments)
    about["product_rate"] = product_rate(arguments)
    print(about, flush=True)
    for size in {cell.size for cell in cells} & SHARED_WEIGHTS:
        write_weights(arguments.output / size, size)
    workers = [Worker(cell, arguments, end) for cell in cells]
    ready = [worker.answer() for worker in workers]
    for worker, begun in zip(workers, ready, strict=True):
        record = begun if "error" in begun else {**begun, **worker.go()}
        found.append({"cell": dataclasses.asdict(worker.cell), **record})
        print(json.dumps(found[-1]), flush=True)
        kept = {"about": about, "cells": found}
        (arguments.output / "gpu.json").write_text(json.dumps(kept, indent=1) + "\n")
    print(table(found, about), flush=True)


def write_weights(directory: Path, size: str) -> None:
    """Compute on the CPU the weights that ours starts from, for PyTorch."""
    code = (
        "import sys; from pathlib import Path; from t5_steps import export, load_config\n"
        "export(Path(sys.argv[1]), load_config(sys.argv[2], dtype='float32'))"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, str(directory), size]
    subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parent)


if __name__ == "__main__":
    main()
