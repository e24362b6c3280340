"""BERT and RoBERTa, with their masked-language-model and next-sentence heads."""

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

FIELDS = LayerNormFields(
    emb_dim="hidden_size",
    num_heads="num_attention_heads",
    mlp_dim="intermediate_size",
    max_positions="max_position_embeddings",
    activation="hidden_act",
    init_std="initializer_range",
    dropout="hidden_dropout_prob",
    attention_dropout="attention_probs_dropout_prob",
)


def _bert_table(config: TransformerConfig, prefix: str, head: dict[str, str]) -> MappingTable:
    layer = f"{prefix}.encoder.layer.{{i}}"
    ours = "encoder/layers"
    modules = {
        "token_embedder": f"{prefix}.embeddings.word_embeddings",
        "encoder_places/positions": f"{prefix}.embeddings.position_embeddings.weight",
        "encoder_places/types": f"{prefix}.embeddings.token_type_embeddings.weight",
        "encoder_places/norm": f"{prefix}.embeddings.LayerNorm",
        f"{ours}/self_attention/query": f"{layer}.attention.self.query",
        f"{ours}/self_attention/key": f"{layer}.attention.self.key",
        f"{ours}/self_attention/value": f"{layer}.attention.self.value",
        f"{ours}/self_attention/out": f"{layer}.attention.output.dense",
        f"{ours}/self_attention_norm": f"{layer}.attention.output.LayerNorm",
        f"{ours}/mlp/wi_0": f"{layer}.intermediate.dense",
        f"{ours}/mlp/wo": f"{layer}.output.dense",
        f"{ours}/mlp_norm": f"{layer}.output.LayerNorm",
        "pooler": f"{prefix}.pooler.dense",
        "next_sentence": "cls.seq_relationship",
    }
    return MappingTable({**modules, **head})


def _read_bert(fields: Fields, facts: CheckpointFacts, *, offset: int = 0) -> TransformerConfig:
    reject_unsupported(fields, position_embedding_type="absolute", is_decoder=False)
    layers, rows, _ = require_fields(
        fields, "num_hidden_layers", FIELDS.max_positions, FIELDS.mlp_dim
    )
    shared = read_layer_norm_fields(fields, FIELDS, default_activation="gelu")
    return TransformerConfig(
        **{**shared, **POST_NORM, "max_positions": rows - offset},
        num_encoder_layers=layers,
        norm_epsilon=fields.get("layer_norm_eps", 1e-12),
        position_offset=offset,
        num_token_types=fields.get("type_vocab_size", 2),
        logits_via_embedding=not facts.own_head,
        head_bias=True,
        head_transform=True,
        next_sentence_head=facts.next_sentence,
    )


def _write_bert(config: TransformerConfig) -> dict[str, Any]:
    return {
        **write_layer_norm_fields(config, FIELDS),
        FIELDS.max_positions: config.max_positions + config.position_offset,
        "num_hidden_layers": config.num_encoder_layers,
        "type_vocab_size": config.num_token_types,
        "layer_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.logits_via_embedding,
    }


def _read_roberta(fields: Fields, facts: CheckpointFacts) -> TransformerConfig:
    # Positions start after the row of the padding id.
    return _read_bert(fields, facts, offset=fields.get("pad_token_id", 1) + 1)


def _write_roberta(config: TransformerConfig) -> dict[str, Any]:
    if config.position_offset < 1:
        raise ConfigError(
            "roberta's positions start after the row of the padding id; expected position_offset "
            f"of at least 1, got {config.position_offset}",
            "TransformerConfig.position_offset",
        )
    specials = dict(bos_token_id=0, eos_token_id=2, pad_token_id=config.position_offset - 1)
    return {**_write_bert(config), **specials}


BERT = Family(
    model_type="bert",
    architecture=lambda c: "BertForPreTraining" if c.next_sentence_head else "BertForMaskedLM",
    read=_read_bert,
    write=lambda config: {**_write_bert(config), "pad_token_id": 0},
    table=lambda config: _bert_table(
        config,
        "bert",
        {
            "head": "cls.predictions.decoder",
            "head/transform": "cls.predictions.transform.dense",
            "head/norm": "cls.predictions.transform.LayerNorm",
            "head/bias": "cls.predictions.bias",
        },
    ),
    embedding="bert.embeddings.word_embeddings.weight",
    head="cls.predictions.decoder.weight",
    prefix="bert.",
    outside=("cls.",),
    next_sentence="cls.seq_relationship.weight",
    copies={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    ignored=(r"bert\.embeddings\.position_ids",),
)
ROBERTA = Family(
    model_type="roberta",
    architecture=lambda config: "RobertaForMaskedLM",
    read=_read_roberta,
    write=_write_roberta,
    table=lambda config: _bert_table(
        config,
        "roberta",
        {
            "head": "lm_head.decoder",
            "head/transform": "lm_head.dense",
            "head/norm": "lm_head.layer_norm",
            "head/bias": "lm_head.bias",
        },
    ),
    embedding="roberta.embeddings.word_embeddings.weight",
    head="lm_head.decoder.weight",
    prefix="roberta.",
    outside=("lm_head.",),
    copies={"lm_head.decoder.bias": "lm_head.bias"},
    # The pooler of roberta-base was never trained; nothing in the model uses it.
    ignored=(r"roberta\.embeddings\.position_ids", r"roberta\.pooler\..*"),
)

FAMILIES = (BERT, ROBERTA)
