"""Frozen weights are not saved again: where they are to be found, and whether they are the same.

A run whose frozen weights came from another run's checkpoint saves what it trains. Beside its
checkpoints, `base.json` says which checkpoint holds the rest, with a fingerprint of every weight.
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
PINS = "rested_on"  # in a base's directory: a file for each step that others rest on


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseCheckpoint:
    """The checkpoint that holds a run's frozen weights: fingerprints by their paths."""

    model_dir: epath.Path
    step: int
    fingerprints: Mapping[str, str]

    @classmethod
    def of(
        cls, model_dir: epath.Path, step: int, weights: Mapping[str, jax.Array]
    ) -> "BaseCheckpoint":
        """Describe weights, by their paths, that were read from a checkpoint."""
        return cls(model_dir=model_dir, step=step, fingerprints=fingerprints(weights))

    @classmethod
    def recorded(cls, model_dir: epath.Path) -> "BaseCheckpoint | None":
        """Read what the run in `model_dir` rests on; None if it saves all its weights."""
        path = model_dir / RECORD
        if not path.exists():
            return None
        try:
            fields = read_json(path)
            place, beside = epath.Path(fields["model_dir"]), model_dir / fields["seen_from_here"]
            return cls(
                model_dir=place if place.is_dir() or not beside.is_dir() else beside,
                step=int(fields["step"]),
                fingerprints=dict(fields["fingerprints"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} names no checkpoint: {error!r}", "MODEL_DIR") from error

    def record(self, model_dir: epath.Path) -> None:
        """Write it into a run's directory, the place also as seen from there."""
        fields = {
            "model_dir": str(self.model_dir),
            "seen_from_here": os.path.relpath(str(self.model_dir), os.path.abspath(model_dir)),
            "step": self.step,
            "fingerprints": dict(self.fingerprints),
        }
        atomic.write_json(model_dir / RECORD, fields)

    def pin(self, model_dir: epath.Path) -> str | None:
        """Have the base keep the step, whatever its policy says; returns what came in the way."""
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
        """Raise ConfigError for a weight that is not what the run in `model_dir` was trained on."""
        changed = sorted(
            path
            for path, found in fingerprints(weights).items()
            if found != self.fingerprints[path]
        )
        if changed:
            raise self.error(model_dir, f"other numbers for {', '.join(changed[:3])}", len(changed))

    def error(self, model_dir: epath.Path, found: str, count: int | None = None) -> ConfigError:
        """Say that the base is not there, or not what it was."""
        more = "" if count is None or count <= 3 else f" and {count - 3} more"
        return ConfigError(
            f"{model_dir} holds what was trained; its frozen weights are those of step "
            f"{self.step:,} of {self.model_dir}, which has {found}{more}; wanted the checkpoint "
            f'the run began with: if it was moved, set InitFrom.model_dir, or "model_dir" in '
            f"{model_dir / RECORD}",
            "InitFrom.model_dir",
            "MODEL_DIR",
        )


def pinned(model_dir: epath.Path) -> set[int]:
    """The steps of a run that others rest on."""
    folder = model_dir / PINS
    found = folder.iterdir() if folder.exists() else ()
    return {int(path.name) for path in found if path.name.isdecimal()}


def fingerprints(weights: Mapping[str, Any]) -> dict[str, str]:
    """64 bits of every array, as hexadecimal text; the same however it is sharded.

    Each number's bits are mixed with its place and summed up as integers, whose sum has no order.
    """
    arrays = {path: jnp.asarray(array) for path, array in flatten(weights).items()}
    places = [array.sharding for array in arrays.values()]
    meshes = [place.mesh for place in places if isinstance(place, NamedSharding)]
    everywhere = NamedSharding(meshes[0], PartitionSpec()) if meshes else None
    found = jax.jit(_all_mixed_sums, out_shardings=everywhere)([*arrays.values()])
    return {
        path: "".join(f"{int(word):08x}" for word in words)
        for path, words in zip(arrays, jax.device_get(found), strict=True)
    }


def _all_mixed_sums(arrays: list[jax.Array]) -> jax.Array:
    return jnp.stack([_mixed_sums(array) for array in arrays])


def _mixed_sums(array: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(array.astype(jnp.float32), jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    words = [_mixed(bits ^ _mixed(place + jnp.uint32(salt))) for salt in (0x9E3779B9, 0x7F4A7C15)]
    return jnp.stack([jnp.sum(word, dtype=jnp.uint32) for word in words])


def _mixed(x: jax.Array) -> jax.Array:
    """The last step of MurmurHash3 (Appleby), a bijection of 32-bit words."""
    x ^= x >> 16
    x *= jnp.uint32(0x85EBCA6B)
    x ^= x >> 13
    x *= jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
