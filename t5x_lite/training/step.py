"""The training step as a pure function: (state, batch) -> (state, metrics)."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.errors import require_field
from t5x_lite.models.transformer import Predictions, bind
from t5x_lite.partitioning import shard
from t5x_lite.training.chunked_loss import OutputSpec, chunked_cross_entropy
from t5x_lite.training.losses import (
    NORMALIZERS,
    LossSums,
    TokenLossConfig,
    cross_entropy,
    normalize_weights,
)
from t5x_lite.training.optimizers import Optimizer
from t5x_lite.training.schedules import Schedule
from t5x_lite.training.state import TrainState
from t5x_lite.training.step_metrics import norms_by_part
from t5x_lite.tree_paths import flatten, merge, omit

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
_NORMALIZED = "normalized_loss_weights"  # batch key: the loss weights over the normalizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """The training objective: the sum of token losses over a normalizer (`training.losses`).

    Attributes:
        z_loss: Coefficient of (log Z)²; 1e-4 is T5X's.
        label_smoothing: ε in [0, 1): probability mass moved from the target token to all others.
        loss_normalizing_factor: What the sum of the token losses is divided by. A number is a
            constant; T5X's own configurations for T5 use batch size * target length. None keeps the
            sum. "NUM_REAL_TARGET_TOKENS" is the mean over the tokens of the batch,
            "NUM_TOTAL_TARGET_TOKENS" divides by all positions, padding included, and
            "AVERAGE_PER_SEQUENCE" is the mean over examples of their mean token loss.
        logits_chunk: Number of tokens per device whose logits are in memory at once
            (`training.chunked_loss`); 1,024 keeps matrix products large. None computes the logits
            of the whole batch.
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
    """How the gradient of a batch updates the state.

    Attributes:
        microbatches: Number of parts that the batch is split into; their gradients are accumulated,
            so activations of one part are in memory at a time.
        clip_norm: Global norm that gradients are clipped to; None does not clip, as T5.
        skip_nonfinite: If the gradient or the loss is not finite, keep weights and optimizer state
            and increment `TrainState.skipped`.
        ema_decay: Decay of an exponential moving average of the weights, average = decay * average
            + (1 - decay) * weights, which evaluation then uses. None keeps no average.
        offload_optimizer: Keep the optimizer state in pinned host memory between steps.
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
    """Build the training step, to be jitted with the state donated.

    The dropout key is derived from seed and step, so repeating a step gives the same result.

    Args:
        graphdef: Graph definition of the model (`transformer.abstract_model`).
        optimizer: The optimizer, bound to the weights.
        schedule: Learning rate by step.
        loss: The objective.
        update: How gradients update the state.
        seed: Seed of the dropout keys.
        optimizer_memory: Shardings on device memory that the optimizer state is moved to for the
            update, if it is kept in host memory between steps; None if it is not.

    Returns:
        A function (state, batch, num_tasks=0) -> (state, metrics). Batches have seqio's feature
        names. With `num_tasks`, a static argument, metrics also have sums by task, [num_tasks]
        each, for which the batch needs "task_ids", the task index of each target token.
    """

    def train_step(
        state: TrainState, batch: Batch, num_tasks: int = 0
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, sums, auxiliary = _gradients(
            graphdef, loss, update, state.params, optimizer.frozen, batch, key, num_tasks
        )
        grads = optimizer.trained(grads, state.step)
        grad_norms = norms_by_part("grad_norm", grads)
        grad_norm = grad_norms["grad_norm"]
        finite = jnp.isfinite(grad_norm) & jnp.isfinite(jnp.sum(sums.loss))
        if update.clip_norm is not None:
            shrink = jnp.minimum(1.0, update.clip_norm / grad_norm)
            grads = jax.tree.map(lambda g: g * shrink, grads)
        rate = schedule(state.step)
        old_opt_state = state.opt_state
        if optimizer_memory is not None:
            old_opt_state = jax.device_put(old_opt_state, optimizer_memory)
        with jax.named_scope("optimizer"):  # `planning.costs` finds the parts by these names
            params, opt_state = optimizer.update(
                grads, old_opt_state, state.params, state.step, rate
            )
        skipped = state.skipped
        average = _moving_average(state.average, params, optimizer.frozen, update.ema_decay)
        if update.skip_nonfinite:
            select = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
            params, opt_state, average = jax.tree.map(
                select, (params, opt_state, average), (state.params, old_opt_state, state.average)
            )
            # A skipped step counts no tokens: its NaN would enter the averages that are logged.
            sums = jax.tree.map(lambda x: jnp.where(finite, x, 0.0), sums)
            skipped += 1 - finite.astype(jnp.int32)
        change = jax.tree.map(jnp.subtract, params, state.params)
        metrics = {
            **jax.tree.map(jnp.sum, sums)._asdict(),
            **auxiliary,
            **grad_norms,
            **norms_by_part("param_norm", params),
            **norms_by_part("update_norm", change),
            **(_task_metrics(sums) if num_tasks else {}),
            "learning_rate": rate,
            "skipped_steps": skipped,
            **_count_tokens(batch),
        }
        return TrainState(state.step + 1, params, opt_state, skipped, average), metrics

    return train_step


def make_eval_step(graphdef: nnx.GraphDef) -> Callable[..., LossSums]:
    """Build the evaluation step: cross-entropy without dropout, z-loss or label smoothing.

    Args:
        graphdef: Graph definition of the model (`transformer.abstract_model`).

    Returns:
        A function (params, batch) -> `LossSums`.
    """

    def eval_step(params, batch: Batch) -> LossSums:
        return _objective_and_sums(bind(graphdef, params)(batch), batch, Loss(z_loss=0.0))[1]

    return eval_step


def _task_metrics(sums: LossSums) -> Metrics:
    """Sums by task, [num_tasks] each."""
    return {f"task_{name}": getattr(sums, name) for name in ("loss", "correct", "weight")}


def _gradients(
    graphdef, loss: Loss, update: Update, params, frozen, batch: Batch, key, num_tasks: int
):
    """Compute (gradient, sums, auxiliary losses) of a batch, accumulated over microbatches.

    The gradient has no leaves for the paths in `frozen`.
    """
    gradient_fn, microbatches = split_microbatches(
        graphdef, loss, update, params, frozen, batch, key, num_tasks
    )
    if update.microbatches == 1:
        return gradient_fn(*microbatches)

    def body(total, microbatch):
        return jax.tree.map(jnp.add, total, gradient_fn(*microbatch)), None

    shapes = jax.eval_shape(gradient_fn, *jax.tree.map(lambda x: x[0], microbatches))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(body, zeros, microbatches)[0]


def split_microbatches(
    graphdef: nnx.GraphDef,
    loss: Loss,
    update: Update,
    params: Any,
    frozen: Collection[str],
    batch: Batch,
    key: jax.Array,
    num_tasks: int = 0,
) -> tuple[Callable[..., tuple[Any, LossSums, Metrics]], tuple[Any, Any]]:
    """Split a batch into microbatches and build the function that differentiates one of them.

    Loss weights are normalized over the whole batch before it is split, so that the results of all
    microbatches add up to those of the batch.

    Args:
        graphdef: Graph definition of the model.
        loss: The objective.
        update: Its `microbatches` is the number of parts.
        params: All weights.
        frozen: Paths of weights that are not differentiated.
        batch: The whole batch.
        key: Dropout key of the step.
        num_tasks: Number of tasks whose sums are separate; 0 for one sum.

    Returns:
        A function (microbatch, key) -> (gradient, sums, auxiliary losses), and its arguments: batch
        and key if there is one part, else both with a leading axis [microbatches].
    """
    frozen_params = {path: leaf for path, leaf in flatten(params).items() if path in frozen}
    trained = omit(params, frozen)
    side = _target_side(batch)
    segments_bl = batch.get(f"{side}_segment_ids")
    weights_bl = batch[f"{side}_loss_weights"]
    normalized_bl = normalize_weights(weights_bl, segments_bl, loss.loss_normalizing_factor)
    batch = {**batch, _NORMALIZED: normalized_bl}
    count = update.microbatches

    def objective(trained, batch, key):
        predictions = bind(graphdef, merge(trained, frozen_params))(batch, key=key)
        value, sums = _objective_and_sums(predictions, batch, loss, num_tasks)
        # Auxiliary losses are means over a microbatch; the mean over the batch is theirs.
        auxiliary = jax.tree.map(lambda x: x / count, _auxiliary_losses(predictions, batch))
        return value + sum(auxiliary.values()), (sums, auxiliary)

    def gradient_fn(batch, key):
        grads, (sums, auxiliary) = jax.grad(objective, has_aux=True)(trained, batch, key)
        return grads, sums, auxiliary

    if count == 1:
        return gradient_fn, (batch, key)
    batches = jax.tree.map(lambda x: _split_rows(x, count), batch)
    return gradient_fn, (batches, jax.random.split(key, count))


def _split_rows(x: jax.Array, count: int) -> jax.Array:
    """[rows, ...] -> [count, rows / count, ...] without moving rows between devices.

    Microbatch i has the rows i, i + count, i + 2 * count, ...: a device holds consecutive rows, so
    each microbatch takes the same number of rows from every device.
    """
    x = jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)
    return shard(x, None, "batch", *("length",)[: x.ndim - 2], *(None,) * (x.ndim - 3))


@jax.named_scope("loss")
def _objective_and_sums(
    predictions: Predictions, batch: Batch, loss: Loss, num_tasks: int = 0
) -> tuple[jax.Array, LossSums]:
    """Compute the objective of a (micro)batch, and its loss sums by the unnormalized weights."""
    side = _target_side(batch)
    targets_bl, weights_bl = batch[f"{side}_target_tokens"], batch[f"{side}_loss_weights"]
    normalized_bl = batch.get(_NORMALIZED, weights_bl)
    tasks_bl = batch.get("task_ids")
    config = TokenLossConfig(loss.z_loss, loss.label_smoothing)
    if loss.logits_chunk is None:
        logits_blv = predictions.logits
        value = cross_entropy(logits_blv, targets_bl, normalized_bl, **config._asdict()).loss
        return value, cross_entropy(
            logits_blv,
            targets_bl,
            weights_bl,
            **config._asdict(),
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
        normalized_bl,
        tasks_bl,
        output=OutputSpec(output.vocab_first, output.scale),
        config=config,
        chunk_size=loss.logits_chunk,
        num_tasks=num_tasks,
    )


def _auxiliary_losses(predictions: Predictions, batch: Batch) -> Metrics:
    """Losses that some models add: those of routers (MoE), next-sentence prediction (BERT)."""
    auxiliary: Metrics = {}
    if predictions.router is not None:
        auxiliary["router_load_balance"] = predictions.router.load_balance
        auxiliary["router_z_loss"] = predictions.router.z_loss
    if predictions.next_sentence is not None and "next_sentence_labels" in batch:
        log_prob_b2 = jax.nn.log_softmax(predictions.next_sentence)
        labels_b1 = batch["next_sentence_labels"][:, None]
        picked_b1 = jnp.take_along_axis(log_prob_b2, labels_b1, axis=1)
        auxiliary["next_sentence_loss"] = -jnp.mean(picked_b1)
    return auxiliary


def _moving_average(average: Any, params: Any, frozen: Collection[str], decay: float | None) -> Any:
    """Update the moving average of the weights; frozen weights need none."""
    if decay is None:
        return average
    frozen_average = {path: leaf for path, leaf in flatten(average).items() if path in frozen}
    average, params = omit(average, frozen), omit(params, frozen)
    moved = jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p, average, params)
    return merge(moved, frozen_average)


def _target_side(batch: Batch) -> str:
    """The side whose targets are predicted: "decoder", or "encoder" of an encoder-only model."""
    return "decoder" if "decoder_target_tokens" in batch else "encoder"


def _count_tokens(batch: Batch) -> Metrics:
    """Count the positions of each side that are not padding; 0 for a side the batch lacks."""
    counts = {}
    for name, side, tokens in (
        ("input_tokens", "encoder", "input_tokens"),
        ("target_tokens", "decoder", "target_tokens"),
    ):
        counts[name] = jnp.zeros((), jnp.int32)
        if f"{side}_{tokens}" in batch:
            used = batch.get(f"{side}_segment_ids", batch[f"{side}_{tokens}"])
            counts[name] = jnp.sum(used > 0)
    return counts
