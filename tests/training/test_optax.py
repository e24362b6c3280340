"""Optimizers of optax by name: layer by layer as optax alone, sharded, resumed, by one gin line."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import prodigy

from t5x_lite.errors import ConfigError
from t5x_lite.partitioning import partition_spec
from t5x_lite.training.optimizers import AdamW, Optax
from t5x_lite.training.param_groups import Grouped
from t5x_lite.training.schedules import Constant, Linear
from t5x_lite.training.setup import build
from t5x_lite.training.step import Loss, Update
from t5x_lite.training.step_metrics import fetch_metrics
from t5x_lite.tree_paths import flatten

STEPS, LAYERS = 6, 3
SHAPES = {"stack": (LAYERS, 12, 20), "experts": (2, 2, 12, 20), "table": (24, 12), "vector": (12,)}
AXES = {
    "stack": ("layers", "embed", "mlp"),
    "experts": ("layers", "expert", "embed", "mlp"),
    "table": ("vocab", "embed"),
    "vector": ("embed_whole",),
}
SCHEDULE = Linear(peak=0.1, final=0.01, warmup_steps=2, total_steps=STEPS)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@pytest.fixture(scope="module")
def first_weights():
    rng = np.random.default_rng(0)
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    # Layers of very different sizes: what looks at a norm must look at that of one layer.
    made["stack"] *= np.array([0.01, 1, 10], np.float32)[:, None, None]
    return made


@pytest.fixture(scope="module")
def gradients():
    rng = np.random.default_rng(1)
    return [
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
        for _ in range(STEPS)
    ]


def bind(config):
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}
    return config.for_weights(shapes, AXES)


def run(config, weights, gradients):
    optimizer = bind(config)
    update = jax.jit(optimizer.update)
    state = optimizer.init(weights)
    for step, grads in enumerate(gradients):
        rate = jnp.asarray(SCHEDULE(step), jnp.float32)
        weights, state = update(grads, state, weights, jnp.int32(step), rate)
    return jax.device_get((weights, state))


def run_optax(make, arguments, weight, gradients):
    """Train one layer's weight with optax alone, which calls the schedule itself."""
    if make is optax.sm3:  # takes numbers only
        make = optax.inject_hyperparams(make)
    transformation = make(learning_rate=SCHEDULE, **arguments)
    update = jax.jit(transformation.update)
    state = transformation.init(weight)
    for grad in gradients:
        change, state = update(grad, state, weight)
        weight = optax.apply_updates(weight, change)
    return np.asarray(weight)


def layers(name):
    """The index of every layer (and expert) of a weight."""
    depth = sum(axis in ("layers", "expert") for axis in AXES[name])
    return np.ndindex(SHAPES[name][:depth])


