"""A number for the bits of a tree of arrays, computed where the arrays are.

Integers add up the same in every order, so it does not depend on the mesh. It tells apart what
went different ways by accident; it is no protection against somebody who wants two to look equal.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp

from t5x_lite.training.step_metrics import BITS, Step
from t5x_lite.tree_paths import flat


def fingerprinted(step: Step, every: int) -> Step:
    """A training step whose metrics tell of its batch and, every so many steps, of its weights.

    In the program of the step it costs no launch of its own, and devices that are simulated on few
    cores never have two programs wait for each other.
    """

    def with_bits(state: Any, batch: Any, num_tasks: int = 0) -> tuple[Any, dict[str, jax.Array]]:
        of_batch = fingerprint(batch)
        state, metrics = step(state, batch, num_tasks)
        nothing = lambda _: jnp.zeros(2, jnp.uint32)  # noqa: E731
        of_params = jax.lax.cond(state.step % every == 0, fingerprint, nothing, state.params)
        bits = {f"{BITS}batch": of_batch, f"{BITS}params": of_params}
        return state, {**metrics, **bits}

    return with_bits


def fingerprint(tree: Any) -> jax.Array:
    """Two uint32 for all bits of all arrays, their paths, shapes and places; to be jitted."""
    total = jnp.zeros(2, jnp.uint32)
    for path, leaf in flat(tree).items():
        salt = zlib.crc32(f"{path} {leaf.shape} {leaf.dtype}".encode())
        total += _of_array(leaf, jnp.uint32(salt))
    return total


def as_text(halves: Any) -> str:
    """A fetched fingerprint as 16 digits.

    >>> as_text([1, 255])
    '00000001000000ff'
    """
    return "".join(f"{int(half):08x}" for half in halves)


def _of_array(array: jax.Array, salt: jax.Array) -> jax.Array:
    """The sums over all elements of two hashes of bits and place."""
    bits = _bits(array)
    place = jnp.broadcast_to(salt, bits.shape)
    for axis in range(bits.ndim):
        along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place = _mixed(place * jnp.uint32(5) + along)
    first = _mixed(bits ^ place)
    second = _mixed(first + jnp.uint32(0x9E3779B9))
    return jnp.stack([jnp.sum(x, dtype=jnp.uint32) for x in (first, second)])


def _bits(array: jax.Array) -> jax.Array:
    """The bits of an array as uint32; 64-bit elements become two."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    width = min(array.dtype.itemsize, 4)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[width]
    return jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    """A bijection of 32 bits in which each bit depends on all (lowbias32 of Wellons, 2018)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
