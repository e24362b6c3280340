"""Configuration of a model: all sizes and switches of a Transformer, checked on construction.

The module imports neither JAX nor flax, so that a wrong value is reported within milliseconds.
"""

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
# Activations marked with `checkpoint_name`, which a tuple in `TransformerConfig.remat` may keep.
SAVED_NAMES = ("attention", "mlp_hidden", "projection")


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
        raise ConfigError(f"DROPOUT_RATE is {run}; expected a number in [0, 1)", "DROPOUT_RATE")
    return run


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureOfExperts:
    """Sparse feed-forward with top-1 routing (Switch Transformer, Fedus et al. 2021).

    Tokens compete for the capacity of experts within groups. An expert processes at most
    capacity_factor * group size / num_experts tokens of a group; the residual connection carries
    tokens beyond that past the layer.

    Attributes:
        num_experts: Number of experts of a sparse layer.
        every: Period of sparse layers: the last layer of each group of this many is sparse. 2 is
            the Switch Transformer's; 1 makes all layers sparse.
        group_size: Largest number of tokens of a group. The largest divisor of the number of tokens
            of the batch is used, or of a device's tokens if the groups could not be distributed
            evenly over the mesh.
        train_capacity_factor: Capacity factor in training. Above 1, so that few tokens are dropped
            although experts are not loaded evenly.
        eval_capacity_factor: Capacity factor without dropout key: evaluation and decoding.
        min_capacity: Lower bound of an expert's capacity, in tokens of a group; for small groups.
        load_balance_loss: Coefficient of the load balancing loss, added for each sparse layer
            (Switch Transformer, equation 4; 0.01 there).
        router_z_loss: Coefficient of the router's z-loss, added for each sparse layer (ST-MoE, Zoph
            et al. 2022; 0.001 there).
        jitter: In training, router inputs are multiplied by uniform noise from [1 - jitter,
            1 + jitter].
        expert_dropout_rate: Dropout of the experts' hidden units; None takes `mlp_dropout_rate`.
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
                    f"MixtureOfExperts.{name} is {getattr(self, name)}; expected 1 or more",
                    f"MixtureOfExperts.{name}",
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and switches of a Transformer, in T5X's names; the defaults are those of T5 1.1.

    The numbers of layers decide the architecture. With both stacks the model is an
    encoder-decoder; without a decoder it predicts masked tokens at the encoder's positions (BERT);
    without an encoder it reads inputs and targets as one sequence (language model, prefix LM).

    Attributes:
        vocab_size: Rows of the token embedding, including rows that pad the vocabulary.
        emb_dim: Width of the residual stream.
        num_heads: Number of attention heads.
        head_dim: Width of a head; num_heads * head_dim may differ from `emb_dim`.
        mlp_dim: Width of the feed-forward's hidden layer.
        num_encoder_layers: Number of encoder layers; 0 for a decoder-only model.
        num_decoder_layers: Number of decoder layers; 0 for an encoder-only model.
        num_kv_heads: Number of heads of keys and values (grouped-query attention, Ainslie et al.
            2023); None means `num_heads`.
        share_stacks: The decoder uses the encoder's layers and has only cross-attention of its own
            (T5 paper, section 3.2.2).
        mlp_activations: Activation of each input projection of the feed-forward. The projections of
            several are multiplied (gated, Shazeer 2020): ("relu",) is T5 1.0, ("gelu", "linear")
            T5 1.1. "gelu" is the tanh approximation, "gelu_exact" uses erf.
        moe: Makes some feed-forward layers sparse; None for dense layers only.
        adapter_dim: Width of the adapter after each feed-forward (`layers.Adapter`); None for no
            adapters.
        prompt_length: Number of learned vectors in front of the encoder's inputs
            (`layers.Prompt`); 0 for none.

        norm: "rms" (T5's norm without mean subtraction) or "layer" (LayerNorm with a bias).
        norm_epsilon: Added to the variance before the square root.
        norm_position: "pre": before each sub-layer; "post": after its residual sum (BERT, BART).
        final_norm: Whether a norm follows the last layer of a stack.
        embedding_norm: Whether a norm follows the sum of the embeddings (BERT, BART).
        use_bias: Whether dense layers have a bias.
        scale_attention: Divide attention scores by sqrt(head_dim). T5 does not; its query
            initializer contains the factor.

        positions: "relative": T5's relative position bias, one table per stack;
            "relative_per_layer": one table per layer (umT5); "learned": embeddings of absolute
            positions; "rotary": rotary embeddings (Su et al. 2021); "none".
        relpos_num_buckets: Buckets of the relative position bias, a multiple of 4.
        relpos_max_distance: Distance from which on all keys share the last bucket.
        prefix_attention: A decoder-only model attends to its inputs in both directions (prefix LM).
        decoder_buckets_bidirectional: Whether the decoder's relative positions use bidirectional
            buckets. Prefix LMs of Mesh TensorFlow do; T5X's decoders do not.
        max_positions: Number of learned positions.
        position_offset: Row of the position table that position 0 uses; BART and RoBERTa start at
            row 2.
        rope_theta: Base of the rotary frequencies.
        num_token_types: Rows of the token type embedding (BERT: 2); 0 for none.

        logits_via_embedding: Tie the output layer to the token embedding.
        scale_tied_logits: Multiply tied logits by emb_dim**-0.5 (T5 1.0).
        head_bias: Whether logits have a bias.
        head_transform: Apply a dense layer, an activation and a norm before the output layer
            (BERT).
        next_sentence_head: Whether the model has BERT's next-sentence head.

        init_std: Standard deviation of all weights, drawn from a normal distribution (BERT, GPT-2,
            BART: 0.02); None uses T5X's initializers.
        scale_residual_init: Divide `init_std` by sqrt(2 * layers) for projections into the residual
            stream (GPT-2).
        dropout_rate: Dropout of embeddings, sub-layer outputs and stack outputs, and of attention
            weights and the feed-forward's hidden units unless they have a rate of their own.
        attention_dropout_rate: Dropout of attention weights; None takes `dropout_rate`.
        mlp_dropout_rate: Dropout of the feed-forward's hidden units; None takes `dropout_rate`.
        dropout_shared_along_length: Use one dropout mask for all positions of a sequence, as T5.
        dropout_after_final_norm: Apply dropout to the stack's output, as T5.

        dtype: Type of activations, "bfloat16" or "float32". Weights, softmax, router and logits
            are float32 in either case.
        remat: Which activations are kept for the backward pass; others are recomputed. "none"
            keeps all; "minimal" keeps the outputs of matrix products without batch dimensions of
            their own; "full" keeps the inputs of each layer only. A tuple keeps the named
            activations: "projection" (the products of "minimal"), "attention" (attention's output)
            and "mlp_hidden". With `fused_attention`, ("projection", "attention") saves the backward
            pass a second run of the forward kernel.
        fused_attention: Compute attention with a fused kernel on TPUs and NVIDIA GPUs (there with
            `head_dim` 16, 32, 64, 128 or 256), so that scores are never written to main memory.
            Where attention weights have dropout, and on other devices, attention is not fused.
        query_chunk: Number of queries whose attention scores exist at once; the backward pass
            recomputes them. None computes all at once, which needs memory quadratic in the length.
        scan_layers: Compile one layer and scan over it, which keeps compilation fast; False unrolls
            the layers. The structure of the weights is the same.
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
        """Number of heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def encoder_only(self) -> bool:
        """Whether the model has no decoder."""
        return not self.num_decoder_layers

    @property
    def decoder_only(self) -> bool:
        """Whether the model has no encoder, so that inputs and targets are one sequence."""
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
