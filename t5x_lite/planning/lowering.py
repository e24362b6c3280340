"""Lower what a plan compiles, from shapes: a training step, an evaluation step, or generation."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5x_lite.data.stream import feature_converters
from t5x_lite.data.stream.packing import Segments
from t5x_lite.decoding.generation import Generation
from t5x_lite.errors import ConfigError
from t5x_lite.hardware.topologies import Topology
from t5x_lite.inference.engine import Inference
from t5x_lite.models import transformer
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.transformer import abstract_model, bind
from t5x_lite.partitioning import check_divisible, make_mesh, named_sharding, tree_shardings
from t5x_lite.planning.collectives import Layout, MeshPosition
from t5x_lite.planning.decode_plan import DecodingWorkload
from t5x_lite.training.optimizers import OptimizerConfig
from t5x_lite.training.schedules import Schedule
from t5x_lite.training.setup import build
from t5x_lite.training.step import Loss, Update, make_eval_step


def batch_shapes(
    model: TransformerConfig,
    lengths: Mapping[str, int],
    rows: int,
    *,
    packed: bool,
    sharding: Any = None,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a batch, as the feature converters make it.

    Args:
        model: The architecture.
        lengths: Tokens of a row by feature.
        rows: Rows of the batch.
        packed: Whether rows are packed, which adds segment ids and positions.
        sharding: Sharding of each array; None leaves it open.
    """
    if model.encoder_only:
        shapes = _encoder_batch(model, lengths["inputs"])
    else:
        convert = (
            partial(feature_converters.decoder_only, prefix_visible=model.prefix_attention)
            if model.decoder_only
            else feature_converters.encoder_decoder
        )
        empty = {name: Segments.empty(1, lengths[name]) for name in ("inputs", "targets")}
        batch = convert(empty, packed=packed)
        shapes = {name: (array.shape[1:], array.dtype) for name, array in batch.items()}
    return {
        name: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }


def _encoder_batch(model: TransformerConfig, length: int) -> dict[str, tuple[tuple, Any]]:
    """Return shape and type of the arrays of a masked language model's batch, without rows."""
    names = ("input_tokens", "target_tokens", "segment_ids", "positions")
    shapes: dict[str, tuple[tuple, Any]] = {
        f"encoder_{name}": ((length,), jnp.int32) for name in names
    }
    shapes["encoder_loss_weights"] = ((length,), jnp.float32)
    if model.num_token_types:
        shapes["encoder_token_types"] = ((length,), jnp.int32)
    return shapes


def summed_loss(model: TransformerConfig) -> Callable[[Any, Any], jax.Array]:
    """Return a scalar function of (params, batch) that saves the activations of a real loss.

    It sums the logits. Its differentiation saves the activations of the model and none of the loss,
    whose memory depends on how it splits the logits into chunks.

    Args:
        model: The architecture.
    """
    graphdef, _, _ = abstract_model(model)

    def loss(params: Any, batch: Any) -> jax.Array:
        return jnp.sum(bind(graphdef, params)(batch).logits)

    return loss


KINDS = {"train": "training step", "eval": "evaluation step", "decode": "generation"}


class Setting(NamedTuple):
    """All settings that determine a compiled step or generation.

    Attributes:
        model: The architecture.
        optimizer: The optimizer.
        learning_rate: The schedule.
        loss: The loss.
        update: How gradients are accumulated and applied.
        mesh: Sizes of the mesh axes by name; -1 takes the remaining devices.
        batch_size: Rows of the global batch.
        lengths: Tokens of a row by feature.
        packed: Whether rows are packed.
        mode: "train", "eval" or "decode" (`KINDS`).
        compiler_options: XLA options by name, in addition to those of `train`.
        generation: How texts are generated, for "decode". Their inputs have the length of "inputs".
    """

    model: TransformerConfig
    optimizer: OptimizerConfig
    learning_rate: Schedule
    loss: Loss
    update: Update
    mesh: Mapping[str, int]
    batch_size: int
    lengths: Mapping[str, int]
    packed: bool
    mode: str
    compiler_options: Mapping[str, Any]
    generation: Generation = Generation()

    @property
    def decoding(self) -> DecodingWorkload | None:
        """What is generated in the mode "decode"; None for a step."""
        if self.mode != "decode":
            return None
        generation = self.generation
        return DecodingWorkload(
            rows=self.batch_size,
            copies=generation.copies,
            inputs=self.lengths["inputs"],
            tokens=generation.max_length,
        )


class Traced(NamedTuple):
    """A program that was traced for devices of a topology.

    Attributes:
        lowered: The result of `jax.jit(...).lower(...)`.
        mesh: The mesh of the devices.
        arguments: Shapes and shardings of the train state, or of the weights alone.
        compiler_options: XLA options that `train` uses.
    """

    lowered: Any
    mesh: jax.sharding.Mesh
    arguments: Any
    compiler_options: Mapping[str, Any]


def trace(setting: Setting, devices: Sequence[Any]) -> Traced:
    """Trace the program of a setting; nothing is computed or allocated.

    Args:
        setting: The step or generation.
        devices: Devices of a topology, which need not exist.
    """
    # Keep all stack frames, so that costs can be attributed to source lines inside layers.
    jax.config.update("jax_traceback_in_locations_limit", 100)
    if setting.mode == "decode":
        return _trace_generation(setting, devices)
    program = build(
        setting.model,
        setting.optimizer,
        setting.learning_rate,
        setting.loss,
        setting.update,
        mesh=setting.mesh,
        batch_size=setting.batch_size,
        seed=0,
        devices=devices,
    )
    batch = batch_shapes(
        setting.model,
        setting.lengths,
        setting.batch_size,
        packed=setting.packed,
        sharding=program.batch_sharding,
    )
    with jax.set_mesh(program.mesh):
        if setting.mode == "train":
            lowered = program.step.lower(program.abstract, batch)
        else:
            step = jax.jit(make_eval_step(program.graphdef), out_shardings=program.replicated)
            lowered = step.lower(program.abstract.params, batch)
    return Traced(lowered, program.mesh, program.abstract, program.compiler_options)


def _trace_generation(setting: Setting, devices: Sequence[Any]) -> Traced:
    """Trace the program of `Inference.generate`, with weights in the type of the checkpoint."""
    if setting.model.encoder_only:
        raise ConfigError("a model without a decoder cannot generate text", "plan.mode")
    mesh = make_mesh(setting.mesh, devices)
    inference = Inference(
        setting.model, setting.generation, mesh=mesh, batch_size=setting.batch_size
    )
    _, shapes, axes = transformer.abstract_model(inference.config)
    check_divisible(mesh, shapes, axes)

    def with_sharding(leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    params = jax.tree.map(with_sharding, shapes, tree_shardings(mesh, axes))
    batch = {
        name: with_sharding(leaf, named_sharding(mesh, ("batch", "length")[: leaf.ndim]))
        for name, leaf in inference.generation_shapes(setting.lengths["inputs"]).items()
    }
    with jax.set_mesh(mesh):
        program = jax.jit(inference.generation_function, out_shardings=named_sharding(mesh, ()))
        return Traced(program.lower(params, batch), mesh, params, {})


def layout_of(mesh: jax.sharding.Mesh, topology: Topology) -> Layout:
    """Return a mesh with the position of each of its devices in the topology."""
    positions = [
        # Devices of a topology with a single slice have no slice_index.
        MeshPosition(getattr(device, "slice_index", 0) or 0, tuple(device.coords))
        for device in mesh.devices.flat
    ]
    return Layout(topology, dict(mesh.shape), positions)
