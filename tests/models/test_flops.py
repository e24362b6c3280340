"""FLOPs against counts by hand and against XLA's own of the programs the models compile to."""

import jax
import jax.numpy as jnp
import pytest

from t5x_lite.models.config import MixtureOfExperts, TransformerConfig
from t5x_lite.models.flops import forward_flops, token_flops, train_step_flops
from t5x_lite.models.transformer import abstract_model, bind

LENGTHS = {"inputs": 48, "targets": 16}
WIDE = dict(vocab_size=2048, emb_dim=256, num_heads=4, head_dim=64, mlp_dim=1024)
ENCODER_DECODER = dict(num_encoder_layers=2, num_decoder_layers=3)
DECODER = dict(num_decoder_layers=2)
ENCODER = dict(num_encoder_layers=2)
ARCHITECTURES = {
    "T5 1.1": ENCODER_DECODER,
    "T5 1.0": dict(**ENCODER_DECODER, mlp_activations=("relu",), logits_via_embedding=True),
    "shared layers": dict(num_encoder_layers=2, num_decoder_layers=2, share_stacks=True),
    "language model": DECODER,
    "prefix LM": dict(**DECODER, prefix_attention=True),
    "grouped heads": dict(**DECODER, num_kv_heads=2, positions="rotary"),
    "adapters": dict(**ENCODER_DECODER, adapter_dim=128),
    "prompt": dict(**ENCODER_DECODER, prompt_length=32),
    "BERT": dict(
        **ENCODER,
        mlp_activations=("gelu",),
        use_bias=True,
        norm="layer",
        positions="learned",
        head_transform=True,
        next_sentence_head=True,
        logits_via_embedding=True,
    ),
}


def _batch(config, rows):
    if config.decoder_only:
        sides = {"decoder": LENGTHS["inputs"] + LENGTHS["targets"]}
    else:
        sides = {"encoder": LENGTHS["inputs"], "decoder": LENGTHS["targets"]}
    batch = {
        f"{side}_{name}_tokens": jax.ShapeDtypeStruct((rows, length), jnp.int32)
        for side, length in sides.items()
        for name in ("input", "target")
    }
    if config.prefix_attention:
        batch["decoder_causal_attention"] = batch["decoder_input_tokens"]
    return batch


