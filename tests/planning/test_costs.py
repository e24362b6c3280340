"""Costs of instructions, and where in the model they are said to come from."""

import pytest

from t5x_lite.hardware.chips import CHIPS
from t5x_lite.planning.costs import costs, part_of, summed
from t5x_lite.planning.hlo import Module, runs
from t5x_lite.planning.plan_report import draw, explanation

V5E = next(chip for chip in CHIPS if chip.name == "v5e")


@pytest.mark.parametrize(
    ("op_name", "files", "part"),
    [
        ("jit(train_step)/jvp(encoder)/while/body/dot_general", {"attention.py"}, "encoder"),
        ("jit(train_step)/transpose(jvp(decoder))/while/add", {"stack.py"}, "decoder"),
        ("jit(train_step)/encoder/while/body/exp", {"attention.py"}, "encoder"),
        ("state.params[\\'decoder\\'][\\'layers\\']", set(), "decoder"),
        ("jit(train_step)/vmap()/reduce_sum", {"optimizers.py", "step.py"}, "optimizer"),
        ("jit(train_step)/jvp(ble,ev->blv)/dot_general", {"layers.py", "step.py"}, "loss"),
        ("jit(train_step)/jvp()/log", {"losses.py", "step.py"}, "loss"),
        ("jit(train_step)/mul", {"step.py"}, "other"),
        ("", set(), "other"),
    ],
)
def test_parts_are_told_by_names_and_then_by_files(op_name, files, part):
    assert part_of(op_name, files) == part


def test_the_backward_pass_executes_twice_the_products_of_the_forward(reference):
    totals = summed(costs(reference), lambda cost: (cost.direction,))
    assert totals[("backward",)].flops == 2 * totals[("forward",)].flops > 0


def test_an_instruction_of_a_loop_counts_as_often_as_the_loop_runs(reference):
    loops = [i for i in reference[reference.entry].instructions if i.opcode == "while"]
    (body, times), *_ = runs(reference, loops[0])
    inside = sum(i.cycles for i in body.instructions)
    forward = sum(c.cycles for c in costs(reference) if c.direction == "forward")
    assert times == 4
    assert forward >= 4 * inside * 0.5


def test_every_product_is_at_least_as_slow_as_the_peak_allows(reference):
    """The compiler's estimate never beats the chip: the clock is right to that extent."""
    for cost in costs(reference):
        assert cost.cycles / V5E.clock >= 0.999 * cost.flops / V5E.peak


def test_weights_in_slices_count_as_their_slices(reference):
    """A loop reads a layer of the stacked weights at a time: never the stack at every turn."""
    moved = sum(cost.bytes for cost in costs(reference))
    stack = 2 * 4 * 1024 * 4096 * 4 // 2
    assert moved < 20 * stack


CONDITIONAL = """
%cheap (x: f32[8]) -> f32[8] {
  ROOT %x = f32[8]{0} parameter(0)
}

%dear (y: f32[8]) -> f32[8] {
  %y = f32[8]{0} parameter(0)
  ROOT %z = f32[8]{0} add(%y, %y), backend_config={"estimated_cycles":"1000"}
}

ENTRY %main (p: pred[], a: f32[8]) -> f32[8] {
  %p = pred[] parameter(0)
  %a = f32[8]{0} parameter(1)
  ROOT %c = f32[8]{0} conditional(%p, %a, %a), BRANCHES
}
"""


@pytest.mark.parametrize(
    "branches",
    [
        "true_computation=%cheap, false_computation=%dear",
        "branch_computations={%dear, %cheap}",
        "branch_computations={%cheap, %dear}",
    ],
)
def test_of_a_conditional_the_most_expensive_branch_counts(branches):
    module = Module(CONDITIONAL.replace("BRANCHES", branches))
    assert sum(cost.cycles for cost in costs(module)) == 1000


def test_an_explanation_lists_the_most_expensive_lines_first(reference):
    found = costs(reference)
    text = explanation(found, V5E)
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")][2:]
    times = [float(row[3]) for row in rows]
    assert times == sorted(times, reverse=True)
    total = 1e3 * sum(cost.cycles for cost in found) / V5E.clock
    assert sum(times) == pytest.approx(total, rel=0.02)


def test_a_picture_is_drawn(tmp_path):
    plan = {
        "what": "training step",
        "topology": {"name": "v5e:2x2"},
        "batch": {"rows": 8},
        "model": {"parameters": 10**6},
        "compute": {
            "parts": [
                {"part": "encoder", "direction": direction, "seconds": 1e-3}
                for direction in ("forward", "backward")
            ]
        },
        "collectives": {"exposed": 1e-4},
        "memory": {"split": {"weights": 10**9, "batch": 1}, "total": 10**9, "limit": 16e9},
    }
    draw(plan, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 10_000
