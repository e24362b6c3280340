"""What a plan compiles: a step of `train`, of its evaluation, or what `infer` runs, from shapes."""

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
    """What the data's converters would hand to the step, as shapes."""
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
    """BERT's batch: corrupted tokens, what they were, where the loss counts."""
    names = ("input_tokens", "target_tokens", "segment_ids", "positions")
    shapes: dict[str, tuple[tuple, Any]] = {
        f"encoder_{name}": ((length,), jnp.int32) for name in names
    }
    shapes["encoder_loss_weights"] = ((length,), jnp.float32)
    if model.num_token_types:
        shapes["encoder_token_types"] = ((length,), jnp.int32)
    return shapes


def summed_loss(model: TransformerConfig) -> Callable[[Any, Any], jax.Array]:
    """A scalar of weights and batch whose differentiation keeps what that of a loss would.

    The hidden states' side only: what the loss keeps of its logits depends on how it chunks them.
    """
    graphdef, _, _ = abstract_model(model)

    def loss(params: Any, batch: Any) -> jax.Array:
        return jnp.sum(bind(graphdef, params)(batch).logits)

    return loss


KINDS = {"train": "training step", "eval": "evaluation step", "decode": "generation"}


class Setting(NamedTuple):
    """What decides about a step: the arguments of `training.setup.build`, and the rows' lengths.

    mode: one of `KINDS`. generation: how texts are written, for "decode"; their inputs have the
    length of "inputs".
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
    def texts(self) -> DecodingWorkload | None:
        """What is generated; None for a step."""
        if self.mode != "decode":
            return None
        one = self.generation
        return DecodingWorkload(self.batch_size, one.copies, self.lengths["inputs"], one.max_length)


class Traced(NamedTuple):
    """A program for devices that are not there. arguments: its state or weights, as shapes."""

    lowered: Any  # of `jax.jit(...).lower`
    mesh: jax.sharding.Mesh
    arguments: Any
    compiler_options: Mapping[str, Any]


def trace(setting: Setting, devices: Sequence[Any]) -> Traced:
    """Trace the program for these devices; nothing is computed or allocated."""
    # Source locations carry the whole way from the step to the layer.
    jax.config.update("jax_traceback_in_locations_limit", 100)
    if setting.mode == "decode":
        return _traced_generation(setting, devices)
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


def _traced_generation(setting: Setting, devices: Sequence[Any]) -> Traced:
    """What `Inference.generate` runs: weights as they are stored, all rows wanted to the end."""
    if setting.model.encoder_only:
        raise ConfigError("a model without a decoder cannot generate text", "plan.mode")
    mesh = make_mesh(setting.mesh, devices)
    inference = Inference(
        setting.model, setting.generation, mesh=mesh, batch_size=setting.batch_size
    )
    _, shapes, axes = transformer.abstract_model(inference.config)
    check_divisible(mesh, shapes, axes)

    def placed(leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    params = jax.tree.map(placed, shapes, tree_shardings(mesh, axes))
    batch = {
        name: placed(leaf, named_sharding(mesh, ("batch", "length")[: leaf.ndim]))
        for name, leaf in inference.generation_shapes(setting.lengths["inputs"]).items()
    }
    with jax.set_mesh(mesh):
        program = jax.jit(inference.generation_function, out_shardings=named_sharding(mesh, ()))
        return Traced(program.lower(params, batch), mesh, params, {})


def layout_of(mesh: jax.sharding.Mesh, wanted: Topology) -> Layout:
    """The mesh, with the place of each of its devices."""
    places = [
        # Devices of a single slice do not know that they are in one.
        MeshPosition(getattr(device, "slice_index", 0) or 0, tuple(device.coords))
        for device in mesh.devices.flat
    ]
    return Layout(wanted, dict(mesh.shape), places)
