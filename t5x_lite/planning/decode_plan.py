"""The plan of text generation: prefill, and one token of every text; caches, FLOPs and time.

Generation compiles to one program with a loop over tokens. Everything outside the loop is the
prefill: the encoder and the keys and values of its output, or the prompt of a decoder without an
encoder.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from t5x_lite.hardware.chips import Chip
from t5x_lite.models import transformer
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.flops import forward_flops
from t5x_lite.planning.costs import Cost
from t5x_lite.planning.hlo import Instruction, Module
from t5x_lite.planning.memory_estimate import num_shards
from t5x_lite.planning.roofline import Roofline
from t5x_lite.tree_paths import flatten

PREFILL, TOKEN = "prefill", "token"  # the phases, as `Cost.direction` names them
_LOOP = re.compile(r"[(/]token_choice[)/]+while")  # the loop over tokens, by its named scope
_ITEMSIZE = {"bfloat16": 2, "float32": 4}

Value = TypeVar("Value")
Range = list[float]  # [low, high]


class Phases(NamedTuple, Generic[Value]):
    """A quantity of the two phases of generation.

    Attributes:
        prefill: Of the prefill.
        token: Of one token of every text.
    """

    prefill: Value
    token: Value


class DecodingWorkload(NamedTuple):
    """What is generated.

    Attributes:
        rows: Number of inputs.
        copies: Texts that are decoded at a time for each input: beams or samples.
        inputs: Length of the inputs in tokens.
        tokens: Length of the generated texts in tokens.
    """

    rows: int
    copies: int
    inputs: int
    tokens: int

    @property
    def texts(self) -> int:
        """Number of texts that are decoded at a time."""
        return self.rows * self.copies


class CacheBytes(NamedTuple):
    """Bytes of cached keys and values on one device.

    Attributes:
        own: Cache of the decoder's self-attention, for the tokens of the texts. In a decoder-only
            model it includes the prompts.
        cross: Cache of cross-attention, for the encoder's output.
    """

    own: int
    cross: int


class DecodingPlan(NamedTuple):
    """The section "decoding" of a plan.

    Attributes:
        source: How the times were obtained.
        texts: Number of texts that are decoded at a time.
        tokens: Length of the texts in tokens.
        cache_bytes: Bytes of cached keys and values on one device.
        seconds: Range of the seconds of each phase.
        tokens_per_second_per_chip: Range of the speed without prefill.
    """

    source: str
    texts: int
    tokens: int
    cache_bytes: CacheBytes
    seconds: Phases[Range]
    tokens_per_second_per_chip: Range

    def to_json(self) -> dict[str, Any]:
        """Return the section as `plan_schema.SCHEMA` describes it."""
        return {
            "source": self.source,
            "texts": self.texts,
            "tokens": self.tokens,
            "cache_bytes": self.cache_bytes._asdict(),
            "prefill_seconds": self.seconds.prefill,
            "token_seconds": self.seconds.token,
            "tokens_per_second_per_chip": self.tokens_per_second_per_chip,
        }


def cache_bytes(
    model: TransformerConfig, workload: DecodingWorkload, mesh: Mapping[str, int]
) -> CacheBytes:
    """Compute the bytes of cached keys and values on one device.

    Args:
        model: The architecture.
        workload: What is generated.
        mesh: Sizes of the mesh axes.
    """
    # A decoder without an encoder caches its prompts together with the texts.
    without_encoder = not model.num_encoder_layers
    own = workload.texts * (workload.tokens + without_encoder * workload.inputs)
    cross = 0 if without_encoder else workload.rows * workload.inputs
    values_per_token = 2 * model.num_decoder_layers * model.kv_heads * model.head_dim
    shards = num_shards("batch", mesh) * num_shards("heads", mesh)
    size = values_per_token * _ITEMSIZE[model.dtype]
    return CacheBytes(own * size // shards, cross * size // shards)


def bounds(
    chip: Chip, model: TransformerConfig, workload: DecodingWorkload, mesh: Mapping[str, int]
) -> Phases[Roofline]:
    """Compute the rooflines of the prefill and of one token of every text.

    Compute: matrix products at the peak, with attention over the whole cache. Memory: each phase
    reads all weights that it uses once, as they are stored and after fsdp has gathered them, and
    the caches. Network: fsdp gathers these weights, and tensor reduces the output of every
    sub-layer. The latency of messages is not counted.

    Args:
        chip: The kind of chip.
        model: The architecture.
        workload: What is generated.
        mesh: Sizes of the mesh axes.
    """
    flops = model_flops(model, workload)
    weights, cache = _weight_bytes(model, mesh), cache_bytes(model, workload, mesh)
    rows = workload.rows / num_shards("batch", mesh)
    if model.decoder_only:
        sublayers = Phases(2 * model.num_decoder_layers, 2 * model.num_decoder_layers)
    else:  # an encoder layer has two sub-layers, a decoder layer with cross-attention three
        sublayers = Phases(2 * model.num_encoder_layers, 3 * model.num_decoder_layers)
    tokens = Phases(rows * workload.inputs, rows * workload.copies)
    cached = Phases(cache.cross, cache.own + cache.cross)
    devices = math.prod(mesh.values())
    gathered = 1 - 1 / mesh.get("fsdp", 1)  # fraction of the weights that a device receives
    reduced = 1 - 1 / mesh.get("tensor", 1)

    def roofline(phase: int) -> Roofline:
        activations = tokens[phase] * model.emb_dim * _ITEMSIZE[model.dtype]
        # An all-reduce sends its array twice: reduce-scatter, then all-gather.
        sent = weights[phase] * gathered + 2 * activations * sublayers[phase] * reduced
        return Roofline(
            compute=flops[phase] / devices / (chip.peak / chip.devices),
            memory=(weights[phase] + cached[phase]) / (chip.hbm_bandwidth / chip.devices),
            network=sent / (chip.ici / chip.devices),
        )

    return Phases(roofline(0), roofline(1))


def model_flops(model: TransformerConfig, workload: DecodingWorkload) -> Phases[float]:
    """Compute the model FLOPs of the prefill and of one token of every text.

    Args:
        model: The architecture.
        workload: What is generated.
    """
    lengths = {"inputs": workload.inputs, "targets": workload.tokens}
    total = forward_flops(model, batch_size=workload.rows, lengths=lengths).total
    prefill = forward_flops(
        model, batch_size=workload.rows, lengths={**lengths, "targets": 0}
    ).total
    return Phases(prefill, (total - prefill) * workload.copies / workload.tokens)


def generation_roofline(phases: Phases[Roofline], tokens: int) -> Roofline:
    """Add up the roofline of a whole generation: the prefill and `tokens` tokens of every text."""
    return Roofline(*(a + tokens * b for a, b in zip(phases.prefill, phases.token, strict=True)))


def _weight_bytes(model: TransformerConfig, mesh: Mapping[str, int]) -> Phases[float]:
    """Compute the bytes of weights that a device reads in each phase, gathered over fsdp.

    They include embeddings, which are only looked up: a tied one is also the output layer.
    """
    _, shapes, _ = transformer.abstract_model(model)
    sizes = {
        path: math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        for path, leaf in flatten(shapes).items()
    }
    encoder = sum(size for path, size in sizes.items() if path.startswith("encoder"))
    total = sum(sizes.values())
    shared = encoder if model.share_stacks else 0  # weights of the encoder that the decoder uses
    shards = mesh.get("tensor", 1) * mesh.get("expert", 1)
    return Phases(
        prefill=(total if model.decoder_only else encoder) / shards,
        token=(total - encoder + shared) / shards,
    )


# ------------------------------------------------------------------ from the compiled program


def token_loop(module: Module) -> Instruction:
    """Return the loop over tokens of a compiled generation.

    Raises:
        ValueError: The program has no such loop.
    """
    loops = [i for i in module[module.entry].instructions if i.opcode == "while"]
    for loop in loops:
        if _LOOP.search(loop.op_name):
            return loop
    raise ValueError("the program has no loop over tokens")


def phase_seconds(
    costs: Sequence[Cost],
    exposed: Phases[float],
    *,
    tokens: int,
    clock: float,
    peak: float,
    bandwidth: float,
) -> Phases[Range]:
    """Estimate the seconds of each phase on one device, as ranges.

    A range goes from every instruction at the chip's peaks to the compiler's estimate plus exposed
    collectives.

    Args:
        costs: Costs of all instructions, with the directions `PREFILL` and `TOKEN`.
        exposed: Seconds that each phase waits for collectives; those of all tokens together.
        tokens: Length of the texts in tokens.
        clock: Cycles per second.
        peak: FLOPs per second of a device.
        bandwidth: Bytes per second of a device's memory.
    """

    def seconds(phase: str, waiting: float, repeats: int) -> Range:
        phase_costs = [cost for cost in costs if cost.direction == phase]
        low = sum(cost.seconds(peak=peak, bandwidth=bandwidth) for cost in phase_costs)
        high = sum(cost.cycles for cost in phase_costs) / clock + waiting
        return sorted([low / repeats, high / repeats])

    return Phases(seconds(PREFILL, exposed.prefill, 1), seconds(TOKEN, exposed.token, tokens))


def decoding_plan(
    model: TransformerConfig,
    workload: DecodingWorkload,
    mesh: Mapping[str, int],
    seconds: Phases[Range],
    *,
    chips: int,
    source: str,
) -> DecodingPlan:
    """Return the section "decoding" of a plan.

    Args:
        model: The architecture.
        workload: What is generated.
        mesh: Sizes of the mesh axes.
        seconds: Range of the seconds of each phase.
        chips: Number of chips.
        source: How the times were obtained.
    """
    return DecodingPlan(
        source=source,
        texts=workload.texts,
        tokens=workload.tokens,
        cache_bytes=cache_bytes(model, workload, mesh),
        seconds=seconds,
        tokens_per_second_per_chip=[
            workload.texts / token_seconds / chips for token_seconds in reversed(seconds.token)
        ],
    )
