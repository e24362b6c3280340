"""Building blocks: parameters with logical axes, dropout, dense, norm, feed-forward, embeddings.

Initializers are T5X's, or normal with standard deviation `config.init_std` if that is set. Weights
are float32; activations have the type `config.dtype`.

Array names: b batch, l length, e embed, m mlp, v vocab, p prompt; i and o input and output of a
projection, j all heads side by side.
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


def make_param(
    init: Initializer, shape: Sequence[int], axes: tuple[str, ...], rngs: nnx.Rngs
) -> nnx.Param:
    """Create a float32 parameter with logical axes.

    Args:
        init: Initializer.
        shape: Shape of the parameter.
        axes: Logical axis of each dimension (`partitioning.LOGICAL_TO_MESH`).
        rngs: Source of the initializer's key.
    """
    return nnx.Param(init(rngs.params(), tuple(shape), jnp.float32), axes=axes)


def dropout(x: jax.Array, rate: float, key: jax.Array | None, *, shared_axis: int | None):
    """Zero elements of `x` with probability `rate` and scale the others by 1 / (1 - rate).

    Args:
        x: Activations.
        rate: Dropout probability in [0, 1).
        key: PRNG key; None in evaluation, which returns `x`.
        shared_axis: Axis along which the mask is constant (flax: `broadcast_dims`). T5 shares masks
            along the length: [batch, 1, embed], and along the queries of attention weights:
            [batch, heads, 1, keys]. None draws each element.
    """
    if key is None or rate == 0.0:
        return x
    shape = list(x.shape)
    if shared_axis is not None:
        shape[shared_axis] = 1
    keep = jax.random.bernoulli(key, 1.0 - rate, shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def apply_dropout(
    x: jax.Array, config: TransformerConfig, key: jax.Array | None, rate: float | None = None
):
    """Apply `dropout` with the settings of the config.

    Args:
        x: Activations [batch, length, features] or attention weights [batch, heads, query, key].
            `dropout_shared_along_length` shares the mask along the second to last axis.
        config: The model.
        key: PRNG key; None in evaluation.
        rate: Dropout rate; None means `config.dropout_rate`.
    """
    rate = config.dropout_rate if rate is None else rate
    return dropout(x, rate, key, shared_axis=-2 if config.dropout_shared_along_length else None)


def split_key(key: jax.Array | None, count: int) -> Sequence[jax.Array | None]:
    """Split a PRNG key, or pass on its absence.

    Args:
        key: The key; None in evaluation.
        count: Number of keys.

    Returns:
        `count` keys, each None if `key` is.
    """
    return (None,) * count if key is None else list(jax.random.split(key, count))


@jax.custom_vjp
def project(x: jax.Array, kernel_io: jax.Array) -> jax.Array:
    """Compute x @ kernel over the last dimension, with a gradient that is fast on CPUs too.

    XLA's CPU backend transposes one operand of the product that makes the kernel's gradient, and
    computes the element-wise operations fused into that operand in the transposed order, which is
    slow. The custom gradient orders the operands so that it is always the narrower one.

    Args:
        x: Activations [..., in].
        kernel_io: Kernel [in, out], of the type of `x`.

    Returns:
        Activations [..., out].
    """
    return jnp.einsum("...i,io->...o", x, kernel_io)


def _project_backward(residuals: tuple[jax.Array, jax.Array], dy: jax.Array):
    x, kernel_io = residuals
    rows = tuple(range(x.ndim - 1))  # all axes but the last are contracted
    if x.shape[-1] <= dy.shape[-1]:
        dkernel_io = jax.lax.dot_general(x, dy, ((rows, rows), ((), ())))
    else:
        dkernel_io = jax.lax.dot_general(dy, x, ((rows, rows), ((), ()))).T
    return jnp.einsum("...o,io->...i", dy, kernel_io), dkernel_io


project.defvjp(lambda x, kernel: (project(x, kernel), (x, kernel)), _project_backward)


class Dense(nnx.Module):
    """Linear layer over the last dimension: y = x @ kernel (+ bias), in the type of `x`."""

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
        """Create the parameters.

        Args:
            config: The model; `use_bias` and `init_std` apply.
            sizes: Input and output size.
            axes: Logical axes of the kernel.
            init: Initializer of the kernel, unless `config.init_std` is set.
            into_residual: Whether the output is added to the residual stream, whose variance
                `scale_residual_init` keeps from growing with the number of layers.
            rngs: Source of the initializer's key.
        """
        if config.init_std is not None:
            layers = max(config.num_encoder_layers, config.num_decoder_layers)
            shrink = (2 * layers) ** -0.5 if into_residual and config.scale_residual_init else 1.0
            init = jax.nn.initializers.normal(config.init_std * shrink)
        self.kernel = make_param(init, sizes, axes, rngs)
        if config.use_bias:
            # "embed" splits weights over devices, which is not worthwhile for a vector.
            bias_axis = "embed_whole" if axes[1] == "embed" else axes[1]
            self.bias = make_param(zeros, sizes[1:], (bias_axis,), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = checkpoint_name(project(x, self.kernel[...].astype(x.dtype)), "projection")
        return y + self.bias[...].astype(y.dtype) if hasattr(self, "bias") else y


class Norm(nnx.Module):
    """RMS norm, x / sqrt(mean(x²) + ε) * scale, or LayerNorm, by `config.norm`.

    Statistics are computed in float32. T5's layers use the RMS norm without a bias.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.scale = make_param(ones, [config.emb_dim], ("embed_whole",), rngs)
        if config.norm == "layer":
            self.bias = make_param(zeros, [config.emb_dim], ("embed_whole",), rngs)

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
    """Feed-forward: wo(act_0(wi_0(x)) * act_1(wi_1(x)) * ...), gated if there are several (T5 1.1).

    Initializers are T5X's: truncated normal with standard deviation emb_dim**-0.5 for wi and
    mlp_dim**-0.5 for wo.
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
        return self.wo(apply_dropout(h_blm, self.config, key, self.config.mlp_dropout_rate))


class Adapter(nnx.Module):
    """Bottleneck that is trained while other weights are frozen: x + up(relu(down(x))).

    It follows the feed-forward of every layer (T5 paper, section 3.5.1). `up` is initialized to 0,
    so that new adapters do not change the model (Houlsby et al. 2019).
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        inner, embed = config.adapter_dim, config.emb_dim
        assert inner is not None
        config = dataclasses.replace(config, init_std=None)  # which would override zeros
        self.down = Dense(config, (embed, inner), ("embed", "mlp"), rngs=rngs)
        self.up = Dense(config, (inner, embed), ("mlp", "embed"), init=zeros, rngs=rngs)

    def __call__(self, x_ble: jax.Array) -> jax.Array:
        h_blm = shard(jax.nn.relu(self.down(x_ble)), "batch", "length", "mlp")
        return x_ble + self.up(h_blm)


