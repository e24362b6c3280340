"""What a run carries from step to step, and where on the mesh each part of it lives."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from t5x_lite.errors import ConfigError
from t5x_lite.models import transformer
from t5x_lite.models.config import TransformerConfig
from t5x_lite.partitioning import check_divisible, shardings
from t5x_lite.training.optimizers import Optimizer

HOST = "pinned_host"  # the memory of the host that devices read and write without the CPU


class TrainState(NamedTuple):
    """Plain nested dicts of arrays.

    step: int32 scalar. skipped: how many steps were left out for not being finite, int32 scalar.
    average: a moving average of the weights, empty where none is kept.
    """

    step: Any
    params: Any
    opt_state: Any
    skipped: Any = 0
    average: Any = None

    @property
    def evaluated(self) -> Any:
        """The weights to evaluate and decode with: their average where there is one."""
        return self.average or self.params


def state_shardings(
    mesh: Mesh,
    config: TransformerConfig,
    optimizer: Optimizer,
    *,
    average: bool = False,
    offload_optimizer: bool = False,
) -> TrainState:
    """The sharding of every array; ConfigError if the mesh does not divide a weight.

    average: the state has a moving average of the weights. offload_optimizer: between steps the
    optimizer's state lies in pinned memory of the host.
    """
    _, shapes, axes = transformer.abstract(config)
    check_divisible(mesh, shapes, axes)
    placed = shardings(
        mesh,
        TrainState(
            step=(),
            params=axes,
            opt_state=optimizer.state_axes,
            skipped=(),
            average=axes if average else None,
        ),
    )
    if not offload_optimizer:
        return placed
    kinds = sorted(memory.kind for memory in mesh.devices.flat[0].addressable_memories())
    if HOST not in kinds:
        raise ConfigError(
            f"offload_optimizer needs devices that reach {HOST} memory; these have {kinds}",
            "Update.offload_optimizer",
        )
    return placed._replace(
        opt_state=jax.tree.map(lambda place: place.with_memory_kind(HOST), placed.opt_state)
    )


def initial_state(
    config: TransformerConfig, optimizer: Optimizer, placed: TrainState, *, seed: int
) -> TrainState:
    """Step 0 with fresh weights, each made on the devices that keep it.

    The weights depend on the seed alone, not on the mesh.
    """

    def make(key: jax.Array) -> TrainState:
        return _with_new_optimizer(transformer.initialize(config, key), optimizer, placed, step=0)

    return jax.jit(make, out_shardings=placed)(jax.random.key(seed))


def state_from_weights(
    params: Any, optimizer: Optimizer, placed: TrainState, *, step: int
) -> TrainState:
    """A state that goes on from given weights, with the optimizer as new."""

    def make(params: Any) -> TrainState:
        return _with_new_optimizer(params, optimizer, placed, step=step)

    return jax.jit(make, out_shardings=placed)(params)


def _with_new_optimizer(
    params: Any, optimizer: Optimizer, placed: TrainState, *, step: int
) -> TrainState:
    average = None if placed.average is None else jax.tree.map(jnp.copy, params)
    none_skipped = jnp.zeros((), jnp.int32)
    return TrainState(
        jnp.asarray(step, jnp.int32), params, optimizer.init(params), none_skipped, average
    )


def abstract_state(
    config: TransformerConfig, optimizer: Optimizer, placed: TrainState
) -> TrainState:
    """Shapes, types and shardings, nothing allocated: what a checkpoint restores into."""
    _, shapes, _ = transformer.abstract(config)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(
        step=number,
        params=shapes,
        opt_state=jax.eval_shape(optimizer.init, shapes),
        skipped=number,
        average=None if placed.average is None else shapes,
    )
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        placed,
    )
