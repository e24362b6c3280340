"""Which options of XLA a step is compiled with."""

from types import SimpleNamespace

import numpy as np
import pytest

from t5x_lite.hardware.xla_options import compiler_options
from t5x_lite.partitioning import make_mesh


def mesh_of(device_kind, *, platform="tpu", **shape):
    """A stand-in for a mesh of chips that are not here."""
    return SimpleNamespace(
        devices=np.array([SimpleNamespace(device_kind=device_kind, platform=platform)], object),
        shape={"data": 1, "fsdp": 1, "tensor": 1, **shape},
    )


def test_a_cpu_is_given_none():
    assert compiler_options(make_mesh({"data": -1})) == {}


def test_v5e_computes_whole_products_where_no_tensor_axis_wants_pieces():
    options = compiler_options(mesh_of("TPU v5 lite", fsdp=16))
    assert set(options.values()) == {"false"}
    assert all("windowed_einsum" in name for name in options)
    assert compiler_options(mesh_of("TPU v5 lite", tensor=2)) == {}


@pytest.mark.parametrize("device_kind", ["TPU v5", "TPU v6 lite", "NVIDIA H200", "abacus"])
def test_what_was_not_tried_is_left_to_xla(device_kind):
    assert compiler_options(mesh_of(device_kind)) == {}


def test_only_gpus_need_an_option_to_be_deterministic():
    gpu = mesh_of("NVIDIA H200", platform="gpu", tensor=2)
    assert compiler_options(gpu, deterministic=True) == {"xla_gpu_deterministic_ops": "true"}
    for mesh in (mesh_of("TPU v5"), make_mesh({"data": -1})):
        assert compiler_options(mesh, deterministic=True) == {}
