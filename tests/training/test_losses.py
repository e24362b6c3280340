import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.training.losses import cross_entropy

SHAPE = (3, 5, 11)  # rows, length, vocabulary
SETTINGS = [
    dict(z_loss=0.0, label_smoothing=0.0),
    dict(z_loss=1e-2, label_smoothing=0.0),
    dict(z_loss=0.0, label_smoothing=0.1),
    dict(z_loss=1e-4, label_smoothing=0.3),
]


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3, size=SHAPE)
    targets = rng.integers(0, SHAPE[-1], size=SHAPE[:2])
    targets[0, :3] = logits[0, :3].argmax(-1)  # some right answers
    weights = rng.choice([0.0, 0.5, 1.0], size=SHAPE[:2])
    return logits, targets, weights


@pytest.mark.parametrize("settings", SETTINGS)
def test_sums_equal_float64_token_by_token(case, expected_sums, settings):
    logits, targets, weights = case
    sums = cross_entropy(jnp.asarray(logits, jnp.float32), targets, weights, **settings)
    expected = expected_sums(logits, targets, weights, **settings)
    for name, value in sums._asdict().items():
        assert value.dtype == jnp.float32, name
        assert float(value) == pytest.approx(getattr(expected, name), rel=1e-5), name


@pytest.mark.parametrize("settings", SETTINGS)
def test_gradient_equals_the_slope_of_the_float64_loss(case, expected_sums, settings):
    logits, targets, weights = case
    ours = jax.grad(lambda x: cross_entropy(x, targets, weights, **settings).loss)(
        jnp.asarray(logits, jnp.float32)
    )
    step = 1e-5
    for place in [(0, 0, 3), (1, 4, 0), (2, 2, targets[2, 2]), (0, 1, targets[0, 1])]:
        nudge = np.zeros(SHAPE)
        nudge[place] = step
        up, down = (
            expected_sums(logits + sign * nudge, targets, weights, **settings).loss
            for sign in (1, -1)
        )
        assert float(ours[place]) == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-6)


def test_z_loss_adds_2_z_log_z_times_the_softmax_to_the_gradient(case):
    logits, targets, weights = case
    logits = jnp.asarray(logits, jnp.float32)
    slope = lambda z: jax.grad(lambda x: cross_entropy(x, targets, weights, z_loss=z).loss)(logits)  # noqa: E731
    log_z = np.log(np.exp(np.float64(logits)).sum(-1))
    expected = 2 * 0.1 * (log_z * weights)[..., None] * jax.nn.softmax(logits)
    np.testing.assert_allclose(slope(0.1) - slope(0.0), expected, rtol=1e-3, atol=1e-5)


def test_a_perfect_fit_costs_nothing_whatever_the_smoothing():
    epsilon, vocab_size = 0.2, 7
    wanted = np.full((1, 1, vocab_size), epsilon / (vocab_size - 1), np.float32)
    wanted[0, 0, 3] = 1 - epsilon
    targets, weights = np.array([[3]]), np.ones((1, 1))
    sums = cross_entropy(jnp.log(wanted) + 5.0, targets, weights, label_smoothing=epsilon)
    assert float(sums.loss) == pytest.approx(0.0, abs=1e-6)


def test_huge_logits_neither_overflow_nor_lose_the_loss():
    logits = jnp.array([[[1e4, 0.0, -1e4]]])
    sums = cross_entropy(logits, np.array([[1]]), np.ones((1, 1)))
    assert float(sums.loss) == 1e4


def test_bfloat16_logits_are_summed_in_float32(case):
    logits, targets, weights = case
    rounded = jnp.asarray(logits, jnp.bfloat16)
    assert cross_entropy(rounded, targets, weights) == cross_entropy(
        rounded.astype(jnp.float32), targets, weights
    )


def test_sums_of_parts_add_up(case):
    logits, targets, weights = (np.asarray(x, x.dtype.name.replace("64", "32")) for x in case)
    whole = cross_entropy(jnp.asarray(logits), targets, weights, z_loss=1e-3)
    parts = [
        cross_entropy(
            jnp.asarray(logits[i : i + 1]), targets[i : i + 1], weights[i : i + 1], z_loss=1e-3
        )
        for i in range(3)
    ]
    np.testing.assert_allclose(whole, np.sum(parts, axis=0), rtol=1e-6)
