"""Check the description of a checkpoint's arrays before they are read or memory is allocated.

A checkpoint may be of unknown origin. One whose description refers to files outside its directory,
or to larger arrays than its files can hold, is refused.
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


def read_descriptions(directory: epath.Path) -> Any:
    """Return shapes and types of a checkpoint's state, without reading the arrays.

    Args:
        directory: The directory of a step.

    Returns:
        Nested dicts of descriptions with `shape` and `dtype`, as in the state.

    Raises:
        ConfigError: The description cannot be read, or is not to be trusted.
    """
    local = not is_url(directory)
    try:
        if local:
            check_descriptions(Path(directory), _DESCRIPTIONS)
        with context():
            state = ocp.checkpointables_metadata(directory).metadata["state"]
        if state is None:
            raise ValueError("the description of its arrays cannot be read")
        if local:
            leaves = [leaf for leaf in jax.tree.leaves(state) if hasattr(leaf, "shape")]
            size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
            check_size(size, Path(directory))
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{directory} is refused as a checkpoint: {error}") from error
    return state


def check_shapes(expected: Any, directory: epath.Path) -> None:
    """Check that the arrays of a checkpoint have the shapes that a state expects.

    Args:
        expected: Arrays, or their shapes, in the structure of the state. Arrays that the checkpoint
            does not have are ignored here: orbax names them when it restores.
        directory: The directory of a step.

    Raises:
        ConfigError: An array has another shape; the first one is named.
    """
    saved = {
        path: getattr(leaf, "shape", None)
        for path, leaf in flatten(read_descriptions(directory)).items()
    }
    other = {
        path: list(leaf.shape)
        for path, leaf in flatten(expected).items()
        if path in saved and saved[path] != leaf.shape
    }
    for path, shape in other.items():
        raise ConfigError(
            f"{directory} has {path} {list(saved[path] or ())}, but the model expects {shape}; "
            f"{len(other)} arrays differ",
            "MODEL_DIR",
        )


def context(*, partial_load: bool = False, save_timeout_seconds: int | None = None) -> ocp.Context:
    """Return orbax's options, the same wherever this package uses it.

    A complete checkpoint is marked by a file. Orbax's other way, renaming the directory, is not
    atomic on object stores.

    Args:
        partial_load: Allow to restore a part of the saved arrays.
        save_timeout_seconds: Seconds after which a save fails; None is orbax's default.
    """
    context = ocp.Context()
    if save_timeout_seconds is not None:
        context.asynchronous.timeout_secs = save_timeout_seconds
    context.atomicity.mode = ocp.options.AtomicityMode.COMMIT_FILE
    context.pytree.loading.partial_load = partial_load
    return context