OPTIMIZERS = {
    "adabelief": (optax.adabelief, {}),
    "lamb": (optax.lamb, {"weight_decay": 0.1}),
    "lars": (optax.lars, {"momentum": 0.9}),  # the momentum is of updates times the rate
    "novograd": (optax.novograd, {}),
    "radam": (optax.radam, {"threshold": 2.0}),
    "sm3": (optax.sm3, {}),
    "yogi": (optax.yogi, {}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_layer_is_updated_as_by_optax_alone(name, first_weights, gradients):
    make, arguments = OPTIMIZERS[name]
    ours, _ = run(Optax(transformation=make, arguments=arguments), first_weights, gradients)
    for weight in first_weights:
        for layer in layers(weight):
            grads = [step[weight][layer] for step in gradients]
            theirs = run_optax(make, arguments, first_weights[weight][layer], grads)
            np.testing.assert_allclose(ours[weight][layer], theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("transformation", [optax.scale_by_adam, optax.scale_by_adam()])
def test_a_transformation_without_a_rate_is_a_direction(transformation, first_weights, gradients):
    ours, _ = run(Optax(transformation=transformation, weight_decay=0.1), first_weights, gradients)
    same, _ = run(AdamW(weight_decay=0.1), first_weights, gradients)
    jax.tree.map(np.testing.assert_array_equal, ours, same)


def test_weight_decay_is_decoupled_with_either_kind(first_weights, gradients):
    ours, _ = run(Optax(transformation=optax.adam, weight_decay=0.1), first_weights, gradients)
    same, _ = run(AdamW(weight_decay=0.1), first_weights, gradients)
    for name in first_weights:
        np.testing.assert_allclose(ours[name], same[name], rtol=1e-5, atol=1e-6)


def test_groups_freeze_slow_down_and_free_from_decay(first_weights, gradients):
    lamb = Optax(transformation=optax.lamb, arguments={"weight_decay": 0.1})
    grouped, state = run(
        Grouped(
            optimizer=lamb,
            frozen=("vector",),
            without_decay=("stack",),
            rate_multipliers={"table": 0.0},
        ),
        first_weights,
        gradients,
    )
    plain, _ = run(Optax(transformation=optax.lamb), first_weights, gradients)
    decayed, _ = run(lamb, first_weights, gradients)
    np.testing.assert_array_equal(grouped["stack"], plain["stack"])
    np.testing.assert_array_equal(grouped["experts"], decayed["experts"])
    assert not np.array_equal(plain["stack"], decayed["stack"])
    np.testing.assert_array_equal(grouped["table"], first_weights["table"])
    np.testing.assert_array_equal(grouped["vector"], first_weights["vector"])
    assert set(state) == {"stack", "experts", "table"}


def test_the_states_axes_are_those_of_the_weights_dimensions():
    sm3 = bind(Optax(transformation=optax.sm3)).state_axes
    assert sm3["stack"]["0_mu_0"] == ("layers", "embed")
    assert sm3["stack"]["0_mu_1"] == ("layers", "mlp")
    assert sm3["experts"]["0_nu"] == ("layers", "expert", "embed", "mlp")
    novograd = bind(Optax(transformation=optax.novograd)).state_axes
    assert novograd["stack"]["0_mu"] == ("layers", "embed", "mlp")
    assert novograd["stack"]["0_nu"] == ("layers",)  # a number for each layer


def grows(learning_rate):
    return optax.scale(learning_rate)


def widens(learning_rate):
    def update(grad, state, param):
        return -learning_rate * grad, state.astype(jnp.int32)

    return optax.GradientTransformation(lambda param: jnp.zeros((), jnp.float32), update)


@pytest.mark.parametrize(
    ("transformation", "why"),
    [
        (optax.rprop, "rprop cannot be used: its first state depends on the learning rate"),
        (optax.polyak_sgd, "missing 1 required keyword-only argument: 'value'"),
        (optax.adam(1e-3), "have a learning rate already"),
        (grows, "its updates go uphill"),
        (widens, "an update makes"),
        (lambda learning_rate: optax.noisy_sgd(learning_rate, key=0), "random numbers"),
        (lambda: 3, "it fails for the weight"),
    ],
)
def test_what_cannot_update_a_weight_is_refused(transformation, why):
    with pytest.raises(ConfigError, match=why) as error:
        bind(Optax(transformation=transformation))
    assert error.value.names == ("Optax.transformation",)


def test_arguments_need_a_function():
    with pytest.raises(ConfigError, match="need a function") as error:
        Optax(transformation=optax.scale_by_adam(), arguments={"b1": 0.5})
    assert "Optax.arguments" in error.value.names
    with pytest.raises(ConfigError, match="unexpected keyword argument 'b7'"):
        bind(Optax(transformation=optax.adam, arguments={"b7": 0.5}))


def test_decay_inside_a_finished_transformation_cannot_be_removed():
    optimizer = Optax(transformation=optax.add_decayed_weights(0.1))
    with pytest.raises(ConfigError, match="cannot be without weight decay") as error:
        bind(Grouped(optimizer=optimizer, without_decay=("vector",)))
    assert "Optax.transformation" in error.value.names


# prodigy's state holds the first weights: buffers of their own, since both are donated.
ON_A_MESH = {
    "sm3": (Optax(transformation=optax.sm3), 0.05, True),
    "prodigy": (Optax(transformation=prodigy, arguments={"estim_lr0": 1e-2}), 1.0, False),
}


@pytest.mark.parametrize("name", ON_A_MESH)
def test_training_on_a_mesh_shards_the_state_like_the_weights(name, tiny_config, random_batch):
    optimizer, rate, offload = ON_A_MESH[name]
    config = tiny_config(head_dim=8, num_encoder_layers=2, num_decoder_layers=1)
    setup = build(
        config,
        optimizer,
        Constant(value=rate),
        Loss(),
        Update(clip_norm=1.0, ema_decay=0.5, microbatches=2, offload_optimizer=offload),
        mesh={"data": 2, "fsdp": 2, "tensor": 2},
        batch_size=8,
        seed=0,
    )
    with jax.set_mesh(setup.mesh):
        state = setup.initial()
        batch = jax.device_put(random_batch(0, rows=8), setup.batch_sharding)
        step = setup.step.lower(state, batch).compile(compiler_options=QUICK)
        losses = []
        for _ in range(12):
            state, metrics = step(state, batch)
            (metrics,) = fetch_metrics([metrics])
            losses.append(float(metrics["loss"] / metrics["weight"]))
    assert losses[-1] < 0.9 * losses[0]
    path = "decoder/layers/mlp/wo/kernel"
    weight = flatten(state.params)[path]
    assert weight.sharding.spec == partition_spec(("layers", "mlp", "embed"))
    sharded = 0
    for leaf_path, leaf in flatten(state.opt_state).items():
        if leaf_path.startswith(path):
            if leaf.shape == weight.shape:
                assert leaf.sharding.spec == weight.sharding.spec
                assert {piece.data.shape for piece in leaf.addressable_shards} == {(1, 16, 8)}
                sharded += 1
            if leaf_path.endswith("mu_0"):
                assert {piece.data.shape for piece in leaf.addressable_shards} == {(1, 16)}
            assert (leaf.sharding.memory_kind == "pinned_host") == offload
    assert sharded


def test_a_resumed_run_equals_an_uninterrupted_one(train_small, weights, tmp_path):
    optimizer = Optax(transformation=optax.adabelief)
    for stop in (2, 4):
        train_small(tmp_path / "resumed", steps=stop, optimizer=optimizer)
    train_small(tmp_path / "whole", steps=4, optimizer=optimizer)
    resumed, whole = weights(tmp_path / "resumed"), weights(tmp_path / "whole")
    assert any("0_nu" in name for name in whole)
    assert resumed.keys() == whole.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(resumed[name], array, err_msg=name)


def test_one_gin_line_chooses_the_optimizer(data_dir, tmp_path):
    model_dir = Path(tmp_path, "run")
    values = {
        "MODEL_DIR": str(model_dir),
        "DATA_DIR": str(data_dir),
        "TRAIN_STEPS": 3,
        "BATCH_SIZE": 8,
        "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 16},
        "EmbeddedCorpus.vocab_size": 412,
        "EmbeddedCorpus.packages": ("gin", "beartype"),
        "Cosine.warmup_steps": 1,
    }
    flags = [f"--gin.{name}={value!r}" for name, value in values.items()]
    command = [
        *(sys.executable, "-m", "t5x_lite", "train", "--gin_file=recipes/tiny_embedded.gin"),
        *("--gin_file=optimizers/optax.gin", "--gin.Optax.transformation=@optax.sm3", *flags),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((model_dir / "results.json").read_text())
    assert (model_dir / "checkpoints" / "3").is_dir()
    [config] = model_dir.glob("launches/*/operative_config.gin")
    assert "transformation = @optax.sm3" in config.read_text()
