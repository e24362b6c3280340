"""The pure step: (state, batch) -> (state, metrics)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.errors import require_field
from t5x_lite.models.transformer import Predictions, bind
from t5x_lite.partitioning import shard
from t5x_lite.training.chunked_loss import OutputForm, chunked_cross_entropy
from t5x_lite.training.losses import NORMALIZERS, LossSums, TokenLoss, cross_entropy, shares
from t5x_lite.training.optimizers import Optimizer
from t5x_lite.training.schedules import Schedule
from t5x_lite.training.state import TrainState
from t5x_lite.training.step_metrics import norms
from t5x_lite.tree_paths import flat, joined, without

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
_SHARES = "loss_shares"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """What is minimized: the sum of token losses over a normalizer.

    z_loss: weight of (log Z)². loss_normalizing_factor: a constant (T5's is batch size times target
    length), None for the plain sum, or one of T5X's names: "NUM_REAL_TARGET_TOKENS",
    "NUM_TOTAL_TARGET_TOKENS", "AVERAGE_PER_SEQUENCE".
    logits_chunk: the logits of so many tokens a device are in memory at once; None keeps them all.
    """

    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    loss_normalizing_factor: float | str | None = "NUM_REAL_TARGET_TOKENS"
    logits_chunk: int | None = 1024

    def __post_init__(self):
        factor, chunk = self.loss_normalizing_factor, self.logits_chunk
        valid = factor in NORMALIZERS if isinstance(factor, str) else factor is None or factor > 0
        expected = f"None, a positive number or one of {NORMALIZERS}"
        require_field(self, "loss_normalizing_factor", valid, expected)
        require_field(self, "label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)")
        require_field(self, "logits_chunk", chunk is None or chunk >= 1, "None or positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """How a batch becomes new weights.

    microbatches: the batch is worked through in so many parts, whose gradients are added up.
    clip_norm: gradients are scaled down to this global norm; None leaves them (T5).
    skip_nonfinite: a step whose gradient or loss is not finite leaves weights and optimizer as they
        were, and is counted in the state.
    ema_decay: keep a moving average of the weights, average = decay * average + (1 - decay) *
        weights, which evaluation then uses; None keeps none.
    offload_optimizer: between steps the optimizer's state lies in pinned memory of the host.
    """

    microbatches: int = 1
    clip_norm: float | None = None
    skip_nonfinite: bool = True
    ema_decay: float | None = None
    offload_optimizer: bool = False

    def __post_init__(self):
        require_field(self, "microbatches", self.microbatches >= 1, "1 or more")
        valid = self.clip_norm is None or self.clip_norm > 0
        require_field(self, "clip_norm", valid, "None or positive")
        valid = self.ema_decay is None or 0 < self.ema_decay < 1
        require_field(self, "ema_decay", valid, "None or in (0, 1)")


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: Optimizer,
    schedule: Schedule,
    loss: Loss,
    update: Update = Update(),
    *,
    seed: int,
    optimizer_memory: Any = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The update as a pure function, to be jitted with the state donated.

    Dropout's key is a function of seed and step, so a step gives the same result whenever run.
    optimizer_memory: where on the devices the optimizer's state is worked on, if it lives elsewhere
    between steps (a tree of shardings).

    A static third argument asks for the sums of so many tasks as well, [tasks] each, of batches
    whose "task_ids" say of which task each target token is.
    """

    def train_step(
        state: TrainState, batch: Batch, num_tasks: int = 0
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, sums, extra = _gradients(
            graphdef, loss, update, state.params, optimizer.frozen, batch, key, num_tasks
        )
        grads = optimizer.trained(grads, state.step)
        grad_norms = norms("grad_norm", grads)
        grad_norm = grad_norms["grad_norm"]
        finite = jnp.isfinite(grad_norm) & jnp.isfinite(jnp.sum(sums.loss))
        if update.clip_norm is not None:
            shrink = jnp.minimum(1.0, update.clip_norm / grad_norm)
            grads = jax.tree.map(lambda g: g * shrink, grads)
        rate = schedule(state.step)
        before = state.opt_state
        if optimizer_memory is not None:
            before = jax.device_put(before, optimizer_memory)
        with jax.named_scope("optimizer"):  # `planning.costs` finds the parts by these names
            params, opt_state = optimizer.update(grads, before, state.params, state.step, rate)
        skipped = state.skipped
        average = _moving_average(state.average, params, optimizer.frozen, update.ema_decay)
        if update.skip_nonfinite:
            keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
            params, opt_state, average = jax.tree.map(
                keep, (params, opt_state, average), (state.params, before, state.average)
            )
            sums = jax.tree.map(lambda x: jnp.where(finite, x, 0.0), sums)
            skipped += 1 - finite.astype(jnp.int32)
        change = jax.tree.map(jnp.subtract, params, state.params)
        metrics = {
            **jax.tree.map(jnp.sum, sums)._asdict(),
            **extra,
            **grad_norms,
            **norms("param_norm", params),
            **norms("update_norm", change),
            **(_of_tasks(sums) if num_tasks else {}),
            "learning_rate": rate,
            "skipped_steps": skipped,
            **_real_tokens(batch),
        }
        return TrainState(state.step + 1, params, opt_state, skipped, average), metrics

    return train_step


def make_eval_step(graphdef: nnx.GraphDef) -> Callable[..., LossSums]:
    """Plain cross-entropy sums of a batch, without dropout, z-loss or smoothing."""

    def eval_step(params, batch: Batch) -> LossSums:
        return _losses(bind(graphdef, params)(batch), batch, Loss(z_loss=0.0))[1]

    return eval_step


def _of_tasks(sums: LossSums) -> Metrics:
    """What is told of each task, [tasks]."""
    return {f"task_{name}": getattr(sums, name) for name in ("loss", "correct", "weight")}


def _gradients(
    graphdef, loss: Loss, update: Update, params, frozen, batch: Batch, key, num_tasks: int
):
    """Gradient, sums and extra losses of a batch, whole or in microbatches.

    There is none of the weights whose paths are in `frozen`.
    """
    part, items = in_parts(graphdef, loss, update, params, frozen, batch, key, num_tasks)
    if update.microbatches == 1:
        return part(*items)

    def body(total, item):
        return jax.tree.map(jnp.add, total, part(*item)), None

    shapes = jax.eval_shape(part, *jax.tree.map(lambda x: x[0], items))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(body, zeros, items)[0]


def in_parts(
    graphdef, loss: Loss, update: Update, params, frozen, batch: Batch, key, num_tasks: int = 0
) -> tuple[Callable[..., tuple[Any, LossSums, Metrics]], tuple[Any, Any]]:
    """What differentiates a part of a batch, and the parts: batches and dropout's keys.

    The former takes a batch and a key and returns gradient, sums and extra losses, which add up
    over the parts. The latter have a leading axis if there are several.
    """
    kept = {path: leaf for path, leaf in flat(params).items() if path in frozen}
    trained = without(params, frozen)
    side = _side(batch)
    segments_bl = batch.get(f"{side}_segment_ids")
    weights_bl = batch[f"{side}_loss_weights"]
    batch = {**batch, _SHARES: shares(weights_bl, segments_bl, loss.loss_normalizing_factor)}
    parts = update.microbatches

    def objective(trained, batch, key):
        predictions = bind(graphdef, joined(trained, kept))(batch, key=key)
        value, sums = _losses(predictions, batch, loss, num_tasks)
        extra = jax.tree.map(lambda x: x / parts, _extra_losses(predictions, batch))
        return value + sum(extra.values()), (sums, extra)

    def part(batch, key):
        grads, (sums, extra) = jax.grad(objective, has_aux=True)(trained, batch, key)
        return grads, sums, extra

    if parts == 1:
        return part, (batch, key)
    batches = jax.tree.map(lambda x: _split_rows(x, parts), batch)
    return part, (batches, jax.random.split(key, parts))


def _split_rows(x: jax.Array, parts: int) -> jax.Array:
    """[rows, ...] as [parts, rows / parts, ...], every device keeping rows that it has."""
    x = jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)
    return shard(x, None, "batch", *("length",)[: x.ndim - 2], *(None,) * (x.ndim - 3))


