"""Compute the memory of a training step by XLA's own estimate, on eight simulated CPU devices.

    python benchmarks/memory.py

Nothing is executed: the step of mT5-base with 1,024 / 229 tokens and mT5's batch of 1,024 rows is
compiled with the loss in chunks and with whole logits, on an FSDP mesh, and XLA reports how many
bytes each device needs. The state is 1/8 of the whole if it is sharded over eight devices.
"""

import argparse
import dataclasses
import math
import os
import time

# XLA's CPU backend orders operations for speed by default; accelerators for memory.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_enable_concurrency_optimized_scheduler=false")

import gin
import jax

from t5x_lite.cli import gin_config
from t5x_lite.cli.main import GIN_CONFIGS
from t5x_lite.models.config import TransformerConfig
from t5x_lite.training.optimizers import Adafactor
from t5x_lite.training.schedules import InverseSquareRoot
from t5x_lite.training.setup import TrainSetup, build
from t5x_lite.training.step import Loss

DEVICES = 8
INPUTS, TARGETS = 1024, 229
GIB = 2**30


def load_config(file: str, **changes) -> TransformerConfig:
    """A shipped configuration."""
    gin.clear_config()
    gin_config.parse([f"models/{file}.gin"], [], ["", str(GIN_CONFIGS)])
    return dataclasses.replace(gin.get_configurable(TransformerConfig)(), **changes)


def compiled(program: TrainSetup, rows: int):
    """Compile the step for a batch of full rows."""

    def feature(length: int, kind: str):
        return jax.ShapeDtypeStruct((rows, length), kind, sharding=program.batch_sharding)

    batch = {
        "encoder_input_tokens": feature(INPUTS, "int32"),
        "decoder_input_tokens": feature(TARGETS, "int32"),
        "decoder_target_tokens": feature(TARGETS, "int32"),
        "decoder_loss_weights": feature(TARGETS, "float32"),
    }
    with jax.set_mesh(program.mesh):
        return program.step.lower(program.abstract, batch).compile()


def state_bytes(program: TrainSetup, *, per_device: bool) -> int:
    """Bytes of weights and optimizer state, in total or on one device."""
    total = 0
    for leaf in jax.tree.leaves(program.abstract):
        shape = leaf.sharding.shard_shape(leaf.shape) if per_device else leaf.shape
        total += math.prod(shape) * leaf.dtype.itemsize
    return total


def main() -> None:
    """Compile both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mt5/base")
    parser.add_argument("--rows", type=int, default=1024, help="rows of the global batch")
    parser.add_argument("--remat", default="full")
    parser.add_argument("--query_chunk", type=int, default=128, help="0: whole scores")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    query_chunk = arguments.query_chunk or None
    config = load_config(arguments.model, remat=arguments.remat, query_chunk=query_chunk)
    temp = {}
    for name, chunk in (("in chunks of 1,024 tokens", 1024), ("whole", None)):
        program = build(
            config,
            Adafactor(),
            InverseSquareRoot(),
            Loss(logits_chunk=chunk),
            mesh={"fsdp": DEVICES},
            batch_size=arguments.rows,
            seed=0,
        )
        began = time.perf_counter()
        temp[name] = compiled(program, arguments.rows).memory_analysis().temp_size_in_bytes
        seconds = time.perf_counter() - began
        print(f"logits {name}: {temp[name] / GIB:.2f} GiB temporary a device ({seconds:.0f} s)")
    chunked, whole = temp.values()
    print(f"whole / chunks: {whole / chunked:.2f}")
    everything = state_bytes(program, per_device=False)
    share = state_bytes(program, per_device=True)
    print(
        f"state: {everything / GIB:.3f} GiB in all, {share / GIB:.3f} a device: "
        f"{share * DEVICES / everything:.4f} times an eighth"
    )


if __name__ == "__main__":
    main()
