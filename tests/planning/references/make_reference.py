"""Compiles a small sharded step with the TPU's compiler and keeps its text: `scanned_step.hlo.gz`.

    python tests/planning/references/make_reference.py      (needs libtpu)

Four scanned layers of two products, their gradients and a plain update, on v5e:2x2 as data 2 x
fsdp 2: loops, overlapped and exposed collectives, and arrays on and off the chip.
"""

import gzip
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp

from t5x_lite.hardware.topologies import topology, tpu_devices
from t5x_lite.partitioning import make_mesh
from t5x_lite.planning.compilation import MEMORY

LAYERS, ROWS, WIDTH, HIDDEN = 4, 4096, 1024, 4096
HERE = Path(__file__).parent


def loss(params, x):
    def layer(x, weights):
        hidden = jax.nn.relu(x @ weights["up"].astype(x.dtype))
        return x + hidden @ weights["down"].astype(x.dtype), None

    with jax.named_scope("encoder"):
        x, _ = jax.lax.scan(layer, x, params)
    return jnp.mean(jnp.square(x.astype(jnp.float32)))


def step(params, x):
    grads = jax.grad(loss)(params, x)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)


def main():
    jax.config.update("jax_platforms", "cpu")
    mesh = make_mesh({"data": 2, "fsdp": 2}, tpu_devices(topology("v5e:2x2")))

    def struct(shape, dtype, *spec):
        sharding = jax.NamedSharding(mesh, jax.P(*spec))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    params = {
        "up": struct((LAYERS, WIDTH, HIDDEN), jnp.float32, None, "fsdp", None),
        "down": struct((LAYERS, HIDDEN, WIDTH), jnp.float32, None, None, "fsdp"),
    }
    x = struct((ROWS, WIDTH), jnp.bfloat16, ("data", "fsdp"), None)
    places = jax.tree.map(lambda leaf: leaf.sharding, params)
    compiled = jax.jit(step, donate_argnums=0, out_shardings=places).lower(params, x).compile()
    text = re.sub(r'^(\d+) "/.*/([^/]+\.py)"$', r'\1 "\2"', compiled.as_text(), flags=re.MULTILINE)
    stats = compiled.memory_analysis()
    memory = {name: getattr(stats, f"{name}_size_in_bytes") for name in MEMORY}
    (HERE / "scanned_step.hlo.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    (HERE / "scanned_step.json").write_text(json.dumps(memory, indent=1) + "\n")


if __name__ == "__main__":
    main()
