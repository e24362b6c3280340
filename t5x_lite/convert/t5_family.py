"""The T5 family: T5 1.0 and 1.1, mT5, umT5, ByT5 (model type "t5") and Switch Transformers."""

import functools
from typing import Any

from t5x_lite.convert.family import (
    HF_ACTIVATIONS,
    CheckpointFacts,
    Family,
    Fields,
    activation_from_hf,
    reject_unsupported,
    require_fields,
)
from t5x_lite.convert.param_mapping import MappingTable
from t5x_lite.errors import ConfigError
from t5x_lite.models.config import MixtureOfExperts, TransformerConfig

ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
SPECIAL_TOKENS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
# feed_forward_proj of config.json, and our mlp_activations. "gated-gelu" is the tanh approximation,
# although "gelu" uses erf.
FEED_FORWARD = {
    **{name: (ours,) for name, ours in HF_ACTIVATIONS.items()},
    **{f"gated-{name}": (ours, "linear") for name, ours in HF_ACTIVATIONS.items()},
    "gated-gelu": ("gelu", "linear"),
}


def _table(config: TransformerConfig) -> MappingTable:
    gated, sparse = len(config.mlp_activations) > 1, config.moe is not None
    mlp = "mlp" if sparse else "DenseReluDense"
    modules = {"token_embedder": "shared", "head": "lm_head"}
    for stack, cross in (("encoder", False), ("decoder", True)):
        ours, block = f"{stack}/layers", f"{stack}.block.{{i}}.layer"
        bias = "0.SelfAttention.relative_attention_bias"
        modules[f"{stack}/relpos_bias"] = f"{stack}.block.0.layer.{bias}"
        modules[f"{ours}/relpos_bias"] = f"{block}.{bias}"
        modules[f"{stack}/norm"] = f"{stack}.final_layer_norm"
        modules[f"{ours}/self_attention_norm"] = f"{block}.0.layer_norm"
        modules[f"{ours}/cross/norm"] = f"{block}.1.layer_norm"
        for ours_name, theirs in ATTENTION.items():
            modules[f"{ours}/self_attention/{ours_name}"] = f"{block}.0.SelfAttention.{theirs}"
            modules[f"{ours}/cross/attention/{ours_name}"] = f"{block}.1.EncDecAttention.{theirs}"
        feed_forward = f"{block}.{2 if cross else 1}"
        modules[f"{ours}/mlp_norm"] = f"{feed_forward}.layer_norm"
        modules[f"{ours}/mlp/router"] = f"{feed_forward}.{mlp}.router.classifier.weight"
        first = "wi_0" if gated else "wi"
        for ours_name, theirs in (("wi_0", first), ("wi_1", "wi_1"), ("wo", "wo")):
            dense = f"{feed_forward}.{mlp}.{theirs}.weight"
            expert = f"{feed_forward}.{mlp}.experts.expert_{{x}}.{theirs}.weight"
            modules[f"{ours}/mlp/{ours_name}/kernel"] = dense
            modules[f"{ours}/mlp/{ours_name}"] = expert
    return MappingTable(modules)


def _sizes(fields: Fields, facts: CheckpointFacts) -> dict[str, Any]:
    names = ("vocab_size", "d_model", "num_heads", "d_kv", "d_ff", "num_layers")
    vocab_size, emb_dim, num_heads, head_dim, mlp_dim, layers = require_fields(fields, *names)
    decoder_layers = fields.get("num_decoder_layers") or layers
    return dict(
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=num_heads,
        head_dim=head_dim,
        mlp_dim=mlp_dim,
        num_encoder_layers=layers,
        num_decoder_layers=decoder_layers if facts.decoder else 0,
        norm_epsilon=fields.get("layer_norm_epsilon", 1e-6),
        relpos_num_buckets=fields.get("relative_attention_num_buckets", 32),
        relpos_max_distance=fields.get("relative_attention_max_distance", 128),
        dropout_rate=fields.get("dropout_rate", 0.1),
        logits_via_embedding=not facts.own_head,
    )


def _written_sizes(config: TransformerConfig) -> dict[str, Any]:
    if config.decoder_only:
        raise ConfigError(
            "Hugging Face's T5 models have an encoder; this model has none",
            "TransformerConfig.num_encoder_layers",
        )
    return dict(
        vocab_size=config.vocab_size,
        d_model=config.emb_dim,
        num_heads=config.num_heads,
        d_kv=config.head_dim,
        d_ff=config.mlp_dim,
        num_layers=config.num_encoder_layers,
        num_decoder_layers=config.num_decoder_layers or config.num_encoder_layers,
        layer_norm_epsilon=config.norm_epsilon,
        relative_attention_num_buckets=config.relpos_num_buckets,
        relative_attention_max_distance=config.relpos_max_distance,
        dropout_rate=config.dropout_rate,
        is_encoder_decoder=not config.encoder_only,
        **SPECIAL_TOKENS,
    )


