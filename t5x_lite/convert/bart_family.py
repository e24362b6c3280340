"""BART: a post-norm encoder-decoder with everything tied."""

from typing import Any

from t5x_lite.convert.family import (
    LAYER_NORM,
    POST_NORM,
    CheckpointFacts,
    Family,
    Fields,
    activation_from_hf,
    activation_to_hf,
    check_width,
    head_dim,
    reject_unsupported,
    require_fields,
)
from t5x_lite.convert.param_mapping import MappingTable
from t5x_lite.errors import ConfigError
from t5x_lite.models.config import TransformerConfig

POSITION_OFFSET = 2  # rows of the position tables that no position uses
PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}


def _table(config: TransformerConfig) -> MappingTable:
    modules = {"token_embedder": "model.shared", "head/bias": "final_logits_bias"}
    for stack in ("encoder", "decoder"):
        ours, layer = f"{stack}/layers", f"model.{stack}.layers.{{i}}"
        modules[f"{stack}_places/positions"] = f"model.{stack}.embed_positions.weight"
        modules[f"{stack}_places/norm"] = f"model.{stack}.layernorm_embedding"
        for mine, theirs in PROJECTIONS.items():
            modules[f"{ours}/self_attention/{mine}"] = f"{layer}.self_attn.{theirs}"
            modules[f"{ours}/cross/attention/{mine}"] = f"{layer}.encoder_attn.{theirs}"
        modules[f"{ours}/self_attention_norm"] = f"{layer}.self_attn_layer_norm"
        modules[f"{ours}/cross/norm"] = f"{layer}.encoder_attn_layer_norm"
        modules[f"{ours}/mlp/wi_0"] = f"{layer}.fc1"
        modules[f"{ours}/mlp/wo"] = f"{layer}.fc2"
        modules[f"{ours}/mlp_norm"] = f"{layer}.final_layer_norm"
    return MappingTable(modules, row=("final_logits_bias",))


def _read(fields: Fields, found: CheckpointFacts) -> TransformerConfig:
    reject_unsupported(
        fields, scale_embedding=False, normalize_before=False, add_final_layer_norm=False
    )
    if found.own_head:
        raise ConfigError("the head is not the embedding; bart has them tied")
    vocab_size, emb_dim, rows = require_fields(
        fields, "vocab_size", "d_model", "max_position_embeddings"
    )
    encoder, decoder = require_fields(fields, "encoder_layers", "decoder_layers")
    num_heads, mlp_dim = require_fields(fields, "encoder_attention_heads", "encoder_ffn_dim")
    reject_unsupported(fields, decoder_attention_heads=num_heads, decoder_ffn_dim=mlp_dim)
    return TransformerConfig(
        **LAYER_NORM,
        **POST_NORM,
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=num_heads,
        head_dim=head_dim(emb_dim, num_heads),
        mlp_dim=mlp_dim,
        num_encoder_layers=encoder,
        num_decoder_layers=decoder,
        mlp_activations=(activation_from_hf(fields.get("activation_function", "gelu")),),
        norm_epsilon=1e-5,  # transformers knows no other for it
        max_positions=rows,
        position_offset=POSITION_OFFSET,
        logits_via_embedding=True,
        head_bias=found.head_bias,
        init_std=fields.get("init_std", 0.02),
        dropout_rate=fields.get("dropout", 0.1),
        attention_dropout_rate=fields.get("attention_dropout", 0.0),
        mlp_dropout_rate=fields.get("activation_dropout", 0.0),
    )


def _write(config: TransformerConfig) -> dict[str, Any]:
    check_width(config)
    rates = {
        "attention_dropout": config.attention_dropout_rate,
        "activation_dropout": config.mlp_dropout_rate,
    }
    return dict(
        vocab_size=config.vocab_size,
        d_model=config.emb_dim,
        encoder_layers=config.num_encoder_layers,
        decoder_layers=config.num_decoder_layers,
        encoder_attention_heads=config.num_heads,
        decoder_attention_heads=config.num_heads,
        encoder_ffn_dim=config.mlp_dim,
        decoder_ffn_dim=config.mlp_dim,
        activation_function=activation_to_hf(config.mlp_activations[0]),
        max_position_embeddings=config.max_positions,
        init_std=config.init_std or 0.02,
        dropout=config.dropout_rate,
        **{k: config.dropout_rate if rate is None else rate for k, rate in rates.items()},
        scale_embedding=False,
        is_encoder_decoder=True,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        tie_word_embeddings=True,
    )


BART = Family(
    model_type="bart",
    architecture=lambda config: "BartForConditionalGeneration",
    read=_read,
    write=_write,
    table=_table,
    embedding="model.shared.weight",
    head="lm_head.weight",
    prefix="model.",
    outside=("lm_head.", "final_logits_bias"),
    head_bias="final_logits_bias",
    copies={
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
    },
)

FAMILIES = (BART,)
