"""The small parts: weights with logical axes, dense, norms, feed-forward, embeddings, dropout.

Initializers are those of T5X unless `config.init_std` asks for plain normals.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from t5x_lite.models.config import TransformerConfig
from t5x_lite.partitioning import shard

Initializer = Callable[..., jax.Array]

fan_in_normal = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
fan_in_truncated_normal = jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
fan_average_uniform = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
unit_normal = jax.nn.initializers.normal(1.0)
zeros = jax.nn.initializers.zeros
ones = jax.nn.initializers.ones

ACTIVATION_FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
    "linear": lambda x: x,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
}


def weight(
    init: Initializer, shape: Sequence[int], axes: tuple[str, ...], rngs: nnx.Rngs
) -> nnx.Param:
    """A float32 parameter whose dimensions carry the logical `axes`."""
    return nnx.Param(init(rngs.params(), tuple(shape), jnp.float32), axes=axes)


def dropout(x: jax.Array, rate: float, key: jax.Array | None, *, shared_axis: int | None):
    """Zero a share `rate` of `x` and scale the rest up; the mask is the same along one axis.

    T5 shares masks along the length: [batch, 1, embed], and along the queries of attention weights
    [batch, heads, 1, keys]. Without a key (evaluation) or a rate it returns `x`.
    """
    if key is None or rate == 0.0:
        return x
    shape = list(x.shape)
    if shared_axis is not None:
        shape[shared_axis] = 1
    keep = jax.random.bernoulli(key, 1.0 - rate, shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def drop(x: jax.Array, config: TransformerConfig, key: jax.Array | None, rate: float | None = None):
    """`dropout` as the config has it, on [batch, length, ...] or on attention weights."""
    rate = config.dropout_rate if rate is None else rate
    return dropout(x, rate, key, shared_axis=-2 if config.dropout_shared_along_length else None)


def split_key(key: jax.Array | None, count: int) -> Sequence[jax.Array | None]:
    """`count` independent keys, or as many times None where there is no key."""
    return (None,) * count if key is None else list(jax.random.split(key, count))


@jax.custom_vjp
def project(x: jax.Array, kernel_io: jax.Array) -> jax.Array:
    """Multiply by a kernel, over the last dimension, with a gradient that suits every backend.

    XLA's CPU backend turns one operand of that gradient's product around, and does the element-wise
    work before it in the turned order, which is slow: here it is always the narrower operand.
    """
    return jnp.einsum("...i,io->...o", x, kernel_io)


def _project_backward(saved: tuple[jax.Array, jax.Array], slopes: jax.Array):
    x, kernel_io = saved
    rows = tuple(range(x.ndim - 1))
    if x.shape[-1] <= slopes.shape[-1]:
        kernel_slopes_io = jax.lax.dot_general(x, slopes, ((rows, rows), ((), ())))
    else:
        kernel_slopes_io = jax.lax.dot_general(slopes, x, ((rows, rows), ((), ()))).T
    return jnp.einsum("...o,io->...i", slopes, kernel_io), kernel_slopes_io


project.defvjp(lambda x, kernel: (project(x, kernel), (x, kernel)), _project_backward)


class Dense(nnx.Module):
    """y = x @ kernel (+ bias), over the last dimension; computed in the type of `x`."""

    def __init__(
        self,
        config: TransformerConfig,
        sizes: tuple[int, int],
        axes: tuple[str, str],
        *,
        init: Initializer = fan_in_normal,
        into_residual: bool = False,
        rngs: nnx.Rngs,
    ):
        if config.init_std is not None:
            layers = max(config.num_encoder_layers, config.num_decoder_layers)
            shrink = (2 * layers) ** -0.5 if into_residual and config.scale_residual_init else 1.0
            init = jax.nn.initializers.normal(config.init_std * shrink)
        self.kernel = weight(init, sizes, axes, rngs)
        if config.use_bias:
            bias_axis = "embed_whole" if axes[1] == "embed" else axes[1]
            self.bias = weight(zeros, sizes[1:], (bias_axis,), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = checkpoint_name(project(x, self.kernel[...].astype(x.dtype)), "projection")
        return y + self.bias[...].astype(y.dtype) if hasattr(self, "bias") else y


class Norm(nnx.Module):
    """RMS norm, x / sqrt(mean(x²) + ε) * scale, or LayerNorm; statistics in float32."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.scale = weight(ones, [config.emb_dim], ("embed_whole",), rngs)
        if config.norm == "layer":
            self.bias = weight(zeros, [config.emb_dim], ("embed_whole",), rngs)

    def __call__(self, x_ble: jax.Array) -> jax.Array:
        x32_ble = x_ble.astype(jnp.float32)
        if self.config.norm == "layer":
            x32_ble -= jnp.mean(x32_ble, axis=-1, keepdims=True)
        mean_square = jnp.mean(jnp.square(x32_ble), axis=-1, keepdims=True)
        y_ble = x32_ble * jax.lax.rsqrt(mean_square + self.config.norm_epsilon) * self.scale[...]
        if self.config.norm == "layer":
            y_ble += self.bias[...]
        return y_ble.astype(x_ble.dtype)


