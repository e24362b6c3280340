"""Decoders alone: GPT-2 and LLaMA."""

from typing import Any

from t5x_lite.convert.family import (
    LAYER_NORM,
    CheckpointFacts,
    Family,
    Fields,
    activation_from_hf,
    activation_to_hf,
    check_width,
    head_dim,
    reject_unsupported,
    require_fields,
    specific_rate,
)
from t5x_lite.convert.param_mapping import FusedSlice, MappingTable
from t5x_lite.errors import ConfigError
from t5x_lite.models.config import TransformerConfig


def _gpt2_table(config: TransformerConfig) -> MappingTable:
    ours, layer = "decoder/layers", "transformer.h.{i}"
    fused = {
        f"{ours}/self_attention/{name}": FusedSlice(f"{layer}.attn.c_attn", place, 3)
        for place, name in enumerate(("query", "key", "value"))
    }
    return MappingTable(
        {
            "token_embedder": "transformer.wte",
            "decoder_places/positions": "transformer.wpe.weight",
            **fused,
            f"{ours}/self_attention/out": f"{layer}.attn.c_proj",
            f"{ours}/self_attention_norm": f"{layer}.ln_1",
            f"{ours}/mlp/wi_0": f"{layer}.mlp.c_fc",
            f"{ours}/mlp/wo": f"{layer}.mlp.c_proj",
            f"{ours}/mlp_norm": f"{layer}.ln_2",
            "decoder/norm": "transformer.ln_f",
        },
        as_here=True,
    )


def _read_gpt2(fields: Fields, found: CheckpointFacts) -> TransformerConfig:
    reject_unsupported(fields, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    reject_unsupported(fields, add_cross_attention=False)
    if found.own_head:
        raise ConfigError("the head is not the embedding; gpt2 has them tied")
    names = ("vocab_size", "n_embd", "n_head", "n_layer", "n_positions")
    vocab_size, emb_dim, num_heads, layers, rows = require_fields(fields, *names)
    return TransformerConfig(
        **LAYER_NORM,
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=num_heads,
        head_dim=head_dim(emb_dim, num_heads),
        mlp_dim=fields.get("n_inner") or 4 * emb_dim,
        num_decoder_layers=layers,
        mlp_activations=(activation_from_hf(fields.get("activation_function", "gelu_new")),),
        norm_epsilon=fields.get("layer_norm_epsilon", 1e-5),
        max_positions=rows,
        logits_via_embedding=True,
        init_std=fields.get("initializer_range", 0.02),
        scale_residual_init=True,
        dropout_rate=fields.get("resid_pdrop", 0.1),
        attention_dropout_rate=specific_rate(fields, "attn_pdrop", "resid_pdrop"),
        mlp_dropout_rate=0.0,
    )


def _write_gpt2(config: TransformerConfig) -> dict[str, Any]:
    check_width(config)
    attention_dropout = config.attention_dropout_rate
    return dict(
        vocab_size=config.vocab_size,
        n_embd=config.emb_dim,
        n_head=config.num_heads,
        n_layer=config.num_decoder_layers,
        n_positions=config.max_positions,
        n_inner=config.mlp_dim,
        activation_function=activation_to_hf(config.mlp_activations[0]),
        layer_norm_epsilon=config.norm_epsilon,
        initializer_range=config.init_std or 0.02,
        resid_pdrop=config.dropout_rate,
        embd_pdrop=config.dropout_rate,
        attn_pdrop=config.dropout_rate if attention_dropout is None else attention_dropout,
        bos_token_id=config.vocab_size - 1,
        eos_token_id=config.vocab_size - 1,
        tie_word_embeddings=True,
    )


GPT2 = Family(
    model_type="gpt2",
    architecture=lambda config: "GPT2LMHeadModel",
    read=_read_gpt2,
    write=_write_gpt2,
    table=_gpt2_table,
    embedding="transformer.wte.weight",
    head="lm_head.weight",
    prefix="transformer.",
    outside=("lm_head.",),
    ignored=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),
)

