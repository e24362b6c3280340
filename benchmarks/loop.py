"""Measure what the loop around the step costs, and the parts of the time before the first step.

    python benchmarks/loop.py

Both are measured with the command line itself, in separate processes, with a model so small (one
layer per stack, width 32) that its step takes a few milliseconds:

- `t5x_lite train` for 100 and for 600 steps; the step of the same run alone, jitted, on one batch
  and for as many steps; and that step without its hashes. The difference of the two lengths, over
  500, is the CPU time of a step with and without the loop (data, dispatch, metrics, step hashes,
  anomaly guard). Rounds alternate; medians are printed.
- The first steps of two runs, with the compilation cache cold and then warm, split as the run
  itself does.
"""

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

SHORT, LONG = 100, 600
OVERRIDES = {
    "TransformerConfig.emb_dim": 32,
    "TransformerConfig.num_heads": 2,
    "TransformerConfig.head_dim": 16,
    "TransformerConfig.mlp_dim": 64,
    "TransformerConfig.num_encoder_layers": 1,
    "TransformerConfig.num_decoder_layers": 1,
    "BATCH_SIZE": 8,
    "TASK_FEATURE_LENGTHS": "{'inputs': 32, 'targets': 16}",
    "MESH": "{'data': 1}",
    "CPU_DEVICES": 1,
    "CHECKPOINT_PERIOD": 1_000_000,
    "EVAL_PERIOD": 1_000_000,
    "Evaluation.max_examples": 8,
    "Evaluation.samples": 0,
}


def cpu_seconds(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    """Return the CPU time of a process and its output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return used, done.stdout


def train_command(directory: Path, data_dir: Path, steps: int) -> list[str]:
    """`t5x_lite train` of the small model."""
    values = OVERRIDES | {"MODEL_DIR": directory, "DATA_DIR": data_dir, "TRAIN_STEPS": steps}
    flags = [f"--gin.{name}={value}" for name, value in values.items()]
    return [
        *(sys.executable, "-m", "t5x_lite", "train", "--gin_file=recipes/tiny_embedded.gin"),
        *flags,
    ]


def bare(steps: int, *, receipts: bool) -> None:
    """Run the same step on one batch, without the loop."""
    import jax
    import numpy as np

    from t5x_lite.models.config import TransformerConfig
    from t5x_lite.trainer.step_hashes import StepHashes
    from t5x_lite.training.optimizers import Adafactor
    from t5x_lite.training.schedules import InverseSquareRoot
    from t5x_lite.training.setup import build
    from t5x_lite.training.step import Loss

    jax.config.update("jax_platforms", "cpu")
    model = TransformerConfig(
        vocab_size=4224,
        emb_dim=32,
        num_heads=2,
        head_dim=16,
        mlp_dim=64,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dtype="float32",
    )
    program = build(
        model,
        Adafactor(),
        InverseSquareRoot(),
        Loss(),
        mesh={"data": 1},
        batch_size=8,
        seed=0,
        fingerprint_every=StepHashes(steps=receipts).fingerprint_every,
    )
    rng = np.random.default_rng(0)
    batch = {}
    for side, length in (("encoder", 32), ("decoder", 16)):
        ones = np.ones((8, length), np.int32)
        batch[f"{side}_input_tokens"] = rng.integers(1, 4000, (8, length)).astype(np.int32)
        batch[f"{side}_segment_ids"] = ones
        batch[f"{side}_positions"] = ones.cumsum(1, dtype=np.int32) - 1
    batch["decoder_target_tokens"] = batch["decoder_input_tokens"]
    batch["decoder_loss_weights"] = np.ones((8, 16), np.float32)
    batch["task_ids"] = np.zeros((8, 16), np.int32)
    with jax.set_mesh(program.mesh):
        placed = jax.device_put(batch, program.batch_sharding)
        state = program.initial()
        step = program.step.lower(program.abstract, placed, num_tasks=3).compile()
        for number in range(steps):
            state, metrics = step(state, placed)
            if number % 2:
                jax.block_until_ready(metrics)
        jax.block_until_ready(state)


def main() -> None:
    """Print CPU milliseconds per step, and the parts of two starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", type=int, default=None, help="internal")
    parser.add_argument("--no_receipts", action="store_true", help="internal")
    options = parser.parse_args()
    if options.bare is not None:
        bare(options.bare, receipts=not options.no_receipts)
        return
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        itself = [sys.executable, __file__]
        variants: dict[str, Callable[[str, int], list[str]]] = {
            "in the loop": lambda name, n: train_command(folder / name, folder / "data", n),
            "its step alone": lambda _, n: [*itself, f"--bare={n}"],
            "without receipts": lambda _, n: [*itself, f"--bare={n}", "--no_receipts"],
        }
        # Data and compiled programs are made once, before anything is measured.
        for command in variants.values():
            cpu_seconds(command("first", 1), environment)
        found: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(options.rounds):
            for name, command in variants.items():
                short, long = (
                    cpu_seconds(command(f"{number}_{n}", n), environment)[0] for n in (SHORT, LONG)
                )
                found[name].append(1e3 * (long - short) / (LONG - SHORT))
        print(f"CPU ms per step, medians of {options.rounds} rounds of {LONG - SHORT} steps:")
        for name, values in found.items():
            print(f"  {name:<18}{statistics.median(values):7.2f}  {[round(v, 2) for v in values]}")
        environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cold")
        for name in ("cold", "warm"):
            command = train_command(folder / name, folder / "data", 1)
            _, said = cpu_seconds(command, environment)
            line = re.search(r"first step finished .*", said)
            print(f"compilation cache {name}: {line[0] if line else said}")


if __name__ == "__main__":
    main()