class MLP(nnx.Module):
    """Feed-forward; with several activations their branches are multiplied (gated, T5 1.1).

    T5X: wi has standard deviation emb_dim**-0.5, wo mlp_dim**-0.5, truncated normal.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        dense = functools.partial(Dense, config, init=fan_in_truncated_normal, rngs=rngs)
        for i in range(len(config.mlp_activations)):
            setattr(self, f"wi_{i}", dense((config.emb_dim, config.mlp_dim), ("embed", "mlp")))
        self.wo = dense((config.mlp_dim, config.emb_dim), ("mlp", "embed"), into_residual=True)

    def __call__(self, x_ble: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        branches = [
            ACTIVATION_FUNCTIONS[name](getattr(self, f"wi_{i}")(x_ble))
            for i, name in enumerate(self.config.mlp_activations)
        ]
        h_blm = shard(functools.reduce(operator.mul, branches), "batch", "length", "mlp")
        h_blm = checkpoint_name(h_blm, "mlp_hidden")
        return self.wo(drop(h_blm, self.config, key, self.config.mlp_dropout_rate))


class Adapter(nnx.Module):
    """A small block to be trained while what surrounds it is frozen: x + up(relu(down(x))).

    T5 (Raffel et al. 2020, section 3.5.1) puts one after the feed-forward of every layer. `up` is 0
    at first, so that a model does the same with fresh adapters as without (Houlsby et al. 2019).
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        inner, embed = config.adapter_dim, config.emb_dim
        assert inner is not None
        config = dataclasses.replace(config, init_std=None)
        self.down = Dense(config, (embed, inner), ("embed", "mlp"), rngs=rngs)
        self.up = Dense(config, (inner, embed), ("mlp", "embed"), init=zeros, rngs=rngs)

    def __call__(self, x_ble: jax.Array) -> jax.Array:
        h_blm = shard(jax.nn.relu(self.down(x_ble)), "batch", "length", "mlp")
        return x_ble + self.up(h_blm)


class Prompt(nnx.Module):
    """Vectors learned in the place of words, in front of an encoder's inputs (Lester et al. 2021).

    They begin as the embeddings of words (`prompt_words`).
    """

    def __init__(self, config: TransformerConfig, embedding: "Embedding"):
        words = prompt_words(config.prompt_length, config.vocab_size)
        self.embedding = nnx.Param(embedding.embedding[...][words], axes=("length_table", "embed"))

    def __call__(self, x_ble: jax.Array) -> jax.Array:
        prompt_ple = self.embedding[...].astype(x_ble.dtype)
        prompt_bpe = jnp.broadcast_to(prompt_ple, (x_ble.shape[0], *prompt_ple.shape))
        return shard(jnp.concatenate([prompt_bpe, x_ble], axis=1), "batch", None, None)


def prompt_words(length: int, vocab_size: int) -> np.ndarray:
    """Ids that a prompt begins with: spread evenly over the 5,000 most frequent words.

    Lester et al. draw them there; SentencePiece's ids descend in frequency, after pad, eos and unk.
    """
    return np.linspace(3, min(5003, vocab_size) - 1, length).astype(np.int32)


