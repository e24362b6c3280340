"""A layer, and a stack of them: weights stacked along "layers", run by scan, recomputed by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from t5x_lite.models.attention import Attention, KeyValue
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.layers import MLP, RMSNorm, dropout, split_key
from t5x_lite.models.position import RelativePositionBias
from t5x_lite.partitioning import shard

CHECKPOINT_POLICIES: dict[str, Callable | None] = {
    "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": None,
}


class Surroundings(NamedTuple):
    """What every layer of a stack is given besides the residual stream.

    encoded_bke is None in an encoder and while decoding from caches, which hold its projections.
    """

    self_mask_bhqk: jax.Array
    self_bias_bhqk: jax.Array
    cross_mask_bhqk: jax.Array | None = None
    encoded_bke: jax.Array | None = None
    position: jax.Array | None = None  # of the token being decoded


class LayerCache(NamedTuple):
    """What a decoder layer remembers while it decodes: its own past, and the encoder's output."""

    own: KeyValue
    cross: KeyValue


class Layer(nnx.Module):
    """Pre-norm: x += attention(norm(x)), in a decoder x += cross(norm(x)), x += mlp(norm(x))."""

    def __init__(self, config: TransformerConfig, *, decoder: bool, rngs: nnx.Rngs):
        self.config = config
        self.decoder = decoder
        self.pre_self_attention_norm = RMSNorm(config, rngs=rngs)
        self.self_attention = Attention(config, rngs=rngs)
        if decoder:
            self.pre_cross_attention_norm = RMSNorm(config, rngs=rngs)
            self.cross_attention = Attention(config, rngs=rngs)
        self.pre_mlp_norm = RMSNorm(config, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(
        self,
        x_ble: jax.Array,
        around: Surroundings,
        cache: LayerCache | None,
        key: jax.Array | None,
    ) -> tuple[jax.Array, LayerCache | None]:
        keys = iter(split_key(key, 6))

        def add(x_ble, y_ble):
            x_ble = x_ble + dropout(y_ble, self.config.dropout_rate, next(keys))
            return shard(x_ble, "batch", "length", None)

        y_ble, cache = self._attend_self(
            self.pre_self_attention_norm(x_ble), around, cache, next(keys)
        )
        x_ble = add(x_ble, y_ble)
        if self.decoder:
            y_ble = self.pre_cross_attention_norm(x_ble)
            x_ble = add(x_ble, self._attend_cross(y_ble, around, cache, next(keys)))
        y_ble = self.mlp(self.pre_mlp_norm(x_ble), key=next(keys))
        return add(x_ble, y_ble), cache

    def _attend_self(self, x_ble, around, cache, key):
        kv = self.self_attention.keys_and_values(x_ble)
        if cache is not None:
            kv = cache.own.written_at(around.position, kv)
            cache = cache._replace(own=kv)
        y_ble = self.self_attention(
            x_ble, kv, mask_bhqk=around.self_mask_bhqk, bias_bhqk=around.self_bias_bhqk, key=key
        )
        return y_ble, cache

    def _attend_cross(self, x_ble, around, cache, key):
        attend = self.cross_attention
        kv = attend.keys_and_values(around.encoded_bke) if cache is None else cache.cross
        return attend(x_ble, kv, mask_bhqk=around.cross_mask_bhqk, key=key)


class Stack(nnx.Module):
    """Relative bias, layers and final norm of an encoder or a decoder."""

    def __init__(self, config: TransformerConfig, *, decoder: bool, rngs: nnx.Rngs):
        self.config = config
        self.num_layers = config.num_decoder_layers if decoder else config.num_encoder_layers
        self.relpos_bias = RelativePositionBias(config, bidirectional=not decoder, rngs=rngs)
        keys_n = jax.random.split(rngs.params(), self.num_layers)
        self.layers = jax.vmap(
            lambda key: Layer(config, decoder=decoder, rngs=nnx.Rngs(params=key))
        )(keys_n)
        self.norm = RMSNorm(config, rngs=rngs)

    def __call__(
        self,
        x_ble: jax.Array,
        around: Surroundings,
        *,
        cache: LayerCache | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, LayerCache | None]:
        """Run all layers; `cache` is stacked along the layers and comes back written."""
        rate = self.config.dropout_rate
        before, inside, after = split_key(key, 3)
        x_ble = dropout(x_ble, rate, before)
        keys_n = None if inside is None else jax.random.split(inside, self.num_layers)

        def body(x_ble, slice_of_stack):
            layer, layer_cache, layer_key = slice_of_stack
            return layer(x_ble, around, layer_cache, layer_key)

        x_ble, cache = self._run(self._remat(body), x_ble, (self.layers, cache, keys_n))
        return dropout(self.norm(x_ble), rate, after), cache

    def _run(self, body: Callable, x_ble: jax.Array, stacked: Any):
        if self.config.scan_layers:
            return jax.lax.scan(body, x_ble, stacked)
        caches = []
        for i in range(self.num_layers):
            x_ble, cache = body(x_ble, jax.tree.map(lambda leaf, i=i: leaf[i], stacked))
            caches.append(cache)
        return x_ble, jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *caches)

    def _remat(self, body: Callable) -> Callable:
        if self.config.remat == "none":
            return body
        policy = CHECKPOINT_POLICIES[self.config.remat]
        # Under scan XLA cannot merge forward and backward anyway; its guard only costs speed.
        return jax.checkpoint(body, policy=policy, prevent_cse=not self.config.scan_layers)
