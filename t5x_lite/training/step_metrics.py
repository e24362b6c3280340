"""Metrics of training steps: packed on the devices, fetched for a window of steps, averaged.

Metrics stay on the devices until a log line is due. Fetching them after every step would make the
host wait for the step before it could dispatch the next one.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Metrics that are summed over a window, and those whose last value counts; others are averaged.
_SUMS = ("loss", "z_loss", "correct", "weight", "input_tokens", "target_tokens")
_LATEST = ("learning_rate", "skipped_steps")
FINGERPRINT_PREFIX = "bits/"  # of the names of `bit_fingerprints`, which are not averaged
_TASK_SUMS = ("task_loss", "task_correct", "task_weight")  # sums by task, [tasks] each

Step = Callable[..., tuple[Any, dict[str, jax.Array]]]
Shapes = tuple[tuple[str, tuple[int, ...], str], ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedMetrics:
    """All metrics of a step in one array, so that one transfer fetches them.

    Thirty scalars would cost a transfer each, which together take as long as a small model's step.

    Attributes:
        words: uint32 [words], the bits of all metrics one after another; every element of a metric
            has 4 bytes.
        shapes: Name, shape and dtype of each metric in the order of `words`.
    """

    words: jax.Array
    shapes: Shapes = dataclasses.field(metadata={"static": True})

    @classmethod
    def pack(cls, metrics: Mapping[str, jax.Array]) -> "PackedMetrics":
        """Pack metrics; runs inside the jitted step.

        Args:
            metrics: Arrays of 4-byte types, by name.
        """
        arrays = {name: jnp.asarray(x) for name, x in metrics.items()}
        words = [jax.lax.bitcast_convert_type(x, jnp.uint32).ravel() for x in arrays.values()]
        shapes = tuple((name, x.shape, x.dtype.name) for name, x in arrays.items())
        return cls(jnp.concatenate(words), shapes)

    def unpack(self) -> dict[str, np.ndarray]:
        """Return the metrics by name as NumPy arrays; blocks until the step has finished."""
        words, metrics, start = np.asarray(self.words), {}, 0
        for name, shape, dtype in self.shapes:
            end = start + math.prod(shape)
            metrics[name] = words[start:end].view(dtype).reshape(shape)
            start = end
        return metrics


def pack_metrics(step: Step) -> Callable[..., tuple[Any, PackedMetrics]]:
    """Wrap a training step so that it returns `PackedMetrics`.

    Args:
        step: A function (state, batch, num_tasks) -> (state, metrics).
    """

    def packed_step(state: Any, batch: Any, num_tasks: int = 0) -> tuple[Any, PackedMetrics]:
        state, metrics = step(state, batch, num_tasks)
        return state, PackedMetrics.pack(metrics)

    return packed_step


def fetch_metrics(window: Sequence[PackedMetrics]) -> list[dict[str, np.ndarray]]:
    """Fetch the metrics of several steps with concurrent transfers.

    Args:
        window: Metrics of consecutive steps.

    Returns:
        Metrics by name for each step.
    """
    for metrics in window:
        metrics.words.copy_to_host_async()
    return [metrics.unpack() for metrics in window]


def global_norm(tree: Any) -> jax.Array:
    """Return the L2 norm of all arrays of a tree together, computed in float32."""
    return jnp.sqrt(_sum_of_squares(tree))


@jax.named_scope("metrics")
def norms_by_part(name: str, tree: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Return the L2 norm of a tree and of each of its top-level subtrees.

    Args:
        name: Name of the metric, such as "grad_norm".
        tree: Arrays in the structure of the weights.

    Returns:
        `name` for the whole tree and `name/encoder`, `name/decoder`, ... for its parts.
    """
    squares = {part: _sum_of_squares(subtree) for part, subtree in tree.items()}
    total = jnp.sqrt(jnp.sum(jnp.stack(list(squares.values()))))
    return {name: total, **{f"{name}/{part}": jnp.sqrt(x) for part, x in squares.items()}}


def _sum_of_squares(tree: Any) -> jax.Array:
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]
    return jnp.sum(jnp.stack(squares))


def summarize(window: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Average the metrics of a window of steps.

    Args:
        window: Metrics of consecutive steps, as `fetch_metrics` returns them.

    Returns:
        "loss" and "z_loss" in nats per target token, "accuracy" per target token, the last
        "learning_rate" and "skipped_steps", the total "input_tokens" and "target_tokens" (positions
        that are not padding), and the mean over steps of every other metric.
    """
    total = {name: float(np.sum([m[name] for m in window], dtype=np.float64)) for name in _SUMS}
    weight = max(total["weight"], 1.0)
    means = {
        name: float(np.mean([m[name] for m in window]))
        for name in window[-1]
        if name not in _SUMS + _LATEST + _TASK_SUMS and not name.startswith(FINGERPRINT_PREFIX)
    }
    return {
        "loss": total["loss"] / weight,
        "z_loss": total["z_loss"] / weight,
        "accuracy": total["correct"] / weight,
        **{name: float(window[-1][name]) for name in _LATEST if name in window[-1]},
        "input_tokens": total["input_tokens"],
        "target_tokens": total["target_tokens"],
        **means,
    }


def summarize_tasks(
    window: Sequence[Mapping[str, np.ndarray]], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Average the metrics of a window of steps for each task.

    Args:
        window: Metrics of consecutive steps, as `fetch_metrics` returns them.
        names: Names of the tasks in the order of their indices; empty if the steps have no sums by
            task.

    Returns:
        "loss" (nats per target token), "accuracy" and number of target "tokens" of each task that
        has tokens in the window.
    """
    if not names:
        return {}
    sums_st = [np.array([m[name] for m in window], np.float64) for name in _TASK_SUMS]
    loss_t, correct_t, weight_t = (np.sum(x_st, axis=0).tolist() for x_st in sums_st)
    return {
        name: {"loss": loss / weight, "accuracy": correct / weight, "tokens": weight}
        for name, loss, correct, weight in zip(names, loss_t, correct_t, weight_t, strict=True)
        if weight
    }
