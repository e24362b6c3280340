"""Layers and stacks of them: weights stacked along "layers", scanned, with rematerialization.

Array names: b batch, l length, q queries, k keys, h heads, e embed, n layers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.models.attention import Attention, KeyValue
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.layers import MLP, Adapter, Norm, apply_dropout, split_key
from t5x_lite.models.moe import RouterLosses, SwitchMLP
from t5x_lite.models.position import RelativePositionBias
from t5x_lite.partitioning import shard


class LayerContext(NamedTuple):
    """What all layers of a stack read besides the residual stream.

    Attributes:
        segments_bl: Segment ids; 0 is padding.
        positions_bl: Positions, for rotary embeddings.
        self_mask_bhqk: Mask of self-attention.
        bias: Computes the bias [1, heads, query, key] from a relative position table; a function,
            as each layer may have a table of its own.
        cross_mask_bhqk: Mask of cross-attention; None in a stack without it.
        encoded_bke: Encoder output; None in a stack without cross-attention, and in decoding with
            caches, which hold its keys and values.
        cache_length: Number of tokens in the caches, a traced scalar; None without caches.
    """

    segments_bl: jax.Array
    positions_bl: jax.Array
    self_mask_bhqk: jax.Array
    bias: Callable[[RelativePositionBias], jax.Array]
    cross_mask_bhqk: jax.Array | None = None
    encoded_bke: jax.Array | None = None
    cache_length: jax.Array | None = None


class LayerCache(NamedTuple):
    """Cache of a decoder layer.

    Attributes:
        self_kv: Keys and values of the tokens decoded so far.
        cross_kv: Keys and values of the encoder's output; None in a decoder-only model.
    """

    self_kv: KeyValue
    cross_kv: KeyValue | None


Caches = tuple[LayerCache, ...]  # one per layer


class LayerOutput(NamedTuple):
    """What a layer returns besides the residual stream.

    Attributes:
        cache: The updated `LayerCache`, a tuple of them from a `Block`, or None without caches.
        router: Losses of the router of a sparse layer.
    """

    cache: Any
    router: RouterLosses | None


def _residual(config: TransformerConfig, norm: Norm, key, x_ble: jax.Array, sublayer: Callable):
    """Apply a sub-layer with norm, dropout and residual sum, by `config.norm_position`.

    Pre-norm: x + dropout(sublayer(norm(x))). Post-norm: norm(x + dropout(sublayer(x))). The second
    result of the sub-layer is passed on.
    """
    pre = config.norm_position == "pre"
    y_ble, other = sublayer(norm(x_ble) if pre else x_ble)
    x_ble = x_ble + apply_dropout(y_ble, config, key)
    return shard(x_ble if pre else norm(x_ble), "batch", "length", None), other


class CrossAttention(nnx.Module):
    """Cross-attention of a decoder layer, with norm and residual sum."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.norm = Norm(config, rngs=rngs)
        self.attention = Attention(config, rngs=rngs)

    def __call__(self, x_ble, context: LayerContext, cache: LayerCache | None, key) -> jax.Array:
        attention_key, key = split_key(key, 2)
        if cache is not None and cache.cross_kv is not None:
            kv = cache.cross_kv
        else:
            assert context.encoded_bke is not None
            kv = self.attention.keys_and_values(context.encoded_bke)
        mask = context.cross_mask_bhqk
        assert mask is not None

        def attend(y_ble):
            # Several sequences decoded from one input are further queries of its row, so that the
            # encoder's keys and values are not repeated: [b * copies, l, e] -> [b, copies * l, e].
            y_bqe = y_ble.reshape(len(kv.k_bkhd), -1, y_ble.shape[-1])
            y_bqe = self.attention(y_bqe, kv, mask_bhqk=mask, key=attention_key)
            return y_bqe.reshape(y_ble.shape), None

        return _residual(self.config, self.norm, key, x_ble, attend)[0]


