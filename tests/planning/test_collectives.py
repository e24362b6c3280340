"""Collectives: who takes part, over which axis, how long, and what hides them."""

import pytest

from t5x_lite.hardware.chips import CHIPS
from t5x_lite.hardware.topologies import topology
from t5x_lite.planning.collectives import (
    Layout,
    MeshPosition,
    axes_of,
    exposed_seconds,
    group_of,
    transfer_seconds,
)
from t5x_lite.planning.hlo import Module

V5E = next(chip for chip in CHIPS if chip.name == "v5e")
CLOCK = V5E.clock


def _layout(name, axes, *, slices=1):
    wanted = topology(name, slices)
    width, height = wanted.shape
    places = [
        MeshPosition(number, (x, y))
        for number in range(slices)
        for y in range(height)
        for x in range(width)
    ]
    return Layout(wanted, axes, places)


@pytest.mark.parametrize(
    ("attributes", "group"),
    [
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, x", [0, 1, 2, 3]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", [0, 4]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0','axis_1'}", [0, 1, 2, 3]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups={{0,2},{1,3}}", [0, 2]),
        ("source_target_pairs={{0,1},{1,0}}", [0, 1]),
        ("replica_groups={}", [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_groups_are_read_in_every_form_xla_writes(attributes, group):
    assert group_of(attributes, 8) == group


def test_a_group_is_named_after_the_mesh_axes_it_spans():
    layout = _layout("v5e:2x4", {"data": 2, "fsdp": 2, "tensor": 2})
    assert axes_of([0, 1], layout) == "tensor"
    assert axes_of([0, 2], layout) == "fsdp"
    assert axes_of([0, 4], layout) == "data"
    assert axes_of([0, 1, 4, 5], layout) == "data+tensor"
    assert axes_of([0], layout) == ""


def test_collectives_of_the_reference_are_found_once_a_layer(reference, reference_layout):
    """Every layer gathers two weights forward and two backward, scatters and reduces gradients."""
    found, _ = exposed_seconds(reference, reference_layout, clock=CLOCK)
    counts = {}
    for one in found:
        counts[one.kind, one.axis] = counts.get((one.kind, one.axis), 0) + one.repeats
        weight = 1024 * 4096 * 2  # bfloat16, whole
        assert one.bytes == weight
    assert counts == {
        ("all-gather", "fsdp"): 4 * 4,
        ("reduce-scatter", "fsdp"): 4 * 2,
        ("all-reduce", "data"): 4,
    }


def test_what_is_not_asynchronous_is_exposed_in_full(reference, reference_layout):
    found, waited = exposed_seconds(reference, reference_layout, clock=CLOCK)
    for one in found:
        if not one.asynchronous:
            assert one.exposed >= one.seconds * 0.999
    assert waited == pytest.approx(sum(one.exposed * one.repeats for one in found))


def test_a_slow_clock_hides_what_runs_beside_it(reference, reference_layout):
    slow, _ = exposed_seconds(reference, reference_layout, clock=CLOCK / 100)
    fast, waited = exposed_seconds(reference, reference_layout, clock=CLOCK * 1e6)
    assert all(one.exposed == 0 for one in slow if one.asynchronous)
    assert waited == pytest.approx(sum(one.seconds * one.repeats for one in fast), rel=1e-3)


def test_an_all_reduce_takes_twice_an_all_gather_and_a_ring_twice_a_line():
    line = _layout("v5e:4x4", {"fsdp": 16})
    ring = _layout("v5e:16x16", {"fsdp": 256})
    row, long_row = [0, 1, 2, 3], list(range(16))
    size = 2**30
    gather = transfer_seconds("all-gather", size, row, line)
    assert gather == pytest.approx(size * 3 / 4 / 50e9)  # one dimension of 100 GB/s, not closed
    assert transfer_seconds("all-reduce", size, row, line) == pytest.approx(2 * gather)
    closed = transfer_seconds("all-gather", size, long_row, ring)
    assert closed == pytest.approx(size * 15 / 16 / 100e9)


def test_a_group_over_both_dimensions_uses_the_links_of_both():
    layout = _layout("v5e:16x16", {"fsdp": 256})
    row = transfer_seconds("reduce-scatter", 2**30, list(range(16)), layout)
    whole = transfer_seconds("reduce-scatter", 2**30, list(range(256)), layout)
    assert whole == pytest.approx(row / 2 * (255 / 256) / (15 / 16))


def test_between_slices_the_data_centre_network_is_added():
    layout = _layout("v5e:2x2", {"data": 2, "fsdp": 4}, slices=2)
    across, inside = [0, 4], [0, 1]
    size = 2**20
    assert transfer_seconds("all-reduce", size, across, layout) > size / (25e9 / 8)
    assert transfer_seconds("all-reduce", size, inside, layout) < size / 50e9 * 1.1


def test_one_device_waits_for_nobody():
    assert transfer_seconds("all-reduce", 2**20, [3], _layout("v5e:2x2", {"fsdp": 4})) == 0.0


BETWEEN_SLICES = """
ENTRY %main (a: f32[1024,1024]) -> f32[1024,1024] {
  %a = f32[1024,1024]{1,0} parameter(0)
  %t = token[] after-all()
  %send = (f32[1024,1024]{1,0}, u32[], token[]) send(%a, %t), channel_id=3, KIND
  %recv = (f32[1024,1024]{1,0}, u32[], token[]) recv(%t), channel_id=2, KIND
  %work = f32[1024,1024]{1,0} add(%a, %a), backend_config={"estimated_cycles":"CYCLES"}
  %recv-done = (f32[1024,1024]{1,0}, token[]) recv-done(%recv), channel_id=2, KIND
  ROOT %out = f32[1024,1024]{1,0} get-tuple-element(%recv-done), index=0
}
"""
MEGASCALE = (
    'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
    '_xla_megascale_transfer_type="ALL_REDUCE"}'
)


@pytest.mark.parametrize(("share", "exposed"), [(0.0, 1.0), (0.5, 0.5), (2.0, 0.0)])
def test_an_exchange_between_slices_is_waited_for_where_it_is_received(share, exposed):
    layout = _layout("v5e:2x2", {"data": 2, "fsdp": 4}, slices=2)
    seconds = transfer_seconds("all-reduce", 4 * 1024**2, [0, 4], layout)
    assert seconds >= 4 * 1024**2 / (25e9 / 8)
    text = BETWEEN_SLICES.replace("KIND", MEGASCALE)
    module = Module(text.replace("CYCLES", str(round(share * seconds * CLOCK))))
    (found,), waited = exposed_seconds(module, layout, clock=CLOCK)
    assert (found.kind, found.axis, found.bytes) == ("all-reduce", "data", 4 * 1024**2)
    assert found.seconds == pytest.approx(seconds)
    assert waited == pytest.approx(exposed * seconds, rel=1e-3, abs=1e-9)
