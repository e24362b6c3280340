"""The page of numbers that makes a model. Importing it costs nothing: typos are found at once."""

import dataclasses

from t5x_lite.errors import ConfigError

ACTIVATIONS = ("gelu", "linear", "relu", "silu")
DTYPES = ("bfloat16", "float32")
REMAT_POLICIES = ("none", "minimal", "full")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and switches of an encoder-decoder of the T5 family (T5 paper; T5X names).

    vocab_size: rows of the embedding, padding rows included.
    mlp_activations: one per input projection; two or more make a gated feed-forward whose branches
        are multiplied. ("relu",) is T5 1.0, ("gelu", "linear") is T5 1.1 (GELU with tanh).
    logits_via_embedding: tie the output head to the embedding and scale logits by emb_dim**-0.5
        (T5 1.0); otherwise the head has weights of its own and no scale (T5 1.1).
    dtype: of activations; weights, softmax and logits are float32 in any case.
    remat: what the backward pass recomputes. "none" keeps every activation, "minimal" keeps the
        outputs of matrix products that have no batch dimension of their own, "full" keeps only the
        inputs of each layer.
    scan_layers: compile one layer and loop over it; False unrolls. Weights look the same in both.
    """

    vocab_size: int
    emb_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_encoder_layers: int
    num_decoder_layers: int
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    dropout_rate: float = 0.0
    logits_via_embedding: bool = False
    relpos_num_buckets: int = 32
    relpos_max_distance: int = 128
    dtype: str = "bfloat16"
    remat: str = "none"
    scan_layers: bool = True

    def __post_init__(self):
        for name in (
            *("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim"),
            *("num_encoder_layers", "num_decoder_layers"),
        ):
            if getattr(self, name) < 1:
                self._reject(name, "a positive number")
        if not 0.0 <= self.dropout_rate < 1.0:
            self._reject("dropout_rate", "a number in [0, 1)")
        if not self.mlp_activations or set(self.mlp_activations) - set(ACTIVATIONS):
            self._reject("mlp_activations", f"names out of {ACTIVATIONS}, at least one")
        if self.relpos_num_buckets < 4 or self.relpos_num_buckets % 4:
            self._reject("relpos_num_buckets", "a multiple of 4")
        if self.relpos_max_distance <= self.relpos_num_buckets // 2:
            self._reject("relpos_max_distance", "more than half of relpos_num_buckets")
        if self.dtype not in DTYPES:
            self._reject("dtype", f"one of {DTYPES}")
        if self.remat not in REMAT_POLICIES:
            self._reject("remat", f"one of {REMAT_POLICIES}")

    def _reject(self, name: str, wanted: str):
        raise ConfigError(
            f"TransformerConfig.{name} is {getattr(self, name)!r}; wanted {wanted}",
            f"TransformerConfig.{name}",
        )
