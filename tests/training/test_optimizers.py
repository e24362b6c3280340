import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_lite.errors import ConfigError
from t5x_lite.partitioning import is_logical_axes
from t5x_lite.training.optimizers import Adafactor

MIN_DIM = 16
STEPS = 50
# Weights of every kind: factored or not, of each order of sizes, stacked over layers or not.
WEIGHTS = {
    "wide": ((20, 36), ("embed", "mlp")),
    "tall": ((36, 20), ("mlp", "embed")),
    "square": ((16, 16), ("vocab", "embed")),
    "thin": ((8, 36), ("heads", "relpos_buckets")),
    "vector": ((36,), ("embed_whole",)),
    "cube": ((3, 20, 36), (None, "embed", "mlp")),
    "turned_cube": ((3, 36, 20), (None, "mlp", "embed")),
    "stacked_wide": ((4, 20, 36), ("layers", "embed", "mlp")),
    "stacked_tall": ((4, 36, 20), ("layers", "mlp", "embed")),
    "stacked_thin": ((4, 8, 36), ("layers", "heads", "relpos_buckets")),
    "stacked_vector": ((4, 36), ("layers", "embed_whole")),
    "experts": ((2, 3, 20, 36), ("layers", "expert", "embed", "mlp")),
}
SHAPES = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, (shape, _) in WEIGHTS.items()}
AXES = {name: axes for name, (_, axes) in WEIGHTS.items()}
SETTINGS = {
    "t5": dict(),
    "plain": dict(clipping_threshold=None, multiply_by_parameter_scale=False, decay_rate=0.5),
    "all": dict(
        momentum=0.5,
        weight_decay=0.02,
        clipping_threshold=0.3,
        step_offset=1000,
        max_parameter_scale=0.05,
    ),
    "rate's own decay": dict(weight_decay_lr_exponent=2.0, factored=False),
}


def rate(step):
    return 0.1 * (step + 1.0) ** -0.5


