"""The step itself, on a model so small that its gradient can be written down."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_lite.errors import ConfigError
from t5x_lite.models.layers import OutputLayer
from t5x_lite.models.transformer import Predictions, abstract_model
from t5x_lite.training.optimizers import Adafactor, Optimizer
from t5x_lite.training.schedules import Constant, InverseSquareRoot
from t5x_lite.training.state import TrainState
from t5x_lite.training.step import Loss, Update, make_eval_step, make_train_step
from t5x_lite.training.step_metrics import global_norm

VOCAB = 64
RATE = 0.5
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Bigram(nnx.Module):
    """Logits are the row of a table at the input token, disturbed where there is a dropout key."""

    def __init__(self):
        self.table = nnx.Param(jnp.zeros((VOCAB, VOCAB)))

    def __call__(self, batch, *, key=None):
        hidden_bll = jax.nn.one_hot(batch["decoder_input_tokens"], VOCAB)
        if key is not None:
            hidden_bll *= jax.random.normal(key)
        output = OutputLayer(self.table[...], bias=None, vocab_first=False, scale=1.0)
        return Predictions(hidden_bll, output)


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
def make_step(
    model=Undisturbed,
    *,
    schedule=Constant(value=RATE),  # noqa: B008
    loss=Loss(),  # noqa: B008
    seed=0,
    **update,
):
    graphdef = nnx.split(model())[0]
    step = make_train_step(graphdef, SGD, schedule, loss, Update(**update), seed=seed)
    return jax.jit(step)


def gradient_of_the_sum(table, batch, z_loss, share=None):
    """Float64: sum over tokens of share * (softmax - target + 2 z log Z softmax), by input."""
    gradient = np.zeros((VOCAB, VOCAB))
    share = batch["decoder_loss_weights"] if share is None else share
    for place in np.ndindex(batch["decoder_target_tokens"].shape):
        token = batch["decoder_input_tokens"][place]
        exponentials = np.exp(np.float64(table[token]))
        z = exponentials.sum()
        slope = exponentials / z * (1 + 2 * z_loss * np.log(z))
        slope[batch["decoder_target_tokens"][place]] -= 1
        gradient[token] += share[place] * slope
    return gradient


def each_sequence_alike(batch):
    """The share of each token when every sequence of every row counts the same."""
    weights, segments = batch["decoder_loss_weights"], batch["decoder_segment_ids"]
    share, sequences = np.zeros(weights.shape), 0
    for row in range(len(weights)):
        for segment in set(segments[row]):
            here = segments[row] == segment
            if weights[row][here].sum():
                share[row][here] = weights[row][here] / weights[row][here].sum()
                sequences += 1
    return share / sequences


NORMALIZED = {
    None: lambda batch: batch["decoder_loss_weights"],
    100.0: lambda batch: batch["decoder_loss_weights"] / 100,
    "NUM_REAL_TARGET_TOKENS": lambda batch: (
        batch["decoder_loss_weights"] / batch["decoder_loss_weights"].sum()
    ),
    "NUM_TOTAL_TARGET_TOKENS": lambda batch: (
        batch["decoder_loss_weights"] / batch["decoder_loss_weights"].size
    ),
    "AVERAGE_PER_SEQUENCE": each_sequence_alike,
}


@pytest.mark.parametrize("chunk", [5, None])
@pytest.mark.parametrize("factor", NORMALIZED, ids=str)
def test_a_step_goes_down_the_gradient_of_the_normalized_loss(
    table, start, random_batch, factor, chunk
):
    batch = random_batch(0, rows=4)
    batch["decoder_segment_ids"][:2, 3:] *= 2  # two packed rows
    batch["decoder_loss_weights"][0, 1] = 0.25
    loss = Loss(z_loss=0.01, loss_normalizing_factor=factor, logits_chunk=chunk)
    state, metrics = make_step(loss=loss)(start(), batch)
    weight = batch["decoder_loss_weights"].sum()
    gradient = gradient_of_the_sum(table, batch, 0.01, NORMALIZED[factor](batch))
    np.testing.assert_allclose(state.params["table"], table - RATE * gradient, rtol=1e-5, atol=1e-6)
    assert int(state.step) == 1
    assert float(metrics["grad_norm"]) == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
    norm = np.linalg.norm(state.params["table"])
    assert float(metrics["param_norm"]) == pytest.approx(norm, rel=1e-5)
    assert metrics["learning_rate"] == RATE
    assert metrics["weight"] == weight


def test_the_metrics_are_sums_over_the_weighted_targets(table, start, random_batch):
    batch = random_batch(0, rows=4)
    _, metrics = make_step(loss=Loss(z_loss=0.01))(start(), batch)
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
    _, metrics = make_step(loss=Loss(z_loss=0.0))(start(), batch)
    assert sums.z_loss == 0
    for name in ("loss", "correct", "weight"):
        assert float(getattr(sums, name)) == pytest.approx(float(metrics[name]), rel=1e-6)


def test_the_global_norm_is_taken_in_float32():
    tree = {"a": jnp.full((300, 300), 3.0, jnp.bfloat16), "b": jnp.full((2,), 4.0)}
    assert float(global_norm(tree)) == pytest.approx((9 * 90_000 + 32) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("microbatches", [2, 4])
@pytest.mark.parametrize("factor", [None, "NUM_REAL_TARGET_TOKENS", "AVERAGE_PER_SEQUENCE"])
def test_a_batch_in_microbatches_is_the_batch(start, random_batch, microbatches, factor):
    batch = random_batch(0, rows=8)
    loss = Loss(loss_normalizing_factor=factor)
    whole, expected = make_step(loss=loss)(start(), batch)
    parts, metrics = make_step(loss=loss, microbatches=microbatches)(start(), batch)
    np.testing.assert_allclose(parts.params["table"], whole.params["table"], rtol=1e-5, atol=1e-6)
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-5), name


def test_each_microbatch_has_a_dropout_key_of_its_own(start, random_batch):
    row = random_batch(0, rows=1)
    batch = {name: np.repeat(array, 2, axis=0) for name, array in row.items()}
    loss = Loss(loss_normalizing_factor=None)
    _, twice = make_step(Bigram, loss=loss, microbatches=2)(start(), batch)
    _, once = make_step(Bigram, loss=loss)(start(), row)
    assert twice["weight"] == 2 * once["weight"]
    assert not np.isclose(twice["loss"], 2 * once["loss"], rtol=1e-3)


def one_not_finite(batch):
    return {**batch, "decoder_loss_weights": np.full_like(batch["decoder_loss_weights"], np.inf)}


def test_a_step_that_is_not_finite_changes_only_its_counters(start, random_batch):
    batch = random_batch(0, rows=4)
    adafactor = Adafactor(min_dim_size_to_factor=16).for_weights(
        {"table": jax.ShapeDtypeStruct((VOCAB, VOCAB), jnp.float32)}, {"table": (None, None)}
    )
    state = start()._replace(average={"table": jnp.ones((VOCAB, VOCAB))})
    state = state._replace(opt_state=adafactor.init(state.params))
    graphdef, schedule = nnx.split(Undisturbed())[0], Constant(value=RATE)
    update = Update(ema_decay=0.9)
    step = jax.jit(make_train_step(graphdef, adafactor, schedule, Loss(), update, seed=0))
    before, _ = step(state, batch)
    after, metrics = step(before, one_not_finite(batch))
    for name in ("params", "opt_state", "average"):
        old, new = getattr(before, name), getattr(after, name)
        jax.tree.map(np.testing.assert_array_equal, old, new)
    assert (int(after.step), int(after.skipped)) == (2, 1)
    assert metrics["skipped_steps"] == 1
    assert metrics["loss"] == metrics["weight"] == 0  # it is no part of the reported loss
    assert not np.isfinite(metrics["grad_norm"])
    again, metrics = step(after, batch)
    assert int(again.skipped) == metrics["skipped_steps"] == 1
    assert not np.array_equal(again.params["table"], after.params["table"])


def test_without_skipping_what_is_not_finite_goes_through(start, random_batch):
    step = make_step(skip_nonfinite=False)
    state, _ = step(start(), one_not_finite(random_batch(0, rows=4)))
    assert np.isnan(state.params["table"]).any()
    assert int(state.skipped) == 0


def test_the_average_follows_the_weights_and_is_what_is_evaluated(table, start, random_batch):
    state = start()._replace(average={"table": jnp.asarray(table)})
    step = make_step(ema_decay=0.75)
    expected = np.float64(table)
    for number in range(3):
        state, _ = step(state, random_batch(number, rows=4))
        expected = 0.75 * expected + 0.25 * np.float64(state.params["table"])
    np.testing.assert_allclose(state.average["table"], expected, rtol=1e-5, atol=1e-7)
    assert state.eval_params is state.average
    assert start().eval_params["table"] is not None


def test_norms_are_told_for_the_whole_and_for_its_parts(tiny_config, random_params, random_batch):
    graphdef, _, _ = abstract_model(tiny_config())
    params = random_params(tiny_config())
    step = jax.jit(make_train_step(graphdef, SGD, Constant(value=0.5), Loss(), seed=0))
    arguments = (TrainState(jnp.int32(0), params, {}, jnp.int32(0)), random_batch(0, rows=4))
    state, metrics = step.lower(*arguments).compile(compiler_options=QUICK)(*arguments)
    parts = {"encoder", "decoder", "token_embedder", "head"}
    for name, tree in {
        "param_norm": state.params,
        "update_norm": jax.tree.map(np.subtract, jax.device_get(state.params), params),
    }.items():
        for part in parts:
            leaves = jax.tree.leaves(tree[part])
            expected = np.sqrt(sum(np.sum(np.float64(leaf) ** 2) for leaf in leaves))
            assert float(metrics[f"{name}/{part}"]) == pytest.approx(expected, rel=1e-4)
    for name in ("grad_norm", "param_norm", "update_norm"):
        squares = sum(float(metrics[f"{name}/{part}"]) ** 2 for part in parts)
        assert float(metrics[name]) == pytest.approx(squares**0.5, rel=1e-5)
    assert float(metrics["update_norm"]) == pytest.approx(
        0.5 * float(metrics["grad_norm"]), rel=1e-3
    )


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (Loss, "loss_normalizing_factor", 0.0),
        (Loss, "loss_normalizing_factor", "TOKENS"),
        (Loss, "label_smoothing", 1.0),
        (Loss, "logits_chunk", 0),
        (Update, "clip_norm", -1.0),
        (Update, "microbatches", 0),
        (Update, "ema_decay", 1.0),
    ],
)
def test_impossible_settings_are_named(config, name, value):
    with pytest.raises(ConfigError, match=rf"{name} must be .* got {value!r}") as error:
        config(**{name: value})
    assert error.value.names == (f"{config.__name__}.{name}",)


def test_a_bfloat16_transformer_learns_a_batch_by_heart(tiny_config, random_params, random_batch):
    config = tiny_config(dtype="bfloat16", num_encoder_layers=1, num_decoder_layers=1)
    graphdef, shapes, axes = abstract_model(config)
    optimizer = Adafactor(min_dim_size_to_factor=16).for_weights(shapes, axes)
    step = make_train_step(graphdef, optimizer, Constant(value=0.1), Loss(), seed=0)
    params = jax.tree.map(jnp.asarray, random_params(config))
    state = TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))
    batch = random_batch(0, rows=4)
    jitted = jax.jit(step, donate_argnums=0).lower(state, batch).compile(compiler_options=QUICK)
    losses = []
    for _ in range(25):
        state, metrics = jitted(state, batch)
        losses.append(float(metrics["loss"] / metrics["weight"]))
    assert losses[-1] < 0.25 * losses[0]
    assert all(
        leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((state.params, state.opt_state))
    )
