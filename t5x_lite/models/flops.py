"""Model FLOPs of every architecture, the numerator of model FLOPs utilization (MFU).

Only matrix products count, with two FLOPs for a multiplication and an addition. The backward pass
counts twice the forward pass; recomputed activations do not count. Attention counts in full, also
where a causal mask or segments hide a part of it (PaLM, Chowdhery et al. 2022, appendix B). Padding
counts; `token_flops` gives the FLOPs of a token, for an MFU of real tokens only. Gradients of
frozen weights are not subtracted: if most weights are frozen, a step executes about two thirds of
the count, and MFU is overestimated.
"""

from collections.abc import Mapping
from typing import NamedTuple

from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.moe import expert_capacity

TRAINING = 3  # FLOPs of a training step over those of its forward pass


class Flops(NamedTuple):
    """FLOPs of a forward pass by part.

    Attributes:
        encoder: Encoder layers.
        decoder: Decoder layers.
        head: Logits, and BERT's next-sentence head.
        routing: What a mixture of experts executes in addition and MFU does not count: dispatch and
            combine as matrix products, and empty slots of experts.
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
        """FLOPs that devices execute: model FLOPs and routing."""
        return self.total + self.routing


class TokenFlops(NamedTuple):
    """Model FLOPs of training per token.

    Attributes:
        inputs: Per token of the inputs.
        targets: Per token of the targets.
    """

    inputs: float
    targets: float


def train_step_flops(
    config: TransformerConfig, *, batch_size: int, lengths: Mapping[str, int]
) -> float:
    """Return the model FLOPs of a training step.

    Args:
        config: The model.
        batch_size: Rows of the global batch.
        lengths: Length of "inputs" and "targets". A decoder-only model has both in one row; an
            encoder-only model has "inputs" only.
    """
    return TRAINING * forward_flops(config, batch_size=batch_size, lengths=lengths).total


def token_flops(
    config: TransformerConfig, *, batch_size: int, lengths: Mapping[str, int]
) -> TokenFlops:
    """Return the model FLOPs of training per token of either side, for full rows.

    The sum over all positions of a batch is `train_step_flops`; the sum over real tokens gives an
    MFU that does not count padding. The keys and values that the decoder computes from the
    encoder's output, and a prompt, count as inputs.

    Args:
        config: The model.
        batch_size: Rows of the global batch.
        lengths: Length of "inputs" and "targets", as for `train_step_flops`.
    """
    inputs, targets = _row_lengths(config, lengths)
    flops = forward_flops(config, batch_size=batch_size, lengths=lengths)
    if config.decoder_only:
        per_token = TRAINING * flops.total / (batch_size * targets)
        return TokenFlops(per_token, per_token)
    if config.encoder_only:
        return TokenFlops(TRAINING * flops.total / (batch_size * inputs), 0.0)
    cross_kv = 2 * batch_size * inputs * config.num_decoder_layers * _keys_and_values(config)
    return TokenFlops(
        TRAINING * (flops.encoder + cross_kv) / (batch_size * lengths["inputs"]),
        TRAINING * (flops.decoder - cross_kv + flops.head) / (batch_size * targets),
    )


def forward_flops(
    config: TransformerConfig, *, batch_size: int, lengths: Mapping[str, int]
) -> Flops:
    """Return the FLOPs of a forward pass in training, for full rows.

    Args:
        config: The model; experts have their capacity in training.
        batch_size: Rows of the global batch.
        lengths: Length of "inputs" and "targets", as for `train_step_flops`.
    """
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
    """Positions of a row in the encoder, including a prompt's, and in the decoder."""
    if config.decoder_only:
        return 0, lengths["inputs"] + lengths["targets"]
    inputs = lengths["inputs"] + config.prompt_length
    return inputs, 0 if config.encoder_only else lengths["targets"]


def _stack(
    config: TransformerConfig, layers: int, batch_size: int, length: int
) -> tuple[float, float]:
    """Model FLOPs of self-attention and feed-forward of a stack, and FLOPs of its routing."""
    tokens = batch_size * length
    if not layers or not tokens:
        return 0.0, 0.0
    attention = _query_and_out(config) + _keys_and_values(config) + _scores_and_sums(config, length)
    attention += 2 * config.emb_dim * (config.adapter_dim or 0)  # of dense and sparse layers
    mlp = (len(config.mlp_activations) + 1) * config.emb_dim * config.mlp_dim
    if config.moe is None:
        return 2.0 * layers * tokens * (attention + mlp), 0.0
    sparse = layers // config.moe.every
    groups, group_size, capacity = expert_capacity(config.moe, tokens, training=True)
    slots = groups * config.moe.num_experts * capacity
    used = min(tokens, slots)
    router = tokens * config.emb_dim * config.moe.num_experts
    model = layers * tokens * attention + (layers - sparse) * tokens * mlp
    model += sparse * (used * mlp + router)
    # Dispatch and combine are products with the one-hot [tokens of a group, slots] matrices.
    moved = 2 * slots * group_size * config.emb_dim
    return 2.0 * model, 2.0 * sparse * (moved + (slots - used) * mlp)


def _query_and_out(config: TransformerConfig) -> int:
    """Multiplications per query of the projections query and out."""
    return 2 * config.emb_dim * config.num_heads * config.head_dim


def _keys_and_values(config: TransformerConfig) -> int:
    """Multiplications per key of the projections key and value."""
    return 2 * config.emb_dim * config.kv_heads * config.head_dim


def _scores_and_sums(config: TransformerConfig, keys: int) -> int:
    """Multiplications per query of the scores and the weighted sum over `keys`."""
    return 2 * keys * config.num_heads * config.head_dim
