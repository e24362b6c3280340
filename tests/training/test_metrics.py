import jax.numpy as jnp
import pytest

from t5x_lite.training.metrics import summarize


def one_step(**numbers):
    sums = dict(loss=0, z_loss=0, correct=0, weight=0, input_tokens=0, target_tokens=0)
    return {name: jnp.float32(value) for name, value in {**sums, **numbers}.items()}


def test_a_window_is_averaged_by_target_token_and_not_by_step():
    first = dict(loss=40, z_loss=2, correct=5, weight=10, input_tokens=20, target_tokens=10)
    second = dict(loss=80, z_loss=1, correct=25, weight=50, input_tokens=40, target_tokens=50)
    window = [
        one_step(**first, learning_rate=0.1, grad_norm=1.0),
        one_step(**second, learning_rate=0.2, grad_norm=3.0),
    ]
    assert summarize(window) == pytest.approx(
        {
            "loss": 2.0,
            "z_loss": 0.05,
            "accuracy": 0.5,
            "learning_rate": 0.2,  # the latest
            "input_tokens": 60.0,  # totals
            "target_tokens": 60.0,
            "grad_norm": 2.0,  # the mean of the steps
        }
    )


def test_a_window_without_targets_divides_by_nothing():
    assert summarize([one_step(input_tokens=7, learning_rate=0.1)])["loss"] == 0.0
