"""BART: a post-norm encoder-decoder with tied embeddings."""

from typing import Any

from t5x_lite.convert.family import (
    POST_NORM,
    CheckpointFacts,
    Family,
    Fields,
    LayerNormFields,
    read_layer_norm_fields,
    reject_unsupported,
    require_fields,
    write_layer_norm_fields,
)
from t5x_lite.convert.param_mapping import MappingTable
from t5x_lite.errors import ConfigError
from t5x_lite.models.config import TransformerConfig

POSITION_OFFSET = 2  # rows at the start of the position tables that are not used
PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
FIELDS = LayerNormFields(
    emb_dim="d_model",
    num_heads="encoder_attention_heads",
    mlp_dim="encoder_ffn_dim",
    max_positions="max_position_embeddings",
    activation="activation_function",
    init_std="init_std",
    dropout="dropout",
    attention_dropout="attention_dropout",
)


def _table(config: TransformerConfig) -> MappingTable:
    modules = {"token_embedder": "model.shared", "head/bias": "final_logits_bias"}
    for stack in ("encoder", "decoder"):
        ours, layer = f"{stack}/layers", f"model.{stack}.layers.{{i}}"
        modules[f"{stack}_places/positions"] = f"model.{stack}.embed_positions.weight"
        modules[f"{stack}_places/norm"] = f"model.{stack}.layernorm_embedding"
        for name, theirs in PROJECTIONS.items():
            modules[f"{ours}/self_attention/{name}"] = f"{layer}.self_attn.{theirs}"
            modules[f"{ours}/cross/attention/{name}"] = f"{layer}.encoder_attn.{theirs}"
        modules[f"{ours}/self_attention_norm"] = f"{layer}.self_attn_layer_norm"
        modules[f"{ours}/cross/norm"] = f"{layer}.encoder_attn_layer_norm"
        modules[f"{ours}/mlp/wi_0"] = f"{layer}.fc1"
        modules[f"{ours}/mlp/wo"] = f"{layer}.fc2"
        modules[f"{ours}/mlp_norm"] = f"{layer}.final_layer_norm"
    return MappingTable(modules, row_vectors=("final_logits_bias",))


def _read(fields: Fields, facts: CheckpointFacts) -> TransformerConfig:
    reject_unsupported(
        fields, scale_embedding=False, normalize_before=False, add_final_layer_norm=False
    )
    if facts.own_head:
        raise ConfigError("the output kernel is not the embedding; bart requires tied embeddings")
    encoder_layers, decoder_layers, mlp_dim = require_fields(
        fields, "encoder_layers", "decoder_layers", FIELDS.mlp_dim
    )
    shared = read_layer_norm_fields(fields, FIELDS, default_activation="gelu")
    reject_unsupported(fields, decoder_attention_heads=shared["num_heads"], decoder_ffn_dim=mlp_dim)
    # BART's rates do not default to the general one.
    own_rates = dict(
        attention_dropout_rate=fields.get(FIELDS.attention_dropout, 0.0),
        mlp_dropout_rate=fields.get("activation_dropout", 0.0),
    )
    return TransformerConfig(
        **{**shared, **POST_NORM, **own_rates},
        num_encoder_layers=encoder_layers,
        num_decoder_layers=decoder_layers,
        norm_epsilon=1e-5,  # a constant in transformers
        position_offset=POSITION_OFFSET,
        logits_via_embedding=True,
        head_bias=facts.head_bias,
    )


def _write(config: TransformerConfig) -> dict[str, Any]:
    mlp_dropout = config.mlp_dropout_rate
    return dict(
        **write_layer_norm_fields(config, FIELDS),
        encoder_layers=config.num_encoder_layers,
        decoder_layers=config.num_decoder_layers,
        decoder_attention_heads=config.num_heads,
        decoder_ffn_dim=config.mlp_dim,
        activation_dropout=config.dropout_rate if mlp_dropout is None else mlp_dropout,
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
