"""Step metrics stay on the devices until a line is due; then a window of them becomes numbers."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

# Metrics that add up over steps; the others are averaged, the learning rate is the latest.
_SUMS = ("loss", "z_loss", "correct", "weight", "input_tokens", "target_tokens")


def summarize(window: Sequence[Mapping[str, jax.Array]]) -> dict[str, float]:
    """Numbers of a window of steps: per target token where that makes sense.

    Returns loss and z_loss (nats per target token), accuracy, learning_rate, the mean of every
    other metric, and the totals of real positions, `input_tokens` and `target_tokens`. Waits for
    the steps of the window.
    """
    host = jax.device_get(list(window))
    total = {name: float(np.sum([m[name] for m in host], dtype=np.float64)) for name in _SUMS}
    weight = max(total["weight"], 1.0)
    means = {
        name: float(np.mean([m[name] for m in host]))
        for name in host[-1]
        if name not in _SUMS and name != "learning_rate"
    }
    return {
        "loss": total["loss"] / weight,
        "z_loss": total["z_loss"] / weight,
        "accuracy": total["correct"] / weight,
        "learning_rate": float(host[-1]["learning_rate"]),
        "input_tokens": total["input_tokens"],
        "target_tokens": total["target_tokens"],
        **means,
    }
