"""Where each number of a foreign checkpoint stands in our tree, from one table a family.

A table says, for each of our modules, what the other side calls it: "encoder/layers/mlp/wo" ->
"encoder.block.{i}.layer.1.DenseReluDense.wo". Our layers are stacked and theirs are counted, so a
name with {i} stands for one tensor a layer, and with {x} for one an expert. Linear weights lie
transposed over there ([out, in]), other arrays as here.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from t5x_lite.errors import ConfigError
from t5x_lite.models import transformer
from t5x_lite.models.config import TransformerConfig
from t5x_lite.tree_paths import flatten

# Ours, by the last name of their path: matrices that stand the other way round over there.
TRANSPOSED = ("kernel", "rel_embedding", "router", "wi_0", "wi_1", "wo")
SUFFIXES = {"bias": ".bias"}  # everything else is called .weight


class FusedSlice(NamedTuple):
    """A third of a tensor that holds several of ours side by side (GPT-2's q, k, v)."""

    name: str
    part: int
    parts: int


class MappingTable(NamedTuple):
    """The names of a family.

    modules: our path (of a module, or of a single array) to their name; the name of a single
    array is complete. as_here: linear weights are not transposed (GPT-2). row: names of vectors
    that lie there as [1, n] (BART's bias of the logits).
    """

    modules: Mapping[str, str | FusedSlice]
    as_here: bool = False
    row: tuple[str, ...] = ()


class TensorMapping(NamedTuple):
    """A foreign tensor, or a part of it, and the place of its numbers in ours.

    layer: indices along the stacked leading axes of ours. shape: of the whole tensor over there.
    """

    name: str
    path: str
    layer: tuple[int, ...]
    shape: tuple[int, ...]
    transposed: bool
    part: int
    parts: int

    def to_ours(self, theirs: np.ndarray) -> np.ndarray:
        """Our numbers out of their tensor."""
        piece = np.split(theirs, self.parts, axis=-1)[self.part]
        return piece.T if self.transposed else piece

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """Their part of the tensor out of our array at `layer`."""
        piece = ours[self.layer]
        piece = piece.T if self.transposed else piece
        return piece.reshape(*self.shape[:-1], self.shape[-1] // self.parts)


def tensor_mappings(config: TransformerConfig, table: MappingTable) -> list[TensorMapping]:
    """Every tensor of the other side for a model of ours; a KeyError is a hole in the table."""
    every = config.moe.every if config.moe else 1
    tensors = []
    for path, leaf in flatten(transformer.abstract_model(config)[1]).items():
        plain, offset = _without_block(path)
        parent, leaf_name = plain.rsplit("/", 1)
        whole = table.modules.get(plain)
        name = whole if whole is not None else table.modules[parent]
        part = name if isinstance(name, FusedSlice) else FusedSlice(name, 0, 1)
        suffix = "" if whole is not None else SUFFIXES.get(leaf_name, ".weight")
        stacked = ("{i}" in part.name) + ("{x}" in part.name)
        transposed = leaf_name in TRANSPOSED and not table.as_here
        for index in np.ndindex(leaf.shape[:stacked]):
            shape = tuple(leaf.shape[stacked:])
            shape = shape[::-1] if transposed else shape
            shape = (*shape[:-1], shape[-1] * part.parts)
            layer = index[0] * every + offset if stacked else 0
            found = part.name.format(i=layer, x=index[-1] if stacked else 0) + suffix
            shape = (1, *shape) if found in table.row else shape
            tensors.append(
                TensorMapping(found, path, index, shape, transposed, part.part, part.parts)
            )
    return tensors


def check_names(
    tensors: Iterable[TensorMapping], shapes: Mapping[str, tuple[int, ...]], *, where: str
) -> None:
    """Raise one ConfigError that lists every missing, surplus and misshapen tensor."""
    wanted = {tensor.name: tensor.shape for tensor in tensors}
    faults = [f"missing {name} {list(wanted[name])}" for name in sorted(wanted.keys() - shapes)]
    faults += [f"surplus {name} {list(shapes[name])}" for name in sorted(shapes.keys() - wanted)]
    faults += [
        f"{name} has shape {list(shapes[name])}, wanted {list(wanted[name])}"
        for name in sorted(wanted.keys() & shapes)
        if tuple(shapes[name]) != wanted[name]
    ]
    if faults:
        raise ConfigError(f"{where} does not hold the model its config.json names: {_list(faults)}")


def load_params(
    config: TransformerConfig, tensors: Iterable[TensorMapping], read
) -> transformer.Params:
    """Our parameters, float32 on the host, out of foreign tensors given by name."""
    _, shapes, _ = transformer.abstract_model(config)
    arrays = {path: np.empty(leaf.shape, np.float32) for path, leaf in flatten(shapes).items()}
    for tensor in tensors:
        ours = arrays[tensor.path]
        ours[tensor.layer] = tensor.to_ours(read(tensor.name)).reshape(ours[tensor.layer].shape)
    return jax.tree.unflatten(jax.tree.structure(shapes), arrays.values())


def export_tensors(params: transformer.Params, tensors: Iterable[TensorMapping]) -> Iterator[tuple]:
    """(name, array) of every foreign tensor, in order of their names."""
    arrays = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    by_name: dict[str, list[TensorMapping]] = {}
    for tensor in tensors:
        by_name.setdefault(tensor.name, []).append(tensor)
    for name, parts in sorted(by_name.items()):
        pieces = [part.to_theirs(arrays[part.path]) for part in sorted(parts, key=lambda p: p.part)]
        yield name, np.concatenate(pieces, axis=-1).astype(np.float32)


def _without_block(path: str) -> tuple[str, int]:
    """A path as if layers were not grouped in blocks, and the layer's place in its block."""
    parts = path.split("/")
    if len(parts) > 2 and parts[2].startswith("layer_"):
        return "/".join([*parts[:2], *parts[3:]]), int(parts[2].removeprefix("layer_"))
    return path, 0


def _list(faults: list[str], most: int = 30) -> str:
    rest = f"; and {len(faults) - most} more" if len(faults) > most else ""
    return "; ".join(faults[:most]) + rest
