import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from t5x_lite.errors import ConfigError
from t5x_lite.models.transformer import abstract_model
from t5x_lite.partitioning import (
    LOGICAL_TO_MESH,
    MESH_AXES,
    check_divisible,
    make_mesh,
    named_sharding,
    num_batch_shards,
    partition_spec,
    resolve_mesh_shape,
    shard,
    tree_shardings,
)


@pytest.mark.parametrize(
    ("sizes", "devices", "resolved"),
    [
        ({}, 1, (1, 1, 1, 1, 1)),
        ({"data": 8}, 8, (8, 1, 1, 1, 1)),
        ({"data": -1}, 6, (6, 1, 1, 1, 1)),
        ({"fsdp": 2, "tensor": 2, "data": -1}, 8, (2, 2, 2, 1, 1)),
        ({"data": 2, "sequence": -1}, 2, (2, 1, 1, 1, 1)),
        ({"tensor": 2, "expert": 3, "sequence": 2}, 12, (1, 1, 2, 3, 2)),
    ],
)
def test_a_mesh_has_every_axis_and_minus_one_takes_the_rest(sizes, devices, resolved):
    shape = resolve_mesh_shape(sizes, devices)
    assert tuple(shape) == MESH_AXES
    assert tuple(shape.values()) == resolved


@pytest.mark.parametrize(
    ("sizes", "message", "names"),
    [
        (
            {"model": 2},
            "unknown mesh axis 'model'; the axes are data, fsdp, tensor, expert, sequence",
            ("MESH",),
        ),
        (
            {"data": 0},
            "mesh sizes must be positive, or -1 for the remaining devices; got {'data': 0}",
            ("MESH",),
        ),
        (
            {"data": 4, "fsdp": -2},
            "mesh sizes must be positive, or -1 for the remaining devices; got {'fsdp': -2}",
            ("MESH",),
        ),
        (
            {"data": -1, "fsdp": -1},
            "only one mesh axis may be -1; got ['data', 'fsdp']",
            ("MESH",),
        ),
        (
            {"data": 2, "fsdp": 2},
            "the mesh {'data': 2, 'fsdp': 2} needs 4 devices, but 8 are visible; change MESH, or "
            "simulate devices on a CPU with CPU_DEVICES",
            ("MESH", "CPU_DEVICES"),
        ),
        (
            {"data": -1, "tensor": 3},
            "the mesh {'data': -1, 'tensor': 3} needs a multiple of 3 devices, but 8 are visible; "
            "change MESH, or simulate devices on a CPU with CPU_DEVICES",
            ("MESH", "CPU_DEVICES"),
        ),
        (
            {"data": -1, "tensor": 16},
            "the mesh {'data': -1, 'tensor': 16} needs a multiple of 16 devices, but 8 are "
            "visible; change MESH, or simulate devices on a CPU with CPU_DEVICES",
            ("MESH", "CPU_DEVICES"),
        ),
    ],
)
def test_a_mesh_that_cannot_be_is_refused_in_one_line(sizes, message, names):
    with pytest.raises(ConfigError) as error:
        resolve_mesh_shape(sizes, 8)
    assert error.value.message == message
    assert error.value.names == names


def test_a_mesh_is_made_of_the_given_devices_or_of_all():
    assert make_mesh({"data": -1}).devices.size == jax.device_count() == 8
    two = make_mesh({"tensor": 2}, jax.devices()[:2])
    assert set(two.devices.flat) == set(jax.devices()[:2])
    assert two.axis_names == MESH_AXES


def test_a_weight_is_split_as_the_table_says():
    assert partition_spec(("layers", "embed", "mlp")) == PartitionSpec(None, "fsdp", "tensor")
    assert partition_spec((None, "vocab")) == PartitionSpec(None, "tensor")
    assert partition_spec(("batch",)) == PartitionSpec(("data", "fsdp", "expert"))
    assert partition_spec(()) == PartitionSpec()


