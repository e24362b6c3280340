"""What a checkpoint says of its arrays, held against what is wanted before anything is allocated.

A checkpoint may be anybody's: one that leads out of its directory or describes absurd arrays is
refused.
"""

import math
from pathlib import Path
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from t5x_lite.errors import ConfigError
from t5x_lite.io.safe_files import check_descriptions, check_size
from t5x_lite.io.urls import is_url
from t5x_lite.tree_paths import flatten

# Orbax's JSON about arrays; TensorStore reads the rest, within its own bounds.
_DESCRIPTIONS = ("_CHECKPOINT_METADATA", "*/_METADATA", "*/_sharding", "*/array_metadatas/*")


def described(directory: epath.Path) -> Any:
    """What a step says of its state, as nested dicts of shapes and types; no numbers.

    Raises ConfigError where it is not to be trusted.
    """
    local = not is_url(directory)
    try:
        if local:
            check_descriptions(Path(directory), _DESCRIPTIONS)
        with context():
            found = ocp.checkpointables_metadata(directory).metadata["state"]
        if found is None:
            raise ValueError("what it says of its arrays cannot be read")
        if local:
            leaves = [leaf for leaf in jax.tree.leaves(found) if hasattr(leaf, "shape")]
            size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
            check_size(size, Path(directory))
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{directory} is refused as a checkpoint: {error}") from error
    return found


def check_shapes(wanted: Any, directory: epath.Path) -> None:
    """Raise ConfigError for arrays of a state that a step has in other shapes than wanted."""
    found = {
        path: getattr(leaf, "shape", None) for path, leaf in flatten(described(directory)).items()
    }
    other = {
        path: list(leaf.shape)
        for path, leaf in flatten(wanted).items()
        if path in found and found[path] != leaf.shape
    }
    for path, shape in other.items():
        raise ConfigError(
            f"{directory} has {path} {list(found[path] or ())}, wanted is {shape}; of all arrays "
            f"{len(other)} differ",
            "MODEL_DIR",
        )


def context(*, partial_load: bool = False, save_timeout_seconds: int | None = None) -> ocp.Context:
    """How orbax is to read and write, here as everywhere; its own commit marker, on any store."""
    context = ocp.Context()
    if save_timeout_seconds is not None:
        context.asynchronous.timeout_secs = save_timeout_seconds
    context.atomicity.mode = ocp.options.AtomicityMode.COMMIT_FILE
    context.pytree.loading.partial_load = partial_load
    return context
