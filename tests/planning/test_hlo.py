"""Compiled text read as data, against what is known of the programs it came from."""

import jax
import jax.numpy as jnp
import pytest

from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.flops import train_step_flops
from t5x_lite.models.transformer import abstract_model
from t5x_lite.planning.costs import costs
from t5x_lite.planning.hlo import Module, parse_shapes
from t5x_lite.planning.lowering import batch_shapes, summed_loss
from t5x_lite.planning.matmul_flops import product_flops


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("f32[3,5]{1,0}", 3 * 5 * 4),
        ("f32[3,5]{1,0:T(8,128)}", 8 * 128 * 4),
        ("f32[3,5]{0,1:T(8,128)}", 8 * 128 * 4),  # the minor dimension is the first
        ("bf16[10,200]{1,0:T(8,128)(2,1)}", 16 * 256 * 2),
        ("bf16[2,10,200]{2,1,0:T(8,128)(2,1)S(1)}", 2 * 16 * 256 * 2),
        ("s32[]{:T(128)}", 128 * 4),
        ("pred[7]{0:T(1024)}", 1024),
        ("f32[1000]{0:T(1024)}", 1024 * 4),
        ("s4[16]{0}", 8),
    ],
)
def test_sizes_in_memory_include_the_padding_of_tiles(text, size):
    (shape,) = parse_shapes(text)
    assert shape.bytes == size


def test_the_arrays_of_a_tuple_come_in_order_with_their_memory():
    first, second = parse_shapes("(f32[2]{0}, /*index=1*/bf16[3,4]{1,0:T(8,128)(2,1)S(1)})")
    assert (first.dtype, first.dims, first.space) == ("f32", (2,), 0)
    assert (second.dtype, second.dims, second.space) == ("bf16", (3, 4), 1)


def test_arguments_add_up_to_the_compilers_own_size(reference, reference_memory):
    entry = reference[reference.entry].instructions
    parameters = [i for i in entry if i.opcode == "parameter"]
    assert sum(i.shapes[0].bytes for i in parameters) == reference_memory["argument"]


def test_loops_repeat_as_often_as_there_are_layers(reference):
    loops = [i for i in reference[reference.entry].instructions if i.opcode == "while"]
    assert [reference.trip_count(loop) for loop in loops] == [4, 4]


def test_a_loop_that_does_not_say_how_often_it_repeats_is_refused():
    text = """
%body (x: s32[]) -> s32[] {
  ROOT %x = s32[] parameter(0)
}

%condition (y: s32[]) -> pred[] {
  ROOT %y = pred[] parameter(0)
}

ENTRY %main (z: s32[]) -> s32[] {
  %z = s32[] parameter(0)
  ROOT %loop = s32[] while(%z), condition=%condition, body=%body
}
"""
    module = Module(text)
    with pytest.raises(ValueError, match="no trip count of the loop loop"):
        module.trip_count(module["main"].root)


def test_products_of_a_tpu_program_count_as_the_layers_do(reference):
    """Four layers of two products, backward twice the forward; sharded over four devices."""
    assert sum(cost.flops for cost in costs(reference)) == 3 * 4 * 2 * 2 * 1024 * 1024 * 4096


def test_source_lines_are_known(reference):
    frames = [f for i in reference[reference.entry].instructions for f in reference.stack(i)]
    assert {frame.file for frame in frames} == {"make_reference.py"}
    assert {"step", "loss"} <= {frame.function for frame in frames}


def test_a_product_counts_a_multiplication_and_an_addition_each():
    a = jax.ShapeDtypeStruct((32, 48), jnp.float32)
    b = jax.ShapeDtypeStruct((48, 16), jnp.float32)
    module = Module(jax.jit(lambda a, b: a @ b).lower(a, b).compile().as_text())
    assert sum(cost.flops for cost in costs(module)) == 2 * 32 * 48 * 16


CONVOLUTION = """
ENTRY %main (a: bf16[4,8,16], b: bf16[4,16,32]) -> bf16[4,8,32] {{
  %a = bf16[4,8,16]{{2,1,0}} parameter(0)
  %b = bf16[4,16,32]{{2,1,0}} parameter(1)
  ROOT %c = bf16[4,8,32]{{2,1,0}} convolution(%a, %b), {}
}}
"""


def test_a_batched_product_written_as_a_convolution_counts_only_pairs_that_meet():
    """How a TPU's compiler writes it: the batch as a dilated window that never overlaps."""
    window = "window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf"
    module = Module(CONVOLUTION.format(window))
    entry = module["main"]
    assert product_flops(entry.root, entry.by_name()) == 2 * 4 * 8 * 16 * 32


def test_a_model_of_24_scanned_layers_counts_as_by_hand():
    """XLA's own count has the body of a loop once; products times repetitions are within 3 %."""
    layers = dict(num_encoder_layers=24, num_decoder_layers=24)
    sizes = dict(vocab_size=1024, emb_dim=128, num_heads=4, head_dim=32, mlp_dim=256)
    config = TransformerConfig(**sizes, **layers, dtype="float32")
    lengths = {"inputs": 64, "targets": 32}
    batch = batch_shapes(config, lengths, 4, packed=True)
    gradient = jax.jit(jax.grad(summed_loss(config)))
    compiled = gradient.lower(abstract_model(config)[1], batch).compile()
    counted = sum(cost.flops for cost in costs(Module(compiled.as_text())))
    by_hand = train_step_flops(config, batch_size=4, lengths=lengths)
    assert counted == pytest.approx(by_hand, rel=0.03)
    assert compiled.cost_analysis()["flops"] < by_hand / 5
