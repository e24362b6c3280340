"""Compare a training step of T5 1.1 small on a CPU with Hugging Face's PyTorch model.

    python benchmarks/step_vs_pytorch.py --torch_python=/path/to/python/with/torch

Batch 8, float32, as `t5_steps` makes both. Both start from the same weights, exported through
`t5x_lite.convert`, and get the same batch. Two processes alternate, one step each, so that a
change in the machine's speed affects both; compare the ratios of neighboring steps. Wall time,
CPU time, loss and peak memory of each process are printed.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from t5_steps import WEIGHTS, OurStep, TorchStep, export, load_config, write_batch

ROWS = 8


def our_step(directory: Path, arguments: argparse.Namespace) -> Callable[[], float]:
    """A step of ours."""
    config = load_config(arguments.size, dtype="float32", **arguments.model)
    step = OurStep(config, rows=ROWS, logits_chunk=arguments.logits_chunk or None)
    step.begin(directory)
    return step


def torch_step(directory: Path, _: argparse.Namespace) -> Callable[[], float]:
    """A step of Hugging Face's model, from our weights."""
    step = TorchStep(directory / WEIGHTS)
    step.begin(directory, ROWS)
    return step


def write(directory: Path, arguments: argparse.Namespace) -> None:
    """Write the weights that both start from, and the batch."""
    config = load_config(arguments.size, dtype="float32", **arguments.model)
    export(directory, config)
    write_batch(directory, ROWS, config.vocab_size)


def serve(step: Callable[[], float]) -> None:
    """Run a step for every line of input; answer with a line of JSON."""
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        loss = step()
        answer = {
            "loss": loss,
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
            "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        print(json.dumps(answer), flush=True)


class Peer:
    """A process that runs a step on request."""

    def __init__(self, python: str, role: str, directory: Path, options: list[str]):
        command = [python, __file__, f"--role={role}", f"--directory={directory}", *options]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def step(self) -> dict[str, float]:
        """Seconds, loss and peak memory of one step."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a peer ended with {self._process.wait()}")
        return json.loads(line)


def compare(directory: Path, arguments: argparse.Namespace, options: list[str]) -> None:
    """Alternate steps and print the table."""
    roles = {"t5x_lite": (sys.executable, "ours"), "PyTorch": (arguments.torch_python, "torch")}
    peers = {name: Peer(python, role, directory, options) for name, (python, role) in roles.items()}
    records = {name: [] for name in peers}
    for number in range(arguments.warmup + arguments.steps):
        for name, peer in peers.items():
            records[name].append(peer.step())
        ours, theirs = (records[name][-1] for name in peers)
        print(
            f"step {number}: wall {ours['wall']:.2f} / {theirs['wall']:.2f} s, "
            f"cpu {ours['cpu']:.2f} / {theirs['cpu']:.2f} s, "
            f"loss {ours['loss']:.5f} / {theirs['loss']:.5f}",
            flush=True,
        )
    for peer in peers.values():
        peer.close()
    kept = {name: found[arguments.warmup :] for name, found in records.items()}
    print(f"\n{'':10}{'wall, s':>10}{'CPU, s':>10}{'peak, GiB':>12}   medians of {arguments.steps}")
    for name, found in kept.items():
        wall, cpu = (statistics.median(r[key] for r in found) for key in ("wall", "cpu"))
        print(f"{name:10}{wall:10.2f}{cpu:10.2f}{found[-1]['gib']:12.2f}")
    for key in ("wall", "cpu"):
        ratios = [a[key] / b[key] for a, b in zip(*kept.values(), strict=True)]
        print(
            f"t5x_lite / PyTorch by {key}: {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )
    first = [found[0]["loss"] for found in records.values()]
    print(f"first loss: {first[0]:.6f} / {first[1]:.6f}, apart by {abs(first[0] - first[1]):.1e}")


def main() -> None:
    """Run the requested role; by default, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("--size", default="small")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--logits_chunk", type=int, default=1024, help="0: whole logits")
    parser.add_argument("--model", type=json.loads, default={}, help='e.g. {"remat": "minimal"}')
    parser.add_argument("--role", choices=("ours", "torch", "export"))
    parser.add_argument("--directory", type=Path)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    if arguments.role in ("ours", "torch"):
        make = {"ours": our_step, "torch": torch_step}[arguments.role]
        serve(make(arguments.directory, arguments))
    elif arguments.role == "export":
        write(arguments.directory, arguments)
    else:
        options = sys.argv[1:]
        with tempfile.TemporaryDirectory() as directory:
            role = ["--role=export", f"--directory={directory}"]
            subprocess.run([sys.executable, __file__, *role, *options], check=True)
            compare(Path(directory), arguments, options)


if __name__ == "__main__":
    main()
