"""Measure what durability costs per step: the time that a save blocks, and step hashes.

    python benchmarks/durability.py [--batch=8 --inputs=128 --targets=32]

- T5 1.1 small is trained for some steps by the command line, with a save every third step. The time
  that each save blocks the loop (metrics.jsonl, "checkpoint") is compared with a step. The goal is
  less than 10 % of the steps between two saves, at the default period of 1,000.
- The CPU time that step hashes add: the fingerprint of every batch, that of the weights every 100
  steps, and the hash of the examples in a batch. The goal is 1 % of a step.

`t5x_lite torture` prints the time from a kill to the next step, and its parts.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

STEPS, INTERVAL = 10, 1000
FILES = (
    "models/t5_1_1/small.gin",
    "objectives/span_corruption.gin",
    "tasks/embedded.gin",
    "optimizers/adafactor.gin",
    "runs/pretrain.gin",
)


def trained(folder: Path, options: argparse.Namespace) -> tuple[float, list[float]]:
    """Wall seconds of a step, and of the time that each save blocks."""
    from t5x_lite.io.metric_writers import read_metrics

    values = {
        "MODEL_DIR": folder / "run",
        "DATA_DIR": options.data_dir or folder / "data",
        "TRAIN_STEPS": STEPS,
        "BATCH_SIZE": options.batch,
        "TASK_FEATURE_LENGTHS": f"{{'inputs': {options.inputs}, 'targets': {options.targets}}}",
        "CPU_DEVICES": 1,
        "CHECKPOINT_PERIOD": 3,
        "EVAL_PERIOD": 10_000,
        "Evaluation.max_examples": 8,
        "Evaluation.samples": 0,
        "train.log_every_steps": 1,
    }
    command = [sys.executable, "-m", "t5x_lite", "train"]
    command += [f"--gin_file={name}" for name in FILES]
    command += [f"--gin.{name}={value}" for name, value in values.items()]
    subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=True)
    records = list(read_metrics(folder / "run"))
    steps = [r["seconds_per_step"] for r in records if r["kind"] == "train" and r["step"] > 2]
    waits = [r["blocked_seconds"] for r in records if r["kind"] == "checkpoint"]
    return statistics.median(steps), waits


def cpu_seconds(work: Callable[[], object], rounds: int) -> float:
    """Median CPU time of a function, after a first call that may compile."""
    work()
    found = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return statistics.median(found)


def receipts(options: argparse.Namespace) -> dict[str, float]:
    """CPU seconds per step of each part of the step hashes."""
    import jax
    import numpy as np

    from t5x_lite.data.stream.stream import ExampleIds
    from t5x_lite.models.config import TransformerConfig
    from t5x_lite.models.transformer import initialize
    from t5x_lite.trainer.step_hashes import hash_example_ids
    from t5x_lite.training.bit_fingerprints import fingerprint

    jax.config.update("jax_platforms", "cpu")
    sizes = dict(vocab_size=32128, emb_dim=512, num_heads=6, head_dim=64, mlp_dim=1024)
    layers = dict(num_encoder_layers=8, num_decoder_layers=8)
    params = jax.jit(lambda key: initialize(TransformerConfig(**sizes, **layers), key))(
        jax.random.key(0)
    )
    rng, batch = np.random.default_rng(0), {}
    for side, length in (("encoder", options.inputs), ("decoder", options.targets)):
        for name in ("input_tokens", "segment_ids", "positions"):
            numbers = rng.integers(0, 100, (options.batch, length)).astype(np.int32)
            batch[f"{side}_{name}"] = jax.numpy.asarray(numbers)
    batch["decoder_target_tokens"] = batch["decoder_input_tokens"]
    batch["decoder_loss_weights"] = batch["decoder_input_tokens"].astype("float32")
    fields = len(ExampleIds._fields) - 1
    example_ids = ExampleIds(
        ["a", "b", "c"], *(np.arange(8 * options.batch) for _ in range(fields))
    )
    of = jax.jit(fingerprint)
    return {
        "the batch's bits": cpu_seconds(lambda: jax.block_until_ready(of(batch)), 50),
        "the weights' bits, a hundredth": cpu_seconds(lambda: jax.block_until_ready(of(params)), 10)
        / 100,
        "which examples": cpu_seconds(lambda: hash_example_ids(example_ids), 50),
    }


def main() -> None:
    """Print both measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--inputs", type=int, default=128)
    parser.add_argument("--targets", type=int, default=32)
    parser.add_argument(
        "--data_dir", default=None, help="directory of the corpus; default: a temporary one"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        step, waits = trained(Path(root), options)
    wait = statistics.median(waits)
    print(f"a step {step:.2f} s; waits for saves: {', '.join(f'{x:.3f}' for x in waits)} s")
    share = wait / (INTERVAL * step)
    print(
        f"a wait is {wait / step:.1%} of a step, {share:.3%} of the {INTERVAL:,} between two saves"
    )
    parts = receipts(options)
    for name, seconds in parts.items():
        print(f"step hashes: {name}: {1e3 * seconds:.2f} ms of CPU a step")
    print(f"step hashes in total: {sum(parts.values()) / step:.2%} of a step")


if __name__ == "__main__":
    main()
