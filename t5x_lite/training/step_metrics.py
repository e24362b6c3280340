"""Step metrics stay on the devices until a line is due; then a window of them becomes numbers."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Metrics that add up over steps, and those of which the latest counts; the others are averaged.
_SUMS = ("loss", "z_loss", "correct", "weight", "input_tokens", "target_tokens")
_LATEST = ("learning_rate", "skipped_steps")
BITS = "bits/"  # begins the names of fingerprints, which are no numbers to average
_OF_TASKS = ("task_loss", "task_correct", "task_weight")  # sums of each task, [tasks]

Step = Callable[..., tuple[Any, dict[str, jax.Array]]]
Shapes = tuple[tuple[str, tuple[int, ...], str], ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """All metrics of a step as the words of one array: [words], uint32.

    Thirty scalars cost a launch and a fetch each; a small model's step takes no longer than that.
    shapes: name, shape and type of each metric, one after the other; every element is 4 bytes.
    """

    words: jax.Array
    shapes: Shapes = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, metrics: Mapping[str, jax.Array]) -> "Packed":
        """Pack; to be traced."""
        arrays = {name: jnp.asarray(x) for name, x in metrics.items()}
        words = [jax.lax.bitcast_convert_type(x, jnp.uint32).ravel() for x in arrays.values()]
        shapes = tuple((name, x.shape, x.dtype.name) for name, x in arrays.items())
        return cls(jnp.concatenate(words), shapes)

    def fetched(self) -> dict[str, np.ndarray]:
        """The metrics by name, in memory of this host; waits for the step."""
        words, found, start = np.asarray(self.words), {}, 0
        for name, shape, dtype in self.shapes:
            end = start + math.prod(shape)
            found[name] = words[start:end].view(dtype).reshape(shape)
            start = end
        return found


def packed(step: Step) -> Callable[..., tuple[Any, Packed]]:
    """A training step whose metrics come in one piece."""

    def with_packed(state: Any, batch: Any, num_tasks: int = 0) -> tuple[Any, Packed]:
        state, metrics = step(state, batch, num_tasks)
        return state, Packed.of(metrics)

    return with_packed


def fetch(window: Sequence[Packed]) -> list[dict[str, np.ndarray]]:
    """The metrics of some steps, all on their way to this host at once."""
    for metrics in window:
        metrics.words.copy_to_host_async()
    return [metrics.fetched() for metrics in window]


def global_norm(tree: Any) -> jax.Array:
    """Root of the sum of all squares of all arrays of a tree, in float32."""
    return jnp.sqrt(_sum_of_squares(tree))


@jax.named_scope("metrics")
def norms(name: str, tree: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The norm of all weights, and of each part of the model: name/encoder, name/decoder ..."""
    squares = {part: _sum_of_squares(below) for part, below in tree.items()}
    total = jnp.sqrt(jnp.sum(jnp.stack(list(squares.values()))))
    return {name: total, **{f"{name}/{part}": jnp.sqrt(x) for part, x in squares.items()}}


def _sum_of_squares(tree: Any) -> jax.Array:
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]
    return jnp.sum(jnp.stack(squares))


def summarize(window: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Numbers of a window of steps: per target token where that makes sense.

    Returns loss and z_loss (nats per target token), accuracy, learning_rate and skipped_steps as
    they are now, the mean of every other metric, and the totals of real positions, `input_tokens`
    and `target_tokens`.
    """
    total = {name: float(np.sum([m[name] for m in window], dtype=np.float64)) for name in _SUMS}
    weight = max(total["weight"], 1.0)
    means = {
        name: float(np.mean([m[name] for m in window]))
        for name in window[-1]
        if name not in _SUMS + _LATEST + _OF_TASKS and not name.startswith(BITS)
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
    """Loss, accuracy and number of target tokens of each task that a window of steps met.

    `names` are the tasks in the order of the metrics; without any there is nothing to tell.
    """
    if not names:
        return {}
    of_tasks_nt = [np.array([m[name] for m in window], np.float64) for name in _OF_TASKS]
    loss_t, correct_t, weight_t = (np.sum(x_nt, axis=0).tolist() for x_nt in of_tasks_nt)
    return {
        name: {"loss": loss / weight, "accuracy": correct / weight, "tokens": weight}
        for name, loss, correct, weight in zip(names, loss_t, correct_t, weight_t, strict=True)
        if weight
    }