# ------------------------------------------------------------------------------------ LLaMA


def _llama_table(config: TransformerConfig) -> MappingTable:
    ours, layer = "decoder/layers", "model.layers.{i}"
    return MappingTable(
        {
            "token_embedder": "model.embed_tokens",
            "head": "lm_head",
            f"{ours}/self_attention/query": f"{layer}.self_attn.q_proj",
            f"{ours}/self_attention/key": f"{layer}.self_attn.k_proj",
            f"{ours}/self_attention/value": f"{layer}.self_attn.v_proj",
            f"{ours}/self_attention/out": f"{layer}.self_attn.o_proj",
            f"{ours}/self_attention_norm": f"{layer}.input_layernorm",
            f"{ours}/mlp/wi_0": f"{layer}.mlp.gate_proj",
            f"{ours}/mlp/wi_1": f"{layer}.mlp.up_proj",
            f"{ours}/mlp/wo": f"{layer}.mlp.down_proj",
            f"{ours}/mlp_norm": f"{layer}.post_attention_layernorm",
            "decoder/norm": "model.norm",
        }
    )


def _read_llama(fields: Fields, found: CheckpointFacts) -> TransformerConfig:
    names = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size")
    vocab_size, emb_dim, num_heads, mlp_dim = require_fields(fields, *names)
    (layers,) = require_fields(fields, "num_hidden_layers")
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ConfigError(f"config.json has rope_parameters {rope}; only plain ones are known")
    biased = bool(fields.get("attention_bias", False))
    reject_unsupported(fields, mlp_bias=biased)
    return TransformerConfig(
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=num_heads,
        num_kv_heads=fields.get("num_key_value_heads") or num_heads,
        head_dim=fields.get("head_dim") or head_dim(emb_dim, num_heads),
        mlp_dim=mlp_dim,
        num_decoder_layers=layers,
        mlp_activations=(activation_from_hf(fields.get("hidden_act", "silu")), "linear"),
        norm_epsilon=fields.get("rms_norm_eps", 1e-6),
        use_bias=biased,
        scale_attention=True,
        positions="rotary",
        rope_theta=rope.get("rope_theta", fields.get("rope_theta", 10_000.0)),
        max_positions=fields.get("max_position_embeddings", 2048),
        logits_via_embedding=not found.own_head,
        scale_tied_logits=found.own_head,
        init_std=fields.get("initializer_range", 0.02),
        dropout_shared_along_length=False,
        dropout_after_final_norm=False,
    )


def _write_llama(config: TransformerConfig) -> dict[str, Any]:
    if config.mlp_activations[1:] != ("linear",):
        raise ConfigError(
            f"llama's feed-forward is gated; got {config.mlp_activations}",
            "TransformerConfig.mlp_activations",
        )
    return dict(
        vocab_size=config.vocab_size,
        hidden_size=config.emb_dim,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.mlp_dim,
        num_hidden_layers=config.num_decoder_layers,
        hidden_act=activation_to_hf(config.mlp_activations[0]),
        rms_norm_eps=config.norm_epsilon,
        attention_bias=config.use_bias,
        mlp_bias=config.use_bias,
        rope_theta=config.rope_theta,
        rope_parameters=dict(rope_type="default", rope_theta=config.rope_theta),
        max_position_embeddings=config.max_positions,
        initializer_range=config.init_std or 0.02,
        tie_word_embeddings=config.logits_via_embedding,
    )


LLAMA = Family(
    model_type="llama",
    architecture=lambda config: "LlamaForCausalLM",
    read=_read_llama,
    write=_write_llama,
    table=_llama_table,
    embedding="model.embed_tokens.weight",
    head="lm_head.weight",
    prefix="model.",
    outside=("lm_head.",),
    ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
)

FAMILIES = (GPT2, LLAMA)
