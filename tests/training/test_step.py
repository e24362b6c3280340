"""The step itself, on a model so small that its gradient can be written down."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_lite.errors import ConfigError
from t5x_lite.models.transformer import Predictions, abstract
from t5x_lite.training.optimizers import Adafactor, Optimizer
from t5x_lite.training.schedules import Constant, InverseSquareRoot
from t5x_lite.training.state import TrainState
from t5x_lite.training.step import Loss, global_norm, make_eval_step, make_train_step

VOCAB = 64
RATE = 0.5


class Bigram(nnx.Module):
    """Logits are the row of a table at the input token, disturbed where there is a dropout key."""

    def __init__(self):
        self.table = nnx.Param(jnp.zeros((VOCAB, VOCAB)))

    def __call__(self, batch, *, key=None):
        logits_blv = self.table[...][batch["decoder_input_tokens"]]
        if key is not None:
            logits_blv *= jax.random.normal(key)
        return Predictions(logits_blv)


class Undisturbed(Bigram):
    def __call__(self, batch, *, key=None):
        return super().__call__(batch)


SGD = Optimizer(
    init=lambda params: {},
    update=lambda grads, state, params, step, rate: (
        jax.tree.map(lambda p, g: p - rate * g, params, grads),
        state,
    ),
    state_axes={},
)


@pytest.fixture(scope="module")
def table():
    return np.random.default_rng(5).normal(size=(VOCAB, VOCAB)).astype(np.float32)


@pytest.fixture
def start(table):
    """A function that makes the state at a step."""
    return lambda step=0: TrainState(jnp.int32(step), {"table": jnp.asarray(table)}, {})


@functools.cache
def make_step(model=Undisturbed, *, schedule=Constant(value=RATE), seed=0, **loss):  # noqa: B008
    return jax.jit(make_train_step(nnx.split(model())[0], SGD, schedule, Loss(**loss), seed=seed))


def gradient_of_the_sum(table, batch, z_loss):
    """Float64: sum over tokens of weight * (softmax - target + 2 z log Z softmax), by input."""
    gradient = np.zeros((VOCAB, VOCAB))
    for place in np.ndindex(batch["decoder_target_tokens"].shape):
        token = batch["decoder_input_tokens"][place]
        exponentials = np.exp(np.float64(table[token]))
        z = exponentials.sum()
        slope = exponentials / z * (1 + 2 * z_loss * np.log(z))
        slope[batch["decoder_target_tokens"][place]] -= 1
        gradient[token] += batch["decoder_loss_weights"][place] * slope
    return gradient


@pytest.mark.parametrize("factor", [None, 100.0])
def test_a_step_goes_down_the_gradient_of_the_normalized_loss(table, start, random_batch, factor):
    batch = random_batch(0, rows=4)
    step = make_step(z_loss=0.01, loss_normalizing_factor=factor)
    state, metrics = step(start(), batch)
    weight = batch["decoder_loss_weights"].sum()
    gradient = gradient_of_the_sum(table, batch, 0.01) / (factor or weight)
    np.testing.assert_allclose(state.params["table"], table - RATE * gradient, rtol=1e-5, atol=1e-6)
    assert int(state.step) == 1
    assert float(metrics["grad_norm"]) == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
    norm = np.linalg.norm(state.params["table"])
    assert float(metrics["param_norm"]) == pytest.approx(norm, rel=1e-5)
    assert metrics["learning_rate"] == RATE
    assert metrics["weight"] == weight


def test_the_metrics_are_sums_over_the_weighted_targets(table, start, random_batch):
    batch = random_batch(0, rows=4)
    _, metrics = make_step(z_loss=0.01)(start(), batch)
    logits = np.float64(table[batch["decoder_input_tokens"]])
    log_z = np.log(np.exp(logits).sum(-1))
    real = batch["decoder_loss_weights"] > 0
    picked = np.take_along_axis(logits, batch["decoder_target_tokens"][..., None], -1)[..., 0]
    expected = {
        "loss": (log_z - picked + 0.01 * log_z**2)[real].sum(),
        "z_loss": 0.01 * (log_z**2)[real].sum(),
        "correct": (logits.argmax(-1) == batch["decoder_target_tokens"])[real].sum(),
        "input_tokens": (batch["encoder_segment_ids"] > 0).sum(),
        "target_tokens": (batch["decoder_segment_ids"] > 0).sum(),
    }
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, rel=1e-5), name


def test_tokens_are_counted_without_segment_ids_too(start, random_batch):
    batch = random_batch(0, rows=4)
    bare = {k: v for k, v in batch.items() if "segment" not in k and "positions" not in k}
    step = make_step()
    (_, without), (_, having) = step(start(), bare), step(start(), batch)
    for name in ("input_tokens", "target_tokens"):
        assert without[name] == having[name] > 0


def test_clipping_shortens_a_long_gradient_and_leaves_a_short_one(table, start, random_batch):
    batch = random_batch(0, rows=4)
    moves, norms = {}, {}
    for limit in (None, 0.01, 1e3):
        state, metrics = make_step(clip_norm=limit)(start(), batch)
        moves[limit] = (state.params["table"] - table) / RATE
        norms[limit] = float(metrics["grad_norm"])
    assert norms[0.01] == norms[None] > 0.01  # the norm before clipping is what is reported
    assert np.linalg.norm(moves[0.01]) == pytest.approx(0.01, rel=1e-3)
    np.testing.assert_allclose(moves[0.01], moves[None] * 0.01 / norms[None], atol=1e-6)
    np.testing.assert_array_equal(moves[1e3], moves[None])


def test_a_batch_without_targets_changes_nothing(table, start, random_batch):
    batch = random_batch(0, rows=4)
    batch["decoder_loss_weights"] = np.zeros_like(batch["decoder_loss_weights"])
    state, metrics = make_step(clip_norm=1.0)(start(), batch)
    np.testing.assert_array_equal(state.params["table"], table)
    assert metrics["loss"] == 0


def test_the_learning_rate_is_that_of_the_states_step(start, random_batch):
    schedule = InverseSquareRoot(base=1.0, warmup_steps=4)
    step = make_step(schedule=schedule)
    batch = random_batch(0, rows=4)
    for number in (0, 4, 25):
        state, metrics = step(start(number), batch)
        assert metrics["learning_rate"] == schedule(number)
        assert int(state.step) == number + 1


def test_a_step_depends_on_state_batch_and_seed_and_not_on_what_came_before(start, random_batch):
    step = make_step(Bigram)
    batch, other = random_batch(0, rows=4), random_batch(1, rows=4)
    fresh = step(start(3), batch)
    for _ in range(3):
        step(start(), other)
    jax.tree.map(np.testing.assert_array_equal, step(start(3), batch), fresh)
    make_step.cache_clear()
    jax.tree.map(np.testing.assert_array_equal, make_step(Bigram)(start(3), batch), fresh)


def test_each_step_and_each_seed_has_a_dropout_key_of_its_own(start, random_batch):
    batch = random_batch(0, rows=4)
    steps = [make_step(Bigram, seed=seed) for seed in (0, 1)]
    losses = {float(step(start(n), batch)[1]["loss"]) for step in steps for n in range(4)}
    assert len(losses) == 8


def test_evaluation_knows_neither_dropout_nor_z_loss(table, start, random_batch):
    batch = random_batch(0, rows=4)
    sums = jax.jit(make_eval_step(nnx.split(Bigram())[0]))({"table": table}, batch)
    _, metrics = make_step(z_loss=0.0)(start(), batch)
    assert sums.z_loss == 0
    for name in ("loss", "correct", "weight"):
        assert float(getattr(sums, name)) == pytest.approx(float(metrics[name]), rel=1e-6)


def test_the_global_norm_is_taken_in_float32():
    tree = {"a": jnp.full((300, 300), 3.0, jnp.bfloat16), "b": jnp.full((2,), 4.0)}
    assert float(global_norm(tree)) == pytest.approx((9 * 90_000 + 32) ** 0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("loss_normalizing_factor", 0.0), ("clip_norm", -1.0), ("label_smoothing", 1.0)],
)
def test_impossible_losses_are_named(name, value):
    with pytest.raises(ConfigError, match=rf"{name} must be .* got {value}") as error:
        Loss(**{name: value})
    assert error.value.names == (f"Loss.{name}",)


def test_a_bfloat16_transformer_learns_a_batch_by_heart(tiny_config, random_params, random_batch):
    config = tiny_config(dtype="bfloat16", num_encoder_layers=1, num_decoder_layers=1)
    graphdef, shapes, axes = abstract(config)
    optimizer = Adafactor(min_dim_size_to_factor=16).for_weights(shapes, axes)
    step = make_train_step(graphdef, optimizer, Constant(value=0.1), Loss(), seed=0)
    params = jax.tree.map(jnp.asarray, random_params(config))
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    batch = random_batch(0, rows=4)
    jitted = jax.jit(step, donate_argnums=0)
    losses = []
    for _ in range(25):
        state, metrics = jitted(state, batch)
        losses.append(float(metrics["loss"] / metrics["weight"]))
    assert losses[-1] < 0.25 * losses[0]
    assert all(
        leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((state.params, state.opt_state))
    )