class Layer(nnx.Module):
    """A layer: self-attention, cross-attention in a decoder with an encoder, feed-forward."""

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
        context: LayerContext,
        bias_bhqk: jax.Array | None,
        cache: LayerCache | None,
        key: jax.Array | None,
        cross: CrossAttention | None = None,
    ) -> tuple[jax.Array, LayerOutput]:
        """Apply the layer.

        Args:
            x_ble: Residual stream [batch, length, embed].
            context: What all layers read.
            bias_bhqk: Position bias of the stack, or None.
            cache: The layer's cache in decoding, else None.
            key: Dropout key; None in evaluation.
            cross: Cross-attention of a decoder that shares this encoder layer.

        Returns:
            The residual stream, and the updated cache and router losses.
        """
        attention_key, drop_1, cross_key, mlp_key, drop_2 = split_key(key, 5)
        cross = getattr(self, "cross", cross)

        def attend(y_ble):
            return self._attend(y_ble, context, bias_bhqk, cache, attention_key)

        def feed_forward(y_ble):
            if isinstance(self.mlp, SwitchMLP):
                y_ble, router = self.mlp(y_ble, context.segments_bl > 0, key=mlp_key)
            else:
                y_ble, router = self.mlp(y_ble, key=mlp_key), None
            return (self.adapter(y_ble) if hasattr(self, "adapter") else y_ble), router

        x_ble, cache = _residual(self.config, self.self_attention_norm, drop_1, x_ble, attend)
        if cross is not None:
            x_ble = cross(x_ble, context, cache, cross_key)
        x_ble, router = _residual(self.config, self.mlp_norm, drop_2, x_ble, feed_forward)
        return x_ble, LayerOutput(cache, router)

    def _attend(self, x_ble, context, bias_bhqk, cache, key):
        kv = self.self_attention.keys_and_values(x_ble, context.positions_bl)
        if cache is not None:
            kv = cache.self_kv.update_at(context.cache_length, kv)
            cache = cache._replace(self_kv=kv)
        if hasattr(self, "relpos_bias"):
            bias_bhqk = context.bias(self.relpos_bias)
        y_ble = self.self_attention(
            x_ble,
            kv,
            mask_bhqk=context.self_mask_bhqk,
            bias_bhqk=bias_bhqk,
            positions_bq=context.positions_bl,
            key=key,
        )
        return y_ble, cache


class Block(nnx.Module):
    """Dense layers and a sparse one, the unit that a scan repeats in a mixture of experts."""

    def __init__(self, config: TransformerConfig, *, cross: bool, rngs: nnx.Rngs):
        assert config.moe is not None
        self.size = config.moe.every
        for i in range(self.size):
            sparse = i == self.size - 1
            setattr(self, f"layer_{i}", Layer(config, cross=cross, sparse=sparse, rngs=rngs))

    def __call__(self, x_ble, context, bias_bhqk, cache, key, cross=None):
        """Apply the layers.

        Args:
            x_ble: Residual stream [batch, length, embed].
            context: What all layers read.
            bias_bhqk: Position bias of the stack, or None.
            cache: A tuple with a cache per layer in decoding, else None.
            key: Dropout key; None in evaluation.
            cross: Always None: stacks with sparse layers are not shared.

        Returns:
            The residual stream; the updated caches and the router losses of the sparse layer.
        """
        outputs = []
        for i, layer_key in enumerate(split_key(key, self.size)):
            layer = getattr(self, f"layer_{i}")
            layer_cache = None if cache is None else cache[i]
            x_ble, output = layer(x_ble, context, bias_bhqk, layer_cache, layer_key)
            outputs.append(output)
        caches = None if cache is None else tuple(output.cache for output in outputs)
        return x_ble, LayerOutput(caches, outputs[-1].router)

    def cross_attentions(self) -> list[CrossAttention]:
        """Return the cross-attention of each layer."""
        return [getattr(self, f"layer_{i}").cross for i in range(self.size)]


