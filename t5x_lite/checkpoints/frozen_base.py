"""The base checkpoint of a run with frozen weights, which holds the weights that it does not save.

A run that starts with another run's weights and freezes some of them, as for adapters or prompts,
saves only what it trains. base.json in its directory refers to the checkpoint that holds the rest:

    {"model_dir": "/runs/base", "seen_from_here": "../base", "step": 1000000,
     "fingerprints": {"encoder/layers/mlp/wo/kernel": "5f0e...", ...}}

In turn, a file rested_on/1000000 in /runs/base lists the runs that need this checkpoint, so that it
is never deleted there. The fingerprints detect a base whose weights have changed.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic
from t5x_lite.io.safe_files import read_json
from t5x_lite.tree_paths import flatten

RECORD = "base.json"
PINS = "rested_on"  # a folder of the base: a file for each step that other runs need


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseCheckpoint:
    """The checkpoint that holds a run's frozen weights.

    Args:
        model_dir: The directory of the run or import that wrote it.
        step: Its step.
        fingerprints: A fingerprint of each frozen weight, by its path.
    """

    model_dir: epath.Path
    step: int
    fingerprints: Mapping[str, str]

    @classmethod
    def of(
        cls, model_dir: epath.Path, step: int, weights: Mapping[str, jax.Array]
    ) -> "BaseCheckpoint":
        """Return the base for weights that were just read from a checkpoint.

        Args:
            model_dir: The directory of the run that wrote it.
            step: Its step.
            weights: The frozen weights, by their paths.
        """
        return cls(model_dir=model_dir, step=step, fingerprints=fingerprints(weights))

    @classmethod
    def recorded(cls, model_dir: epath.Path) -> "BaseCheckpoint | None":
        """Return the base that a run has recorded; None if the run saves all its weights.

        If both runs were moved together, the relative path leads to the base.

        Args:
            model_dir: The directory of the run with frozen weights.

        Raises:
            ConfigError: The record cannot be read.
        """
        path = model_dir / RECORD
        if not path.exists():
            return None
        try:
            fields = read_json(path)
            absolute, relative = epath.Path(fields["model_dir"]), fields["seen_from_here"]
            beside = model_dir / relative
            return cls(
                model_dir=absolute if absolute.is_dir() or not beside.is_dir() else beside,
                step=int(fields["step"]),
                fingerprints=dict(fields["fingerprints"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} names no checkpoint: {error!r}", "MODEL_DIR") from error

    def record(self, model_dir: epath.Path) -> None:
        """Write base.json of a run, with the absolute and the relative path of the base.

        Args:
            model_dir: The directory of the run with frozen weights.
        """
        fields = {
            "model_dir": str(self.model_dir),
            "seen_from_here": os.path.relpath(str(self.model_dir), os.path.abspath(model_dir)),
            "step": self.step,
            "fingerprints": dict(self.fingerprints),
        }
        atomic.write_json(model_dir / RECORD, fields)

    def pin(self, model_dir: epath.Path) -> str | None:
        """Mark the checkpoint in the base's directory as needed, so that no policy deletes it.

        Args:
            model_dir: The directory of the run that needs it.

        Returns:
            The error if that directory cannot be written, else None.
        """
        try:
            (self.model_dir / PINS).mkdir(exist_ok=True)
            path = self.model_dir / PINS / str(self.step)
            others = path.read_text().splitlines() if path.exists() else []
            users = sorted({*others, os.path.abspath(model_dir)})
            atomic.write_text(path, "".join(f"{user}\n" for user in users))
        except OSError as error:
            return str(error)
        return None

    def check(self, weights: Mapping[str, jax.Array], model_dir: epath.Path) -> None:
        """Check that weights of the base are those that a run was trained with.

        Args:
            weights: As read from the base, by their paths.
            model_dir: The directory of the run with frozen weights.

        Raises:
            ConfigError: A weight has changed.
        """
        now = fingerprints(weights)
        changed = sorted(path for path in now if now[path] != self.fingerprints[path])
        if changed:
            raise self.error(model_dir, f"other numbers for {', '.join(changed[:3])}", len(changed))

    def error(self, model_dir: epath.Path, instead: str, count: int | None = None) -> ConfigError:
        """Return the error for a base that is missing or has changed.

        Args:
            model_dir: The directory of the run with frozen weights.
            instead: What the directory of the base has instead.
            count: The number of changed weights, if that is the error.
        """
        more = "" if count is None or count <= 3 else f" and {count - 3} more"
        return ConfigError(
            f"the checkpoints in {model_dir} hold the trained weights only; the frozen weights are "
            f"those of step {self.step:,} of {self.model_dir}, which has {instead}{more}; expected "
            f"the checkpoint that the run began with: if it was moved, set InitFrom.model_dir, or "
            f'"model_dir" in {model_dir / RECORD}',
            "InitFrom.model_dir",
            "MODEL_DIR",
        )


def pinned(model_dir: epath.Path) -> set[int]:
    """Return the steps of a run whose checkpoints other runs need.

    Args:
        model_dir: The directory of the base.
    """
    folder = model_dir / PINS
    paths = folder.iterdir() if folder.exists() else ()
    return {int(path.name) for path in paths if path.name.isdecimal()}


def fingerprints(weights: Mapping[str, Any]) -> dict[str, str]:
    """Return 64 bits for every array, as hexadecimal text, which do not depend on its sharding.

    The bits of each element are hashed together with its position, and the hashes are summed as
    integers: unlike a sum of floating-point numbers, that does not depend on the order.

    Args:
        weights: Nested dicts of arrays.

    Returns:
        {path: 16 hexadecimal digits}.
    """
    arrays = {path: jnp.asarray(array) for path, array in flatten(weights).items()}
    shardings = [array.sharding for array in arrays.values()]
    meshes = [sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)]
    # Every process needs the sums, also of arrays of which it holds a part only.
    replicated = NamedSharding(meshes[0], PartitionSpec()) if meshes else None
    sums = jax.jit(_hash_all, out_shardings=replicated)([*arrays.values()])
    return {
        path: "".join(f"{int(word):08x}" for word in words)
        for path, words in zip(arrays, jax.device_get(sums), strict=True)
    }


def _hash_all(arrays: list[jax.Array]) -> jax.Array:
    return jnp.stack([_hash(array) for array in arrays])


def _hash(array: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(array.astype(jnp.float32), jnp.uint32)
    # The position of each element in row-major order. An iota per axis is sharded like the array.
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        iota = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        position = position * jnp.uint32(size) + iota
    # Two hashes with different salts, of 32 bits each.
    salts = (0x9E3779B9, 0x7F4A7C15)
    words = [_mix(bits ^ _mix(position + jnp.uint32(salt))) for salt in salts]
    return jnp.stack([jnp.sum(word, dtype=jnp.uint32) for word in words])


def _mix(x: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3 (Appleby), a bijection of 32-bit words."""
    x ^= x >> 16
    x *= jnp.uint32(0x85EBCA6B)
    x ^= x >> 13
    x *= jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
