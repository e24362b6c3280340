"""Chips by the names JAX gives them."""

import pytest

from t5x_lite.hardware.chips import CHIPS, chip_of, peak_flops


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 2307 / 2),  # JAX sees a chip as two devices
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
    ],
)
def test_the_peak_of_a_device_is_that_of_its_data_sheet(kind, teraflops):
    assert peak_flops(kind) == teraflops * 1e12


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA GeForce RTX 3090", "TPU v3", ""])
def test_a_device_that_is_not_in_the_table_has_no_peak(kind):
    assert peak_flops(kind) is None
    assert chip_of(kind) is None


def test_names_are_unique_and_memory_is_slower_than_arithmetic():
    """At least 100 FLOPs for a byte: a slip of a power of ten in the table would show."""
    assert len({chip.name for chip in CHIPS}) == len(CHIPS)
    for chip in CHIPS:
        assert 100 < chip.peak / chip.hbm_bandwidth < 700
        assert 3 < chip.hbm_bandwidth / chip.ici < 15
        assert chip.ici > 5 * (chip.dcn or 0)
