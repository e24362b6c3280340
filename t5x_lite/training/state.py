"""What a run carries from step to step, and where on the mesh each part of it lives."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from t5x_lite.models import transformer
from t5x_lite.models.config import TransformerConfig
from t5x_lite.partitioning import check_divisible, shardings
from t5x_lite.training.optimizers import Optimizer


class TrainState(NamedTuple):
    """Step (int32 scalar), weights and optimizer state: plain nested dicts of arrays."""

    step: Any
    params: Any
    opt_state: Any


def state_shardings(mesh: Mesh, config: TransformerConfig, optimizer: Optimizer) -> TrainState:
    """The sharding of every array; ConfigError if the mesh does not divide a weight."""
    _, shapes, axes = transformer.abstract(config)
    check_divisible(mesh, shapes, axes)
    return shardings(mesh, TrainState(step=(), params=axes, opt_state=optimizer.state_axes))


def initial_state(
    config: TransformerConfig, optimizer: Optimizer, placed: TrainState, *, seed: int
) -> TrainState:
    """Step 0 with fresh weights, each made on the devices that keep it.

    The weights depend on the seed alone, not on the mesh.
    """

    def make(key: jax.Array) -> TrainState:
        params = transformer.initialize(config, key)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    return jax.jit(make, out_shardings=placed)(jax.random.key(seed))


def state_from_weights(
    params: Any, optimizer: Optimizer, placed: TrainState, *, step: int
) -> TrainState:
    """A state that goes on from given weights, with the optimizer as new."""

    def make(params: Any) -> TrainState:
        return TrainState(jnp.asarray(step, jnp.int32), params, optimizer.init(params))

    return jax.jit(make, out_shardings=placed)(params)


def abstract_state(
    config: TransformerConfig, optimizer: Optimizer, placed: TrainState
) -> TrainState:
    """Shapes, types and shardings, nothing allocated: what a checkpoint restores into."""
    _, shapes, _ = transformer.abstract(config)
    state = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32), shapes, jax.eval_shape(optimizer.init, shapes)
    )
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        placed,
    )
