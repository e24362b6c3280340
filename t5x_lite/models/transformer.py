"""The model: batch in, hidden states and logits out; the same weights train, score and decode."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.models.attention import KeyValue, causal_mask, segment_mask
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.layers import (
    Dense,
    Embedding,
    Head,
    OutputLayer,
    PositionEmbedding,
    Prompt,
    split_key,
)
from t5x_lite.models.moe import RouterLosses
from t5x_lite.models.stack import (
    Caches,
    CrossAttention,
    LayerCache,
    LayerContext,
    Stack,
    stacked,
    unstacked,
)
from t5x_lite.partitioning import LogicalAxes, shard
from t5x_lite.tree_paths import nested

Params = dict[str, Any]
Batch = Mapping[str, jax.Array]


class Predictions(NamedTuple):
    """What a forward pass says: hidden states and how they become logits, and what families add.

    hidden: [batch, length, embed], all that the output layer reads. A loss can take logits from it
    in chunks; `logits` makes them all.
    router: auxiliary losses of a mixture of experts, summed over its layers.
    next_sentence: logits [batch, 2] of BERT's second head.
    """

    hidden: jax.Array
    output: OutputLayer
    router: RouterLosses | None = None
    next_sentence: jax.Array | None = None

    @property
    def logits(self) -> jax.Array:
        """Scores of the vocabulary, float32 [batch, length, vocab]."""
        return self.output(self.hidden)


class Text(NamedTuple):
    """Tokens of one side of a batch, with segments (0: padding) and positions, all [b, l]."""

    tokens_bl: jax.Array
    segments_bl: jax.Array
    positions_bl: jax.Array


class DecodingState(NamedTuple):
    """All that decoding remembers from token to token; an argument and a result, never a secret.

    The caches have a row for each text being written; texts about one input stand side by side and
    share its cross-attention. Prompts end at the same place, `padding_b` empty places before them.
    """

    caches: Caches  # keys and values [texts, length, heads, head_dim]
    real_inputs_bk: jax.Array | None  # which inputs are no padding
    length: jax.Array  # how many places are already written
    padding_b: jax.Array | None = None

    def taken(self, rows: jax.Array) -> "DecodingState":
        """The state whose text i goes on from text `rows[i]`, one about the same input."""
        return self._own(lambda x: jnp.take(x, rows, axis=0))

    def repeated(self, copies: int) -> "DecodingState":
        """The state with so many texts, side by side, for each one."""
        padding_b = None if self.padding_b is None else jnp.repeat(self.padding_b, copies)
        return self._own(lambda x: jnp.repeat(x, copies, axis=0))._replace(padding_b=padding_b)

    def at(self, length: jax.Array) -> "DecodingState":
        """The state that goes on behind the first `length` places."""
        return self._replace(length=length)

    def _own(self, change: Callable[[jax.Array], jax.Array]) -> "DecodingState":
        caches = (cache._replace(own=jax.tree.map(change, cache.own)) for cache in self.caches)
        return self._replace(caches=tuple(caches))


class Transformer(nnx.Module):
    """Encoder, decoder or both, over one token embedding; logits tied to it or not."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.token_embedder = Embedding(config, rngs=rngs)
        encoder, decoder = config.num_encoder_layers, config.num_decoder_layers
        if encoder:
            self.encoder_places = PositionEmbedding(config, rngs=rngs)
            self.encoder = Stack(config, num_layers=encoder, cross=False, rngs=rngs)
        if decoder:
            self.decoder_places = PositionEmbedding(config, rngs=rngs)
            if config.share_stacks:
                self.cross = stacked(lambda r: CrossAttention(config, rngs=r), decoder, rngs)
            else:
                has_encoder = bool(encoder)
                self.decoder = Stack(config, num_layers=decoder, cross=has_encoder, rngs=rngs)
        self.head = Head(config, rngs=rngs)
        if config.next_sentence_head:
            square = (config.emb_dim, config.emb_dim)
            self.pooler = Dense(config, square, ("embed", "embed_out"), rngs=rngs)
            self.next_sentence = Dense(config, (config.emb_dim, 2), ("embed", "classes"), rngs=rngs)
        if config.prompt_length:
            self.prompt = Prompt(config, self.token_embedder)

    def __call__(self, batch: Batch, *, key: jax.Array | None = None) -> Predictions:
        """Predict every target position of a batch of seqio's feature names.

        Segment ids and positions are optional: without them a row is one segment, and zeros at
        its end are padding. A prefix LM's batch marks its inputs in decoder_causal_attention;
        BERT's has encoder_token_types. A dropout key makes it the training forward.
        """
        encoder_key, decoder_key = split_key(key, 2)
        if self.config.decoder_only:
            hidden_ble, router = self._decode(batch, None, None, decoder_key)
            return self._predictions(hidden_ble, router)
        inputs = self.inputs(batch["encoder_input_tokens"], batch)
        types_bl = batch.get("encoder_token_types")
        encoded_bke, router = self.encode(inputs, types_bl, key=encoder_key)
        if self.config.encoder_only:
            return self._predictions(encoded_bke, router, self._next_sentence(encoded_bke))
        hidden_ble, decoder_router = self._decode(batch, encoded_bke, inputs, decoder_key)
        router = jax.tree.map(jnp.add, router, decoder_router)
        return self._predictions(hidden_ble, router)

    def inputs(self, tokens_bk: jax.Array, batch: Batch | None = None) -> Text:
        """An encoder's tokens with segments and positions, the batch's or those of unpacked rows.

        A prompt has the first positions and segment 1: it takes rows that are not packed.
        """
        text, prompt = _text(batch or {}, "encoder", tokens_bk), self.config.prompt_length
        if not prompt:
            return text
        before = ((0, 0), (prompt, 0))
        positions_bl = jnp.broadcast_to(jnp.arange(prompt), (len(tokens_bk), prompt))
        return text._replace(
            segments_bl=jnp.pad(text.segments_bl, before, constant_values=1),
            positions_bl=jnp.concatenate([positions_bl, text.positions_bl + prompt], axis=1),
        )

    @jax.named_scope("encoder")
    def encode(
        self, text: Text, types_bl: jax.Array | None = None, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, RouterLosses | None]:
        """The encoder's output [batch, length, embed], and its routers' losses.

        A prompt stands before the tokens: `text` is what `inputs` returns, whose segments and
        positions are those of the prompt and the tokens.
        """
        length, prompt = text.segments_bl.shape[1], self.config.prompt_length
        around = LayerContext(
            segments_bl=text.segments_bl,
            positions_bl=text.positions_bl,
            self_mask_bhqk=segment_mask(text.segments_bl, text.segments_bl),
            bias=lambda table: table(length, length, bidirectional=True),
        )
        positions_bl = text.positions_bl[:, prompt:] - prompt
        x_ble = self.encoder_places(self._embed(text.tokens_bl), positions_bl, types_bl)
        x_ble = self.prompt(x_ble) if prompt else x_ble
        encoded_ble, output = self.encoder(x_ble, around, key=key)
        return encoded_ble, output.router

    def encode_inputs(self, tokens_bl: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The encoder's output on unpacked inputs, and what of it is no padding [b, l].

        A prompt's output comes first.
        """
        inputs = self.inputs(tokens_bl)
        return self.encode(inputs)[0], inputs.segments_bl > 0

    @jax.named_scope("decoder")
    def _decode(self, batch: Batch, encoded_bke, inputs: Text | None, key):
        # The first input token is 0, so what is padding is asked of the targets.
        text = _text(batch, "decoder", batch["decoder_input_tokens"], "decoder_target_tokens")
        length, both_ways = text.tokens_bl.shape[1], self.config.decoder_buckets_bidirectional
        causal = causal_mask(length, batch.get("decoder_causal_attention"))
        around = LayerContext(
            segments_bl=text.segments_bl,
            positions_bl=text.positions_bl,
            self_mask_bhqk=segment_mask(text.segments_bl, text.segments_bl) & causal,
            bias=lambda table: table(length, length, bidirectional=both_ways),
            cross_mask_bhqk=inputs and segment_mask(text.segments_bl, inputs.segments_bl),
            encoded_bke=encoded_bke,
        )
        x_ble = self.decoder_places(self._embed(text.tokens_bl), text.positions_bl, None)
        hidden_ble, output = self._run_decoder(x_ble, around, key=key)
        return hidden_ble, output.router

    def _run_decoder(self, x_ble: jax.Array, around: LayerContext, **options):
        if self.config.share_stacks:
            return self.encoder(x_ble, around, cross_layers=self.cross, **options)
        return self.decoder(x_ble, around, **options)

    def logits(self, hidden_ble: jax.Array) -> jax.Array:
        """Scores of the vocabulary, float32 [batch, length, vocab]."""
        return self._predictions(hidden_ble).logits

    @jax.named_scope("output_layer")
    def _predictions(self, hidden_ble: jax.Array, *others: Any) -> Predictions:
        output = self.head.output(self.token_embedder)
        return Predictions(self.head.transformed(hidden_ble), output, *others)

    @jax.named_scope("output_layer")
    def _next_sentence(self, encoded_ble: jax.Array) -> jax.Array | None:
        if not self.config.next_sentence_head:
            return None
        pooled_be = jnp.tanh(self.pooler(encoded_ble[:, 0]))
        return self.next_sentence(pooled_be).astype(jnp.float32)

    def start_decoding(
        self,
        input_tokens_bk: jax.Array | None,
        max_length: int,
        *,
        batch_size: int | None = None,
        copies: int = 1,
        padding_b: jax.Array | None = None,
    ) -> DecodingState:
        """Set up caches for up to `max_length` tokens; with an encoder, encode unpacked inputs.

        copies: how many texts are written about each input. A decoder-only model has no inputs
        here: its prompt is fed to `decode_tokens`, behind `padding_b` empty places.
        """
        config, real_bk = self.config, None
        (self.encoder if config.share_stacks else self.decoder).unstack_layers()
        crosses: Iterable[KeyValue | None] = [None] * config.num_decoder_layers
        if input_tokens_bk is not None:
            batch_size = input_tokens_bk.shape[0]
            encoded_bke, real_bk = self.encode_inputs(input_tokens_bk)
            crosses = [c.attention.keys_and_values(encoded_bke) for c in self._crosses()]
        assert batch_size is not None
        shape = (batch_size * copies, max_length, config.kv_heads, config.head_dim)
        empty = shard(jnp.zeros(shape, config.dtype), "batch", None, "heads", "kv")
        caches = tuple(LayerCache(KeyValue(empty, empty), cross) for cross in crosses)
        return DecodingState(caches, real_bk, jnp.zeros((), jnp.int32), padding_b)

    @jax.named_scope("decoder")
    def decode_tokens(
        self, tokens_bl: jax.Array, state: DecodingState, *, prefix: bool = False
    ) -> tuple[jax.Array, DecodingState]:
        """Feed the next tokens of every row; logits [batch, length, vocab], and the state after.

        With `prefix` the tokens see each other both ways, as a prefix LM's inputs do.
        """
        length, max_length = tokens_bl.shape[1], state.caches[0].own.k_bkhd.shape[1]
        place_bl = jnp.broadcast_to(state.length + jnp.arange(length), tokens_bl.shape)
        first_b1 = jnp.zeros_like(place_bl[:, :1])
        if state.padding_b is not None:
            first_b1 = state.padding_b[:, None]
        both_ways = self.config.decoder_buckets_bidirectional
        last_bl = jnp.full_like(place_bl, state.length + length - 1) if prefix else place_bl
        places_k = jnp.arange(max_length)
        cross_mask_bhqk = None
        if state.real_inputs_bk is not None:
            cross_mask_bhqk = state.real_inputs_bk[:, None, None, :]
        around = LayerContext(
            segments_bl=(place_bl >= first_b1).astype(jnp.int32),
            positions_bl=jnp.maximum(place_bl - first_b1, 0),
            self_mask_bhqk=(places_k <= last_bl[:, None, :, None])
            & (places_k >= first_b1[:, None, :, None]),
            bias=lambda table: table.from_place(
                state.length, length, max_length, bidirectional=both_ways
            ),
            cross_mask_bhqk=cross_mask_bhqk,
            written=state.length,
        )
        x_ble = self.decoder_places(self._embed(tokens_bl), around.positions_bl, None)
        if self.config.share_stacks:
            x_ble, caches = self.encoder.step(x_ble, around, state.caches, cross_layers=self.cross)
        else:
            x_ble, caches = self.decoder.step(x_ble, around, state.caches)
        return self.logits(x_ble), state._replace(caches=caches, length=state.length + length)

    def decode_token(
        self, tokens_b: jax.Array, state: DecodingState
    ) -> tuple[jax.Array, DecodingState]:
        """Feed one token a row; logits [batch, vocab] of the next one, and the state after it."""
        logits_blv, state = self.decode_tokens(tokens_b[:, None], state)
        return logits_blv[:, 0], state

    def _embed(self, tokens_bl: jax.Array) -> jax.Array:
        return shard(self.token_embedder(tokens_bl), "batch", "length", None)

    def _crosses(self) -> list[CrossAttention]:
        """The cross-attention of every layer."""
        units = unstacked(self.cross if self.config.share_stacks else self.decoder.layers)
        if self.config.share_stacks:
            return units
        if self.config.moe is None:
            return [layer.cross for layer in units]
        return [cross for block in units for cross in block.crosses()]


def _text(batch: Batch, side: str, tokens_bl: jax.Array, padding_of: str | None = None) -> Text:
    """One side of a batch; what its features leave out is one segment, zeros at its end aside."""
    segments_bl = batch.get(f"{side}_segment_ids")
    if segments_bl is None:
        source = tokens_bl if padding_of is None else batch.get(padding_of, tokens_bl)
        segments_bl = jax.lax.cummax((source > 0).astype(jnp.int32), axis=1, reverse=True)
    positions_bl = batch.get(f"{side}_positions")
    if positions_bl is None:
        positions_bl = jnp.broadcast_to(jnp.arange(tokens_bl.shape[1]), tokens_bl.shape)
    return Text(tokens_bl, segments_bl, positions_bl)


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

    axes = {
        "/".join(map(str, path)): axes_of(variable) for path, variable in nnx.to_flat_state(state)
    }
    return graphdef, nnx.to_pure_dict(state), nested(axes)


def initialize(config: TransformerConfig, key: jax.Array) -> Params:
    """Fresh float32 weights as a nested dict; jit it with shardings to place them."""
    return nnx.to_pure_dict(nnx.state(Transformer(config, rngs=nnx.Rngs(params=key))))


def bind(graphdef: nnx.GraphDef, params: Params) -> Transformer:
    """The model that has these weights. Call it inside traced functions: it is free there."""
    return nnx.merge(graphdef, nnx.State(params))


def num_parameters(config: TransformerConfig) -> int:
    """How many weights the model has."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract(config)[1]))