class Prompt(nnx.Module):
    """Prompt tuning: learned vectors in front of the encoder's inputs (Lester et al. 2021).

    They are initialized with token embeddings (`initial_prompt_ids`).
    """

    def __init__(self, config: TransformerConfig, embedding: "Embedding"):
        ids = initial_prompt_ids(config.prompt_length, config.vocab_size)
        self.embedding = nnx.Param(embedding.embedding[...][ids], axes=("length_table", "embed"))

    def __call__(self, x_ble: jax.Array) -> jax.Array:
        prompt_ple = self.embedding[...].astype(x_ble.dtype)
        prompt_bpe = jnp.broadcast_to(prompt_ple, (x_ble.shape[0], *prompt_ple.shape))
        return shard(jnp.concatenate([prompt_bpe, x_ble], axis=1), "batch", None, None)


def initial_prompt_ids(length: int, vocab_size: int) -> np.ndarray:
    """Return the token ids whose embeddings initialize a prompt, int32 [length].

    They are spread evenly over the 5,000 most frequent tokens, from which Lester et al. draw them.
    SentencePiece's ids are in order of descending frequency after pad, eos and unk.

    Args:
        length: Number of vectors.
        vocab_size: Rows of the token embedding.
    """
    return np.linspace(3, min(5003, vocab_size) - 1, length).astype(np.int32)


