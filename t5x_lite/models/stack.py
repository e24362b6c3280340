"""A layer, and a stack of them: weights stacked along "layers", run by scan, recomputed by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.models.attention import Attention, KeyValue
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.layers import MLP, Adapter, Norm, drop, split_key
from t5x_lite.models.moe import RouterLosses, SwitchMLP
from t5x_lite.models.position import RelativePositionBias
from t5x_lite.partitioning import shard


class LayerContext(NamedTuple):
    """What every layer of a stack is given besides the residual stream.

    bias: from a table of relative positions to a bias [1, h, q, k]. encoded_bke is None in a stack
    without cross-attention, and while decoding from caches, which hold its projections. written:
    how many tokens the caches hold already.
    """

    segments_bl: jax.Array
    positions_bl: jax.Array
    self_mask_bhqk: jax.Array
    bias: Callable[[RelativePositionBias], jax.Array]
    cross_mask_bhqk: jax.Array | None = None
    encoded_bke: jax.Array | None = None
    written: jax.Array | None = None


class LayerCache(NamedTuple):
    """What a decoder layer remembers while it decodes: its own past, and the encoder's output."""

    own: KeyValue
    cross: KeyValue | None


Caches = tuple[LayerCache, ...]  # one a layer


class LayerOutput(NamedTuple):
    """What a layer hands on besides the residual stream."""

    cache: Any  # a LayerCache; a tuple of them from a block; None
    router: RouterLosses | None


def _residual(config: TransformerConfig, norm: Norm, key, x_ble: jax.Array, sublayer: Callable):
    """Return x + drop(sublayer(norm(x))), or norm(x + drop(sublayer(x))), and what is handed on."""
    pre = config.norm_position == "pre"
    y_ble, other = sublayer(norm(x_ble) if pre else x_ble)
    x_ble = x_ble + drop(y_ble, config, key)
    return shard(x_ble if pre else norm(x_ble), "batch", "length", None), other


class CrossAttention(nnx.Module):
    """A decoder's look at the encoder, with its norm and residual."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.norm = Norm(config, rngs=rngs)
        self.attention = Attention(config, rngs=rngs)

    def __call__(self, x_ble, around: LayerContext, cache: LayerCache | None, key) -> jax.Array:
        attention_key, key = split_key(key, 2)
        if cache is not None and cache.cross is not None:
            kv = cache.cross
        else:
            assert around.encoded_bke is not None
            kv = self.attention.keys_and_values(around.encoded_bke)
        mask = around.cross_mask_bhqk
        assert mask is not None

        def attend(y_ble):
            # Several texts about one input ask as its further queries: nothing is copied for them.
            y_bqe = y_ble.reshape(len(kv.k_bkhd), -1, y_ble.shape[-1])
            y_bqe = self.attention(y_bqe, kv, mask_bhqk=mask, key=attention_key)
            return y_bqe.reshape(y_ble.shape), None

        return _residual(self.config, self.norm, key, x_ble, attend)[0]


class Layer(nnx.Module):
    """Self-attention, cross-attention where there is an encoder to look at, feed-forward."""

    def __init__(
        self, config: TransformerConfig, *, cross: bool, sparse: bool = False, rngs: nnx.Rngs
    ):
        self.config = config
        if config.positions == "relative_per_layer":
            self.relpos_bias = RelativePositionBias(config, rngs=rngs)
        self.self_attention_norm = Norm(config, rngs=rngs)
        self.self_attention = Attention(config, rngs=rngs)
        if cross:
            self.cross = CrossAttention(config, rngs=rngs)
        self.mlp_norm = Norm(config, rngs=rngs)
        self.mlp = (SwitchMLP if sparse else MLP)(config, rngs=rngs)
        if config.adapter_dim is not None:
            self.adapter = Adapter(config, rngs=rngs)

    def __call__(
        self,
        x_ble: jax.Array,
        around: LayerContext,
        bias_bhqk: jax.Array | None,
        cache: LayerCache | None,
        key: jax.Array | None,
        cross: CrossAttention | None = None,
    ) -> tuple[jax.Array, LayerOutput]:
        """Run the layer; `cross` is lent by a decoder that shares the encoder's layers."""
        attention_key, drop_1, cross_key, mlp_key, drop_2 = split_key(key, 5)
        cross = getattr(self, "cross", cross)

        def attend(y_ble):
            return self._attend(y_ble, around, bias_bhqk, cache, attention_key)

        def feed_forward(y_ble):
            if isinstance(self.mlp, SwitchMLP):
                y_ble, router = self.mlp(y_ble, around.segments_bl > 0, key=mlp_key)
            else:
                y_ble, router = self.mlp(y_ble, key=mlp_key), None
            return (self.adapter(y_ble) if hasattr(self, "adapter") else y_ble), router

        x_ble, cache = _residual(self.config, self.self_attention_norm, drop_1, x_ble, attend)
        if cross is not None:
            x_ble = cross(x_ble, around, cache, cross_key)
        x_ble, router = _residual(self.config, self.mlp_norm, drop_2, x_ble, feed_forward)
        return x_ble, LayerOutput(cache, router)

    def _attend(self, x_ble, around, bias_bhqk, cache, key):
        kv = self.self_attention.keys_and_values(x_ble, around.positions_bl)
        if cache is not None:
            kv = cache.own.written_at(around.written, kv)
            cache = cache._replace(own=kv)
        if hasattr(self, "relpos_bias"):
            bias_bhqk = around.bias(self.relpos_bias)
        y_ble = self.self_attention(
            x_ble,
            kv,
            mask_bhqk=around.self_mask_bhqk,
            bias_bhqk=bias_bhqk,
            positions_bq=around.positions_bl,
            key=key,
        )
        return y_ble, cache


