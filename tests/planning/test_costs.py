"""Costs of instructions, and where in the model they are said to come from."""

import jax
import pytest

from t5x_lite.decoding.generation import Generation
from t5x_lite.hardware.chips import CHIPS
from t5x_lite.models.config import TransformerConfig
from t5x_lite.planning.costs import costs, part_of, summed
from t5x_lite.planning.decode_plan import PREFILL, TOKEN, token_loop
from t5x_lite.planning.hlo import Module, runs
from t5x_lite.planning.lowering import Setting, trace
from t5x_lite.planning.plan_report import draw, explanation
from t5x_lite.training.optimizers import Adafactor
from t5x_lite.training.schedules import Constant
from t5x_lite.training.step import Loss, Update

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
V5E = next(chip for chip in CHIPS if chip.name == "v5e")


@pytest.mark.parametrize(
    ("op_name", "part"),
    [
        ("jit(train_step)/jvp(encoder)/while/body/dot_general", "encoder"),
        ("jit(train_step)/transpose(jvp(decoder))/while/add", "decoder"),
        ("jit(train_step)/encoder/while/body/exp", "encoder"),
        ("state.params[\\'decoder\\'][\\'layers\\']", "decoder"),
        ("jit(train_step)/optimizer/vmap()/reduce_sum", "optimizer"),
        ("jit(train_step)/jvp(loss)/ble,ev->blv/dot_general", "loss"),
        ("jit(train_step)/transpose(jvp(output_layer))/mul", "loss"),
        ("jit(generate)/token_choice/while/body/reduce_max", "choice of tokens"),
        ("jit(generate)/token_choice/while/body/decoder/dot_general", "decoder"),
        ("jit(train_step)/mul", "other"),
        ("", "other"),
    ],
)
def test_parts_are_found_by_named_scopes(op_name, part):
    assert part_of(op_name) == part


def compiled_text(mode, **changes):
    """The text of a tiny program, compiled for the simulated devices."""
    model = TransformerConfig(
        **dict(vocab_size=64, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32),
        **dict(num_encoder_layers=2, num_decoder_layers=2, dtype="float32"),
    )
    setting = Setting(
        model=model,
        optimizer=Adafactor(),
        learning_rate=Constant(value=0.1),
        loss=Loss(),
        update=Update(clip_norm=1.0),
        mesh={"data": 2, "fsdp": 2, "tensor": 2},
        batch_size=8,
        lengths={"inputs": 16, "targets": 8},
        packed=True,
        mode=mode,
        compiler_options={},
    )
    lowered = trace(setting._replace(**changes), jax.devices()).lowered
    return lowered.compile(compiler_options=QUICK).as_text()


def test_the_step_of_training_has_instructions_of_every_part():
    found = costs(Module(compiled_text("train")))
    by_part = summed(found, lambda cost: (cost.part, cost.direction))
    of_model = {(part, way) for part in ("encoder", "decoder") for way in ("forward", "backward")}
    of_step = {("optimizer", "update"), ("metrics", "update"), ("loss", "forward")}
    assert of_model | of_step <= set(by_part)
    products = {key[0] for key, cost in by_part.items() if cost.flops}
    assert {"encoder", "decoder", "loss"} <= products
    # The compiler for CPUs rewrites some products and drops all that is known of their source.
    named = [cost for cost in found if cost.line]
    flops = sum(cost.flops for cost in named)
    assert flops > 0.8 * sum(cost.flops for cost in found)
    assert sum(cost.flops for cost in named if cost.part == "other") < 0.01 * flops


@pytest.mark.parametrize("num_beams", [1, 2])
def test_the_loop_over_tokens_and_its_parts_are_found(num_beams):
    generation = Generation(max_length=5, num_beams=num_beams)
    module = Module(compiled_text("decode", generation=generation))
    loop = token_loop(module)
    module.trips[loop.name] = 5
    found = costs(module, phases={"": PREFILL, loop.name: TOKEN})
    parts = {(cost.part, cost.direction) for cost in found}
    assert {("encoder", PREFILL), ("decoder", TOKEN), ("choice of tokens", TOKEN)} <= parts
    assert ("encoder", TOKEN) not in parts


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