@jax.named_scope("loss")
def _losses(
    predictions: Predictions, batch: Batch, loss: Loss, num_tasks: int = 0
) -> tuple[jax.Array, LossSums]:
    """What is to be minimized, and sums over tokens or a task's, of a batch or a part of it."""
    side = _side(batch)
    targets_bl, weights_bl = batch[f"{side}_target_tokens"], batch[f"{side}_loss_weights"]
    shares_bl = batch.get(_SHARES, weights_bl)
    tasks_bl = batch.get("task_ids")
    wanted = TokenLoss(loss.z_loss, loss.label_smoothing)
    if loss.logits_chunk is None:
        logits_blv = predictions.logits
        value = cross_entropy(logits_blv, targets_bl, shares_bl, **wanted._asdict()).loss
        return value, cross_entropy(
            logits_blv,
            targets_bl,
            weights_bl,
            **wanted._asdict(),
            num_tasks=num_tasks,
            tasks_bl=tasks_bl,
        )
    output = predictions.output
    return chunked_cross_entropy(
        predictions.hidden,
        output.kernel,
        output.bias,
        targets_bl,
        weights_bl,
        shares_bl,
        tasks_bl,
        form=OutputForm(output.vocab_first, output.scale),
        wanted=wanted,
        chunk=loss.logits_chunk,
        num_tasks=num_tasks,
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


def _moving_average(average: Any, params: Any, frozen, decay: float | None) -> Any:
    if decay is None:
        return average
    kept = {path: leaf for path, leaf in flat(average).items() if path in frozen}
    average, params = without(average, frozen), without(params, frozen)
    moved = jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p, average, params)
    return joined(moved, kept)


def _side(batch: Batch) -> str:
    """Which side's targets are predicted."""
    return "decoder" if "decoder_target_tokens" in batch else "encoder"


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
