"""Check the GPU's attention kernels against plain attention, and measure speed and tile sizes.

    python benchmarks/gpu_attention.py [--minutes=5]        (an NVIDIA GPU; jax[cuda])

T5's shapes in bfloat16: encoder, decoder, and the decoder's cross-attention. Errors are relative to
the norm of plain attention with the same operands in float32; the errors of plain attention in
bfloat16 are printed beside them. Times are medians over calls.
"""

import argparse
import functools
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.models.kernels import attention_gpu
from t5x_lite.models.kernels.attention_gpu import TILINGS, Tiling
from t5x_lite.models.kernels.dot_product_attention import AttentionInputs, unfused_attention

SHAPES = {  # rows, queries, keys, heads, whether there is a bias
    "base, encoder": (64, 512, 512, 12, True),
    "base, decoder": (64, 114, 114, 12, True),
    "base, across": (64, 114, 512, 12, False),
    "xl, encoder": (32, 512, 512, 32, True),
}
HEAD_DIM = 64
VARIANTS = [
    Tiling(queries, keys, warps, stages)
    for (queries, keys, warps), stages in itertools.product(
        ((64, 64, 4), (128, 64, 4), (128, 64, 8), (64, 128, 4), (64, 128, 8), (64, 32, 4)), (2, 3)
    )
]


def operands_of(shape: tuple[int, int, int, int, bool], dtype: Any) -> AttentionInputs:
    """Random operands, a third of all pairs masked."""
    rows, queries, keys, heads, has_bias = shape
    random = np.random.default_rng(0)

    def normal(*sizes: int) -> jax.Array:
        return jnp.asarray(random.standard_normal(sizes, np.float32), dtype)

    mask_bqk = random.random((rows, queries, keys)) < 0.67
    mask_bqk[:, :, 0] = True
    return AttentionInputs(
        normal(rows, queries, heads * HEAD_DIM) * HEAD_DIM**-0.5,
        normal(rows, keys, heads * HEAD_DIM),
        normal(rows, keys, heads * HEAD_DIM),
        jnp.asarray(mask_bqk, jnp.int8),
        normal(heads, queries, keys).astype(jnp.float32) if has_bias else None,
    )


def gradients_of_plain(operands: AttentionInputs, slopes_bqj: jax.Array, heads: int) -> tuple:
    """Result and gradients of plain attention."""

    def plain(real: AttentionInputs) -> jax.Array:
        operands_of_all = real._replace(mask_bqk=operands.mask_bqk)
        return unfused_attention(operands_of_all, heads=heads, scale=1.0)

    y_bqj, pull = jax.vjp(plain, operands._replace(mask_bqk=None))
    return y_bqj, pull(slopes_bqj)[0]


def gradients_of_kernels(operands: AttentionInputs, slopes_bqj: jax.Array, heads: int) -> tuple:
    """Result and gradients of the kernels."""
    how: dict[str, Any] = {"heads": heads, "scale": 1.0}
    y_bqj = attention_gpu.forward(operands, **how)
    return y_bqj, attention_gpu.backward(operands, slopes_bqj, **how)


def seconds_of(call: Callable[[], Any], times: int = 15) -> float:
    """Median seconds of a call."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - began)
    return statistics.median(found[3:])


def check(name: str) -> None:
    """Errors and times of one shape."""
    shape = SHAPES[name]
    exact, rounded = (operands_of(shape, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    exact = AttentionInputs(
        *(x if y is None else y.astype(x.dtype) for x, y in zip(exact, rounded, strict=True))
    )
    slopes_bqj = operands_of(shape, jnp.bfloat16).q_bqj
    heads = shape[3]
    with jax.default_matmul_precision("highest"):
        want = jax.jit(gradients_of_plain, static_argnums=2)(
            exact, slopes_bqj.astype(jnp.float32), heads
        )
    times, errors = {}, {}
    for code, function in (("plain", gradients_of_plain), ("kernels", gradients_of_kernels)):
        compiled = jax.jit(function, static_argnums=2)
        found = compiled(rounded, slopes_bqj, heads)
        errors[code] = [
            f"{float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b)):.1e}"
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True)
        ]
        times[code] = 1e3 * seconds_of(functools.partial(compiled, rounded, slopes_bqj, heads))
    print(f"{name} {shape}: ms {times}; errors of y, dq, dk, dv, dbias: {errors}", flush=True)


def tune(name: str, end: float) -> None:
    """Times with every tiling: of the forward kernel alone, of the others with all of backward."""
    shape = SHAPES[name]
    operands = operands_of(shape, jnp.bfloat16)
    slopes_bqj = operands.q_bqj
    how: dict[str, Any] = {"heads": shape[3], "scale": 1.0}

    def compiled(kernel: str, tiling: Tiling) -> Callable[[], Any] | None:
        tilings = TILINGS._replace(**{kernel: tiling})
        if kernel == "forward":
            run = functools.partial(attention_gpu.forward, tilings=tilings, **how)
            arguments: tuple[Any, ...] = (operands,)
        else:
            run = functools.partial(attention_gpu.backward, tilings=tilings, **how)
            arguments = (operands, slopes_bqj)
        try:
            return functools.partial(jax.jit(run).lower(*arguments).compile(), *arguments)
        except jax.errors.JaxRuntimeError as error:
            print(f"{kernel} {tiling}: {str(error)[:200]}", file=sys.stderr)
            return None

    cells = list(itertools.product(TILINGS._fields, VARIANTS))
    with ThreadPoolExecutor(12) as pool:
        programs = list(pool.map(lambda cell: compiled(*cell), cells))
    found: dict[str, list] = {kernel: [] for kernel in TILINGS._fields}
    for (kernel, tiling), program in zip(cells, programs, strict=True):
        if program is not None and time.time() < end:
            found[kernel].append((round(1e3 * seconds_of(program), 3), tuple(tiling)))
    for kernel, timed in found.items():
        print(f"{name}, {kernel}: {json.dumps(sorted(timed))}", flush=True)


def main() -> None:
    """Check every shape, then try tilings on the encoder's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    end = time.time() + 60 * parser.parse_args().minutes
    print(jax.devices(), jax.__version__, flush=True)
    for name in SHAPES:
        check(name)
    tune("base, encoder", end)


if __name__ == "__main__":
    main()
