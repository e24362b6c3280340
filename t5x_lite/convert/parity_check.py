"""Comparison of an exported model with the original, by configuration and by logits."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.errors import ConfigError
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.transformer import Params, abstract_model, bind

Model = tuple[TransformerConfig, Params]
# Settings that are not part of a checkpoint: they decide how a model is trained and run.
NOT_IN_CHECKPOINTS = (
    *("dtype", "remat", "scan_layers", "init_std", "scale_residual_init"),
    *("dropout_rate", "attention_dropout_rate", "mlp_dropout_rate"),
    *("dropout_shared_along_length", "dropout_after_final_norm"),
)


def check_same_logits(first: Model, second: Model, *, tolerance: float = 1e-5) -> None:
    """Check that two models are the same.

    Both sets of weights are run with the second configuration in float32, on two short rows of
    random tokens. Settings that checkpoints do not store, such as the capacity of experts, are
    taken from the first.

    Args:
        first: Configuration and weights of the original.
        second: Configuration and weights of the exported model that was read again.
        tolerance: Largest norm of the difference of the logits, relative to their norm.

    Raises:
        ConfigError: Configurations or logits differ.
    """
    if different := differences(first[0], second[0]):
        raise ConfigError(f"the exported model has another configuration: {', '.join(different)}")
    config = dataclasses.replace(second[0], moe=first[0].moe, dtype="float32")
    graphdef, batch = abstract_model(config)[0], _short_text(config)
    forward = jax.jit(lambda params: bind(graphdef, params)(batch).logits)
    expected, actual = (np.asarray(forward(params)) for _, params in (first, second))
    error = np.linalg.norm(expected - actual) / max(np.linalg.norm(expected), 1e-30)
    if not error <= tolerance:  # so that NaN fails too
        raise ConfigError(
            f"the logits of the exported model differ by a relative error of {error:.2g}; expected "
            f"at most {tolerance:.0g}; nothing was exported"
        )


def differences(original: TransformerConfig, exported: TransformerConfig) -> list[str]:
    """Describe the settings that affect logits and differ between two configurations.

    Args:
        original: The configuration before the export.
        exported: The configuration that was read again.
    """
    before, after = logit_settings(original), logit_settings(exported)
    return [
        f"{name} would be {after[name]!r} instead of {before[name]!r}"
        for name in before
        if name in after and before[name] != after[name]
    ]


def logit_settings(config: TransformerConfig) -> dict[str, Any]:
    """Return the settings that affect logits; those of parts that the model lacks are omitted."""
    fields = dataclasses.asdict(config)
    unset = [*NOT_IN_CHECKPOINTS, "num_kv_heads"]
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
    """Return a batch of two rows of random tokens from a fixed seed, one of them padded."""
    length = min(8, config.max_positions)
    real = np.arange(length) < np.array([[length], [max(1, length - 3)]])
    rng = np.random.default_rng(0)
    batch = {}
    for side in ("encoder", "decoder"):
        tokens = rng.integers(0, config.vocab_size, real.shape)
        batch[f"{side}_input_tokens"] = jnp.asarray(np.where(real, tokens, 0), jnp.int32)
        batch[f"{side}_segment_ids"] = jnp.asarray(real, jnp.int32)
    return batch