class Stack(nnx.Module):
    """An encoder or a decoder: relative position bias, layers and final norm.

    The weights of all layers are stacked: each has a leading axis "layers". A unit of the scan is a
    `Layer`, or a `Block` in a mixture of experts.
    """

    def __init__(self, config: TransformerConfig, *, num_layers: int, cross: bool, rngs: nnx.Rngs):
        self.config = config
        if config.positions == "relative":
            self.relpos_bias = RelativePositionBias(config, rngs=rngs)
        unit = Layer if config.moe is None else Block
        self.num_units = num_layers // (config.moe.every if config.moe else 1)
        self.layers = stack_modules(
            lambda r: unit(config, cross=cross, rngs=r), self.num_units, rngs
        )
        if config.final_norm:
            self.norm = Norm(config, rngs=rngs)

    def __call__(
        self,
        x_ble: jax.Array,
        context: LayerContext,
        *,
        cross_layers: CrossAttention | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, LayerOutput]:
        """Apply all layers.

        Args:
            x_ble: Embeddings [batch, length, embed].
            context: What all layers read.
            cross_layers: Stacked cross-attentions of a decoder that shares this encoder's layers.
            key: Dropout key; None in evaluation.

        Returns:
            The output [batch, length, embed], and router losses summed over the layers.
        """
        input_key, layers_key, output_key = split_key(key, 3)
        x_ble = apply_dropout(x_ble, self.config, input_key)
        bias_bhqk = context.bias(self.relpos_bias) if hasattr(self, "relpos_bias") else None
        keys_n = None if layers_key is None else jax.random.split(layers_key, self.num_units)

        def body(x_ble, unit):
            layer, cross, layer_key = unit
            return layer(x_ble, context, bias_bhqk, None, layer_key, cross)

        units = (self.layers, cross_layers, keys_n)
        x_ble, output = self._run(apply_remat(body, self.config), x_ble, units)
        output = output._replace(router=jax.tree.map(jnp.sum, output.router))
        x_ble = self.norm(x_ble) if self.config.final_norm else x_ble
        if self.config.dropout_after_final_norm:
            x_ble = apply_dropout(x_ble, self.config, output_key)
        return x_ble, output

    def decode_step(
        self,
        x_ble: jax.Array,
        context: LayerContext,
        caches: Caches,
        *,
        cross_layers: CrossAttention | None = None,
    ) -> tuple[jax.Array, Caches]:
        """Apply all layers to the next tokens, with caches and without dropout.

        The layers are unrolled, not scanned, so that a loop over tokens updates each layer's cache
        in place.

        Args:
            x_ble: Embeddings of the next tokens [batch, length, embed].
            context: What all layers read.
            caches: A cache per layer.
            cross_layers: Stacked cross-attentions of a decoder that shares this encoder's layers.

        Returns:
            The output [batch, length, embed], and the updated caches.
        """
        bias_bhqk = context.bias(self.relpos_bias) if hasattr(self, "relpos_bias") else None
        units = self.units if hasattr(self, "units") else unstack_modules(self.layers)
        crosses = [None] * len(units) if cross_layers is None else unstack_modules(cross_layers)
        unit_size, new_caches = len(caches) // len(units), []
        for i, (unit, cross) in enumerate(zip(units, crosses, strict=True)):
            unit_caches = caches[i * unit_size : (i + 1) * unit_size]
            is_block = isinstance(unit, Block)
            cache = unit_caches if is_block else unit_caches[0]
            x_ble, output = unit(x_ble, context, bias_bhqk, cache, None, cross)
            new_caches += output.cache if is_block else [output.cache]
        return self.norm(x_ble) if self.config.final_norm else x_ble, tuple(new_caches)

    def unstack_layers(self) -> None:
        """Slice the stacked weights into layers, once before a loop of `decode_step`.

        Inside the loop, the slices would be made again for every token.
        """
        self.units = nnx.List(unstack_modules(self.layers))

    def _run(self, body: Callable, x_ble: jax.Array, units: Any):
        if self.config.scan_layers:
            return jax.lax.scan(body, x_ble, units)
        outputs = []
        for i in range(self.num_units):
            x_ble, output = body(x_ble, jax.tree.map(lambda leaf, i=i: leaf[i], units))
            outputs.append(output)
        return x_ble, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def stack_modules(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> Any:
    """Create modules with stacked weights.

    Args:
        make: Creates one module.
        count: Number of modules.
        rngs: Source of the initializers' keys.

    Returns:
        One module whose weights have a leading axis of size `count`.
    """
    return jax.vmap(lambda key: make(nnx.Rngs(params=key)))(jax.random.split(rngs.params(), count))


def unstack_modules(modules: Any) -> list[Any]:
    """Slice a module made by `stack_modules` into a list of modules."""
    count = jax.tree.leaves(modules)[0].shape[0]
    return [jax.tree.map(lambda w, i=i: w[i], modules) for i in range(count)]


def apply_remat(body: Callable, config: TransformerConfig) -> Callable:
    """Wrap a function in `jax.checkpoint` with the policy of `config.remat`.

    Args:
        body: The function of a layer.
        config: The model.
    """
    if config.remat == "none":
        return body
    policies = jax.checkpoint_policies
    if isinstance(config.remat, tuple):
        policy = policies.save_only_these_names(*config.remat)
    else:
        # The products of `Dense` are inside a custom_vjp, where the first policy does not see them;
        # they are marked with the name "projection".
        minimal = policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names("projection")
        )
        policy = {"minimal": minimal, "full": None}[config.remat]
    # Within a scan XLA cannot merge recomputed operations with those of the forward pass, so the
    # barriers that prevent it (`prevent_cse`) only cost speed.
    return jax.checkpoint(body, policy=policy, prevent_cse=not config.scan_layers)
