"""Arithmetic without a compiler, against the arrays a real mesh would hold."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from t5x_lite.hardware.chips import CHIPS
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.flops import train_step_flops
from t5x_lite.models.transformer import abstract_model, num_parameters
from t5x_lite.partitioning import make_mesh
from t5x_lite.planning.lowering import batch_shapes, summed_loss
from t5x_lite.planning.memory_estimate import activation_bytes, state_bytes
from t5x_lite.planning.roofline import roofline
from t5x_lite.training.optimizers import Adafactor
from t5x_lite.training.schedules import InverseSquareRoot
from t5x_lite.training.setup import build
from t5x_lite.training.step import Loss

MODELS = Path(__file__).resolve().parents[2] / "gin_configs" / "models"
V5E = next(chip for chip in CHIPS if chip.name == "v5e")
SIZES = dict(vocab_size=512, emb_dim=128, num_heads=4, head_dim=32, mlp_dim=256)
LAYERS = dict(num_encoder_layers=4, num_decoder_layers=4)
LENGTHS = {"inputs": 64, "targets": 32}


@pytest.mark.parametrize("mesh", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_state_on_a_device_is_what_its_shards_hold(mesh):
    model, optimizer = TransformerConfig(**SIZES, **LAYERS), Adafactor()
    schedule = InverseSquareRoot(base=1.0, warmup_steps=10)
    program = build(model, optimizer, schedule, Loss(), mesh=mesh, batch_size=8, seed=0)

    def held(tree):
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )

    counted = state_bytes(model, optimizer, dict(make_mesh(mesh).shape))
    assert counted["weights"] == held(program.abstract.params)
    assert counted["optimizer state"] == held(program.abstract.opt_state)


@pytest.mark.parametrize(
    "name", sorted(str(p.relative_to(MODELS))[:-4] for p in MODELS.rglob("*/*.gin"))
)
def test_the_state_of_every_shipped_model_divides_over_a_slice(name, shipped):
    """Weights of float32 over 16 chips; Adafactor adds little; no array is allocated."""
    model = shipped(name)
    whole = state_bytes(model, Adafactor(), {})
    assert whole["weights"] == 4 * num_parameters(model)
    assert whole["optimizer state"] < 0.1 * whole["weights"] or model.emb_dim < 256
    split = state_bytes(model, Adafactor(), {"fsdp": 16})
    assert whole["weights"] / 16 <= split["weights"] < 0.2 * whole["weights"]


def _kept(remat, rows=16, mesh=None):
    model = TransformerConfig(**SIZES, **LAYERS, remat=remat, dtype="bfloat16")
    batch = batch_shapes(model, LENGTHS, rows, packed=True)
    return activation_bytes(model, batch, mesh or {}, summed_loss(model))


def test_recomputation_keeps_less_the_more_it_recomputes():
    nothing, minimal, full = (_kept(remat) for remat in ("none", "minimal", "full"))
    assert full < minimal < nothing
    inputs = 4 * 16 * (64 + 32) * 128 * 2  # each layer's input, bfloat16
    assert inputs < full < 8 * inputs


def test_activations_grow_with_rows_and_shrink_with_devices():
    assert _kept("full", rows=32) == pytest.approx(2 * _kept("full", rows=16), rel=0.02)
    assert _kept("full", mesh={"data": 4}) == pytest.approx(_kept("full") / 4, rel=0.01)


def _roofline(mesh, rows=256, layers=4):
    model = TransformerConfig(**SIZES, num_encoder_layers=layers, num_decoder_layers=layers)
    return roofline(
        V5E,
        model,
        mesh=mesh,
        step_flops=train_step_flops(model, batch_size=rows, lengths=LENGTHS),
        tokens=rows * sum(LENGTHS.values()),
        state=state_bytes(model, Adafactor(), mesh),
        activations=0,
    )


def test_compute_scales_as_it_must():
    """Twice the rows, half the chips: twice the time; twice the layers: a little less than that."""
    once = _roofline({"data": 16}).compute
    assert _roofline({"data": 16}, rows=512).compute == pytest.approx(2 * once)
    assert _roofline({"data": 8}).compute == pytest.approx(2 * once)
    head = 6 * 256 * 32 * 128 * 512 / 16 / 197e12
    assert _roofline({"data": 16}, layers=8).compute == pytest.approx(2 * once - head)


def test_one_device_has_no_network_and_more_axes_have_more():
    assert _roofline({}).network == 0.0
    assert _roofline({"fsdp": 16}).network > 0
    assert _roofline({"data": 2, "tensor": 8}).network > _roofline({"data": 16}).network


def test_a_bound_is_named_after_what_takes_longest():
    bounds = _roofline({"data": 16})
    assert getattr(bounds, bounds.bound) == max(bounds)


def test_batches_without_data_are_what_the_converters_make():
    model = TransformerConfig(**SIZES, **LAYERS)
    batch = batch_shapes(model, LENGTHS, 4, packed=True)
    assert batch["encoder_input_tokens"].shape == (4, 64)
    assert batch["decoder_segment_ids"].shape == (4, 32)
    assert batch["decoder_loss_weights"].dtype == jnp.float32
    decoder = TransformerConfig(**SIZES, num_decoder_layers=2, prefix_attention=True)
    joined = batch_shapes(decoder, LENGTHS, 4, packed=False)
    assert joined["decoder_target_tokens"].shape == (4, 96)
    assert "decoder_causal_attention" in joined
    encoder = TransformerConfig(**SIZES, num_encoder_layers=2, num_token_types=2)
    assert "encoder_token_types" in batch_shapes(encoder, LENGTHS, 4, packed=True)


def test_every_architecture_traces_on_its_batch(shipped):
    for name in ("bert/tiny", "gpt2/tiny", "bart/tiny", "switch/tiny", "t5_1_0/prefix_lm"):
        model = shipped(name)
        batch = batch_shapes(model, LENGTHS, 4, packed=True)
        traced = jax.eval_shape(summed_loss(model), abstract_model(model)[1], batch)
        assert traced.shape == ()
