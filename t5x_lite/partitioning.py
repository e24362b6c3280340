"""Partitioning: the device mesh, the logical axis rules, and sharding constraints on activations.

A weight declares logical axes (`axes=("embed", "mlp")`). `LOGICAL_TO_MESH` maps each logical axis
to the mesh axes that split it, as T5X's logical axis rules do. No other module names a mesh axis.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from t5x_lite.errors import ConfigError

MESH_AXES = ("data", "fsdp", "tensor", "expert", "sequence")

# Logical axis -> mesh axes that split it. `None`: the axis is replicated.
LOGICAL_TO_MESH: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp", "expert"),
    "length": "sequence",
    "embed": "fsdp",  # of weights only; activations are not split along the embedding
    "heads": "tensor",
    "joined_kv": "tensor",  # heads x head_dim, head-major, so that splitting it splits heads
    "mlp": "tensor",
    "vocab": "tensor",
    "expert": "expert",
    "kv": None,
    "layers": None,
    "relpos_buckets": None,
    "embed_whole": None,  # vectors such as norm scales: gathering them costs more than it saves
    "embed_out": "tensor",  # output axis of an [embed, embed] matrix, whose input axis is "embed"
    "length_table": None,
    "classes": None,
    "experts_whole": None,  # router scores: every device needs those of all experts
    "expert_groups": ("data", "fsdp"),  # token groups after dispatch; "expert" then splits experts
}

LogicalAxes = tuple[str | None, ...]


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Arrange devices in a mesh with the axes `MESH_AXES`.

    TPU slices are connected by the data-center network only, which is much slower than the links
    within a slice. They are therefore laid out along "data", whose collectives (one gradient
    reduction per step) tolerate it best.

    Args:
        sizes: Size by mesh axis. Omitted axes have size 1; one axis may be -1, which takes all
            remaining devices.
        devices: Devices of the mesh; all of `jax.devices()` by default.

    Returns:
        The mesh, with `AxisType.Auto` axes: XLA propagates shardings between the constraints.

    Raises:
        ConfigError: An axis is unknown, the product of the sizes is not the number of devices, or
            "data" is not a multiple of the number of slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = resolve_mesh_shape(sizes, len(devices))
    slices: dict[int, list[Any]] = {}
    for device in devices:
        number = getattr(device, "slice_index", None) if device.platform == "tpu" else None
        slices.setdefault(number or 0, []).append(device)
    if shape["data"] % len(slices):
        raise ConfigError(
            f"the mesh {shape} has data = {shape['data']} on {len(slices)} TPU slices; expected a "
            f"multiple of {len(slices)}",
            "MESH",
        )
    slice_shape = {**shape, "data": shape["data"] // len(slices)}
    names, types = tuple(shape), (AxisType.Auto,) * len(shape)
    # `jax.make_mesh` allows one physical axis to be split over several mesh axes on v5e only;
    # fsdp = 32 on a v6e 16x16 slice needs that as well.
    slice_meshes = [
        mesh_utils.create_device_mesh(
            tuple(slice_shape.values()), devices=slice_devices, allow_split_physical_axes=True
        )
        for slice_devices in slices.values()
    ]
    device_array = np.concatenate(slice_meshes, axis=MESH_AXES.index("data"))
    return Mesh(device_array, names, axis_types=types)


def resolve_mesh_shape(sizes: Mapping[str, int], num_devices: int) -> dict[str, int]:
    """Complete mesh sizes: add omitted axes and replace -1.

    >>> resolve_mesh_shape({"data": -1, "tensor": 2}, 8)
    {'data': 4, 'fsdp': 1, 'tensor': 2, 'expert': 1, 'sequence': 1}

    Args:
        sizes: Size by mesh axis, as `make_mesh` takes it.
        num_devices: Number of devices, which the product of the sizes must equal.

    Returns:
        A positive size for each of `MESH_AXES`, in that order.

    Raises:
        ConfigError: An axis is unknown, a size is invalid, or the product does not match.
    """
    given = dict(sizes)
    if unknown := set(given) - set(MESH_AXES):
        raise ConfigError(
            f"unknown mesh axis {sorted(unknown)[0]!r}; the axes are {', '.join(MESH_AXES)}",
            "MESH",
        )
    if bad := {name: size for name, size in given.items() if size != -1 and size < 1}:
        raise ConfigError(
            f"mesh sizes must be positive, or -1 for the remaining devices; got {bad}", "MESH"
        )
    inferred = [name for name, size in given.items() if size == -1]
    if len(inferred) > 1:
        raise ConfigError(f"only one mesh axis may be -1; got {inferred}", "MESH")
    fixed = math.prod(size for size in given.values() if size != -1)
    if inferred:
        given[inferred[0]] = num_devices // fixed
    if fixed == 0 or math.prod(given.values()) != num_devices:
        raise ConfigError(
            f"the mesh {dict(sizes)} needs {'a multiple of ' if inferred else ''}{fixed} devices, "
            f"but {num_devices} are visible; change MESH, or simulate devices on a CPU with "
            f"CPU_DEVICES",
            "MESH",
            "CPU_DEVICES",
        )
    return {name: given.get(name, 1) for name in MESH_AXES}


def partition_spec(axes: LogicalAxes) -> PartitionSpec:
    """Translate an array's logical axes into a PartitionSpec.

    Args:
        axes: A logical axis per dimension; None for a dimension that is not split.

    Raises:
        ValueError: An axis is not in `LOGICAL_TO_MESH`, or two axes map to the same mesh axis.
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
    """Return the sharding of one array.

    Args:
        mesh: The device mesh.
        axes: A logical axis per dimension of the array.
    """
    return NamedSharding(mesh, partition_spec(axes))


