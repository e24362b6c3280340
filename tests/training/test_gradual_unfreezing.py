"""Gradual unfreezing: which layers change at which step, and what does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.errors import ConfigError
from t5x_lite.models.transformer import abstract_model
from t5x_lite.training.gradual_unfreezing import GraduallyUnfrozen
from t5x_lite.training.optimizers import Adafactor, AdamW
from t5x_lite.tree_paths import flatten


@pytest.fixture
def updated(tiny_config, random_params):
    """Weights and state before and after an update at a step, by their paths."""
    config = tiny_config()
    _, shapes, axes = abstract_model(config)
    params = jax.tree.map(jnp.asarray, random_params(config))
    grads = jax.tree.map(lambda x: jnp.ones_like(x), params)

    def run(optimizer, step):
        bound = optimizer.for_weights(shapes, axes)
        state = bound.init(params)
        new, after = bound.update(grads, state, params, jnp.asarray(step), jnp.asarray(0.1))
        trained = bound.trained(grads, jnp.asarray(step))
        return tuple(map(flatten, (params, new, state, after, trained)))

    return run


def changed_layers(before, after):
    return [bool((a != b).any()) for a, b in zip(before, after, strict=True)]


@pytest.mark.parametrize("optimizer", [Adafactor(), AdamW()], ids=["adafactor", "adamw"])
@pytest.mark.parametrize(
    ("step", "encoder", "decoder"),
    [
        (0, [0, 1], [0, 0, 1]),
        (9, [0, 1], [0, 0, 1]),
        (10, [1, 1], [0, 1, 1]),
        (20, [1, 1], [1, 1, 1]),
        (999, [1, 1], [1, 1, 1]),
    ],
)
def test_one_more_layer_of_each_stack_changes_each_episode_from_the_top(
    optimizer, step, encoder, decoder, updated
):
    before, after, state, new_state, trained = updated(
        GraduallyUnfrozen(optimizer=optimizer, episode_steps=10), step
    )
    for path, weight in before.items():
        layers = {"encoder/layers": encoder, "decoder/layers": decoder}.get(path[:14])
        found = (
            changed_layers(weight, after[path]) if layers else [bool((weight != after[path]).any())]
        )
        assert found == [bool(x) for x in layers or [1]], path
        shown = [bool(g.any()) for g in trained[path]] if layers else [bool(trained[path].any())]
        assert shown == found, path
    for path, old in state.items():
        layers = {"encoder/layers": encoder, "decoder/layers": decoder}.get(path[:14])
        if layers:
            waiting = ~np.array(layers, bool)
            np.testing.assert_array_equal(new_state[path][waiting], old[waiting], err_msg=path)


def test_once_all_layers_are_trained_it_is_the_optimizer_itself(updated):
    gradual = updated(
        GraduallyUnfrozen(optimizer=Adafactor(), episode_steps=5, step_offset=100), 110
    )
    plain = updated(Adafactor(), 110)
    for path, weight in plain[1].items():
        np.testing.assert_array_equal(gradual[1][path], weight, err_msg=path)


def test_before_its_offset_the_top_layers_alone_are_trained(updated):
    optimizer = GraduallyUnfrozen(optimizer=Adafactor(), episode_steps=5, step_offset=100)
    before, after, *_ = updated(optimizer, 3)
    path = "decoder/layers/mlp/wo/kernel"
    assert changed_layers(before[path], after[path]) == [False, False, True]


def test_an_episode_takes_a_step_at_least():
    with pytest.raises(ConfigError, match="episode_steps is 0"):
        GraduallyUnfrozen(optimizer=Adafactor(), episode_steps=0)
