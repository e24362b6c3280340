"""The same run on one device, on eight, and split three ways."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from t5x_lite.errors import ConfigError
from t5x_lite.models.layers import dropout
from t5x_lite.models.transformer import abstract_model
from t5x_lite.partitioning import make_mesh, named_sharding, shard
from t5x_lite.training.optimizers import Adafactor
from t5x_lite.training.schedules import InverseSquareRoot
from t5x_lite.training.state import abstract_state, make_initial_state, state_shardings
from t5x_lite.training.step import Loss, make_train_step

MESHES = {
    "1x1x1": dict(data=1, fsdp=1, tensor=1),
    "8x1x1": dict(data=8, fsdp=1, tensor=1),
    "2x2x2": dict(data=2, fsdp=2, tensor=2),
}
STEPS = 3
SEED = 7


class Run(NamedTuple):
    """What is left of a short run on one mesh."""

    losses: list[float]
    initial: Any  # arrays on the host
    final: Any  # where the run left them
    described: Any  # what abstract_state promised
    donated: list[bool]  # of each array of the first state, whether its memory was taken


@pytest.fixture(scope="module")
def config(tiny_config):
    """T5 1.0, whose fewer weights compile faster."""
    changes = dict(mlp_activations=("relu",), logits_via_embedding=True, head_dim=8)
    return tiny_config(**changes, num_encoder_layers=2, num_decoder_layers=2)


@pytest.fixture(scope="module")
def optimizer(config):
    _, shapes, axes = abstract_model(config)
    return Adafactor(min_dim_size_to_factor=16).for_weights(shapes, axes)


@pytest.fixture(scope="module")
def runs(config, optimizer, random_batch):
    """The run on each mesh, jitted as `t5x_lite train` does it."""

    def run(sizes):
        mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
        placed = state_shardings(mesh, config, optimizer)
        step = make_train_step(
            abstract_model(config)[0],
            optimizer,
            InverseSquareRoot(warmup_steps=100),
            Loss(),
            seed=SEED,
        )
        everywhere = named_sharding(mesh, ())
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(placed, everywhere))
        with jax.set_mesh(mesh):
            state = first = make_initial_state(config, optimizer, placed)(jax.random.key(SEED))
            initial = jax.tree.map(np.array, first)
            losses = []
            for number in range(STEPS):
                batch = jax.device_put(
                    random_batch(number, rows=8), named_sharding(mesh, ("batch", "length"))
                )
                state, metrics = jitted(state, batch)
                losses.append(float(metrics["loss"] / metrics["weight"]))
        donated = [leaf.is_deleted() for leaf in jax.tree.leaves(first)]
        return Run(losses, initial, state, abstract_state(config, optimizer, placed), donated)

    return {name: run(sizes) for name, sizes in MESHES.items()}


@pytest.mark.parametrize("mesh", ["8x1x1", "2x2x2"])
def test_initial_weights_do_not_depend_on_the_mesh(mesh, runs):
    jax.tree.map(np.testing.assert_array_equal, runs[mesh].initial, runs["1x1x1"].initial)


@pytest.mark.parametrize("mesh", ["8x1x1", "2x2x2"])
def test_loss_does_not_depend_on_the_mesh(mesh, runs):
    """Up to the order in which float32 sums are taken: 1e-6 of a loss near 4, some ulps."""
    np.testing.assert_allclose(runs[mesh].losses, runs["1x1x1"].losses, rtol=1e-6)
    assert len(set(np.round(runs[mesh].losses, 4))) == STEPS


@pytest.mark.parametrize("mesh", ["8x1x1", "2x2x2"])
def test_weights_after_three_steps_do_not_depend_on_the_mesh(mesh, runs):
    """Held to the largest change of each array, which was made from sums in another order."""
    for one, other, before in zip(
        *map(jax.tree.leaves, (runs["1x1x1"].final, runs[mesh].final, runs[mesh].initial)),
        strict=True,
    ):
        change = np.abs(np.asarray(one) - before).max()
        assert np.abs(np.asarray(one) - np.asarray(other)).max() <= 1e-4 * change


def test_dropout_masks_do_not_depend_on_the_mesh():
    @jax.jit
    def drop(x_ble, key):
        return dropout(shard(x_ble, "batch", "length", "mlp"), 0.5, key, shared_axis=-2)

    x_ble, key = np.ones((8, 4, 16), np.float32), jax.random.key(SEED)
    alone = drop(x_ble, key)
    with jax.set_mesh(make_mesh(MESHES["2x2x2"])):
        split = drop(x_ble, key)
    assert not split.sharding.is_fully_replicated
    np.testing.assert_array_equal(split, alone)


@pytest.mark.parametrize("mesh", MESHES)
def test_the_state_lies_where_the_abstract_state_says(mesh, runs):
    run = runs[mesh]
    for leaf, described in zip(*map(jax.tree.leaves, (run.final, run.described)), strict=True):
        assert (leaf.shape, leaf.dtype) == (described.shape, described.dtype)
        assert leaf.sharding.is_equivalent_to(described.sharding, leaf.ndim)


def test_each_device_holds_its_share_of_weights_and_optimizer_state(runs):
    """On data 2 x fsdp 2 x tensor 2 a matrix lies in four pieces, each on two devices."""
    state = runs["2x2x2"].final
    layers, moments = state.params["encoder"]["layers"], state.opt_state["encoder"]["layers"]
    expected = [
        (layers["mlp"]["wi_0"]["kernel"], (2, 16, 32), (2, 8, 16)),
        (layers["self_attention"]["query"]["kernel"], (2, 16, 32), (2, 8, 16)),
        (layers["self_attention"]["out"]["kernel"], (2, 32, 16), (2, 16, 8)),
        (layers["mlp_norm"]["scale"], (2, 16), (2, 16)),
        (state.params["token_embedder"]["embedding"], (64, 16), (32, 8)),
        (state.params["encoder"]["relpos_bias"]["rel_embedding"], (4, 32), (2, 32)),
        (moments["mlp"]["wi_0"]["kernel"]["v_row"], (2, 16), (2, 8)),
        (moments["mlp"]["wi_0"]["kernel"]["v_col"], (2, 32), (2, 16)),
        (moments["mlp_norm"]["scale"]["v"], (2, 16), (2, 16)),
    ]
    for array, whole, piece in expected:
        assert array.shape == whole
        assert {shard.data.shape for shard in array.addressable_shards} == {piece}
        assert len(array.addressable_shards) == 8


@pytest.mark.parametrize("mesh", MESHES)
def test_the_state_before_a_step_gives_its_memory_to_the_one_after(mesh, runs):
    assert all(runs[mesh].donated)


def test_a_mesh_that_does_not_divide_a_weight_is_refused_before_anything_is_made(config, optimizer):
    with pytest.raises(ConfigError, match="not divisible by the 8 devices along tensor"):
        state_shardings(make_mesh(dict(tensor=8)), config, optimizer)
