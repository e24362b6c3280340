"""Token cross-entropy with z-loss and label smoothing, as sums that add up over microbatches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class LossSums(NamedTuple):
    """Sums over the weighted target tokens, float32 scalars; `loss` already contains `z_loss`."""

    loss: jax.Array
    z_loss: jax.Array
    correct: jax.Array
    weight: jax.Array


def cross_entropy(
    logits_blv: jax.Array,
    targets_bl: jax.Array,
    weights_bl: jax.Array,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> LossSums:
    """Sum over tokens of weight * (cross-entropy + z_loss * (log Z)²), in nats.

    Z is the sum of exp(logits); its term keeps logits from drifting (T5X uses 1e-4 with T5). With
    label smoothing ε the true token has 1 - ε and every other ε / (V - 1), and the entropy of that
    distribution is subtracted, so that a perfect fit has loss 0 (T5X).
    """
    logits_blv = logits_blv.astype(jnp.float32)
    log_z_bl = jax.nn.logsumexp(logits_blv, axis=-1)
    true_bl = jnp.take_along_axis(logits_blv, targets_bl[..., None], axis=-1)[..., 0]
    loss_bl = log_z_bl - true_bl
    if label_smoothing:
        vocab_size = logits_blv.shape[-1]
        on, off = 1.0 - label_smoothing, label_smoothing / (vocab_size - 1)
        others_bl = vocab_size * log_z_bl - jnp.sum(logits_blv, axis=-1) - loss_bl
        entropy = -(on * jnp.log(on) + (vocab_size - 1) * off * jnp.log(off))
        loss_bl = on * loss_bl + off * others_bl - entropy
    z_loss_bl = z_loss * jnp.square(log_z_bl)
    correct_bl = jnp.argmax(logits_blv, axis=-1) == targets_bl
    return LossSums(
        loss=jnp.sum((loss_bl + z_loss_bl) * weights_bl),
        z_loss=jnp.sum(z_loss_bl * weights_bl),
        correct=jnp.sum(correct_bl * weights_bl),
        weight=jnp.sum(weights_bl),
    )