class Embedding(nnx.Module):
    """Token embedding; its table has standard deviation 1 (T5X) and may be tied to the output."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        std = config.init_std
        init = unit_normal if std is None else jax.nn.initializers.normal(std)
        shape = [config.vocab_size, config.emb_dim]
        self.embedding = make_param(init, shape, ("vocab", "embed"), rngs)

    def __call__(self, tokens_bl: jax.Array) -> jax.Array:
        # Looking up a row needs all of its columns. Without this all-gather over the embed axis,
        # XLA replicates the table over the vocab axis as well.
        table_ve = shard(self.embedding[...].astype(self.config.dtype), "vocab", None)
        return jnp.take(table_ve, tokens_bl, axis=0)


class PositionEmbedding(nnx.Module):
    """Input of a stack: token embeddings plus learned positions and token types, then a norm.

    Each of the three is optional; T5 has none of them.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        init = jax.nn.initializers.normal(config.init_std or 0.02)
        if config.positions == "learned":
            rows = config.max_positions + config.position_offset
            self.positions = make_param(
                init, [rows, config.emb_dim], ("length_table", "embed"), rngs
            )
        if config.num_token_types:
            shape = [config.num_token_types, config.emb_dim]
            self.types = make_param(init, shape, ("length_table", "embed"), rngs)
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
    """The last linear map: logits = scale * (hidden @ kernel) + bias.

    A pytree of weights rather than a module, so that a loss can compute logits in chunks.

    Attributes:
        kernel: float32 [vocab, embed] if `vocab_first`, else [embed, vocab].
        bias: float32 [vocab], or None.
        vocab_first: Whether the kernel is a tied embedding.
        scale: Factor of the logits before the bias.
    """

    kernel: jax.Array
    bias: jax.Array | None
    vocab_first: bool
    scale: float

    def __call__(self, hidden_ble: jax.Array) -> jax.Array:
        """Return logits, float32 [batch, length, vocab]."""
        letters = "ve" if self.vocab_first else "ev"
        kernel = self.kernel.astype(hidden_ble.dtype)
        logits_blv = jnp.einsum(
            f"ble,{letters}->blv", hidden_ble, kernel, preferred_element_type=jnp.float32
        )
        logits_blv = logits_blv if self.scale == 1.0 else logits_blv * self.scale
        logits_blv = logits_blv if self.bias is None else logits_blv + self.bias
        return shard(logits_blv, "batch", "length", "vocab")


class Head(nnx.Module):
    """Parameters between a stack's output and the logits.

    An untied kernel has standard deviation emb_dim**-0.5, truncated normal, and its logits are not
    scaled (T5X). Tied logits are multiplied by emb_dim**-0.5 if `scale_tied_logits` (T5 1.0).
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
            self.kernel = make_param(init, shape, ("embed", "vocab"), rngs)
        if config.head_bias:
            self.bias = make_param(zeros, [config.vocab_size], ("vocab",), rngs)

    def transform_hidden(self, x_ble: jax.Array) -> jax.Array:
        """Apply the layer that BERT's head has before the output layer, if the model has it."""
        if not self.config.head_transform:
            return x_ble
        activation = ACTIVATION_FUNCTIONS[self.config.mlp_activations[0]]
        return self.norm(activation(self.transform(x_ble)))

    def output(self, embedding: Embedding) -> OutputLayer:
        """Return the output layer.

        Args:
            embedding: The token embedding, whose table is the kernel of tied logits.
        """
        tied = self.config.logits_via_embedding
        scaled = tied and self.config.scale_tied_logits
        return OutputLayer(
            kernel=(embedding.embedding if tied else self.kernel)[...],
            bias=self.bias[...] if self.config.head_bias else None,
            vocab_first=tied,
            scale=self.config.emb_dim**-0.5 if scaled else 1.0,
        )
