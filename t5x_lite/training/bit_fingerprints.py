"""64-bit fingerprints of the bits of arrays, computed on the devices that hold them.

Each element's bits are hashed together with the element's position, and the hashes are summed as
integers modulo 2**32. Integer sums do not depend on their order, so the fingerprint does not depend
on the mesh. It detects accidental differences; it is not a cryptographic hash.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp

from t5x_lite.training.step_metrics import FINGERPRINT_PREFIX, Step
from t5x_lite.tree_paths import flatten


def with_fingerprints(step: Step, period: int) -> Step:
    """Wrap a training step so that its metrics include fingerprints of the batch and the weights.

    The fingerprints are part of the step's program and need no dispatch of their own. A second
    program could also deadlock simulated devices: on few CPU cores, collectives of two programs
    would wait for each other.

    Args:
        step: A function (state, batch, num_tasks) -> (state, metrics).
        period: Weights are fingerprinted after steps that are a multiple of it; after other steps
            their fingerprint is 0.

    Returns:
        A step whose metrics also have "bits/batch" and "bits/params", uint32 [2] each.
    """

    def fingerprinted_step(
        state: Any, batch: Any, num_tasks: int = 0
    ) -> tuple[Any, dict[str, jax.Array]]:
        batch_bits = fingerprint(batch)
        state, metrics = step(state, batch, num_tasks)
        is_due = state.step % period == 0
        no_bits = lambda _: jnp.zeros(2, jnp.uint32)  # noqa: E731
        params_bits = jax.lax.cond(is_due, fingerprint, no_bits, state.params)
        bits = {
            f"{FINGERPRINT_PREFIX}batch": batch_bits,
            f"{FINGERPRINT_PREFIX}params": params_bits,
        }
        return state, {**metrics, **bits}

    return fingerprinted_step


def fingerprint(tree: Any) -> jax.Array:
    """Fingerprint a tree of arrays; call it inside jit.

    Args:
        tree: Arrays of types of up to 8 bytes.

    Returns:
        uint32 [2]. It depends on the arrays' bits, paths, shapes and dtypes and on the position of
        every element.
    """
    total = jnp.zeros(2, jnp.uint32)
    for path, leaf in flatten(tree).items():
        salt = zlib.crc32(f"{path} {leaf.shape} {leaf.dtype}".encode())
        total += _hash_array(leaf, jnp.uint32(salt))
    return total


def to_hex(words: Any) -> str:
    """Format a fetched fingerprint as 16 hexadecimal digits.

    >>> to_hex([1, 255])
    '00000001000000ff'
    """
    return "".join(f"{int(word):08x}" for word in words)


def _hash_array(array: jax.Array, salt: jax.Array) -> jax.Array:
    """Sum two hashes of bits and position over all elements, uint32 [2]."""
    bits = _bits(array)
    # A hash of each element's index along every axis. It is computed from iotas, elementwise, so
    # that a sharded array needs no communication before the sums.
    position = jnp.broadcast_to(salt, bits.shape)
    for axis in range(bits.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        position = _mix(position * jnp.uint32(5) + index)
    first = _mix(bits ^ position)
    second = _mix(first + jnp.uint32(0x9E3779B9))  # 2**32 over the golden ratio, as in splitmix
    return jnp.stack([jnp.sum(x, dtype=jnp.uint32) for x in (first, second)])


def _bits(array: jax.Array) -> jax.Array:
    """Return the bits of each element as uint32; a 64-bit element becomes two."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    width = min(array.dtype.itemsize, 4)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[width]
    return jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """Mix 32 bits with a bijection, so that each bit depends on all (Wellons 2018, lowbias32)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
