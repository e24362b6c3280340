"""Model FLOPs, counted by hand for every architecture: the honest numerator of MFU.

Only matrix products count, a multiplication and an addition as two. The backward pass costs twice
the forward; what it recomputes does not count. Attention counts in full, also where a causal mask
or segments hide a part of it (PaLM, appendix B). Padding counts: `token_flops` says what a real
token is worth. Of frozen weights no gradients are made, which is not taken off: where most weights
are frozen, a step executes about two thirds of what is counted, and MFU is told too high.
"""

from collections.abc import Mapping
from typing import NamedTuple

from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.moe import expert_places

TRAINING = 3  # a training step in forward passes: one forward, two backward


class Flops(NamedTuple):
    """FLOPs of a forward pass by part.

    encoder, decoder: layers. head: scores of the vocabulary (BERT's second head too). routing: what
    a mixture of experts computes besides the model: tokens sent to experts and back as matrix
    products, and places of experts that no token takes. Executed, but no model FLOPs.
    """

    encoder: float
    decoder: float
    head: float
    routing: float

    @property
    def total(self) -> float:
        """Model FLOPs."""
        return self.encoder + self.decoder + self.head

    @property
    def executed(self) -> float:
        """Model FLOPs and routing."""
        return self.total + self.routing


class TokenFlops(NamedTuple):
    """What a token of either side of a training batch is worth, in model FLOPs."""

    inputs: float
    targets: float


def train_step_flops(
    config: TransformerConfig, *, batch_size: int, lengths: Mapping[str, int]
) -> float:
    """Model FLOPs of a training step on so many rows of these `lengths` ("inputs", "targets").

    A decoder without an encoder reads both as one text; an encoder alone reads "inputs".
    """
    return TRAINING * forward_flops(config, batch_size=batch_size, lengths=lengths).total


def token_flops(
    config: TransformerConfig, *, batch_size: int, lengths: Mapping[str, int]
) -> TokenFlops:
    """Model FLOPs of training per token of either side, at full rows of these lengths.

    All tokens of a batch add up to `train_step_flops`; real tokens alone give effective MFU. What
    the decoder does with the encoder's output (keys, values) and a prompt count among the inputs.
    """
    inputs, targets = _row_lengths(config, lengths)
    flops = forward_flops(config, batch_size=batch_size, lengths=lengths)
    if config.decoder_only:
        each = TRAINING * flops.total / (batch_size * targets)
        return TokenFlops(each, each)
    if config.encoder_only:
        return TokenFlops(TRAINING * flops.total / (batch_size * inputs), 0.0)
    lent = 2 * batch_size * inputs * config.num_decoder_layers * _keys_and_values(config)
    return TokenFlops(
        TRAINING * (flops.encoder + lent) / (batch_size * lengths["inputs"]),
        TRAINING * (flops.decoder - lent + flops.head) / (batch_size * targets),
    )


def forward_flops(
    config: TransformerConfig, *, batch_size: int, lengths: Mapping[str, int]
) -> Flops:
    """FLOPs of the training forward (an expert's capacity is that of training) on full rows."""
    inputs, targets = _row_lengths(config, lengths)
    encoder, encoder_routing = _stack(config, config.num_encoder_layers, batch_size, inputs)
    decoder, decoder_routing = _stack(config, config.num_decoder_layers, batch_size, targets)
    if config.num_encoder_layers and config.num_decoder_layers:
        queries = targets * (_query_and_out(config) + _scores_and_sums(config, inputs))
        cross = queries + inputs * _keys_and_values(config)
        decoder += 2.0 * batch_size * config.num_decoder_layers * cross
    predicted = inputs if config.encoder_only else targets
    head = predicted * config.emb_dim * config.vocab_size
    if config.head_transform:
        head += predicted * config.emb_dim**2
    if config.next_sentence_head:
        head += config.emb_dim * (config.emb_dim + 2)
    return Flops(encoder, decoder, 2.0 * batch_size * head, encoder_routing + decoder_routing)


def _row_lengths(config: TransformerConfig, lengths: Mapping[str, int]) -> tuple[int, int]:
    """Positions of a row in the encoder, a prompt's among them, and in the decoder."""
    if config.decoder_only:
        return 0, lengths["inputs"] + lengths["targets"]
    inputs = lengths["inputs"] + config.prompt_length
    return inputs, 0 if config.encoder_only else lengths["targets"]


def _stack(
    config: TransformerConfig, layers: int, batch_size: int, length: int
) -> tuple[float, float]:
    """Self-attention and feed-forward of a stack: model FLOPs, and its routing."""
    tokens = batch_size * length
    if not layers or not tokens:
        return 0.0, 0.0
    attention = _query_and_out(config) + _keys_and_values(config) + _scores_and_sums(config, length)
    attention += 2 * config.emb_dim * (config.adapter_dim or 0)  # of each layer, whatever its mlp
    mlp = (len(config.mlp_activations) + 1) * config.emb_dim * config.mlp_dim
    if config.moe is None:
        return 2.0 * layers * tokens * (attention + mlp), 0.0
    sparse = layers // config.moe.every
    groups, size, capacity = expert_places(config.moe, tokens, training=True)
    places = groups * config.moe.num_experts * capacity
    used = min(tokens, places)
    router = tokens * config.emb_dim * config.moe.num_experts
    model = layers * tokens * attention + (layers - sparse) * tokens * mlp
    model += sparse * (used * mlp + router)
    moved = 2 * places * size * config.emb_dim  # one-hot matrices: to the experts and back
    return 2.0 * model, 2.0 * sparse * (moved + (places - used) * mlp)


def _query_and_out(config: TransformerConfig) -> int:
    """Multiplications of these two projections, a query."""
    return 2 * config.emb_dim * config.num_heads * config.head_dim


def _keys_and_values(config: TransformerConfig) -> int:
    """Multiplications of these two projections, a key."""
    return 2 * config.emb_dim * config.kv_heads * config.head_dim


def _scores_and_sums(config: TransformerConfig, keys: int) -> int:
    """Multiplications of scores and of weighted sums over `keys`, a query."""
    return 2 * keys * config.num_heads * config.head_dim