class Block(nnx.Module):
    """Some dense layers and a sparse one: what a scan repeats in a mixture of experts."""

    def __init__(self, config: TransformerConfig, *, cross: bool, rngs: nnx.Rngs):
        assert config.moe is not None
        self.size = config.moe.every
        for i in range(self.size):
            sparse = i == self.size - 1
            setattr(self, f"layer_{i}", Layer(config, cross=cross, sparse=sparse, rngs=rngs))

    def __call__(self, x_ble, around, bias_bhqk, cache, key, cross=None):
        """Run the layers; `cache` has one for each of them."""
        outputs = []
        for i, layer_key in enumerate(split_key(key, self.size)):
            layer = getattr(self, f"layer_{i}")
            layer_cache = None if cache is None else cache[i]
            x_ble, output = layer(x_ble, around, bias_bhqk, layer_cache, layer_key)
            outputs.append(output)
        caches = None if cache is None else tuple(output.cache for output in outputs)
        return x_ble, LayerOutput(caches, outputs[-1].router)

    def crosses(self) -> list[CrossAttention]:
        """The layers' cross-attentions, in order."""
        return [getattr(self, f"layer_{i}").cross for i in range(self.size)]


class Stack(nnx.Module):
    """Relative bias, layers and final norm of an encoder or a decoder."""

    def __init__(self, config: TransformerConfig, *, num_layers: int, cross: bool, rngs: nnx.Rngs):
        self.config = config
        if config.positions == "relative":
            self.relpos_bias = RelativePositionBias(config, rngs=rngs)
        unit = Layer if config.moe is None else Block
        self.num_units = num_layers // (config.moe.every if config.moe else 1)
        self.layers = stacked(lambda r: unit(config, cross=cross, rngs=r), self.num_units, rngs)
        if config.final_norm:
            self.norm = Norm(config, rngs=rngs)

    def __call__(
        self,
        x_ble: jax.Array,
        around: LayerContext,
        *,
        cross_layers: CrossAttention | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, LayerOutput]:
        """Run all layers; router losses are summed over them.

        `cross_layers`, stacked too, turn an encoder's layers into a decoder's that shares them.
        """
        before, inside, after = split_key(key, 3)
        x_ble = drop(x_ble, self.config, before)
        bias_bhqk = around.bias(self.relpos_bias) if hasattr(self, "relpos_bias") else None
        keys_n = None if inside is None else jax.random.split(inside, self.num_units)

        def body(x_ble, unit):
            layer, cross, layer_key = unit
            return layer(x_ble, around, bias_bhqk, None, layer_key, cross)

        units = (self.layers, cross_layers, keys_n)
        x_ble, output = self._run(recomputed(body, self.config), x_ble, units)
        output = output._replace(router=jax.tree.map(jnp.sum, output.router))
        x_ble = self.norm(x_ble) if self.config.final_norm else x_ble
        if self.config.dropout_after_final_norm:
            x_ble = drop(x_ble, self.config, after)
        return x_ble, output

    def step(
        self,
        x_ble: jax.Array,
        around: LayerContext,
        caches: Caches,
        *,
        cross_layers: CrossAttention | None = None,
    ) -> tuple[jax.Array, Caches]:
        """Run all layers without dropout on some tokens, from caches to caches, one a layer.

        Layer by layer and not scanned, so that a loop over tokens writes to the caches in place.
        """
        bias_bhqk = around.bias(self.relpos_bias) if hasattr(self, "relpos_bias") else None
        units = self.units if hasattr(self, "units") else unstacked(self.layers)
        crosses = [None] * len(units) if cross_layers is None else unstacked(cross_layers)
        size, after = len(caches) // len(units), []
        for i, (layer, cross) in enumerate(zip(units, crosses, strict=True)):
            own = caches[i * size : (i + 1) * size]
            in_block = isinstance(layer, Block)
            cache = own if in_block else own[0]
            x_ble, output = layer(x_ble, around, bias_bhqk, cache, None, cross)
            after += output.cache if in_block else [output.cache]
        return self.norm(x_ble) if self.config.final_norm else x_ble, tuple(after)

    def unstack_layers(self) -> None:
        """Slice the layers' weights once, before a loop that would slice them at every `step`."""
        self.units = nnx.List(unstacked(self.layers))

    def _run(self, body: Callable, x_ble: jax.Array, units: Any):
        if self.config.scan_layers:
            return jax.lax.scan(body, x_ble, units)
        outputs = []
        for i in range(self.num_units):
            x_ble, output = body(x_ble, jax.tree.map(lambda leaf, i=i: leaf[i], units))
            outputs.append(output)
        return x_ble, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def stacked(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> Any:
    """`count` modules as one, whose weights have a leading axis."""
    return jax.vmap(lambda key: make(nnx.Rngs(params=key)))(jax.random.split(rngs.params(), count))


def unstacked(modules: Any) -> list[Any]:
    """The modules that `stacked` made one of."""
    count = jax.tree.leaves(modules)[0].shape[0]
    return [jax.tree.map(lambda w, i=i: w[i], modules) for i in range(count)]


def recomputed(body: Callable, config: TransformerConfig) -> Callable:
    """`body` with activations kept or recomputed in the backward pass as `config.remat` says."""
    if config.remat == "none":
        return body
    policies = jax.checkpoint_policies
    if isinstance(config.remat, tuple):
        policy = policies.save_only_these_names(*config.remat)
    else:
        # `Dense` hides its products in a custom gradient, where the first policy does not see them.
        minimal = policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names("projection")
        )
        policy = {"minimal": minimal, "full": None}[config.remat]
    # Under scan XLA cannot merge forward and backward anyway; its guard only costs speed.
    return jax.checkpoint(body, policy=policy, prevent_cse=not config.scan_layers)
