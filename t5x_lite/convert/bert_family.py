"""BERT and RoBERTa, with their masked-language-model and next-sentence heads."""

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
    specific_rate,
)
from t5x_lite.convert.param_mapping import MappingTable
from t5x_lite.errors import ConfigError
from t5x_lite.models.config import TransformerConfig


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


def _read_bert(fields: Fields, found: CheckpointFacts, *, offset: int = 0) -> TransformerConfig:
    reject_unsupported(fields, position_embedding_type="absolute", is_decoder=False)
    names = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size")
    vocab_size, emb_dim, num_heads, mlp_dim = require_fields(fields, *names)
    layers, rows = require_fields(fields, "num_hidden_layers", "max_position_embeddings")
    return TransformerConfig(
        **LAYER_NORM,
        **POST_NORM,
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=num_heads,
        head_dim=head_dim(emb_dim, num_heads),
        mlp_dim=mlp_dim,
        num_encoder_layers=layers,
        mlp_activations=(activation_from_hf(fields.get("hidden_act", "gelu")),),
        norm_epsilon=fields.get("layer_norm_eps", 1e-12),
        max_positions=rows - offset,
        position_offset=offset,
        num_token_types=fields.get("type_vocab_size", 2),
        logits_via_embedding=not found.own_head,
        head_bias=True,
        head_transform=True,
        next_sentence_head=found.next_sentence,
        init_std=fields.get("initializer_range", 0.02),
        dropout_rate=fields.get("hidden_dropout_prob", 0.1),
        attention_dropout_rate=specific_rate(
            fields, "attention_probs_dropout_prob", "hidden_dropout_prob"
        ),
        mlp_dropout_rate=0.0,
    )


def _write_bert(config: TransformerConfig) -> dict[str, Any]:
    check_width(config)
    attention_dropout = config.attention_dropout_rate
    return dict(
        vocab_size=config.vocab_size,
        hidden_size=config.emb_dim,
        num_hidden_layers=config.num_encoder_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_dim,
        hidden_act=activation_to_hf(config.mlp_activations[0]),
        hidden_dropout_prob=config.dropout_rate,
        attention_probs_dropout_prob=(
            config.dropout_rate if attention_dropout is None else attention_dropout
        ),
        max_position_embeddings=config.max_positions + config.position_offset,
        type_vocab_size=config.num_token_types,
        initializer_range=config.init_std or 0.02,
        layer_norm_eps=config.norm_epsilon,
        tie_word_embeddings=config.logits_via_embedding,
    )


def _read_roberta(fields: Fields, found: CheckpointFacts) -> TransformerConfig:
    return _read_bert(fields, found, offset=fields.get("pad_token_id", 1) + 1)


def _write_roberta(config: TransformerConfig) -> dict[str, Any]:
    if config.position_offset < 1:
        raise ConfigError(
            "roberta's positions start behind the row of the padding id; got position_offset "
            f"{config.position_offset}",
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