def _read_t5(fields: Fields, facts: CheckpointFacts, *, model_type: str) -> TransformerConfig:
    projection = fields.get("feed_forward_proj", "relu" if model_type == "t5" else "gated-gelu")
    if projection not in FEED_FORWARD:
        raise ConfigError(
            f"config.json has feed_forward_proj {projection!r}; supported: {list(FEED_FORWARD)}"
        )
    # In older versions of transformers tie_word_embeddings also decides whether logits are scaled;
    # newer ones have scale_decoder_outputs for it.
    tied = fields.get("tie_word_embeddings", True)
    scaled = {"t5": fields.get("scale_decoder_outputs", tied), "mt5": False, "umt5": True}
    if facts.own_head and model_type == "t5" and fields.get("scale_decoder_outputs"):
        raise ConfigError(
            "config.json has scale_decoder_outputs, but the output kernel is not the embedding; "
            "only tied logits can be scaled"
        )
    return TransformerConfig(
        **_sizes(fields, facts),
        mlp_activations=FEED_FORWARD[projection],
        positions="relative_per_layer" if model_type == "umt5" else "relative",
        scale_tied_logits=facts.own_head or bool(scaled[model_type]),
    )


def _write_t5(config: TransformerConfig, *, model_type: str) -> dict[str, Any]:
    names = {activations: name for name, activations in FEED_FORWARD.items()}
    if config.mlp_activations not in names:
        raise ConfigError(
            f"mlp_activations {config.mlp_activations} have no name in Hugging Face's format; "
            f"supported: {list(names)}",
            "TransformerConfig.mlp_activations",
        )
    scaled = config.logits_via_embedding and config.scale_tied_logits
    return {
        **_written_sizes(config),
        "feed_forward_proj": names[config.mlp_activations],
        "tie_word_embeddings": config.logits_via_embedding,
        **({"scale_decoder_outputs": scaled} if model_type == "t5" else {}),
    }


def _read_switch(fields: Fields, facts: CheckpointFacts) -> TransformerConfig:
    reject_unsupported(fields, router_bias=False)
    (experts,) = require_fields(fields, "num_experts")
    sizes = _sizes(fields, facts)
    every = {
        sizes[f"num_{stack}_layers"] // (fields.get(f"num_sparse_{stack}_layers", 3) or 1)
        for stack in ("encoder", "decoder")
    }
    if len(every) > 1 or every - {1, 2} or 0 in map(fields.get, _SPARSE):
        raise ConfigError(
            "config.json has a sparse layer in every "
            f"{' and '.join(map(str, sorted(every)))} layers; supported are 1 and 2, the same in "
            "both stacks"
        )
    moe = MixtureOfExperts(
        num_experts=experts,
        every=every.pop(),
        load_balance_loss=fields.get("router_aux_loss_coef", 0.001),
        router_z_loss=fields.get("router_z_loss_coef", 0.001),
        jitter=fields.get("router_jitter_noise", 0.01),
    )
    tied = fields.get("tie_word_embeddings", True)
    if facts.own_head and tied:
        raise ConfigError(
            "config.json has tie_word_embeddings, but the output kernel is not the embedding"
        )
    act = activation_from_hf(fields.get("dense_act_fn", "relu"))
    return TransformerConfig(
        **sizes, moe=moe, mlp_activations=(act,), scale_tied_logits=facts.own_head or tied
    )


_SPARSE = ("num_sparse_encoder_layers", "num_sparse_decoder_layers")


def _write_switch(config: TransformerConfig) -> dict[str, Any]:
    moe = config.moe
    if moe is None or len(config.mlp_activations) > 1 or moe.every not in (1, 2):
        raise ConfigError(
            "switch_transformers has experts in every or every second layer, with one activation; "
            f"got moe={moe} and mlp_activations={config.mlp_activations}"
        )
    names = {activations: name for name, activations in FEED_FORWARD.items()}
    return {
        **_written_sizes(config),
        "dense_act_fn": names[config.mlp_activations],
        "tie_word_embeddings": config.logits_via_embedding,
        "num_experts": moe.num_experts,
        "num_sparse_encoder_layers": config.num_encoder_layers // moe.every,
        "num_sparse_decoder_layers": config.num_decoder_layers // moe.every,
        "router_aux_loss_coef": moe.load_balance_loss,
        "router_z_loss_coef": moe.router_z_loss,
        "router_jitter_noise": moe.jitter,
    }


def _family(model_type: str, name: str, read, write) -> Family:
    def architecture(config: TransformerConfig) -> str:
        return f"{name}EncoderModel" if config.encoder_only else f"{name}ForConditionalGeneration"

    return Family(
        model_type=model_type,
        architecture=architecture,
        read=read,
        write=write,
        table=_table,
        embedding="shared.weight",
        head="lm_head.weight",
        decoder="decoder.block.",
        copies={
            "encoder.embed_tokens.weight": "shared.weight",
            "decoder.embed_tokens.weight": "shared.weight",
        },
        ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    )


def _t5_family(model_type: str, name: str) -> Family:
    options = {"model_type": model_type}
    read, write = functools.partial(_read_t5, **options), functools.partial(_write_t5, **options)
    return _family(model_type, name, read, write)


FAMILIES = (
    _t5_family("t5", "T5"),
    _t5_family("mt5", "MT5"),
    _t5_family("umt5", "UMT5"),
    _family("switch_transformers", "SwitchTransformers", _read_switch, _write_switch),
)
