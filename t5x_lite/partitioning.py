"""Where every array lives: the mesh, one table of logical axes, and the pins on activations.

A weight declares what its dimensions mean (`axes=("embed", "mlp")`). `LOGICAL_TO_MESH` says which
mesh axes split that meaning. Nothing else in the project names a mesh axis.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from t5x_lite.errors import ConfigError

MESH_AXES = ("data", "fsdp", "tensor", "expert", "sequence")

# Logical axis -> mesh axes that split it. `None`: every device holds the whole of it.
LOGICAL_TO_MESH: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp", "expert"),
    "length": "sequence",
    "embed": "fsdp",  # of weights; activations keep their embedding whole
    "heads": "tensor",
    "joined_kv": "tensor",  # heads x head_dim, head-major, so that splitting it splits heads
    "mlp": "tensor",
    "vocab": "tensor",
    "expert": "expert",
    "kv": None,
    "layers": None,
    "relpos_buckets": None,
    "embed_whole": None,  # vectors of the embedding's size: too small to be worth gathering
    "embed_out": "tensor",  # what a square matrix makes of an embedding
    "length_table": None,
    "classes": None,
    "experts_whole": None,  # the router's scores, computed by everyone
    "expert_groups": ("data", "fsdp"),  # groups of tokens once they have been sent to experts
}

LogicalAxes = tuple[str | None, ...]


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """The device mesh with the given sizes; others have size 1, one may be -1 (the rest).

    Several TPU slices, which only the data-center network joins, follow one another along "data".
    Raises ConfigError if a name is unknown, the product is not the number of devices, or "data"
    is not a multiple of the slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = resolve_mesh_shape(sizes, len(devices))
    slices: dict[int, list[Any]] = {}
    for device in devices:
        number = getattr(device, "slice_index", None) if device.platform == "tpu" else None
        slices.setdefault(number or 0, []).append(device)
    if shape["data"] % len(slices):
        raise ConfigError(
            f"the mesh {shape} splits {len(slices)} slices along data = {shape['data']}; wanted a "
            f"multiple of {len(slices)}",
            "MESH",
        )
    of_a_slice = {**shape, "data": shape["data"] // len(slices)}
    names, types = tuple(shape), (AxisType.Auto,) * len(shape)
    # `jax.make_mesh` splits a slice's dimensions for v5e alone; fsdp 32 on v6e:16x16 needs it too.
    parts = [
        mesh_utils.create_device_mesh(
            tuple(of_a_slice.values()), devices=part, allow_split_physical_axes=True
        )
        for part in slices.values()
    ]
    whole = np.concatenate(parts, axis=MESH_AXES.index("data"))
    return Mesh(whole, names, axis_types=types)


def resolve_mesh_shape(sizes: Mapping[str, int], num_devices: int) -> dict[str, int]:
    """Sizes of all `MESH_AXES` for this many devices, with -1 replaced by what is left.

    >>> resolve_mesh_shape({"data": -1, "tensor": 2}, 8)
    {'data': 4, 'fsdp': 1, 'tensor': 2, 'expert': 1, 'sequence': 1}
    """
    given = dict(sizes)
    if unknown := set(given) - set(MESH_AXES):
        raise ConfigError(
            f"the mesh has an axis {sorted(unknown)[0]!r}; the axes are {', '.join(MESH_AXES)}",
            "MESH",
        )
    if bad := {name: size for name, size in given.items() if size != -1 and size < 1}:
        raise ConfigError(f"mesh sizes must be positive, or -1 for the rest; got {bad}", "MESH")
    rest = [name for name, size in given.items() if size == -1]
    if len(rest) > 1:
        raise ConfigError(f"only one mesh axis may be -1 (the rest); got {rest}", "MESH")
    fixed = math.prod(size for size in given.values() if size != -1)
    if rest:
        given[rest[0]] = num_devices // fixed
    if fixed == 0 or math.prod(given.values()) != num_devices:
        raise ConfigError(
            f"the mesh {dict(sizes)} needs {'a multiple of ' if rest else ''}{fixed} devices, "
            f"but {num_devices} are visible; change MESH, or on a CPU simulate them with "
            f"CPU_DEVICES",
            "MESH",
            "CPU_DEVICES",
        )
    return {name: given.get(name, 1) for name in MESH_AXES}


def partition_spec(axes: LogicalAxes) -> PartitionSpec:
    """The mesh axes of an array with these logical axes.

    Raises ValueError if an axis is not in the table, or if two of them want the same mesh axis.
    """
    entries, used = [], set()
    for axis in axes:
        if axis is not None and axis not in LOGICAL_TO_MESH:
            raise ValueError(
                f"logical axis {axis!r} of {axes} is not in partitioning.LOGICAL_TO_MESH"
            )
        entry = LOGICAL_TO_MESH[axis] if axis is not None else None
        names = {entry} if isinstance(entry, str) else set(entry or ())
        if names & used:
            raise ValueError(f"{axes}: two logical axes are both split over {sorted(names & used)}")
        used |= names
        entries.append(entry)
    return PartitionSpec(*entries)


def named_sharding(mesh: Mesh, axes: LogicalAxes) -> NamedSharding:
    """The sharding on `mesh` of an array with these logical axes."""
    return NamedSharding(mesh, partition_spec(axes))


def shardings(mesh: Mesh, axes_tree: Any) -> Any:
    """The shardings of a whole tree of logical axes (tuples are leaves)."""
    return jax.tree.map(lambda axes: named_sharding(mesh, axes), axes_tree, is_leaf=is_axes)


def is_axes(node: Any) -> bool:
    """Whether a tree node is one array's logical axes: a plain tuple of names."""
    return type(node) is tuple and all(name is None or isinstance(name, str) for name in node)


def check_divisible(mesh: Mesh, shapes_tree: Any, axes_tree: Any) -> None:
    """Raise ConfigError for the first weight whose dimension its mesh axes do not divide."""
    leaves = jax.tree.leaves_with_path(shapes_tree)
    for (path, leaf), axes in zip(leaves, jax.tree.leaves(axes_tree, is_leaf=is_axes), strict=True):
        for axis, size, entry in zip(axes, leaf.shape, partition_spec(axes), strict=True):
            names = (entry,) if isinstance(entry, str) else entry or ()
            parts = math.prod(mesh.shape[name] for name in names)
            if size % parts:
                raise ConfigError(
                    f"weight {jax.tree_util.keystr(path, simple=True, separator='/')} has "
                    f"{axis}={size}, which {parts} devices along {'x'.join(names)} do not divide; "
                    f"change MESH or the model's size",
                    "MESH",
                )


def mesh_axes(axis: str) -> tuple[str, ...]:
    """The mesh axes that split a logical axis.

    >>> mesh_axes("embed")
    ('fsdp',)
    """
    entry = LOGICAL_TO_MESH[axis]
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts the mesh splits a global batch; 1 outside a mesh."""
    return 1 if mesh.empty else math.prod(mesh.shape[name] for name in mesh_axes("batch"))


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pin an activation to its logical axes; outside a mesh (`jax.set_mesh`) it does nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes))
