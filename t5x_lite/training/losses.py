"""Token cross-entropy with z-loss and label smoothing, as sums that add up over microbatches.

The formulas are those of T5X (`t5x/losses.py`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# T5X's `SpecialLossNormalizingFactor`s: what the sum of token losses is divided by.
NORMALIZERS = ("NUM_REAL_TARGET_TOKENS", "NUM_TOTAL_TARGET_TOKENS", "AVERAGE_PER_SEQUENCE")


class LossSums(NamedTuple):
    """Weighted sums over target tokens: float32 scalars, or [tasks] if summed by task.

    Attributes:
        loss: Cross-entropy plus z-loss, in nats.
        z_loss: The part of `loss` that is z-loss.
        correct: Number of tokens that the argmax predicts.
        weight: Sum of the loss weights, the number of target tokens where weights are 0 and 1.
    """

    loss: jax.Array
    z_loss: jax.Array
    correct: jax.Array
    weight: jax.Array


class TokenLossConfig(NamedTuple):
    """Settings of the token loss; hashable, so that it can be a static argument.

    Attributes:
        z_loss: Coefficient of (log Z)²; T5X trains T5 with 1e-4.
        label_smoothing: ε, in [0, 1): probability mass that is moved from the target token to all
            others.
    """

    z_loss: float = 0.0
    label_smoothing: float = 0.0


@jax.named_scope("loss")
def normalize_weights(
    weights_bl: jax.Array, segments_bl: jax.Array | None, normalizer: float | str | None
) -> jax.Array:
    """Divide loss weights by a normalizer, so that the objective is sum(weights * token losses).

    Args:
        weights_bl: Loss weights, float32 [batch, length].
        segments_bl: Segment ids of packed rows [batch, length]; None if a row is one example. Only
            "AVERAGE_PER_SEQUENCE" uses them.
        normalizer: None keeps the weights. A number divides them by that constant.
            "NUM_REAL_TARGET_TOKENS" divides by the sum of the weights, at least 1.
            "NUM_TOTAL_TARGET_TOKENS" divides by batch * length, padding included.
            "AVERAGE_PER_SEQUENCE" averages over the tokens of each example first, then over
            examples, so that short examples count as much as long ones.

    Returns:
        Normalized weights, float32 [batch, length].
    """
    if normalizer is None:
        return weights_bl
    if not isinstance(normalizer, str):
        return weights_bl / normalizer
    if normalizer == "NUM_TOTAL_TARGET_TOKENS":
        return weights_bl / weights_bl.size
    if normalizer == "AVERAGE_PER_SEQUENCE":
        if segments_bl is None:
            segments_bl = jnp.zeros(weights_bl.shape, jnp.int32)
        # Each token's weight is divided by the sum of the weights of its own example.
        same_bll = segments_bl[:, :, None] == segments_bl[:, None, :]
        example_sum_bl = jnp.sum(jnp.where(same_bll, weights_bl[:, None, :], 0.0), axis=2)
        weights_bl = jnp.where(example_sum_bl > 0, weights_bl / example_sum_bl, 0.0)
    return weights_bl / jnp.maximum(jnp.sum(weights_bl), 1.0)


def cross_entropy(
    logits_blv: jax.Array,
    targets_bl: jax.Array,
    weights_bl: jax.Array,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    num_tasks: int = 0,
    tasks_bl: jax.Array | None = None,
) -> LossSums:
    """Sum over tokens of weight * (cross-entropy + z_loss * (log Z)²), in nats.

    Z is the sum of exp(logits); the z-loss keeps logits from drifting away from 0. With label
    smoothing ε the target distribution has 1 - ε on the target token and ε / (V - 1) on every other
    one, and its entropy is subtracted, so that a perfect fit has loss 0 (as in T5X).

    Args:
        logits_blv: Logits [batch, length, vocab], of any float type; computed in float32.
        targets_bl: Target token ids [batch, length].
        weights_bl: Loss weights [batch, length]; 0 for padding.
        z_loss: Coefficient of the z-loss.
        label_smoothing: ε of label smoothing.
        num_tasks: Sum separately for each of this many tasks; 0 sums over all tokens.
        tasks_bl: Task index of each token [batch, length], needed if `num_tasks` is set.

    Returns:
        Weighted sums. A token counts as correct if no other id has a higher logit.
    """
    logits_blv = logits_blv.astype(jnp.float32)
    stats = LogitStats(
        target=jnp.take_along_axis(logits_blv, targets_bl[..., None], axis=-1)[..., 0],
        log_z=jax.nn.logsumexp(logits_blv, axis=-1),
        max=jnp.max(logits_blv, axis=-1),
        sum=jnp.sum(logits_blv, axis=-1),
    )
    losses = token_losses(stats, TokenLossConfig(z_loss, label_smoothing), logits_blv.shape[-1])
    return sum_losses(losses, weights_bl, num_tasks, tasks_bl)


class LogitStats(NamedTuple):
    """Statistics of each token's logits that determine its loss, so that logits can be dropped.

    Attributes:
        target: Logit of the target token.
        log_z: log(sum(exp(logits))).
        max: Largest logit.
        sum: Sum of all logits; only label smoothing uses it.
    """

    target: jax.Array
    log_z: jax.Array
    max: jax.Array
    sum: jax.Array


class TokenLosses(NamedTuple):
    """Unweighted losses of each token.

    Attributes:
        loss: Cross-entropy plus z-loss, in nats.
        z_loss: The part of `loss` that is z-loss.
        correct: bool, whether no other id has a higher logit than the target.
    """

    loss: jax.Array
    z_loss: jax.Array
    correct: jax.Array


def token_losses(stats: LogitStats, config: TokenLossConfig, vocab_size: int) -> TokenLosses:
    """Compute the loss of each token by the formula of `cross_entropy`.

    Args:
        stats: Statistics of the logits, arrays of any one shape.
        config: z-loss and label smoothing.
        vocab_size: Number of logits of a token.

    Returns:
        Losses of the same shape.
    """
    loss = stats.log_z - stats.target
    if config.label_smoothing:
        on, off = smoothed_targets(config, vocab_size)
        # -log p summed over the other tokens: V * log Z - sum(logits), less the target's -log p.
        others = vocab_size * stats.log_z - stats.sum - loss
        entropy = -(on * jnp.log(on) + (vocab_size - 1) * off * jnp.log(off))
        loss = on * loss + off * others - entropy
    z_loss = config.z_loss * jnp.square(stats.log_z)
    return TokenLosses(loss + z_loss, z_loss, stats.target >= stats.max)


def smoothed_targets(config: TokenLossConfig, vocab_size: int) -> tuple[float, float]:
    """Return the target probabilities of the target token and of every other token.

    Args:
        config: Its `label_smoothing` is ε.
        vocab_size: V.

    Returns:
        (1 - ε, ε / (V - 1)).
    """
    return 1.0 - config.label_smoothing, config.label_smoothing / (vocab_size - 1)


def sum_losses(
    losses: TokenLosses, weights: jax.Array, num_tasks: int = 0, tasks: jax.Array | None = None
) -> LossSums:
    """Weight token losses and sum them, over all tokens or by task.

    Args:
        losses: Losses of tokens, arrays of any one shape.
        weights: Loss weights of that shape.
        num_tasks: Number of tasks; 0 sums over all tokens.
        tasks: Task index of each token, of that shape.

    Returns:
        Scalars, or arrays [num_tasks].
    """
    if not num_tasks or tasks is None:
        return LossSums(*(jnp.sum(x * weights) for x in losses), weight=jnp.sum(weights))
    weights_nt = jnp.where(tasks[..., None] == jnp.arange(num_tasks), weights[..., None], 0.0)
    token_axes = tuple(range(tasks.ndim))
    sums = (jnp.sum(x[..., None] * weights_nt, axis=token_axes) for x in losses)
    return LossSums(*sums, weight=jnp.sum(weights_nt, axis=token_axes))
