"""Token cross-entropy with z-loss and label smoothing, as sums that add up over microbatches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# T5X's names for what a sum of token losses is divided by, besides None and a constant.
NORMALIZERS = ("NUM_REAL_TARGET_TOKENS", "NUM_TOTAL_TARGET_TOKENS", "AVERAGE_PER_SEQUENCE")


class LossSums(NamedTuple):
    """Sums over the weighted target tokens; `loss` already contains `z_loss`.

    float32 scalars, or [tasks] where tokens are told apart by task.
    """

    loss: jax.Array
    z_loss: jax.Array
    correct: jax.Array
    weight: jax.Array


class TokenLoss(NamedTuple):
    """What is asked of every token; hashable, so that it can shape a compiled program."""

    z_loss: float = 0.0
    label_smoothing: float = 0.0


@jax.named_scope("loss")
def shares(
    weights_bl: jax.Array, segments_bl: jax.Array | None, normalizer: float | str | None
) -> jax.Array:
    """How much the loss of each token counts in the objective: weights over a normalizer.

    None: the weights themselves. "AVERAGE_PER_SEQUENCE": every sequence counts the same, and so
    does every example of a packed row, however long it is.
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
        same_bll = segments_bl[:, :, None] == segments_bl[:, None, :]
        of_sequence_bl = jnp.sum(jnp.where(same_bll, weights_bl[:, None, :], 0.0), axis=2)
        weights_bl = jnp.where(of_sequence_bl > 0, weights_bl / of_sequence_bl, 0.0)
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

    Z is the sum of exp(logits); its term keeps logits from drifting (T5X uses 1e-4 with T5). With
    label smoothing ε the true token has 1 - ε and every other ε / (V - 1), and the entropy of that
    distribution is subtracted, so that a perfect fit has loss 0 (T5X). A token counts as correct if
    no other id scores higher.
    """
    logits_blv = logits_blv.astype(jnp.float32)
    scores = Scores(
        true=jnp.take_along_axis(logits_blv, targets_bl[..., None], axis=-1)[..., 0],
        log_z=jax.nn.logsumexp(logits_blv, axis=-1),
        highest=jnp.max(logits_blv, axis=-1),
        total=jnp.sum(logits_blv, axis=-1),
    )
    wanted = TokenLoss(z_loss, label_smoothing)
    losses = token_losses(scores, wanted, logits_blv.shape[-1])
    return summed(losses, weights_bl, num_tasks, tasks_bl)


class Scores(NamedTuple):
    """What a token's loss needs of its logits; log_z is log(sum(exp(logits)))."""

    true: jax.Array
    log_z: jax.Array
    highest: jax.Array
    total: jax.Array  # the sum of all; only label smoothing looks at it


class TokenLosses(NamedTuple):
    """Of every token: loss (with its z-loss), z-loss, and whether no id beats the true one."""

    loss: jax.Array
    z_loss: jax.Array
    correct: jax.Array


def token_losses(scores: Scores, wanted: TokenLoss, vocab_size: int) -> TokenLosses:
    """The losses of tokens, by what `cross_entropy` says."""
    loss = scores.log_z - scores.true
    if wanted.label_smoothing:
        on, off = smooth(wanted, vocab_size)
        others = vocab_size * scores.log_z - scores.total - loss
        entropy = -(on * jnp.log(on) + (vocab_size - 1) * off * jnp.log(off))
        loss = on * loss + off * others - entropy
    z_loss = wanted.z_loss * jnp.square(scores.log_z)
    return TokenLosses(loss + z_loss, z_loss, scores.true >= scores.highest)


def smooth(wanted: TokenLoss, vocab_size: int) -> tuple[float, float]:
    """What is wanted of the true token, and of every other."""
    return 1.0 - wanted.label_smoothing, wanted.label_smoothing / (vocab_size - 1)


def summed(
    losses: TokenLosses, weights: jax.Array, num_tasks: int = 0, tasks: jax.Array | None = None
) -> LossSums:
    """Weighted sums over all tokens, or over those of each task: `tasks` are their numbers."""
    if not num_tasks or tasks is None:
        return LossSums(*(jnp.sum(x * weights) for x in losses), weight=jnp.sum(weights))
    weights_nt = jnp.where(tasks[..., None] == jnp.arange(num_tasks), weights[..., None], 0.0)
    over = tuple(range(tasks.ndim))
    sums = (jnp.sum(x[..., None] * weights_nt, axis=over) for x in losses)
    return LossSums(*sums, weight=jnp.sum(weights_nt, axis=over))
