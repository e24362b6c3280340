"""The training state, and its sharding over the mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from t5x_lite.errors import ConfigError
from t5x_lite.models import transformer
from t5x_lite.models.config import TransformerConfig
from t5x_lite.partitioning import check_divisible, tree_shardings
from t5x_lite.training.optimizers import Optimizer

HOST_MEMORY_KIND = "pinned_host"  # page-locked host memory, which devices access by DMA


class TrainState(NamedTuple):
    """What a step updates and a checkpoint holds; a pytree of arrays.

    The same structure also holds shardings or `jax.ShapeDtypeStruct`s. Checkpoints store the fields
    by these names.

    Attributes:
        step: Number of steps done, int32 scalar.
        params: Weights, nested dicts of float32 arrays.
        opt_state: State of the optimizer.
        skipped: Number of steps that were skipped because they were not finite, int32 scalar.
        average: Moving average of the weights, of their structure; None if none is kept.
    """

    step: Any
    params: Any
    opt_state: Any
    skipped: Any = 0
    average: Any = None

    @property
    def eval_params(self) -> Any:
        """Weights for evaluation and decoding: the moving average if there is one."""
        return self.average or self.params


def state_shardings(
    mesh: Mesh,
    config: TransformerConfig,
    optimizer: Optimizer,
    *,
    average: bool = False,
    offload_optimizer: bool = False,
) -> TrainState:
    """Return the sharding of every array of the state.

    Args:
        mesh: The device mesh.
        config: The model, whose weights declare logical axes.
        optimizer: The optimizer, bound to the weights.
        average: Whether the state has a moving average of the weights.
        offload_optimizer: Whether the optimizer state is in pinned host memory between steps.

    Raises:
        ConfigError: The mesh does not divide a weight, or the devices have no pinned host memory.
    """
    _, shapes, axes = transformer.abstract_model(config)
    check_divisible(mesh, shapes, axes)
    shardings = tree_shardings(
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
        return shardings
    kinds = sorted(memory.kind for memory in mesh.devices.flat[0].addressable_memories())
    if HOST_MEMORY_KIND not in kinds:
        raise ConfigError(
            f"offload_optimizer needs devices with {HOST_MEMORY_KIND} memory; these have {kinds}",
            "Update.offload_optimizer",
        )
    on_host = jax.tree.map(lambda s: s.with_memory_kind(HOST_MEMORY_KIND), shardings.opt_state)
    return shardings._replace(opt_state=on_host)


def make_initial_state(
    config: TransformerConfig, optimizer: Optimizer, shardings: TrainState
) -> Callable[[jax.Array], TrainState]:
    """Return a jitted function that initializes the state of step 0.

    Each device computes only the parts of the weights that it holds. The weights depend on the key
    only, not on the mesh.

    Args:
        config: The model.
        optimizer: The optimizer, bound to the weights.
        shardings: Where the arrays are placed (`state_shardings`).

    Returns:
        A function of the weights' PRNG key.
    """

    def make(key: jax.Array) -> TrainState:
        params = transformer.initialize(config, key)
        return _with_new_optimizer(params, optimizer, shardings, step=0)

    return jax.jit(make, out_shardings=shardings)


def state_from_weights(
    params: Any, optimizer: Optimizer, shardings: TrainState, *, step: int
) -> TrainState:
    """Build a state from weights, with a new optimizer state.

    Args:
        params: Weights, nested dicts of float32 arrays.
        optimizer: The optimizer, bound to the weights.
        shardings: Where the arrays are placed (`state_shardings`).
        step: The step that training continues after; 0 for a new run.
    """

    def make(params: Any) -> TrainState:
        return _with_new_optimizer(params, optimizer, shardings, step=step)

    return jax.jit(make, out_shardings=shardings)(params)


def _with_new_optimizer(
    params: Any, optimizer: Optimizer, shardings: TrainState, *, step: int
) -> TrainState:
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        skipped=jnp.zeros((), jnp.int32),
        # A copy, as the state is donated and a buffer can be donated only once.
        average=None if shardings.average is None else jax.tree.map(jnp.copy, params),
    )


def abstract_state(
    config: TransformerConfig, optimizer: Optimizer, shardings: TrainState
) -> TrainState:
    """Return the state as `jax.ShapeDtypeStruct`s with shardings, to restore a checkpoint into.

    Args:
        config: The model.
        optimizer: The optimizer, bound to the weights.
        shardings: Where the arrays are placed (`state_shardings`).
    """
    _, shapes, _ = transformer.abstract_model(config)
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(
        step=scalar,
        params=shapes,
        opt_state=jax.eval_shape(optimizer.init, shapes),
        skipped=scalar,
        average=None if shardings.average is None else shapes,
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings,
    )
