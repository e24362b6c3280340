"""The mapping between our parameters and the tensors of a Hugging Face checkpoint.

Each family has one table from our modules to tensor names, for example "encoder/layers/mlp/wo" ->
"encoder.block.{i}.layer.1.DenseReluDense.wo". Our layers are stacked, theirs are numbered: a name
with {i} denotes one tensor per layer, and with {x} one per expert. Hugging Face's linear weights
are [out, in], ours are [in, out].
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from t5x_lite.errors import ConfigError
from t5x_lite.models import transformer
from t5x_lite.models.config import TransformerConfig
from t5x_lite.tree_paths import flatten

# Matrices that are transposed in Hugging Face's format, by the last component of our path.
TRANSPOSED = ("kernel", "rel_embedding", "router", "wi_0", "wi_1", "wo")
SUFFIXES = {"bias": ".bias"}  # other parameters have the suffix .weight


class FusedSlice(NamedTuple):
    """A slice of a tensor that holds several of our arrays (GPT-2: query, key and value).

    Attributes:
        name: Name of the module of the tensor.
        part: Index of the slice along the last axis.
        parts: Number of slices.
    """

    name: str
    part: int
    parts: int


class MappingTable(NamedTuple):
    """The tensor names of a family.

    Attributes:
        modules: Maps the path of one of our modules to the name of theirs, without ".weight" or
            ".bias"; or the path of a single array to the complete name of a tensor.
        transposed: Whether linear weights are [out, in], as in most families.
        row_vectors: Names of vectors that are saved as [1, n].
    """

    modules: Mapping[str, str | FusedSlice]
    transposed: bool = True
    row_vectors: tuple[str, ...] = ()


class TensorMapping(NamedTuple):
    """The correspondence between (a slice of) a tensor and (a slice of) one of our arrays.

    Attributes:
        name: Name of the tensor.
        path: Path of our array.
        layer: Indices along the stacked leading axes of our array: layer, expert.
        shape: Shape of the whole tensor.
        transposed: Whether the tensor is transposed.
        part: Index of the slice of the tensor along its last axis.
        parts: Number of such slices; 1 if the tensor corresponds to one array.
    """

    name: str
    path: str
    layer: tuple[int, ...]
    shape: tuple[int, ...]
    transposed: bool
    part: int
    parts: int

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """Return the slice of our array at `layer`, from the tensor."""
        values = np.split(tensor, self.parts, axis=-1)[self.part]
        return values.T if self.transposed else values

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """Return the slice of the tensor, from our array."""
        values = array[self.layer]
        values = values.T if self.transposed else values
        return values.reshape(*self.shape[:-1], self.shape[-1] // self.parts)


def tensor_mappings(config: TransformerConfig, table: MappingTable) -> list[TensorMapping]:
    """Return the mapping of all parameters of a model.

    Args:
        config: Our configuration.
        table: The family's names; a KeyError means that it lacks a module of the model.
    """
    layers_per_block = config.moe.every if config.moe else 1
    mappings = []
    for path, leaf in flatten(transformer.abstract_model(config)[1]).items():
        path_of_layer, offset = _split_block(path)
        parent, leaf_name = path_of_layer.rsplit("/", 1)
        # The table names the array itself, or else its module.
        array_name = table.modules.get(path_of_layer)
        name = array_name if array_name is not None else table.modules[parent]
        fused = name if isinstance(name, FusedSlice) else FusedSlice(name, 0, 1)
        suffix = "" if array_name is not None else SUFFIXES.get(leaf_name, ".weight")
        stacked_axes = ("{i}" in fused.name) + ("{x}" in fused.name)
        transposed = leaf_name in TRANSPOSED and table.transposed
        for index in np.ndindex(leaf.shape[:stacked_axes]):
            shape = tuple(leaf.shape[stacked_axes:])
            shape = shape[::-1] if transposed else shape
            shape = (*shape[:-1], shape[-1] * fused.parts)
            layer = index[0] * layers_per_block + offset if stacked_axes else 0
            expert = index[-1] if stacked_axes else 0
            tensor_name = fused.name.format(i=layer, x=expert) + suffix
            shape = (1, *shape) if tensor_name in table.row_vectors else shape
            mappings.append(
                TensorMapping(tensor_name, path, index, shape, transposed, fused.part, fused.parts)
            )
    return mappings


def check_names(
    tensors: Iterable[TensorMapping], shapes: Mapping[str, tuple[int, ...]], *, where: str
) -> None:
    """Check that a checkpoint has the expected tensors.

    Args:
        tensors: The mapping of all parameters.
        shapes: Shape of each tensor in the checkpoint.
        where: The checkpoint, for the error message.

    Raises:
        ConfigError: Tensors are missing, unexpected or of another shape. The message lists them.
    """
    expected = {tensor.name: tensor.shape for tensor in tensors}
    problems = [
        f"missing {name} {list(expected[name])}" for name in sorted(expected.keys() - shapes)
    ]
    problems += [
        f"unexpected {name} {list(shapes[name])}" for name in sorted(shapes.keys() - expected)
    ]
    problems += [
        f"{name} has shape {list(shapes[name])}, expected {list(expected[name])}"
        for name in sorted(expected.keys() & shapes)
        if tuple(shapes[name]) != expected[name]
    ]
    if problems:
        raise ConfigError(f"the tensors of {where} do not match its config.json: {_join(problems)}")


def load_params(
    config: TransformerConfig,
    tensors: Iterable[TensorMapping],
    read: Callable[[str], np.ndarray],
) -> transformer.Params:
    """Assemble our parameters from tensors.

    Args:
        config: Our configuration.
        tensors: The mapping of all parameters.
        read: Returns a tensor by name.

    Returns:
        Parameters as float32 NumPy arrays.
    """
    _, shapes, _ = transformer.abstract_model(config)
    arrays = {path: np.empty(leaf.shape, np.float32) for path, leaf in flatten(shapes).items()}
    for tensor in tensors:
        array = arrays[tensor.path]
        values = tensor.to_ours(read(tensor.name))
        array[tensor.layer] = values.reshape(array[tensor.layer].shape)
    return jax.tree.unflatten(jax.tree.structure(shapes), arrays.values())


def export_tensors(params: transformer.Params, tensors: Iterable[TensorMapping]) -> Iterator[tuple]:
    """Yield the tensors of our parameters, sorted by name.

    Args:
        params: Our parameters.
        tensors: The mapping of all parameters.

    Yields:
        Name and float32 array of each tensor.
    """
    arrays = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    by_name: dict[str, list[TensorMapping]] = {}
    for tensor in tensors:
        by_name.setdefault(tensor.name, []).append(tensor)
    for name, slices in sorted(by_name.items()):
        slices.sort(key=lambda tensor: tensor.part)
        values = [tensor.to_theirs(arrays[tensor.path]) for tensor in slices]
        yield name, np.concatenate(values, axis=-1).astype(np.float32)


def _split_block(path: str) -> tuple[str, int]:
    """Split "stack/layers/layer_1/mlp/wo" of a block into "stack/layers/mlp/wo" and 1."""
    parts = path.split("/")
    if len(parts) > 2 and parts[2].startswith("layer_"):
        return "/".join([*parts[:2], *parts[3:]]), int(parts[2].removeprefix("layer_"))
    return path, 0


def _join(problems: list[str], limit: int = 30) -> str:
    more = f"; and {len(problems) - limit} more" if len(problems) > limit else ""
    return "; ".join(problems[:limit]) + more