def test_the_table_names_no_mesh_axis_that_does_not_exist():
    entries = [(e,) if isinstance(e, str) else e or () for e in LOGICAL_TO_MESH.values()]
    assert {name for entry in entries for name in entry} == set(MESH_AXES)


@pytest.mark.parametrize(
    ("axes", "shared"),
    [(("heads", "mlp"), "tensor"), (("batch", "embed"), "fsdp"), (("batch", "expert"), "expert")],
)
def test_two_axes_that_want_the_same_devices_are_found(axes, shared):
    with pytest.raises(ValueError, match=re.escape(f"both split over ['{shared}']")):
        partition_spec(axes)


def test_an_axis_that_is_not_in_the_table_is_named():
    with pytest.raises(ValueError, match=r"logical axis 'embd' of .* is not in partitioning"):
        partition_spec(("embd", "mlp"))


def test_a_tree_of_axes_becomes_a_tree_of_shardings():
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    placed = tree_shardings(mesh, {"step": (), "params": {"wi": ("embed", "mlp")}})
    assert placed["step"] == named_sharding(mesh, ())
    assert placed["params"]["wi"].shard_shape((8, 8)) == (2, 4)


def test_a_weight_that_the_mesh_does_not_divide_is_named(tiny_config):
    _, shapes, axes = abstract_model(tiny_config(mlp_dim=36))
    check_divisible(make_mesh({"fsdp": 2, "tensor": 4}), shapes, axes)
    with pytest.raises(ConfigError) as error:
        check_divisible(make_mesh({"tensor": 8}), shapes, axes)
    assert error.value.message == (
        "weight decoder/layers/mlp/wi_0/kernel has mlp=36, "
        "which is not divisible by the 8 devices along tensor; "
        "change MESH or the model's size"
    )
    assert error.value.names == ("MESH",)


def test_a_batch_is_split_over_all_axes_but_those_inside_a_row():
    assert num_batch_shards(make_mesh({"data": 2, "fsdp": 2, "tensor": 2})) == 4
    assert num_batch_shards(make_mesh({"expert": 4, "sequence": 2})) == 4


def test_pinning_outside_a_mesh_does_nothing():
    x = jnp.ones((2, 3))
    assert shard(x, "batch", "no such axis") is x


def test_pinning_inside_a_mesh_places_the_array():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(mesh):
        x = jax.jit(lambda x: shard(x, "batch", "length", "mlp"))(np.ones((8, 3, 6)))
    assert x.sharding.shard_shape(x.shape) == (2, 3, 3)


@pytest.mark.usefixtures("needs_libtpu")
def test_slices_follow_one_another_along_data():
    from t5x_lite.hardware.topologies import topology, tpu_devices

    devices = tpu_devices(topology("v5e:2x2", 2))
    mesh = make_mesh({"data": 4, "fsdp": 2}, devices)
    slices = [[d.slice_index for d in row.flat] for row in mesh.devices]
    assert slices == [[0, 0], [0, 0], [1, 1], [1, 1]]
    with pytest.raises(ConfigError, match="data = 1 on 2 TPU slices"):
        make_mesh({"fsdp": 8}, devices)


@pytest.mark.usefixtures("needs_libtpu")
@pytest.mark.parametrize(
    ("slice_name", "sizes"),
    [("v6e:16x16", {"data": 8, "fsdp": 32}), ("v5p:4x4x4", {"data": 8, "fsdp": 8})],
)
def test_a_mesh_axis_may_be_made_of_parts_of_a_slices_dimensions(slice_name, sizes):
    from t5x_lite.hardware.topologies import topology, tpu_devices

    devices = tpu_devices(topology(slice_name))
    mesh = make_mesh(sizes, devices)
    assert {name: mesh.shape[name] for name in sizes} == sizes
    assert len({device.id for device in mesh.devices.flat}) == len(devices)
