"""Whether two copies of a model say the same about a short text."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.errors import ConfigError
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.transformer import Params, abstract_model, bind

Model = tuple[TransformerConfig, Params]
# What is not decided by a checkpoint: how a model is trained and run.
NOT_IN_FILES = (
    *("dtype", "remat", "scan_layers", "init_std", "scale_residual_init"),
    *("dropout_rate", "attention_dropout_rate", "mlp_dropout_rate"),
    *("dropout_shared_along_length", "dropout_after_final_norm"),
)


def check_same_logits(first: Model, second: Model, *, tolerance: float = 1e-5) -> None:
    """Raise ConfigError if two models are not one, by configuration or by logits.

    Both sets of weights go through the program of the second configuration; logits may differ by
    `tolerance` of their norm. What files do not hold (how many tokens an expert takes) is the
    first's.
    """
    if different := differences(first[0], second[0]):
        raise ConfigError(f"read again, the model is another: {', '.join(different)}")
    config = dataclasses.replace(second[0], moe=first[0].moe, dtype="float32")
    graphdef, batch = abstract_model(config)[0], _short_text(config)
    forward = jax.jit(lambda params: bind(graphdef, params)(batch).logits)
    ours, theirs = (np.asarray(forward(params)) for _, params in (first, second))
    error = np.linalg.norm(ours - theirs) / max(np.linalg.norm(ours), 1e-30)
    if not error <= tolerance:  # NaN is an error too
        raise ConfigError(
            f"the exported model read again gives other logits: relative error {error:.2g}, wanted "
            f"at most {tolerance:.0g}; nothing was exported"
        )


def differences(ours: TransformerConfig, theirs: TransformerConfig) -> list[str]:
    """What decides logits and is not the same in two configurations, in words."""
    mine, other = decisive(ours), decisive(theirs)
    return [
        f"{name} would be {other[name]!r} instead of {mine[name]!r}"
        for name in mine
        if name in other and mine[name] != other[name]
    ]


def decisive(config: TransformerConfig) -> dict[str, Any]:
    """What of a configuration decides logits; settings of parts it does not have count as unset."""
    fields = dataclasses.asdict(config)
    unset = [*NOT_IN_FILES, "num_kv_heads"]
    if not config.positions.startswith("relative"):
        unset += ["relpos_num_buckets", "relpos_max_distance", "decoder_buckets_bidirectional"]
    if config.encoder_only:
        unset += ["decoder_buckets_bidirectional"]
    if config.positions != "learned":
        unset += ["max_positions", "position_offset"]
    if config.positions != "rotary":
        unset += ["rope_theta"]
    if not config.logits_via_embedding:
        unset += ["scale_tied_logits"]
    moe = config.moe and (config.moe.num_experts, config.moe.every)
    kept = {name: value for name, value in fields.items() if name not in unset}
    return {**kept, "kv_heads": config.kv_heads, "moe": moe}


def _short_text(config: TransformerConfig) -> dict[str, jax.Array]:
    """Two rows of tokens drawn from a fixed seed, one of them padded."""
    length = min(8, config.max_positions)
    real = np.arange(length) < np.array([[length], [max(1, length - 3)]])
    rng = np.random.default_rng(0)
    batch = {}
    for side in ("encoder", "decoder"):
        drawn = rng.integers(0, config.vocab_size, real.shape)
        batch[f"{side}_input_tokens"] = jnp.asarray(np.where(real, drawn, 0), jnp.int32)
        batch[f"{side}_segment_ids"] = jnp.asarray(real, jnp.int32)
    return batch
