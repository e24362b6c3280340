"""The encoder-decoder: batch in, float32 logits out; the same weights train, score and decode."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.models.attention import KeyValue, causal_mask, segment_mask
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.layers import Embedding, Head, split_key
from t5x_lite.models.stack import LayerCache, Stack, Surroundings
from t5x_lite.partitioning import LogicalAxes, shard

Params = dict[str, Any]


class DecodingState(NamedTuple):
    """All that decoding remembers from token to token; an argument and a result, never a secret."""

    layers: LayerCache  # leaves [layers, batch, length, heads, head_dim]
    input_segments_bk: jax.Array
    length: jax.Array  # how many tokens are already written


class Transformer(nnx.Module):
    """T5: shared token embedding, encoder, decoder, logits (tied or not)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.token_embedder = Embedding(config, rngs=rngs)
        self.encoder = Stack(config, decoder=False, rngs=rngs)
        self.decoder = Stack(config, decoder=True, rngs=rngs)
        if not config.logits_via_embedding:
            self.head = Head(config, rngs=rngs)

    def __call__(
        self, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits float32 [batch, target length, vocab] for a batch of seqio's feature names.

        Segment ids are optional: without them a row is one segment, and token 0 is padding. A
        dropout key makes it the training forward.
        """
        encoder_key, decoder_key = split_key(key, 2)
        tokens_bk, tokens_bl = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
        segments_bk = batch.get("encoder_segment_ids")
        if segments_bk is None:
            segments_bk = (tokens_bk > 0).astype(jnp.int32)
        segments_bl = batch.get("decoder_segment_ids")
        if segments_bl is None:  # the first input token is 0, so ask the targets
            segments_bl = (batch["decoder_target_tokens"] > 0).astype(jnp.int32)
        encoded_bke = self.encode(tokens_bk, segments_bk, key=encoder_key)
        hidden_ble = self._decode(encoded_bke, segments_bk, tokens_bl, segments_bl, decoder_key)
        return self.logits(hidden_ble)

    def encode(
        self, tokens_bl: jax.Array, segments_bl: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """The encoder's normed output, [batch, length, embed]."""
        around = Surroundings(
            self_mask_bhqk=segment_mask(segments_bl, segments_bl),
            self_bias_bhqk=self.encoder.relpos_bias(tokens_bl.shape[1], tokens_bl.shape[1]),
        )
        return self.encoder(self._embed(tokens_bl), around, key=key)[0]

    def _decode(self, encoded_bke, segments_bk, tokens_bl, segments_bl, key):
        length = tokens_bl.shape[1]
        around = Surroundings(
            self_mask_bhqk=segment_mask(segments_bl, segments_bl) & causal_mask(length),
            self_bias_bhqk=self.decoder.relpos_bias(length, length),
            cross_mask_bhqk=segment_mask(segments_bl, segments_bk),
            encoded_bke=encoded_bke,
        )
        return self.decoder(self._embed(tokens_bl), around, key=key)[0]

    def logits(self, hidden_ble: jax.Array) -> jax.Array:
        """Scores of the vocabulary, float32 [batch, length, vocab]."""
        tied = self.config.logits_via_embedding
        logits_blv = (self.token_embedder.attend if tied else self.head)(hidden_ble)
        return shard(logits_blv, "batch", "length", "vocab")

    def start_decoding(self, input_tokens_bk: jax.Array, max_length: int) -> DecodingState:
        """Encode unpacked inputs and set up empty caches for up to `max_length` new tokens."""
        segments_bk = (input_tokens_bk > 0).astype(jnp.int32)
        encoded_bke = self.encode(input_tokens_bk, segments_bk)
        cross = jax.vmap(lambda layer: layer.cross_attention.keys_and_values(encoded_bke))(
            self.decoder.layers
        )
        config = self.config
        shape = (config.num_decoder_layers, input_tokens_bk.shape[0], max_length)
        empty = jnp.zeros((*shape, config.num_heads, config.head_dim), config.dtype)
        return DecodingState(
            LayerCache(KeyValue(empty, empty), cross), segments_bk, jnp.zeros((), jnp.int32)
        )

    def decode_token(
        self, tokens_b: jax.Array, state: DecodingState
    ) -> tuple[jax.Array, DecodingState]:
        """Feed one token a row; logits [batch, vocab] of the next one, and the state after it."""
        max_length = state.layers.own.k_bkhd.shape[2]
        bias_bhqk = self.decoder.relpos_bias(max_length, max_length)
        around = Surroundings(
            self_mask_bhqk=(jnp.arange(max_length) <= state.length)[None, None, None],
            self_bias_bhqk=jax.lax.dynamic_slice_in_dim(bias_bhqk, state.length, 1, axis=2),
            cross_mask_bhqk=segment_mask(jnp.ones_like(tokens_b)[:, None], state.input_segments_bk),
            position=state.length,
        )
        x_ble = self._embed(tokens_b[:, None])
        hidden_ble, layers = self.decoder(x_ble, around, cache=state.layers)
        assert layers is not None  # caches in, caches out
        return self.logits(hidden_ble)[:, 0], state._replace(layers=layers, length=state.length + 1)

    def _embed(self, tokens_bl):
        return shard(self.token_embedder(tokens_bl), "batch", "length", None)


def abstract(config: TransformerConfig) -> tuple[nnx.GraphDef, Params, Any]:
    """The model without its numbers: graph definition, shapes and logical axes of the weights.

    Nothing is allocated. Shapes and axes are nested dicts of the same structure; stacked weights
    carry "layers" in front of what their layer declared.
    """
    model = jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(params=0)))
    graphdef, state = nnx.split(model)

    def axes_of(variable: nnx.Variable) -> LogicalAxes:
        axes = variable.get_metadata()["axes"]
        return ("layers", *axes) if variable.get_value().ndim == len(axes) + 1 else axes

    flat = {path: axes_of(variable) for path, variable in nnx.to_flat_state(state)}
    return graphdef, nnx.to_pure_dict(state), _nested(flat)


def initialize(config: TransformerConfig, key: jax.Array) -> Params:
    """Fresh float32 weights as a nested dict; jit it with shardings to place them."""
    return nnx.to_pure_dict(nnx.state(Transformer(config, rngs=nnx.Rngs(params=key))))


def bind(graphdef: nnx.GraphDef, params: Params) -> Transformer:
    """The model that has these weights. Call it inside traced functions: it is free there."""
    return nnx.merge(graphdef, nnx.State(params))


def num_parameters(config: TransformerConfig) -> int:
    """How many weights the model has."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract(config)[1]))


def _nested(flat: Mapping[tuple, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for (*parents, name), value in flat.items():
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree
