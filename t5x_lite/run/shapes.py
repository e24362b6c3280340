"""A batch without data: names, shapes and types of what a kind of model trains on."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from t5x_lite.data import converters
from t5x_lite.data.packing import Segments
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.transformer import abstract, bind


def batch_shapes(
    model: TransformerConfig,
    lengths: Mapping[str, int],
    rows: int,
    *,
    packed: bool,
    sharding: Any = None,
) -> dict[str, jax.ShapeDtypeStruct]:
    """What the data's converters would hand to the step, as shapes."""
    if model.encoder_only:
        shapes = _encoder_batch(model, lengths["inputs"])
    else:
        convert = (
            partial(converters.decoder_only, prefix_visible=model.prefix_attention)
            if model.decoder_only
            else converters.encoder_decoder
        )
        empty = {name: Segments.empty(1, lengths[name]) for name in ("inputs", "targets")}
        batch = convert(empty, packed=packed)
        shapes = {name: (array.shape[1:], array.dtype) for name, array in batch.items()}
    return {
        name: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }


def _encoder_batch(model: TransformerConfig, length: int) -> dict[str, tuple[tuple, Any]]:
    """BERT's batch: corrupted tokens, what they were, where the loss counts."""
    names = ("input_tokens", "target_tokens", "segment_ids", "positions")
    shapes: dict[str, tuple[tuple, Any]] = {
        f"encoder_{name}": ((length,), jnp.int32) for name in names
    }
    shapes["encoder_loss_weights"] = ((length,), jnp.float32)
    if model.num_token_types:
        shapes["encoder_token_types"] = ((length,), jnp.int32)
    return shapes


def summed_loss(model: TransformerConfig) -> Callable[[Any, Any], jax.Array]:
    """A scalar of weights and batch whose differentiation keeps what that of a loss would.

    The hidden states' side only: what the loss keeps of its logits depends on how it chunks them.
    """
    graphdef, _, _ = abstract(model)

    def loss(params: Any, batch: Any) -> jax.Array:
        return jnp.sum(bind(graphdef, params)(batch).logits)

    return loss
