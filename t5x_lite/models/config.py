"""The page of numbers that makes a model. Importing it costs nothing: typos are found at once."""

import dataclasses

from t5x_lite.errors import ConfigError, require_field

CHOICES = {
    "norm": ("rms", "layer"),
    "norm_position": ("pre", "post"),
    "positions": ("relative", "relative_per_layer", "learned", "rotary", "none"),
    "dtype": ("bfloat16", "float32"),
}
ACTIVATIONS = ("gelu", "gelu_exact", "linear", "relu", "sigmoid", "silu")
REMAT_POLICIES = ("none", "minimal", "full")
SAVED_NAMES = ("attention", "mlp_hidden", "projection")  # activations that a remat tuple may keep


def dropout_rate(pretraining: float = 0.0, run: float | None = None) -> float:
    """Choose the dropout rate of a run, for gin files.

    Model files set `pretraining` and run files set `run`. Each has a name of its own, so that the
    order of the files does not decide which rate is used.

    Args:
        pretraining: The rate that the model family was pretrained with.
        run: The rate of the run, from the macro DROPOUT_RATE. None: `pretraining`.

    Returns:
        A value for `TransformerConfig.dropout_rate`.

    Raises:
        ConfigError: If `run` is not in [0, 1).
    """
    if run is None:
        return pretraining
    if not 0.0 <= run < 1.0:
        raise ConfigError(f"DROPOUT_RATE is {run}; wanted a number in [0, 1)", "DROPOUT_RATE")
    return run


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureOfExperts:
    """Switch feed-forward: each token goes to one of `num_experts` (Fedus et al. 2021).

    every: one layer in so many is sparse, the last of each group (T5X; 1 makes all sparse).
    group_size: tokens that compete for an expert's places; the largest divisor of the batch's
        tokens up to it is taken (of a device's tokens, where the mesh could not share the groups
        out). An expert takes capacity_factor * group / experts tokens of a
        group, at least `min_capacity`; the others skip the layer.
    load_balance_loss, router_z_loss: weights of the auxiliary losses, per sparse layer.
    jitter: router inputs are multiplied by uniform noise in [1 - jitter, 1 + jitter] in training.
    """

    num_experts: int
    every: int = 2
    group_size: int = 8192
    train_capacity_factor: float = 1.25
    eval_capacity_factor: float = 2.0
    min_capacity: int = 4
    load_balance_loss: float = 1e-2
    router_z_loss: float = 0.0
    jitter: float = 0.0
    expert_dropout_rate: float | None = None

    def __post_init__(self):
        for name in ("num_experts", "every", "group_size", "min_capacity"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"MixtureOfExperts.{name} is {getattr(self, name)}; wanted 1 or more",
                    f"MixtureOfExperts.{name}",
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and switches of a Transformer; the defaults are T5 1.1's (T5X's names).

    A model has an encoder, a decoder, or both, by its numbers of layers; a decoder without an
    encoder reads inputs and targets as one text (language model, prefix LM).

    vocab_size: rows of the embedding, padding rows included.
    num_kv_heads: heads of keys and values (grouped-query attention); None: as many as queries have.
    share_stacks: the decoder uses the encoder's layers, adding only its cross-attention.
    mlp_activations: one per input projection; several make a gated feed-forward whose branches are
        multiplied. ("relu",) is T5 1.0, ("gelu", "linear") T5 1.1 (GELU by tanh; "gelu_exact"
        by erf).
    moe: makes some feed-forward layers sparse.
    adapter_dim: width of a small block after every feed-forward, to be trained while the rest is
        frozen (`layers.Adapter`); None: there is none.
    prompt_length: how many learned vectors stand before an encoder's inputs (`layers.Prompt`).

    norm, norm_epsilon, norm_position: RMS norm or LayerNorm, before a sub-layer or after its sum.
    final_norm, embedding_norm: a norm after a stack, and after the embeddings.
    use_bias: every dense layer has one. scale_attention: scores are divided by sqrt(head_dim); T5
        has that factor in the query's initializer.

    positions: T5's relative bias (one table a stack, or one a layer: umT5), learned embeddings of
        `max_positions` places that start at row `position_offset`, rotary with base `rope_theta`.
    prefix_attention: a decoder without an encoder sees its inputs both ways (prefix LM).
    decoder_buckets_bidirectional: a prefix LM looks both ways by T5's Mesh-TensorFlow code, and one
        way by T5X's; the default is T5X's.
    num_token_types: rows of the segment embedding (BERT: 2), 0 for none.

    logits_via_embedding: tie the output head to the embedding; scale_tied_logits then multiplies
        logits by emb_dim**-0.5 (T5 1.0). head_bias: a bias for each id. head_transform: dense,
        activation and norm before the head (BERT). next_sentence_head: BERT's second head.

    init_std: all weights normal with this deviation (BERT, GPT-2, BART); None: T5X's initializers.
        scale_residual_init divides it by sqrt(2 * layers) for what goes into the residual (GPT-2).
    dropout_rate: of embeddings, sub-layer outputs and stack outputs; of attention weights and of
        the feed-forward's hidden units too unless those have a rate of their own.
    dropout_shared_along_length: one mask for all positions of a row, as T5 does.
    dropout_after_final_norm: as T5 does.

    dtype: of activations; weights, softmax, router and logits are float32 in any case.
    remat: what the backward pass recomputes. "none" keeps every activation, "minimal" keeps the
        outputs of matrix products that have no batch dimension of their own, "full" keeps only the
        inputs of each layer; a tuple of names keeps the activations saved under them: "projection"
        (the products of "minimal"), "attention", "mlp_hidden". With `fused_attention` the tuple
        ("projection", "attention") spares the backward pass the kernel's forward one.
    fused_attention: scores, softmax and weighted sum are one kernel on TPUs and NVIDIA's GPUs
        (there for heads of 16, 32, 64, 128 or 256), unless attention weights have dropout: scores
        never pass through main memory.
    query_chunk: attention works on so many queries at a time, whose scores the backward pass makes
        again, so that [heads, length, length] scores never exist in full; None: on all at once.
    scan_layers: compile one layer and loop over it; False unrolls. Weights look the same in both.
    """

    vocab_size: int
    emb_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_encoder_layers: int = 0
    num_decoder_layers: int = 0
    num_kv_heads: int | None = None
    share_stacks: bool = False
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    moe: MixtureOfExperts | None = None
    adapter_dim: int | None = None
    prompt_length: int = 0

    norm: str = "rms"
    norm_epsilon: float = 1e-6
    norm_position: str = "pre"
    final_norm: bool = True
    embedding_norm: bool = False
    use_bias: bool = False
    scale_attention: bool = False

    positions: str = "relative"
    relpos_num_buckets: int = 32
    relpos_max_distance: int = 128
    prefix_attention: bool = False
    decoder_buckets_bidirectional: bool = False
    max_positions: int = 512
    position_offset: int = 0
    rope_theta: float = 10_000.0
    num_token_types: int = 0

    logits_via_embedding: bool = False
    scale_tied_logits: bool = True
    head_bias: bool = False
    head_transform: bool = False
    next_sentence_head: bool = False

    init_std: float | None = None
    scale_residual_init: bool = False
    dropout_rate: float = 0.0
    attention_dropout_rate: float | None = None
    mlp_dropout_rate: float | None = None
    dropout_shared_along_length: bool = True
    dropout_after_final_norm: bool = True

    dtype: str = "bfloat16"
    remat: str | tuple[str, ...] = "none"
    fused_attention: bool = False
    query_chunk: int | None = None
    scan_layers: bool = True

    def __post_init__(self):
        self._check_sizes()
        self._check_choices()
        same = self.num_encoder_layers == self.num_decoder_layers
        expected = "False where encoder and decoder differ in their number of layers"
        require_field(self, "share_stacks", same or not self.share_stacks, expected)
        valid = not self.share_stacks or self.moe is None
        require_field(self, "share_stacks", valid, "False in a model with a mixture of experts")
        valid = not self.prompt_length or (self.num_encoder_layers and self.num_decoder_layers)
        require_field(self, "prompt_length", valid, "0 in a model without encoder or decoder")
        valid = not self.next_sentence_head or self.encoder_only
        require_field(self, "next_sentence_head", valid, "False in a model with a decoder")
        if self.moe is not None:
            for name in ("num_encoder_layers", "num_decoder_layers"):
                expected = f"a multiple of MixtureOfExperts.every = {self.moe.every}"
                require_field(self, name, getattr(self, name) % self.moe.every == 0, expected)

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def encoder_only(self) -> bool:
        """Whether predictions are made by the encoder."""
        return not self.num_decoder_layers

    @property
    def decoder_only(self) -> bool:
        """Whether inputs and targets are one text."""
        return not self.num_encoder_layers

    def _check_sizes(self):
        for name in ("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim", "max_positions"):
            require_field(self, name, getattr(self, name) >= 1, "positive")
        whole = ("num_encoder_layers", "num_decoder_layers", "num_token_types", "prompt_length")
        for name in whole:
            require_field(self, name, getattr(self, name) >= 0, "0 or more")
        for name in ("query_chunk", "adapter_dim"):
            value = getattr(self, name)
            require_field(self, name, value is None or value >= 1, "None or positive")
        layers = self.num_encoder_layers + self.num_decoder_layers
        require_field(self, "num_encoder_layers", layers, "positive in a model without a decoder")
        valid = self.num_heads % self.kv_heads == 0
        require_field(self, "num_kv_heads", valid, f"a divisor of num_heads = {self.num_heads}")
        for name in ("dropout_rate", "attention_dropout_rate", "mlp_dropout_rate"):
            rate = getattr(self, name)
            require_field(self, name, rate is None or 0.0 <= rate < 1.0, "in [0, 1)")
        buckets = self.relpos_num_buckets
        valid = buckets >= 4 and buckets % 4 == 0
        require_field(self, "relpos_num_buckets", valid, "a positive multiple of 4")
        valid = self.relpos_max_distance > buckets // 2
        require_field(self, "relpos_max_distance", valid, "more than half of relpos_num_buckets")
        valid = self.positions != "rotary" or self.head_dim % 2 == 0
        require_field(self, "head_dim", valid, "even, for rotary positions")

    def _check_choices(self):
        for name, choices in CHOICES.items():
            require_field(self, name, getattr(self, name) in choices, f"one of {choices}")
        valid = self.mlp_activations and set(self.mlp_activations) <= set(ACTIVATIONS)
        require_field(self, "mlp_activations", valid, f"one or more of {ACTIVATIONS}")
        if isinstance(self.remat, str):
            valid = self.remat in REMAT_POLICIES
        else:
            valid = set(self.remat) <= set(SAVED_NAMES)
        expected = f"one of {REMAT_POLICIES}, or a tuple of names out of {SAVED_NAMES}"
        require_field(self, "remat", valid, expected)
