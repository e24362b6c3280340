import dataclasses

import jax
import numpy as np
import pytest

from t5x_lite.errors import ConfigError
from t5x_lite.training.schedules import (
    Constant,
    Cosine,
    Factors,
    InverseSquareRoot,
    Linear,
    WarmupStableDecay,
)


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


def test_the_studys_rate_falls_to_nothing_over_the_last_tenth():
    schedule = InverseSquareRoot(warmup_steps=10, total_steps=1000, decay_fraction=0.1)
    plain = InverseSquareRoot(warmup_steps=10)
    for step, share in [(0, 1), (900, 1), (950, 0.5), (990, 0.1), (1000, 0), (2000, 0)]:
        assert float(schedule(step)) == pytest.approx(share * float(plain(step)), rel=1e-5)


# T5X's language, each factor written down again in NumPy.
def cosine(step, w, cycle):
    return np.maximum(0, 0.5 * (1 + np.cos(np.pi * (np.maximum(0, (step - w) / cycle) % 1))))


FACTORS = {
    "constant": lambda n: np.full(n.shape, 0.5),
    "linear_warmup": lambda n: np.minimum(1, n / 70),
    "linear_decay": lambda n: 0.5 * np.minimum(n / 70, 1 + 0.01 * (70 - n)),
    "rsqrt_decay": lambda n: 1 / np.sqrt(np.maximum(n, 70)),
    "rsqrt_normalized_decay": lambda n: np.sqrt(70) / np.sqrt(np.maximum(n, 70)),
    "decay_every": lambda n: 0.01 ** (n // 40),
    "cosine_decay": lambda n: cosine(n, 70, 50),
    "constant * linear_warmup * rsqrt_decay": lambda n: (
        0.5 * np.minimum(1, n / 70) / np.sqrt(np.maximum(n, 70))
    ),
}


@pytest.mark.parametrize("offset", [0, 25])
@pytest.mark.parametrize("factors", FACTORS)
def test_every_factor_of_t5xs_language_equals_its_formula(factors, offset):
    steps = np.arange(200)
    rates = Factors(
        factors=factors,
        warmup_steps=70,
        decay_factor=0.01,
        steps_per_decay=40,
        steps_per_cycle=50,
        step_offset=offset,
    )(steps)
    expected = np.maximum(FACTORS[factors](np.float64(np.maximum(0, steps - offset))), 1e-8)
    np.testing.assert_allclose(rates, expected, rtol=2e-5, atol=1e-7)


def test_a_factor_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(ConfigError, match=r"a product of constant, .* got 'constant") as e:
        Factors(factors="constant * rsqrt")
    assert e.value.names == ("Factors.factors",)


FALLING = {
    "linear": (Linear(peak=2.0, final=0.5, warmup_steps=10, total_steps=110), [2.0, 1.25, 0.5]),
    "cosine": (Cosine(peak=2.0, final=0.5, warmup_steps=10, total_steps=110), [2.0, 1.25, 0.5]),
    "stable, linear": (
        WarmupStableDecay(peak=2.0, final=0.5, warmup_steps=10, total_steps=110, decay_steps=50),
        [2.0, 2.0, 0.5],
    ),
    "stable, sqrt": (
        WarmupStableDecay(
            peak=2.0, warmup_steps=10, total_steps=110, decay_steps=100, shape="sqrt"
        ),
        [2.0, 2.0 * (1 - 0.5**0.5), 0.0],
    ),
}


@pytest.mark.parametrize("name", FALLING)
def test_a_falling_rate_warms_up_falls_and_stays(name):
    schedule, (at_10, at_60, at_110) = FALLING[name]
    line = 2.0 * np.arange(1, 11) / 10
    np.testing.assert_allclose(schedule(np.arange(10)), line, rtol=1e-6)
    for step, rate in [(10, at_10), (60, at_60), (110, at_110), (500, at_110)]:
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-5, abs=1e-7)
    after = np.asarray(schedule(np.arange(10, 120)))
    assert (np.diff(after) <= 1e-7).all()


def test_cosine_equals_its_formula():
    steps = np.arange(10, 110)
    rates = Cosine(peak=0.02, final=1e-5, warmup_steps=10, total_steps=110)(steps)
    expected = 1e-5 + (0.02 - 1e-5) * 0.5 * (1 + np.cos(np.pi * (steps - 10) / 100))
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-7 * 0.02)  # 1 + cos cancels


EVERY = [
    InverseSquareRoot(linear_warmup_steps=100),
    Constant(warmup_steps=5),
    Factors(),
    *(schedule for schedule, _ in FALLING.values()),
]


@pytest.mark.parametrize("schedule", EVERY, ids=lambda s: type(s).__name__)
def test_a_traced_step_gives_a_float32_number(schedule):
    traced = jax.jit(schedule)(np.int32(7))
    assert traced.dtype == np.float32
    assert traced.shape == ()
    assert float(traced) == pytest.approx(float(schedule(7)), rel=1e-6)


@pytest.mark.parametrize("schedule", EVERY, ids=lambda s: type(s).__name__)
def test_an_offset_starts_the_schedule_at_that_step(schedule):
    moved = dataclasses.replace(schedule, step_offset=1000)
    steps = np.arange(0, 130, 7)
    np.testing.assert_array_equal(moved(steps + 1000), schedule(steps))
    assert float(moved(3)) == float(schedule(0))


FALL = dict(peak=1.0, total_steps=10)


@pytest.mark.parametrize(
    ("kind", "changes", "name"),
    [
        (InverseSquareRoot, dict(base=0.0), "base"),
        (InverseSquareRoot, dict(warmup_steps=0), "warmup_steps"),
        (InverseSquareRoot, dict(decay_fraction=2.0), "decay_fraction"),
        (Linear, {**FALL, "peak": -1.0}, "peak"),
        (Linear, {**FALL, "total_steps": 0}, "total_steps"),
        (Cosine, {**FALL, "final": 2.0}, "final"),
        (WarmupStableDecay, {**FALL, "decay_steps": 11}, "decay_steps"),
        (WarmupStableDecay, {**FALL, "decay_steps": 5, "shape": "round"}, "shape"),
        (Factors, dict(warmup_steps=0), "warmup_steps"),
    ],
)
def test_impossible_schedules_are_named(kind, changes, name):
    with pytest.raises(ConfigError, match=rf"{name} must be .* got {changes[name]!r}") as error:
        kind(**changes)
    assert error.value.names == (f"{kind.__name__}.{name}",)


def test_a_final_decay_needs_to_know_the_end():
    with pytest.raises(ConfigError, match="total_steps must be set"):
        InverseSquareRoot(decay_fraction=0.1)