def _xla_flops(config, rows, *, backward):
    """XLA's count for the forward pass, or for the gradient of a loss too."""
    graphdef, params, _ = abstract_model(config)

    def total(params, batch):
        predictions = bind(graphdef, params)(batch, key=jax.random.key(0))
        next_sentence = predictions.next_sentence
        extra = 0.0 if next_sentence is None else jnp.sum(next_sentence)
        return jnp.sum(predictions.logits) + extra

    function = jax.value_and_grad(total) if backward else total
    return jax.jit(function).lower(params, _batch(config, rows)).cost_analysis()["flops"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_training_flops_agree_with_what_xla_counts_of_the_unrolled_model(name):
    config = TransformerConfig(
        **WIDE, **ARCHITECTURES[name], dtype="float32", scan_layers=False, dropout_rate=0.0
    )
    counted = train_step_flops(config, batch_size=4, lengths=LENGTHS)
    assert counted == pytest.approx(_xla_flops(config, 4, backward=True), rel=0.03)


@pytest.mark.parametrize("factor", [1.25, 0.5])
def test_a_mixture_of_experts_executes_the_flops_that_xla_counts(factor):
    """Forward only: no gradient flows into where tokens are sent, so its backward costs less."""
    moe = MixtureOfExperts(num_experts=4, group_size=64, train_capacity_factor=factor)
    layers = dict(num_encoder_layers=2, num_decoder_layers=2)
    config = TransformerConfig(**WIDE, **layers, moe=moe, dtype="float32", scan_layers=False)
    counted = forward_flops(config, batch_size=4, lengths=LENGTHS)
    assert counted.executed == pytest.approx(_xla_flops(config, 4, backward=False), rel=0.03)


# ----------------------------------------------------------------------------- by hand

TINY = dict(vocab_size=11, emb_dim=2, num_heads=3, head_dim=5, mlp_dim=7)
SHORT = {"inputs": 13, "targets": 17}
SELF_13 = 13 * (4 * 2 * 15 + 2 * 13 * 15)  # four projections, scores and sums
SELF_17 = 17 * (4 * 2 * 15 + 2 * 17 * 15)
CROSS = 17 * 2 * 2 * 15 + 13 * 2 * 2 * 15 + 2 * 17 * 13 * 15


def _forward(**changes):
    return forward_flops(TransformerConfig(**{**TINY, **changes}), batch_size=19, lengths=SHORT)


def test_an_encoder_decoder_by_hand():
    flops = _forward(num_encoder_layers=2, num_decoder_layers=3)
    assert flops.encoder == 2 * 19 * 2 * (SELF_13 + 13 * 3 * 2 * 7)
    assert flops.decoder == 2 * 19 * 3 * (SELF_17 + CROSS + 17 * 3 * 2 * 7)
    assert flops.head == 2 * 19 * 17 * 2 * 11
    assert flops.routing == 0


def test_adapters_count_in_every_layer_and_a_prompt_as_tokens_of_the_inputs():
    layers = dict(num_encoder_layers=2, num_decoder_layers=3)
    plain, flops = _forward(**layers), _forward(**layers, adapter_dim=4)
    assert flops.encoder - plain.encoder == 2 * 19 * 2 * 13 * 2 * 2 * 4
    assert flops.decoder - plain.decoder == 2 * 19 * 3 * 17 * 2 * 2 * 4
    longer = forward_flops(
        TransformerConfig(**TINY, **layers), batch_size=19, lengths={"inputs": 18, "targets": 17}
    )
    assert _forward(**layers, prompt_length=5) == longer


def test_a_feed_forward_without_a_gate_by_hand():
    flops = _forward(num_encoder_layers=1, num_decoder_layers=1, mlp_activations=("relu",))
    assert flops.encoder == 2 * 19 * (SELF_13 + 13 * 2 * 2 * 7)


def test_a_decoder_reads_both_sides_as_one_text_and_counts_all_its_scores():
    flops = _forward(num_decoder_layers=1, num_kv_heads=1)
    projections = 2 * 2 * 15 + 2 * 2 * 5
    assert flops.decoder == 2 * 19 * 30 * (projections + 2 * 30 * 15 + 3 * 2 * 7)
    assert flops.head == 2 * 19 * 30 * 2 * 11
    assert flops.encoder == 0


def test_an_encoder_reads_inputs_alone():
    flops = _forward(num_encoder_layers=1, head_transform=True, next_sentence_head=True)
    assert flops.encoder == 2 * 19 * (SELF_13 + 13 * 3 * 2 * 7)
    assert flops.head == 2 * 19 * (13 * (2 * 11 + 2 * 2) + 2 * 2 + 2 * 2)
    assert flops.decoder == 0


def test_a_token_counts_one_expert_whatever_capacity_is_executed():
    moe = MixtureOfExperts(num_experts=4, every=1, group_size=13, train_capacity_factor=2.0)
    flops = _forward(num_encoder_layers=1, moe=moe)
    tokens, places = 19 * 13, 19 * 4 * round(2.0 * 13 / 4)
    router, expert = 2 * 4, 3 * 2 * 7
    assert flops.encoder == 2 * (19 * SELF_13 + tokens * (router + expert))
    moved = 2 * places * 13 * 2
    assert flops.routing == 2 * (moved + (places - tokens) * expert)


def test_tokens_beyond_the_capacity_do_not_count():
    moe = MixtureOfExperts(
        num_experts=2, every=1, group_size=13, train_capacity_factor=0.5, min_capacity=1
    )
    flops = _forward(num_encoder_layers=1, moe=moe)
    tokens, places = 19 * 13, 19 * 2 * round(0.5 * 13 / 2)
    assert flops.encoder == 2 * (19 * SELF_13 + tokens * 2 * 2 + places * 3 * 2 * 7)


# ------------------------------------------------------------------------------ what follows


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_tokens_of_a_batch_add_up_to_its_step(name):
    config = TransformerConfig(**WIDE, **ARCHITECTURES[name])
    each = token_flops(config, batch_size=8, lengths=LENGTHS)
    total = 8 * (48 * each.inputs + 16 * each.targets)
    assert total == pytest.approx(
        train_step_flops(config, batch_size=8, lengths=LENGTHS), rel=1e-12
    )


def test_a_large_decoder_costs_six_flops_a_weight_and_token(shipped):
    """Kaplan et al. 2020: 6 N D, for the weights that multiply, short rows aside."""
    config = shipped("llama/7b")
    lengths = {"inputs": 0, "targets": 8}
    weights = 6_738_415_616 - 32_000 * 4096  # a lookup multiplies nothing
    step = train_step_flops(config, batch_size=4, lengths=lengths)
    assert step == pytest.approx(6 * weights * 4 * 8, rel=1e-3)


def test_t5_base_needs_what_its_layers_say(shipped):
    """T5 1.1 base at 512/114, a row, worked out on paper from the paper's table of sizes."""
    encoder = 12 * (512 * (4 * 768 * 768 + 3 * 768 * 2048) + 2 * 512 * 512 * 768)
    self_attention = 114 * 4 * 768 * 768 + 2 * 114 * 114 * 768
    cross = (114 * 2 + 512 * 2) * 768 * 768 + 2 * 114 * 512 * 768
    decoder = 12 * (self_attention + cross + 114 * 3 * 768 * 2048)
    head = 114 * 768 * 32_128
    step = train_step_flops(
        shipped("t5_1_1/base"), batch_size=1, lengths={"inputs": 512, "targets": 114}
    )
    assert step == 6 * (encoder + decoder + head)