class Embedding(nnx.Module):
    """What a token looks like at its place: token, learned position and type, then norm.

    The token table has standard deviation 1 (T5X); the head may be tied to it.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        std = config.init_std
        init = unit_normal if std is None else jax.nn.initializers.normal(std)
        shape = [config.vocab_size, config.emb_dim]
        self.embedding = weight(init, shape, ("vocab", "embed"), rngs)

    def __call__(self, tokens_bl: jax.Array) -> jax.Array:
        # Gathering a row needs it whole: bring its slices together first, or XLA replicates more.
        table_ve = shard(self.embedding[...].astype(self.config.dtype), "vocab", None)
        return jnp.take(table_ve, tokens_bl, axis=0)


class PositionEmbedding(nnx.Module):
    """What one stack adds to its token embeddings, and what it does to the sum.

    Learned positions and token types where the config has them; then norm.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        init = jax.nn.initializers.normal(config.init_std or 0.02)
        if config.positions == "learned":
            rows = config.max_positions + config.position_offset
            self.positions = weight(init, [rows, config.emb_dim], ("length_table", "embed"), rngs)
        if config.num_token_types:
            shape = [config.num_token_types, config.emb_dim]
            self.types = weight(init, shape, ("length_table", "embed"), rngs)
        if config.embedding_norm:
            self.norm = Norm(config, rngs=rngs)

    def __call__(
        self, x_ble: jax.Array, positions_bl: jax.Array, types_bl: jax.Array | None
    ) -> jax.Array:
        if self.config.positions == "learned":
            table = shard(self.positions[...].astype(x_ble.dtype), None, None)
            x_ble += jnp.take(table, positions_bl + self.config.position_offset, axis=0)
        if self.config.num_token_types:
            table = shard(self.types[...].astype(x_ble.dtype), None, None)
            types_bl = jnp.zeros_like(positions_bl) if types_bl is None else types_bl
            x_ble += jnp.take(table, types_bl, axis=0)
        return self.norm(x_ble) if self.config.embedding_norm else x_ble


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("kernel", "bias"),
    meta_fields=("vocab_first", "scale"),
)
@dataclasses.dataclass(frozen=True)
class OutputLayer:
    """The last linear map, from hidden states to scores of the vocabulary; weights in float32.

    The kernel is [vocab, embed] if `vocab_first` (a tied embedding), else [embed, vocab]; logits
    are scale * (hidden @ kernel) + bias.
    """

    kernel: jax.Array
    bias: jax.Array | None
    vocab_first: bool
    scale: float

    def __call__(self, hidden_ble: jax.Array) -> jax.Array:
        """Logits, float32 [batch, length, vocab]."""
        letters = "ve" if self.vocab_first else "ev"
        kernel = self.kernel.astype(hidden_ble.dtype)
        logits_blv = jnp.einsum(
            f"ble,{letters}->blv", hidden_ble, kernel, preferred_element_type=jnp.float32
        )
        logits_blv = logits_blv if self.scale == 1.0 else logits_blv * self.scale
        logits_blv = logits_blv if self.bias is None else logits_blv + self.bias
        return shard(logits_blv, "batch", "length", "vocab")


class Head(nnx.Module):
    """From a stack's output to scores of the vocabulary, tied to the embedding or not.

    Untied: standard deviation emb_dim**-0.5, truncated normal, no scaling of logits (T5X). Tied
    logits are multiplied by emb_dim**-0.5 where the configuration asks for it (T5 1.0).
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        if config.head_transform:
            size = (config.emb_dim, config.emb_dim)
            self.transform = Dense(config, size, ("embed", "embed_out"), rngs=rngs)
            self.norm = Norm(config, rngs=rngs)
        if not config.logits_via_embedding:
            shape = [config.emb_dim, config.vocab_size]
            std = config.init_std
            init = fan_in_truncated_normal if std is None else jax.nn.initializers.normal(std)
            self.kernel = weight(init, shape, ("embed", "vocab"), rngs)
        if config.head_bias:
            self.bias = weight(zeros, [config.vocab_size], ("vocab",), rngs)

    def transformed(self, x_ble: jax.Array) -> jax.Array:
        """What the output layer reads: BERT's head has a layer of its own before it."""
        if not self.config.head_transform:
            return x_ble
        activation = ACTIVATION_FUNCTIONS[self.config.mlp_activations[0]]
        return self.norm(activation(self.transform(x_ble)))

    def output(self, embedding: Embedding) -> OutputLayer:
        """The linear map to the vocabulary, whichever weights it has."""
        tied = self.config.logits_via_embedding
        scaled = tied and self.config.scale_tied_logits
        return OutputLayer(
            kernel=(embedding.embedding if tied else self.kernel)[...],
            bias=self.bias[...] if self.config.head_bias else None,
            vocab_first=tied,
            scale=self.config.emb_dim**-0.5 if scaled else 1.0,
        )
