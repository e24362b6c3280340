"""Machines by name, and what is said of those that do not exist."""

import builtins
import resource

import pytest

from t5x_lite.errors import ConfigError
from t5x_lite.hardware.topologies import check_stack, topology, tpu_devices


@pytest.mark.parametrize(
    ("name", "slices", "chips", "devices"),
    [
        ("v5e:4x4", 1, 16, 16),
        ("v5e:16x16", 2, 512, 512),
        ("v6e:8x16", 1, 128, 128),
        ("v4:4x4x4", 1, 64, 64),
        ("v5p:8x8x8", 1, 512, 512),
        ("v5p:16x16x24", 1, 6144, 6144),
        ("tpu7x:4x4x4", 1, 64, 128),  # JAX sees both cores of a chip
        ("h200:8", 1, 8, 8),
        ("V5E:2x2", 1, 4, 4),
    ],
)
def test_a_name_says_how_many_chips_and_devices(name, slices, chips, devices):
    wanted = topology(name, slices)
    assert (wanted.chips, wanted.devices) == (chips, devices)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5f:4x4", "names no chip that is known; expected one of v4, v5e, v5p, v6e, tpu7x, a100"),
        ("v5e:4x5", "no slice 'v5e:4x5'; the nearest are v5e:4x4, v5e:4x8"),
        ("v5e:32x32", "the nearest are v5e:16x16"),
        ("v5p:4x4", "the nearest are v5p:2x2x4"),
        ("v5p:6x6x6", "no slice 'v5p:6x6x6'; the nearest are v5p:4x4x12"),
        ("v5e", "not of the form CHIP:SIZES, such as v5e:4x4"),
        ("v5e:four", "not of the form CHIP:SIZES"),
        ("h200:2x4", "GPUs are counted, as in h200:8"),
    ],
)
def test_a_name_that_does_not_exist_is_answered_with_the_nearest(name, said):
    with pytest.raises(ConfigError) as error:
        topology(name)
    assert said in error.value.message
    assert "\n" not in error.value.message


def test_no_slices_are_refused():
    with pytest.raises(ConfigError, match="slices is 0"):
        topology("v5e:4x4", 0)


def test_dimensions_close_to_rings_where_the_hardware_has_the_links():
    assert topology("v5e:8x16").wrapped == (False, True)
    assert topology("v5p:4x4x8").wrapped == (True, True, True)
    assert topology("v5p:2x2x4").wrapped == (False, False, False)


def test_a_missing_libtpu_is_one_clear_line(monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **options):
        if name == "libtpu":
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"needs libtpu: pip install 't5x_lite\[tpu-plan\]'"):
        tpu_devices(topology("v5e:4x4"))


def test_a_stack_that_the_compiler_would_overflow_is_one_clear_line(monkeypatch):
    limits = {"soft": 8 * 2**20}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits["soft"], -1))
    check_stack(topology("v5p:4x4x4"))
    with pytest.raises(ConfigError, match="run `ulimit -s unlimited`"):
        check_stack(topology("tpu7x:4x4x4"))
    limits["soft"] = resource.RLIM_INFINITY
    check_stack(topology("tpu7x:4x4x4"))


@pytest.mark.usefixtures("needs_libtpu")
@pytest.mark.parametrize(
    ("name", "slices", "kind"),
    [
        ("v4:2x2x2", 1, "TPU v4"),
        ("v5e:4x4", 1, "TPU v5 lite"),
        ("v5e:4x4", 2, "TPU v5 lite"),
        ("v5p:2x2x2", 1, "TPU v5"),
        ("v6e:2x4", 1, "TPU v6 lite"),
        ("tpu7x:2x2x1", 1, "TPU7x"),
    ],
)
def test_libtpu_knows_as_many_devices_as_the_name_says(name, slices, kind):
    wanted = topology(name, slices)
    devices = tpu_devices(wanted)
    assert len(devices) == wanted.devices
    assert {device.device_kind for device in devices} == {kind}
