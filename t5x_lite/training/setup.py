"""The setup of training on the devices: the mesh, shardings of the state, and the jitted step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

from t5x_lite.errors import ConfigError
from t5x_lite.hardware.xla_options import compiler_options
from t5x_lite.models import transformer
from t5x_lite.models.config import TransformerConfig
from t5x_lite.partitioning import make_mesh, named_sharding, num_batch_shards, tree_shardings
from t5x_lite.training.bit_fingerprints import with_fingerprints
from t5x_lite.training.optimizers import OptimizerConfig
from t5x_lite.training.schedules import Schedule
from t5x_lite.training.state import (
    TrainState,
    abstract_state,
    make_initial_state,
    state_from_weights,
    state_shardings,
)
from t5x_lite.training.step import Loss, Update, make_train_step
from t5x_lite.training.step_metrics import pack_metrics


class TrainSetup(NamedTuple):
    """Everything that is fixed before the first step: shardings, shapes and functions.

    Args:
        mesh: The device mesh.
        graphdef: The model without its weights.
        frozen: Paths of the weights that no step changes.
        abstract: Shape, type and sharding of every array of the state.
        batch_sharding: Sharding of a batch's arrays [batch, length].
        replicated: Sharding of arrays that every device has in whole.
        initial: Computes the state of step 0.
        from_weights: (weights, step) -> the state with these weights and a fresh optimizer.
        step: The jitted step, (state, batch, num_tasks) -> (state, `PackedMetrics`). It donates the
            state. `num_tasks`: the number of tasks for which sums are computed, 0 for none.
        compiler_options: XLA's options to compile the step with.
    """

    mesh: jax.sharding.Mesh
    graphdef: nnx.GraphDef
    frozen: frozenset[str]
    abstract: TrainState
    batch_sharding: jax.sharding.NamedSharding
    replicated: jax.sharding.NamedSharding
    initial: Callable[[], TrainState]
    from_weights: Callable[[Any, int], TrainState]
    step: Any
    compiler_options: Mapping[str, Any]


def build(
    model: TransformerConfig,
    optimizer: OptimizerConfig,
    learning_rate: Schedule,
    loss: Loss,
    update: Update = Update(),  # noqa: B008  (frozen)
    *,
    mesh: Mapping[str, int],
    batch_size: int,
    seed: int,
    devices: Sequence[Any] | None = None,
    fingerprint_every: int | None = None,
    deterministic: bool = False,
) -> TrainSetup:
    """Set up a model's training on the devices; nothing is computed or allocated yet.

    Args:
        model: The model's configuration.
        optimizer: The optimizer's configuration.
        learning_rate: Schedule of the learning rate.
        loss: What a step minimizes.
        update: How gradients become new weights.
        mesh: Sizes of the mesh axes; -1 takes the rest of the devices.
        batch_size: Rows of the global batch.
        seed: Seed of the initial weights and of dropout.
        devices: The devices; None is all of them.
        fingerprint_every: Steps between two fingerprints of the weights in the metrics, which then
            always contain one of the batch (`training.bit_fingerprints`). None computes none.
        deterministic: Compile so that every run gives the same bits (`hardware.xla_options`).

    Returns:
        The setup.

    Raises:
        ConfigError: The batch or the model does not divide over the mesh.
    """
    device_mesh = make_mesh(mesh, devices)
    if batch_size < 1 or batch_size % num_batch_shards(device_mesh):
        raise ConfigError(
            f"a batch of {batch_size} rows does not divide into the "
            f"{num_batch_shards(device_mesh)} parts of the mesh {dict(mesh)} "
            f"(data x fsdp x expert)",
            "BATCH_SIZE",
            "MESH",
        )
    if batch_size % (num_batch_shards(device_mesh) * update.microbatches):
        raise ConfigError(
            f"a batch of {batch_size} rows does not divide into {update.microbatches} microbatches "
            f"for each of the {num_batch_shards(device_mesh)} parts of the mesh {dict(mesh)}",
            "Update.microbatches",
            "BATCH_SIZE",
        )
    graphdef, shapes, axes = transformer.abstract_model(model)
    bound = optimizer.for_weights(shapes, axes)
    shardings = state_shardings(
        device_mesh,
        model,
        bound,
        average=update.ema_decay is not None,
        offload_optimizer=update.offload_optimizer,
    )
    replicated = named_sharding(device_mesh, ())
    step = make_train_step(
        graphdef,
        bound,
        learning_rate,
        loss,
        update,
        seed=seed,
        optimizer_memory=tree_shardings(device_mesh, bound.state_axes)
        if update.offload_optimizer
        else None,
    )
    initial_state = make_initial_state(model, bound, shardings)
    if fingerprint_every is not None:
        step = with_fingerprints(step, fingerprint_every)
    return TrainSetup(
        mesh=device_mesh,
        graphdef=graphdef,
        frozen=bound.frozen,
        abstract=abstract_state(model, bound, shardings),
        batch_sharding=named_sharding(device_mesh, ("batch", "length")),
        replicated=replicated,
        initial=lambda: initial_state(jax.random.key(seed)),
        from_weights=lambda params, step: state_from_weights(params, bound, shardings, step=step),
        step=jax.jit(
            pack_metrics(step),
            donate_argnums=0,
            static_argnames="num_tasks",
            out_shardings=(shardings, replicated),
        ),
        compiler_options=compiler_options(device_mesh, deterministic=deterministic),
    )
