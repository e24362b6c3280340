import jax
import numpy as np
import pytest

from t5x_lite.errors import ConfigError
from t5x_lite.training.schedules import Constant, InverseSquareRoot


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.01), (9_999, 0.01), (10_000, 0.01), (40_000, 0.005), (1_000_000, 0.001)],
)
def test_t5s_schedule_has_t5s_values(step, rate):
    assert float(InverseSquareRoot()(step)) == pytest.approx(rate, rel=1e-6)


def test_inverse_square_root_follows_its_closed_form():
    steps = np.arange(5_000)
    rates = InverseSquareRoot(base=0.5, warmup_steps=70)(steps)
    np.testing.assert_allclose(rates, 0.5 / np.sqrt(np.maximum(steps, 70)), rtol=1e-6)


def test_linear_warmup_rises_in_a_line_and_then_lets_go():
    steps = np.arange(500)
    rates = InverseSquareRoot(base=2.0, warmup_steps=10, linear_warmup_steps=100)(steps)
    line = np.minimum(1.0, (steps + 1) / 100)
    np.testing.assert_allclose(rates, line * 2.0 / np.sqrt(np.maximum(steps, 10)), rtol=1e-6)
    assert rates[0] > 0  # a first step with rate 0 would be wasted


def test_constant_is_constant():
    np.testing.assert_array_equal(Constant(value=0.25)(np.arange(4)), np.full(4, 0.25))


@pytest.mark.parametrize(
    "schedule",
    [InverseSquareRoot(linear_warmup_steps=100), Constant()],
    ids=lambda s: type(s).__name__,
)
def test_a_traced_step_gives_a_float32_number(schedule):
    traced = jax.jit(schedule)(np.int32(7))
    assert traced.dtype == np.float32
    assert traced.shape == ()
    assert float(traced) == pytest.approx(float(schedule(7)), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "name"), [(dict(base=0.0), "base"), (dict(warmup_steps=0), "warmup_steps")]
)
def test_impossible_schedules_are_named(changes, name):
    with pytest.raises(ConfigError, match=rf"{name} must be .* got {changes[name]}") as error:
        InverseSquareRoot(**changes)
    assert error.value.names == (f"InverseSquareRoot.{name}",)
