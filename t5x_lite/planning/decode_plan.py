"""Generation of texts as a plan sees it: reading the inputs once, then a token at a time.

What generation compiles is one program with a loop over tokens. Whatever runs outside that loop is
the prefill: encoder, keys and values of its output, or the prompt.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from t5x_lite.hardware.chips import Chip
from t5x_lite.models import transformer
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.flops import forward_flops
from t5x_lite.planning.costs import Cost
from t5x_lite.planning.hlo import Instruction, Module
from t5x_lite.planning.roofline import Roofline, parts
from t5x_lite.tree_paths import flatten

PREFILL, TOKEN = "prefill", "token"
_LOOP = re.compile(r"[(/]token_choice[)/]+while")  # the loop over tokens, by its named scope
_ITEMSIZE = {"bfloat16": 2, "float32": 4}


class DecodingWorkload(NamedTuple):
    """What is generated. rows: inputs; copies: texts of each at a time; inputs, tokens: lengths."""

    rows: int
    copies: int
    inputs: int
    tokens: int

    @property
    def written(self) -> int:
        """Texts written side by side."""
        return self.rows * self.copies


def cache_bytes(
    model: TransformerConfig, texts: DecodingWorkload, mesh: Mapping[str, int]
) -> dict[str, int]:
    """Keys and values on one device: of the texts themselves, and of the encoder's output.

    A decoder alone keeps its prompts among the former.
    """
    alone = not model.num_encoder_layers
    places = {
        "own": texts.written * (texts.tokens + alone * texts.inputs),
        "cross": 0 if alone else texts.rows * texts.inputs,
    }
    of_a_place = 2 * model.num_decoder_layers * model.kv_heads * model.head_dim
    split = parts("batch", mesh) * parts("heads", mesh)
    size = of_a_place * _ITEMSIZE[model.dtype]
    return {kind: count * size // split for kind, count in places.items()}


def bounds(
    chip: Chip, model: TransformerConfig, texts: DecodingWorkload, mesh: Mapping[str, int]
) -> tuple[Roofline, Roofline]:
    """Rooflines of the prefill and of one token of every text.

    compute: matrix products at the peak, attention over the whole cache. memory: each reads all
    weights that it uses once, as they are stored, what fsdp splits after it was brought together,
    and the caches. network: fsdp gathers these weights, tensor reduces the output of every
    sub-layer; what a message takes to arrive is not counted.
    """
    flops = model_flops(model, texts)
    weights, cache = _weights_read(model, mesh), cache_bytes(model, texts, mesh)
    rows = texts.rows / parts("batch", mesh)
    layers = {"prefill": 2 * model.num_encoder_layers, "token": 3 * model.num_decoder_layers}
    tokens = {"prefill": rows * texts.inputs, "token": rows * texts.copies}
    if model.decoder_only:
        layers = dict.fromkeys(layers, 2 * model.num_decoder_layers)
    devices = math.prod(mesh.values())
    moved = {PREFILL: cache["cross"], TOKEN: sum(cache.values())}
    found = []
    for kind in (PREFILL, TOKEN):
        sent = weights[kind] * (1 - 1 / mesh.get("fsdp", 1))
        row = tokens[kind] * model.emb_dim * _ITEMSIZE[model.dtype]
        sent += 2 * row * layers[kind] * (1 - 1 / mesh.get("tensor", 1))
        found.append(
            Roofline(
                compute=flops[kind] / devices / (chip.peak / chip.devices),
                memory=(weights[kind] + moved[kind]) / (chip.hbm_bandwidth / chip.devices),
                network=sent / (chip.ici / chip.devices),
            )
        )
    return found[0], found[1]


def model_flops(model: TransformerConfig, texts: DecodingWorkload) -> dict[str, float]:
    """Model FLOPs of the prefill and of one token of every text."""
    lengths = {"inputs": texts.inputs, "targets": texts.tokens}
    every = forward_flops(model, batch_size=texts.rows, lengths=lengths).total
    read = forward_flops(model, batch_size=texts.rows, lengths={**lengths, "targets": 0}).total
    return {PREFILL: read, TOKEN: (every - read) * texts.copies / texts.tokens}


def whole(prefill: Roofline, token: Roofline, tokens: int) -> Roofline:
    """The roofline of a batch of texts of so many tokens."""
    return Roofline(*(a + tokens * b for a, b in zip(prefill, token, strict=True)))


def _weights_read(model: TransformerConfig, mesh: Mapping[str, int]) -> dict[str, float]:
    """Bytes of weights that a device needs whole for the prefill and for a token.

    Embeddings that are only looked up are among them: a tied one is the output layer.
    """
    _, shapes, _ = transformer.abstract_model(model)
    sizes = {
        path: math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        for path, leaf in flatten(shapes).items()
    }
    of_encoder = sum(size for path, size in sizes.items() if path.startswith("encoder"))
    everything = sum(sizes.values())
    shared = of_encoder if model.share_stacks else 0
    split = mesh.get("tensor", 1) * mesh.get("expert", 1)
    return {
        PREFILL: (everything if model.decoder_only else of_encoder) / split,
        TOKEN: (everything - of_encoder + shared) / split,
    }


# ---------------------------------------------------------------------------- as it was compiled


def token_loop(module: Module) -> Instruction:
    """The loop over tokens; ValueError where the program has none."""
    loops = [i for i in module[module.entry].instructions if i.opcode == "while"]
    for loop in loops:
        if _LOOP.search(loop.op_name):
            return loop
    raise ValueError("the program has no loop over tokens")


def phase_seconds(
    found: Sequence[Cost],
    exposed: Mapping[str, float],
    *,
    tokens: int,
    clock: float,
    peak: float,
    bandwidth: float,
) -> dict[str, list[float]]:
    """Ranges of the prefill's and a token's seconds on one device.

    found: costs of the whole program, their directions `PREFILL` and `TOKEN`. exposed: seconds that
    either waits for collectives, all tokens together. From every instruction at the chip's peaks to
    the compiler's estimate with those collectives.
    """
    times = {PREFILL: 1, TOKEN: tokens}
    ranges = {}
    for kind, often in times.items():
        own = [cost for cost in found if cost.direction == kind]
        low = sum(cost.seconds(peak=peak, bandwidth=bandwidth) for cost in own)
        high = sum(cost.cycles for cost in own) / clock + exposed[kind]
        ranges[kind] = sorted([low / often, high / often])
    return ranges


def decoding_part(
    model: TransformerConfig,
    texts: DecodingWorkload,
    mesh: Mapping[str, int],
    seconds: Mapping[str, Sequence[float]],
    *,
    chips: int,
    source: str,
) -> dict[str, Any]:
    """The plan's account of a generation. seconds: ranges of the prefill and of a token."""
    return {
        "source": source,
        "texts": texts.written,
        "tokens": texts.tokens,
        "cache_bytes": cache_bytes(model, texts, mesh),
        "prefill_seconds": list(seconds[PREFILL]),
        "token_seconds": list(seconds[TOKEN]),
        "tokens_per_second_per_chip": [
            texts.written / each / chips for each in reversed(seconds[TOKEN])
        ],
    }
