"""What fills a device, down to the compiler's own total."""

import math

import pytest

from t5x_lite.planning.compilation import Compiled, parse_too_large
from t5x_lite.planning.compiled_memory import memory
from t5x_lite.planning.estimate import too_much_memory, unread_memory


def test_the_split_adds_up_to_the_compilers_total(reference, reference_memory):
    """Peak = arguments + outputs - those in the arguments' place + temporaries + program."""
    found = memory(reference, reference_memory)
    compiler = dict(reference_memory)
    aliased = compiler.pop("alias")
    assert found.total == sum(compiler.values()) - aliased
    assert sum(found.split.values()) == found.total
    assert min(found.split.values()) >= 0


def test_arguments_are_split_by_what_they_are(reference, reference_memory):
    split = memory(reference, reference_memory).split
    assert split["weights"] == 2 * 4 * 1024 * 4096 * 4 // 2  # float32, halved by fsdp
    assert split["batch"] == 4096 // 4 * 1024 * 2
    assert "optimizer state" not in split


def test_what_the_forward_pass_leaves_behind_is_recognized(reference, reference_memory):
    """The backward pass needs each layer's input and hidden units, bfloat16."""
    found = memory(reference, reference_memory)
    kept = [buffer for buffer in found.largest if buffer.kind == "activations"]
    assert max(buffer.bytes for buffer in kept) == 4 * 1024 * 4096 * 2
    assert math.isclose(found.split["activations"], 36e6, rel_tol=0.5)


def test_the_largest_arrays_are_listed_by_size(reference, reference_memory):
    sizes = [buffer.bytes for buffer in memory(reference, reference_memory).largest]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 4 * 1024 * 4096 * 4 // 2


def test_a_program_that_needs_more_temporaries_than_the_replay_finds_says_so(
    reference, reference_memory
):
    more = {**reference_memory, "temp": reference_memory["temp"] * 2}
    found = memory(reference, more)
    assert found.split["unattributed"] > reference_memory["temp"] // 2
    assert sum(found.split.values()) == found.total


MESSAGE = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space
hbm. Used 22.61G of 15.75G hbm. Exceeded hbm capacity by 6.86G.

Total hbm usage >= 22.86G:
    reserved        258.00M
    program          22.53G
    arguments        78.00M

Program hbm requirement 22.53G:
    HLO temp         22.53G

  Largest program allocations in hbm:

  1. Size: 3.00G
     Operator: op_name="jit(train_step)/jvp(encoder)/while/body/exp" source_file="x.py"
     Shape: f32[16,12,2048,2048]{3,2,1,0:T(8,128)}
     Unpadded size: 3.00G
     XLA label: fusion.1 = fusion(...)
     Allocation type: HLO temp
     ==========================

  2. Size: 512.5M
     Shape: bf16[12,16,512,2048]{3,2,1,0:T(8,128)(2,1)}
     Allocation type: HLO temp
     ==========================
"""


def test_the_compilers_complaint_about_memory_is_understood():
    found = parse_too_large(MESSAGE)
    assert found.used == pytest.approx(22.61 * 2**30)
    assert found.limit == pytest.approx(15.75 * 2**30)
    (first, first_name), (second, second_name) = found.buffers
    assert (first, second) == (3 * 2**30, 512.5 * 2**20)
    assert "f32[16,12,2048,2048]" in first_name
    assert "jvp(encoder)/while/body/exp" in first_name
    assert second_name.startswith("bf16[12,16,512,2048]")


def test_the_compilers_shorter_complaint_is_understood_too():
    found = parse_too_large(
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (17.54G) exceeds available HBM (15.75G). HLO module: x."
    )
    assert found == (17.54 * 2**30, 15.75 * 2**30, ())


def test_a_complaint_without_numbers_leaves_them_to_arithmetic():
    found = parse_too_large("RESOURCE_EXHAUSTED: something new")
    assert found == (None, None, ())
    known = too_much_memory(found, 16e9, {"weights": 20 * 10**9}, [(12e9, "params/head/kernel")])
    assert (known["total"], known["limit"], known["fits"]) == (20e9, 16e9, False)
    assert known["largest"][0]["name"] == "params/head/kernel"


def test_a_program_that_cannot_be_read_still_has_the_compilers_total(reference_memory):
    known = unread_memory(Compiled("", reference_memory, 1.0, cached=False), 16e9)
    compiler = dict(reference_memory)
    assert known["total"] == sum(compiler.values()) - 2 * compiler["alias"]
    assert known["total"] == sum(known["split"].values())
    assert known["fits"]
    assert "cannot be read" in known["source"]
