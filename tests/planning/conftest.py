"""A small step that the TPU's compiler compiled once (references/make_reference.py)."""

import gzip
import json
from pathlib import Path

import pytest

REFERENCES = Path(__file__).parent / "references"


@pytest.fixture(scope="session")
def reference():
    """The reference's parsed text."""
    from t5x_lite.planning.hlo import Module

    return Module(gzip.decompress((REFERENCES / "scanned_step.hlo.gz").read_bytes()).decode())


@pytest.fixture(scope="session")
def reference_memory():
    """The compiler's own sizes for it."""
    return json.loads((REFERENCES / "scanned_step.json").read_text())


@pytest.fixture(scope="session")
def reference_layout():
    """Its mesh, data 2 x fsdp 2, on v5e:2x2."""
    from t5x_lite.hardware.topologies import topology
    from t5x_lite.planning.collectives import Layout, MeshPosition

    axes = {"data": 2, "fsdp": 2, "tensor": 1, "expert": 1, "sequence": 1}
    places = [MeshPosition(0, (x, y)) for y in range(2) for x in range(2)]
    return Layout(topology("v5e:2x2"), axes, places)
