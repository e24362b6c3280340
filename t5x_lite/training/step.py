"""The pure step: (state, batch) -> (state, metrics)."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.errors import ConfigError
from t5x_lite.models.transformer import Predictions, bind
from t5x_lite.training.losses import LossSums, cross_entropy
from t5x_lite.training.optimizers import Optimizer
from t5x_lite.training.schedules import Schedule
from t5x_lite.training.state import TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """What is minimised: the sum of token losses over a normalizer.

    z_loss: weight of (log Z)². loss_normalizing_factor: a constant (T5's is batch size times target
    length), or None for the number of real target tokens of the batch.
    clip_norm: gradients are scaled down to this global norm; None leaves them (T5).
    """

    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    loss_normalizing_factor: float | None = None
    clip_norm: float | None = None

    def __post_init__(self):
        for name in ("loss_normalizing_factor", "clip_norm"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} must be None or positive; got {value}", f"Loss.{name}")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                f"label_smoothing must be in [0, 1); got {self.label_smoothing}",
                "Loss.label_smoothing",
            )


def make_train_step(
    graphdef: nnx.GraphDef, optimizer: Optimizer, schedule: Schedule, loss: Loss, *, seed: int
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The update as a pure function, to be jitted with the state donated.

    Dropout's key is a function of seed and step, so a step gives the same result whenever run.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def objective(params):
            predictions = bind(graphdef, params)(batch, key=key)
            sums = _sums(predictions.logits, batch, loss)
            normalizer = loss.loss_normalizing_factor or jnp.maximum(sums.weight, 1.0)
            extra = _extra_losses(predictions, batch)
            return sums.loss / normalizer + sum(extra.values()), (sums, extra)

        grads, (sums, extra) = jax.grad(objective, has_aux=True)(state.params)
        grad_norm = global_norm(grads)
        if loss.clip_norm is not None:
            shrink = jnp.minimum(1.0, loss.clip_norm / grad_norm)
            grads = jax.tree.map(lambda g: g * shrink, grads)
        rate = schedule(state.step)
        params, opt_state = optimizer.update(grads, state.opt_state, state.params, state.step, rate)
        metrics = {
            **sums._asdict(),
            **extra,
            "learning_rate": rate,
            "grad_norm": grad_norm,
            "param_norm": global_norm(params),
            **_real_tokens(batch),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def make_eval_step(graphdef: nnx.GraphDef) -> Callable[..., LossSums]:
    """Plain cross-entropy sums of a batch, without dropout, z-loss or smoothing."""

    def eval_step(params, batch: Batch) -> LossSums:
        return _sums(bind(graphdef, params)(batch).logits, batch, Loss(z_loss=0.0))

    return eval_step


def global_norm(tree) -> jax.Array:
    """Root of the sum of all squares of all arrays of a tree, in float32."""
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(jnp.sum(jnp.stack(squares)))


def _sums(logits_blv: jax.Array, batch: Batch, loss: Loss) -> LossSums:
    side = "decoder" if "decoder_target_tokens" in batch else "encoder"
    return cross_entropy(
        logits_blv,
        batch[f"{side}_target_tokens"],
        batch[f"{side}_loss_weights"],
        z_loss=loss.z_loss,
        label_smoothing=loss.label_smoothing,
    )


def _extra_losses(predictions: Predictions, batch: Batch) -> Metrics:
    """What some families add to the loss per token: routers' losses, next-sentence prediction."""
    extra: Metrics = {}
    if predictions.router is not None:
        extra["router_load_balance"] = predictions.router.load_balance
        extra["router_z_loss"] = predictions.router.z_loss
    if predictions.next_sentence is not None and "next_sentence_labels" in batch:
        log_b2 = jax.nn.log_softmax(predictions.next_sentence)
        labels_b1 = batch["next_sentence_labels"][:, None]
        extra["next_sentence_loss"] = -jnp.mean(jnp.take_along_axis(log_b2, labels_b1, axis=1))
    return extra


def _real_tokens(batch: Batch) -> Metrics:
    """How many positions of either side are not padding; a decoder's text counts as targets."""
    real = {}
    for name, side, tokens in (
        ("input_tokens", "encoder", "input_tokens"),
        ("target_tokens", "decoder", "target_tokens"),
    ):
        real[name] = jnp.zeros((), jnp.int32)
        if f"{side}_{tokens}" in batch:
            used = batch.get(f"{side}_segment_ids", batch[f"{side}_{tokens}"])
            real[name] = jnp.sum(used > 0)
    return real
