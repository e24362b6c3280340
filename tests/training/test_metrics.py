import jax.numpy as jnp
import pytest

from t5x_lite.training.metrics import summarize


def one_step(**numbers):
    return {name: jnp.float32(value) for name, value in numbers.items()}


def test_a_window_is_averaged_by_target_token_and_not_by_step():
    window = [
        one_step(
            loss=40, z_loss=2, correct=5, weight=10, tokens=30, learning_rate=0.1, grad_norm=1.0
        ),
        one_step(
            loss=80, z_loss=1, correct=25, weight=50, tokens=90, learning_rate=0.2, grad_norm=3.0
        ),
    ]
    assert summarize(window) == pytest.approx(
        {
            "loss": 2.0,
            "z_loss": 0.05,
            "accuracy": 0.5,
            "learning_rate": 0.2,  # the latest
            "tokens": 120.0,  # the total
            "grad_norm": 2.0,  # the mean of the steps
        }
    )


def test_a_window_without_targets_divides_by_nothing():
    nothing = one_step(loss=0, z_loss=0, correct=0, weight=0, tokens=7, learning_rate=0.1)
    assert summarize([nothing])["loss"] == 0.0
