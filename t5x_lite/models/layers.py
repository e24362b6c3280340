"""The small parts: weights with logical axes, initialisers, norm, feed-forward, embedding, dropout.

Initialisers are those of T5X; their standard deviations stand in the class docstrings.
"""

import functools
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.models.config import TransformerConfig
from t5x_lite.partitioning import shard

Initializer = Callable[..., jax.Array]

fan_in_normal = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
fan_in_truncated_normal = jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
fan_average_uniform = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
unit_normal = jax.nn.initializers.normal(1.0)

ACTIVATION_FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
    "linear": lambda x: x,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def weight(
    init: Initializer, shape: Sequence[int], axes: tuple[str, ...], rngs: nnx.Rngs
) -> nnx.Param:
    """A float32 parameter whose dimensions carry the logical `axes`."""
    return nnx.Param(init(rngs.params(), tuple(shape), jnp.float32), axes=axes)


def dropout(x: jax.Array, rate: float, key: jax.Array | None, shared_axis: int = -2) -> jax.Array:
    """Zero a share `rate` of `x` and scale the rest up; the mask is shared along one axis (T5).

    Sharing along the length makes a mask of [batch, 1, embed]; for attention weights [b, h, q, k]
    the second-last axis is the query. Without a key (evaluation) or rate it returns `x`.
    """
    if key is None or rate == 0.0:
        return x
    shape = list(x.shape)
    shape[shared_axis] = 1
    keep = jax.random.bernoulli(key, 1.0 - rate, shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def split_key(key: jax.Array | None, count: int) -> Sequence[jax.Array | None]:
    """`count` independent keys, or as many times None where there is no key."""
    return (None,) * count if key is None else list(jax.random.split(key, count))


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x²) + 1e-6) * scale, statistics in float32, scale starting at one."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.scale = weight(jax.nn.initializers.ones, [config.emb_dim], ("embed_whole",), rngs)

    def __call__(self, x_ble: jax.Array) -> jax.Array:
        x32_ble = x_ble.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32_ble), axis=-1, keepdims=True)
        y_ble = x32_ble * jax.lax.rsqrt(mean_square + 1e-6)
        return (y_ble * self.scale[...]).astype(x_ble.dtype)


class MLP(nnx.Module):
    """Feed-forward; with several activations their branches are multiplied (gated, T5 1.1).

    Standard deviations: wi emb_dim**-0.5, wo mlp_dim**-0.5, truncated normal.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        for i in range(len(config.mlp_activations)):
            shape, axes = [config.emb_dim, config.mlp_dim], ("embed", "mlp")
            setattr(self, f"wi_{i}", weight(fan_in_truncated_normal, shape, axes, rngs))
        self.wo = weight(
            fan_in_truncated_normal, [config.mlp_dim, config.emb_dim], ("mlp", "embed"), rngs
        )

    def __call__(self, x_ble: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        branches = []
        for i, name in enumerate(self.config.mlp_activations):
            wi_em = getattr(self, f"wi_{i}")[...].astype(x_ble.dtype)
            branches.append(ACTIVATION_FUNCTIONS[name](jnp.einsum("ble,em->blm", x_ble, wi_em)))
        h_blm = shard(functools.reduce(operator.mul, branches), "batch", "length", "mlp")
        h_blm = dropout(h_blm, self.config.dropout_rate, key)
        return jnp.einsum("blm,me->ble", h_blm, self.wo[...].astype(x_ble.dtype))


class Embedding(nnx.Module):
    """Token embedding, standard deviation 1; also the output head where the config ties them."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        shape = [config.vocab_size, config.emb_dim]
        self.embedding = weight(unit_normal, shape, ("vocab", "embed"), rngs)
        self.dtype = jnp.dtype(config.dtype)

    def __call__(self, tokens_bl: jax.Array) -> jax.Array:
        # Gathering a row needs it whole: bring its slices together first, or XLA replicates more.
        table_ve = shard(self.embedding[...].astype(self.dtype), "vocab", None)
        return jnp.take(table_ve, tokens_bl, axis=0)

    def attend(self, x_ble: jax.Array) -> jax.Array:
        """Logits through the tied embedding, scaled by emb_dim**-0.5, float32 [b, l, v]."""
        scale = x_ble.shape[-1] ** -0.5
        table_ve = self.embedding[...].astype(x_ble.dtype)
        logits_blv = jnp.einsum("ble,ve->blv", x_ble, table_ve, preferred_element_type=jnp.float32)
        return logits_blv * scale


class Head(nnx.Module):
    """Untied output head, standard deviation emb_dim**-0.5, no scaling of logits."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        shape = [config.emb_dim, config.vocab_size]
        self.kernel = weight(fan_in_truncated_normal, shape, ("embed", "vocab"), rngs)

    def __call__(self, x_ble: jax.Array) -> jax.Array:
        kernel_ev = self.kernel[...].astype(x_ble.dtype)
        return jnp.einsum("ble,ev->blv", x_ble, kernel_ev, preferred_element_type=jnp.float32)
