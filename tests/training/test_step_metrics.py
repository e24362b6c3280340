import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.training.step_metrics import fetch_metrics, pack_metrics, summarize


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


def test_packed_metrics_come_back_with_their_bits_shapes_and_types():
    made = {
        "loss": jnp.float32(1 / 3),
        "input_tokens": jnp.int32(2**31 - 1),  # more than float32 counts exactly
        "task_loss": jnp.array([1.5, jnp.nan, -0.0], jnp.float32),
        "bits/batch": jnp.array([0xFFFFFFFF, 7], jnp.uint32),
        "nothing": jnp.zeros((0, 2), jnp.float32),
    }
    step = jax.jit(pack_metrics(lambda state, batch, num_tasks: (state + batch, made)))
    state, metrics = step(1, 2)
    assert state == 3
    (found,) = fetch_metrics([metrics])
    assert list(found) == list(made)
    for name, array in made.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == np.asarray(array).tobytes()