def tree_shardings(mesh: Mesh, axes_tree: Any) -> Any:
    """Return the shardings of a tree of arrays.

    Args:
        mesh: The device mesh.
        axes_tree: A pytree whose leaves are tuples of logical axes.

    Returns:
        A pytree of the same structure with a `NamedSharding` for each tuple.
    """
    return jax.tree.map(lambda axes: named_sharding(mesh, axes), axes_tree, is_leaf=is_logical_axes)


def is_logical_axes(node: Any) -> bool:
    """Return whether a tree node is a tuple of logical axes, for use as `is_leaf`.

    A NamedTuple is a container, so only plain tuples count.
    """
    return type(node) is tuple and all(name is None or isinstance(name, str) for name in node)


def check_divisible(mesh: Mesh, shapes_tree: Any, axes_tree: Any) -> None:
    """Check that the mesh divides every split dimension of every weight.

    Args:
        mesh: The device mesh.
        shapes_tree: Weights, or their `jax.ShapeDtypeStruct`s.
        axes_tree: Their logical axes, a tree of the same structure.

    Raises:
        ConfigError: A dimension is not divisible by the number of devices that split it. The
            message names the first such weight.
    """
    leaves = jax.tree.leaves_with_path(shapes_tree)
    all_axes = jax.tree.leaves(axes_tree, is_leaf=is_logical_axes)
    for (path, leaf), axes in zip(leaves, all_axes, strict=True):
        for axis, size, entry in zip(axes, leaf.shape, partition_spec(axes), strict=True):
            names = (entry,) if isinstance(entry, str) else entry or ()
            num_shards = math.prod(mesh.shape[name] for name in names)
            if size % num_shards:
                raise ConfigError(
                    f"weight {jax.tree_util.keystr(path, simple=True, separator='/')} has "
                    f"{axis}={size}, which is not divisible by the {num_shards} devices along "
                    f"{'x'.join(names)}; change MESH or the model's size",
                    "MESH",
                )


def mesh_axes(axis: str) -> tuple[str, ...]:
    """Return the mesh axes that split a logical axis, as a tuple.

    >>> mesh_axes("embed")
    ('fsdp',)
    """
    entry = LOGICAL_TO_MESH[axis]
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def num_batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Return how many shards the mesh splits a global batch into; 1 for an empty mesh."""
    return 1 if mesh.empty else math.prod(mesh.shape[name] for name in mesh_axes("batch"))


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrain an activation's sharding, as flax's `with_logical_constraint` does.

    Args:
        x: The activation.
        *axes: A logical axis per dimension; None for a dimension that is not split.

    Returns:
        `x` with the constraint; `x` itself where no mesh is set (`jax.set_mesh`).
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes))


def pad_to_multiple(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Append zeros along one axis until its size is a multiple, so that devices can split it.

    Args:
        x: The array.
        axis: Index of the axis, counted from 0.
        multiple: What the size is rounded up to a multiple of.

    Returns:
        The padded array; `x` itself if its size is a multiple.
    """
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])
