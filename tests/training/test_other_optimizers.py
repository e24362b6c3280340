"""AdamW, Lion and Muon per layer, against optax and formulas in float64; groups; a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from t5x_lite.errors import ConfigError
from t5x_lite.models.transformer import abstract_model
from t5x_lite.partitioning import make_mesh, named_sharding
from t5x_lite.training.optimizers import Adafactor, AdamW, Lion, Muon
from t5x_lite.training.param_groups import Grouped
from t5x_lite.training.schedules import Constant
from t5x_lite.training.state import TrainState, state_shardings
from t5x_lite.training.step import Loss, Update, make_train_step

STEPS, RATE = 6, 0.01
MATRIX, VECTOR, TABLE = (12, 20), (12,), (24, 12)
AXES = {
    "matrix": ("embed", "mlp"),
    "vector": ("embed_whole",),
    "table": ("vocab", "embed"),
    "stack": ("layers", "embed", "mlp"),
}
LAYERS = 3
ALL = {
    "adamw": AdamW(weight_decay=0.1),
    "adamw_rms": AdamW(multiply_by_parameter_scale=True),
    "lion": Lion(weight_decay=0.3),
    "muon": Muon(weight_decay=0.1, others=AdamW(b2=0.95, weight_decay=0.1)),
}
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    sizes = dict(matrix=MATRIX, vector=VECTOR, table=TABLE, stack=(LAYERS, *MATRIX))
    made = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    made["stack"] *= np.array([0.01, 1, 10], np.float32)[:, None, None]
    return made


@pytest.fixture(scope="module")
def gradients(weights):
    rng = np.random.default_rng(1)
    return [
        {name: rng.normal(size=w.shape).astype(np.float32) for name, w in weights.items()}
        for _ in range(STEPS)
    ]


def bind(config, weights):
    shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, jnp.float32), weights)
    return config.for_weights(shapes, {name: AXES[name] for name in weights})


def run(config, weights, gradients):
    optimizer = bind(config, weights)
    update = jax.jit(optimizer.update)
    state = optimizer.init(weights)
    for step, grads in enumerate(gradients):
        grads = {name: grads[name] for name in weights}
        weights, state = update(grads, state, weights, jnp.int32(step), jnp.float32(RATE))
    return jax.device_get((weights, state))


def run_optax(transformation, weights, gradients):
    state = transformation.init(weights)
    update = jax.jit(transformation.update)
    for grads in gradients:
        change, state = update({name: grads[name] for name in weights}, state, weights)
        weights = optax.apply_updates(weights, change)
    return jax.device_get(weights)


REFERENCES = {
    "adamw": (ALL["adamw"], optax.adamw(RATE, weight_decay=0.1), ["matrix", "vector", "table"]),
    "lion": (ALL["lion"], optax.lion(RATE, weight_decay=0.3), ["matrix", "vector", "table"]),
    "muon": (
        ALL["muon"],
        contrib.muon(RATE, weight_decay=0.1, consistent_rms=0.2),
        ["matrix"],
    ),
    "muon's others": (ALL["muon"], optax.adamw(RATE, b2=0.95, weight_decay=0.1), ["table"]),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_single_weights_are_updated_as_by_optax(name, weights, gradients):
    config, transformation, names = REFERENCES[name]
    weights = {name: weights[name] for name in names}
    ours, _ = run(config, weights, gradients)
    theirs = run_optax(transformation, weights, gradients)
    for name in names:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_a_stack_is_updated_as_its_layers_would_be_one_by_one(name, weights, gradients):
    together, _ = run(ALL[name], {"stack": weights["stack"]}, gradients)
    for layer in range(LAYERS):
        own = [{"matrix": grads["stack"][layer]} for grads in gradients]
        apart, _ = run(ALL[name], {"matrix": weights["stack"][layer]}, own)
        np.testing.assert_allclose(together["stack"][layer], apart["matrix"], rtol=1e-5, atol=1e-6)


def test_adamw_with_rms_scaling_equals_its_formula_in_float64(weights, gradients):
    """nanoT5: Adam's direction times the weight's RMS, at least 0.001."""
    ours, _ = run(ALL["adamw_rms"], {"matrix": weights["matrix"]}, gradients)
    weight = np.float64(weights["matrix"])
    m = v = 0.0
    for t, grads in enumerate(gradients, start=1):
        g = np.float64(grads["matrix"])
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        direction = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        weight = weight - RATE * max(np.sqrt(np.mean(weight**2)), 1e-3) * direction
    np.testing.assert_allclose(ours["matrix"], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_the_states_axes_fit_the_state(name, weights):
    optimizer = bind(ALL[name], weights)
    state = jax.eval_shape(optimizer.init, weights)
    for path, moments in state.items():
        size_of = dict(zip(AXES[path], weights[path].shape, strict=True))
        assert moments.keys() == optimizer.state_axes[path].keys()
        whole = [k for k, leaf in moments.items() if leaf.shape == weights[path].shape]
        assert whole
        for moment in whole:
            axes = optimizer.state_axes[path][moment]
            assert axes == AXES[path]
            assert tuple(size_of[axis] for axis in axes) == moments[moment].shape


def test_frozen_weights_stay_and_have_no_state(weights, gradients):
    config = Grouped(optimizer=ALL["adamw"], frozen=("^matrix$", "vec"))
    after, state = run(config, weights, gradients)
    for name in ("matrix", "vector"):
        np.testing.assert_array_equal(after[name], weights[name])
    assert set(state) == {"table", "stack"}
    plain, _ = run(ALL["adamw"], weights, gradients)
    for name in ("table", "stack"):
        np.testing.assert_array_equal(after[name], plain[name])
    assert bind(config, weights).frozen == {"matrix", "vector"}


def test_groups_change_decay_rates_and_scaling_of_what_they_name(weights, gradients):
    names = ["matrix", "vector", "table"]
    weights = {name: weights[name] for name in names}
    optimizer = Adafactor(weight_decay=0.1)
    grouped, _ = run(
        Grouped(
            optimizer=optimizer,
            without_decay=("vector",),
            without_parameter_scale=("table",),
            rate_multipliers={"mat.ix": 0.5, "ma": 7.0},
        ),
        weights,
        gradients,
    )
    plain, _ = run(dataclasses.replace(optimizer, weight_decay=None), weights, gradients)
    np.testing.assert_array_equal(grouped["vector"], plain["vector"])
    plain, _ = run(
        dataclasses.replace(optimizer, multiply_by_parameter_scale=False), weights, gradients
    )
    np.testing.assert_array_equal(grouped["table"], plain["table"])
    half = Grouped(optimizer=optimizer, rate_multipliers={"": 0.5})
    plain, _ = run(half, weights, gradients)
    np.testing.assert_array_equal(grouped["matrix"], plain["matrix"])
    assert not np.array_equal(grouped["matrix"], run(optimizer, weights, gradients)[0]["matrix"])


@pytest.mark.parametrize(
    ("field", "patterns", "complaint"),
    [
        ("frozen", ("matrix", "encodr"), "'encodr', which matches no weight's path"),
        ("without_decay", ("(",), r"not a regular expression"),
        ("rate_multipliers", {"norm$": 2.0}, "'norm\\$', which matches no"),
        ("frozen", "matrix", "expected a tuple of patterns"),
    ],
)
def test_patterns_that_cannot_be_meant_are_named(field, patterns, complaint, weights):
    with pytest.raises(ConfigError, match=complaint) as error:
        bind(Grouped(optimizer=AdamW(), **{field: patterns}), weights)
    assert error.value.names == (f"Grouped.{field}",)


ON_A_MESH = {
    "adafactor": (Adafactor(min_dim_size_to_factor=16, momentum=0.9), 0.1),
    "adamw_rms": (ALL["adamw_rms"], 0.05),
    "lion": (ALL["lion"], 0.002),
    "muon": (ALL["muon"], 0.02),
    "grouped": (Grouped(optimizer=AdamW(), frozen=("^encoder/",)), 0.01),
}


@pytest.mark.parametrize(
    "name",
    [name if name == "muon" else pytest.param(name, marks=pytest.mark.slow) for name in ON_A_MESH],
)
def test_every_optimizer_trains_on_a_mesh_with_its_state_placed_like_its_weights(
    name, tiny_config, random_params, random_batch
):
    config = tiny_config(head_dim=8, num_encoder_layers=2, num_decoder_layers=1)
    optimizer_config, rate = ON_A_MESH[name]
    mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))
    graphdef, shapes, axes = abstract_model(config)
    optimizer = optimizer_config.for_weights(shapes, axes)
    placed = state_shardings(mesh, config, optimizer, average=True)
    everywhere = named_sharding(mesh, ())
    update = Update(microbatches=2, clip_norm=1.0, ema_decay=0.5)
    step = make_train_step(graphdef, optimizer, Constant(value=rate), Loss(), update, seed=0)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(placed, everywhere))
    params = random_params(config)
    with jax.set_mesh(mesh):
        state = TrainState(
            jnp.int32(0),
            params,
            optimizer.init(params),
            jnp.int32(0),
            jax.tree.map(jnp.copy, params),
        )
        state = jax.device_put(state, placed)
        batch = jax.device_put(random_batch(0, rows=8), named_sharding(mesh, ("batch", "length")))
        compiled = jitted.lower(state, batch).compile(compiler_options=QUICK)
        losses = []
        for _ in range(12):
            state, metrics = compiled(state, batch)
            losses.append(float(metrics["loss"] / metrics["weight"]))
    assert losses[-1] < 0.9 * losses[0]
    wo = state.params["decoder"]["layers"]["mlp"]["wo"]["kernel"]
    moments = state.opt_state["decoder"]["layers"]["mlp"]["wo"]["kernel"]
    same_shape = [leaf for leaf in moments.values() if leaf.shape == wo.shape]
    assert same_shape
    for leaf in [*same_shape, state.average["decoder"]["layers"]["mlp"]["wo"]["kernel"]]:
        assert leaf.sharding == wo.sharding
        assert {piece.data.shape for piece in leaf.addressable_shards} == {(1, 16, 8)}
    if name == "grouped":
        assert set(state.opt_state) == {"decoder", "head", "token_embedder"}
        assert metrics["grad_norm/encoder"] == metrics["update_norm/encoder"] == 0