def random_like_training(seed, shape):
    """Numbers whose layers (and rows) differ in size by orders of magnitude, as gradients do."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-4, 1, size=(shape[0], *[1] * (len(shape) - 1)))
    return (rng.normal(size=shape) * sizes).astype(np.float32)


def by_the_book(weight, gradients, first_step, config):
    """T5X's Adafactor of ONE tensor in float64: formulas of the paper, sizes kept as [.., 1, ..].

    Returns the weight after all gradients and its second moments.
    """
    weight = np.float64(weight)
    by_size = sorted(range(weight.ndim), key=lambda axis: (weight.shape[axis], axis))
    factored = config.factored and weight.ndim > 1
    factored = factored and weight.shape[by_size[-2]] >= config.min_dim_size_to_factor
    rows = columns = full = momentum = 0.0
    for step, gradient in enumerate(np.float64(gradients), start=first_step):
        t = step - config.step_offset + 1
        beta2 = 1 - t**-config.decay_rate
        squares = gradient**2 + 1e-30
        if factored:
            larger, smaller = by_size[-1], by_size[-2]
            rows = beta2 * rows + (1 - beta2) * squares.mean(larger, keepdims=True)
            columns = beta2 * columns + (1 - beta2) * squares.mean(smaller, keepdims=True)
            update = gradient / np.sqrt(rows / rows.mean(smaller, keepdims=True) * columns)
        else:
            full = beta2 * full + (1 - beta2) * squares
            update = gradient / np.sqrt(full)
        if config.clipping_threshold is not None:
            update /= max(1.0, np.sqrt(np.mean(update**2)) / config.clipping_threshold)
        scale = rate(step)
        if config.multiply_by_parameter_scale:
            size = max(np.sqrt(np.mean(weight**2)), 1e-3)
            scale *= min(size, config.max_parameter_scale or size)
        change = scale * update
        if config.momentum is not None:
            momentum = config.momentum * momentum + (1 - config.momentum) * change
            change = momentum
        decay = config.weight_decay or 0.0
        if config.weight_decay_lr_exponent:
            decay = rate(step) ** config.weight_decay_lr_exponent
        weight = (1 - decay) * weight - change
    moments = {"v_row": rows, "v_col": columns} if factored else {"v": full}
    if config.momentum is not None:
        moments["m"] = momentum
    return weight, moments


def run(config, shapes, axes, weights, gradients, *, first_step=0):
    """Our optimizer over all gradients; returns weights and state."""
    optimizer = config.for_weights(shapes, axes)
    update = jax.jit(optimizer.update)
    state = optimizer.init(weights)
    for i in range(STEPS):
        step = first_step + i
        now = {name: array[i] for name, array in gradients.items()}
        weights, state = update(now, state, weights, jnp.int32(step), jnp.float32(rate(step)))
    return jax.device_get((weights, state))


@pytest.fixture(scope="module")
def initial():
    """Weights of which some, or some layers, are nearly or wholly zero."""
    weights = {
        name: random_like_training(i, leaf.shape) for i, (name, leaf) in enumerate(SHAPES.items())
    }
    weights["vector"] *= 0.0
    weights["stacked_wide"][0] *= 1e-6
    weights["stacked_vector"][1] *= 0.0
    return weights


@pytest.fixture(scope="module")
def gradients():
    return {
        name: np.stack([random_like_training(100 * i + step, leaf.shape) for step in range(STEPS)])
        for i, (name, leaf) in enumerate(SHAPES.items())
    }


@pytest.fixture(scope="module", params=SETTINGS)
def trained(request, initial, gradients):
    config = Adafactor(min_dim_size_to_factor=MIN_DIM, **SETTINGS[request.param])
    first_step = config.step_offset
    return config, *run(config, SHAPES, AXES, initial, gradients, first_step=first_step)


@pytest.mark.parametrize("name", WEIGHTS)
def test_fifty_steps_equal_the_formula_in_float64_layer_by_layer(name, trained, initial, gradients):
    config, weights, state = trained
    depth = sum(axis in ("layers", "expert") for axis in AXES[name])
    for layer in np.ndindex(initial[name].shape[:depth]):
        expected, moments = by_the_book(
            initial[name][layer],
            gradients[name][:, *layer],
            config.step_offset,
            config,
        )
        # Float32 keeps a weight to 6e-8 of its size; the change is held to its own size otherwise.
        rounding = STEPS * 1.2e-7 * np.abs(initial[name][layer]).max()
        change = np.abs(expected - initial[name][layer]).max()
        assert np.abs(weights[name][layer] - expected).max() < 1e-5 * change + rounding
        assert set(state[name]) == set(moments)
        for moment, values in moments.items():
            found = state[name][moment][layer]
            gap = np.abs(found - values.reshape(found.shape))
            assert (gap <= 1e-5 * (np.abs(values).max() if moment == "m" else found)).all()


def test_a_stack_is_updated_as_its_layers_would_be_one_by_one(initial, gradients):
    config = Adafactor(min_dim_size_to_factor=MIN_DIM, momentum=0.9)
    stack, pushes = initial["stacked_wide"], gradients["stacked_wide"]
    names = [f"layer_{i}" for i in range(len(stack))]
    shapes = dict.fromkeys(names, SHAPES["wide"])
    together, _ = run(
        config,
        {"stack": SHAPES["stacked_wide"]},
        {"stack": AXES["stacked_wide"]},
        {"stack": stack},
        {"stack": pushes},
    )
    apart, _ = run(
        config,
        shapes,
        dict.fromkeys(names, AXES["wide"]),
        dict(zip(names, stack, strict=True)),
        {name: pushes[:, i] for i, name in enumerate(names)},
    )
    np.testing.assert_array_equal(together["stack"], np.stack([apart[name] for name in names]))


def test_a_stack_taken_for_one_tensor_would_be_updated_differently(initial, gradients):
    config = Adafactor(min_dim_size_to_factor=MIN_DIM)
    moved = {}
    for kind, axes in {"stack": AXES["stacked_wide"], "tensor": (None, "embed", "mlp")}.items():
        weights, _ = run(
            config,
            {"w": SHAPES["stacked_wide"]},
            {"w": axes},
            {"w": initial["stacked_wide"]},
            {"w": gradients["stacked_wide"]},
        )
        moved[kind] = weights["w"] - initial["stacked_wide"]
    gap = np.linalg.norm(moved["stack"] - moved["tensor"], axis=(1, 2))
    assert (gap > 0.1 * np.linalg.norm(moved["stack"], axis=(1, 2))).all()


def test_unstacked_weights_are_updated_as_by_optax(initial, gradients):
    names = ["wide", "tall", "square", "thin", "vector"]
    shapes, axes, weights, pushes = (
        {name: tree[name] for name in names} for tree in (SHAPES, AXES, initial, gradients)
    )
    ours, _ = run(Adafactor(min_dim_size_to_factor=MIN_DIM), shapes, axes, weights, pushes)
    optimizer = optax.adafactor(rate, min_dim_size_to_factor=MIN_DIM)
    state = optimizer.init(weights)
    update = jax.jit(optimizer.update)
    theirs = weights
    for i in range(STEPS):
        now = {name: pushes[name][i] for name in names}
        change, state = update(now, state, theirs)
        theirs = {name: theirs[name] + np.asarray(change[name]) for name in names}
    for name in names:
        gap = np.abs(ours[name] - theirs[name]).max()
        assert gap < 1e-5 * np.abs(theirs[name] - weights[name]).max(), name


def test_no_gradient_means_no_change(initial):
    names = ["wide", "stacked_vector"]
    shapes, axes, weights = ({n: tree[n] for n in names} for tree in (SHAPES, AXES, initial))
    nothing = {n: np.zeros((STEPS, *shapes[n].shape), np.float32) for n in names}
    after, state = run(Adafactor(min_dim_size_to_factor=MIN_DIM), shapes, axes, weights, nothing)
    jax.tree.map(np.testing.assert_array_equal, after, weights)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("changes", [dict(), dict(momentum=0.9)])
def test_the_states_axes_fit_the_state(changes, initial):
    optimizer = Adafactor(min_dim_size_to_factor=MIN_DIM, **changes).for_weights(SHAPES, AXES)
    state = jax.eval_shape(optimizer.init, initial)
    axes = jax.tree.map(lambda leaf: leaf, optimizer.state_axes, is_leaf=is_logical_axes)
    assert jax.tree.structure(state) == jax.tree.structure(axes, is_leaf=is_logical_axes)
    for name, moments in state.items():
        size_of = dict(zip(AXES[name], SHAPES[name].shape, strict=True))
        for moment, leaf in moments.items():
            assert leaf.shape == tuple(size_of[axis] for axis in axes[name][moment])
            assert leaf.dtype == jnp.float32


def test_a_factored_state_keeps_a_row_and_a_column():
    """v_row has lost the largest dimension, v_col the second; of equals the later is larger."""
    state_axes = Adafactor(min_dim_size_to_factor=MIN_DIM).for_weights(SHAPES, AXES).state_axes
    assert state_axes["wide"] == {"v_row": ("embed",), "v_col": ("mlp",)}
    assert state_axes["tall"] == {"v_row": ("embed",), "v_col": ("mlp",)}
    assert state_axes["square"] == {"v_row": ("vocab",), "v_col": ("embed",)}
    assert state_axes["stacked_wide"] == {"v_row": ("layers", "embed"), "v_col": ("layers", "mlp")}
    assert state_axes["thin"] == {"v": ("heads", "relpos_buckets")}
    assert state_axes["experts"]["v_row"] == ("layers", "expert", "embed")


RULES = {"embed": "row", "mlp": "column", "heads": "column", "relpos_buckets": "none"}


def test_factor_rules_say_which_dimensions_are_rows_and_columns():
    """Whatever the sizes; a weight with an axis that has no role goes by its sizes."""
    optimizer = Adafactor(factor_rules=RULES, min_dim_size_to_factor=10**6)
    state_axes = optimizer.for_weights(SHAPES, AXES).state_axes
    assert state_axes["wide"] == {"v_row": ("embed",), "v_col": ("mlp",)}
    assert state_axes["stacked_tall"] == {"v_row": ("layers", "embed"), "v_col": ("layers", "mlp")}
    assert state_axes["thin"] == {"v": ("heads", "relpos_buckets")}
    assert state_axes["square"] == {"v": ("vocab", "embed")}


def test_rules_and_sizes_factor_a_matrix_alike(initial, gradients):
    """Rows and columns are treated the same but for the order of sums."""
    names = ["wide", "tall", "stacked_tall"]
    shapes, axes, weights, pushes = (
        {name: tree[name] for name in names} for tree in (SHAPES, AXES, initial, gradients)
    )
    by_size, _ = run(Adafactor(min_dim_size_to_factor=MIN_DIM), shapes, axes, weights, pushes)
    by_rule, _ = run(Adafactor(factor_rules=RULES), shapes, axes, weights, pushes)
    for name in names:
        np.testing.assert_allclose(by_rule[name], by_size[name], rtol=1e-4, atol=1e-6)


def test_half_factored_rules_are_refused():
    rules = {**RULES, "heads": "row", "kv": "column"}
    weight = {"w": jax.ShapeDtypeStruct((2, 3, 4), jnp.float32)}
    with pytest.raises(ConfigError, match="neither") as error:
        Adafactor(factor_rules=rules).for_weights(weight, {"w": ("heads", "kv", "relpos_buckets")})
    assert error.value.names == ("Adafactor.factor_rules",)


def test_momentum_can_be_kept_in_half_the_bytes(initial, gradients):
    names = ["wide", "stacked_wide"]
    shapes, axes, weights, pushes = (
        {name: tree[name] for name in names} for tree in (SHAPES, AXES, initial, gradients)
    )
    moved = {}
    for kind in ("float32", "bfloat16"):
        config = Adafactor(min_dim_size_to_factor=MIN_DIM, momentum=0.9, momentum_dtype=kind)
        after, state = run(config, shapes, axes, weights, pushes)
        assert state["wide"]["m"].dtype == kind
        moved[kind] = after["wide"] - weights["wide"]
    gap = np.linalg.norm(moved["float32"] - moved["bfloat16"])
    assert 0 < gap < 0.02 * np.linalg.norm(moved["float32"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("decay_rate", 0.0),
        ("decay_rate", 1.5),
        ("momentum", 1.0),
        ("momentum_dtype", "float16"),
        ("factor_rules", {"embed": "diagonal"}),
    ],
)
def test_impossible_settings_are_named(name, value):
    with pytest.raises(
        ConfigError, match=rf"{name} must be .* got {re.escape(repr(value))}"
    ) as error:
        Adafactor(**{name: value})
    assert error.value.names == (f"Adafactor.{name}",)
