"""Decoder-only models: GPT-2 and LLaMA."""

from typing import Any

from t5x_lite.convert.family import (
    CheckpointFacts,
    Family,
    Fields,
    LayerNormFields,
    activation_from_hf,
    activation_to_hf,
    head_dim,
    read_layer_norm_fields,
    reject_unsupported,
    require_fields,
    write_layer_norm_fields,
)
from t5x_lite.convert.param_mapping import FusedSlice, MappingTable
from t5x_lite.errors import ConfigError
from t5x_lite.models.config import TransformerConfig

GPT2_FIELDS = LayerNormFields(
    emb_dim="n_embd",
    num_heads="n_head",
    mlp_dim="n_inner",
    max_positions="n_positions",
    activation="activation_function",
    init_std="initializer_range",
    dropout="resid_pdrop",
    attention_dropout="attn_pdrop",
)


def _gpt2_table(config: TransformerConfig) -> MappingTable:
    ours, layer = "decoder/layers", "transformer.h.{i}"
    # Query, key and value are one tensor, side by side.
    fused = {
        f"{ours}/self_attention/{name}": FusedSlice(f"{layer}.attn.c_attn", index, 3)
        for index, name in enumerate(("query", "key", "value"))
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
        transposed=False,
    )


def _read_gpt2(fields: Fields, facts: CheckpointFacts) -> TransformerConfig:
    reject_unsupported(fields, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    reject_unsupported(fields, add_cross_attention=False)
    if facts.own_head:
        raise ConfigError("the output kernel is not the embedding; gpt2 requires tied embeddings")
    (layers,) = require_fields(fields, "n_layer")
    shared = read_layer_norm_fields(fields, GPT2_FIELDS, default_activation="gelu_new")
    return TransformerConfig(
        **{**shared, "mlp_dim": shared["mlp_dim"] or 4 * shared["emb_dim"]},
        num_decoder_layers=layers,
        norm_epsilon=fields.get("layer_norm_epsilon", 1e-5),
        logits_via_embedding=True,
        scale_residual_init=True,
    )


def _write_gpt2(config: TransformerConfig) -> dict[str, Any]:
    return dict(
        **write_layer_norm_fields(config, GPT2_FIELDS),
        n_layer=config.num_decoder_layers,
        layer_norm_epsilon=config.norm_epsilon,
        embd_pdrop=config.dropout_rate,
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


def _read_llama(fields: Fields, facts: CheckpointFacts) -> TransformerConfig:
    names = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size")
    vocab_size, emb_dim, num_heads, mlp_dim = require_fields(fields, *names)
    (layers,) = require_fields(fields, "num_hidden_layers")
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ConfigError(
            f"config.json has rope_parameters {rope}; only the rope_type 'default' is supported"
        )
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
        logits_via_embedding=not facts.own_head,
        scale_tied_logits=facts.own_head,
        init_std=fields.get("initializer_range", 0.02),
        dropout_shared_along_length=False,
        dropout_after_final_norm=False,
    )


def _write_llama(config: TransformerConfig) -> dict[str, Any]:
    if config.mlp_activations[1:] != ("linear",):
        raise ConfigError(
            f"llama's feed-forward is gated by a linear branch; got mlp_activations "
            f"{config.mlp_activations}",
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
