"""The model: one module for encoder-decoder, decoder-only and encoder-only Transformers.

`abstract_model` gives the graph definition, shapes and logical axes without allocating anything,
`initialize` makes the weights as nested dicts, and `bind` turns them into a `Transformer` inside
jitted functions. Batches have seqio's feature names ("encoder_input_tokens", ...).

Array names: b batch, l length, q queries, k keys or encoder positions, e embed, v vocab.
"""

import functools
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
    stack_modules,
    unstack_modules,
)
from t5x_lite.partitioning import LogicalAxes, shard
from t5x_lite.tree_paths import unflatten

Params = dict[str, Any]
Batch = Mapping[str, jax.Array]


class Predictions(NamedTuple):
    """Result of a forward pass.

    Attributes:
        hidden: Input of the output layer [batch, length, embed], from which a loss can compute
            logits in chunks.
        output: The output layer.
        router: Auxiliary losses of a mixture of experts, summed over layers; else None.
        next_sentence: Logits [batch, 2] of BERT's next-sentence head; else None.
    """

    hidden: jax.Array
    output: OutputLayer
    router: RouterLosses | None = None
    next_sentence: jax.Array | None = None

    @property
    def logits(self) -> jax.Array:
        """All logits, float32 [batch, length, vocab]."""
        return self.output(self.hidden)


class TokenSequence(NamedTuple):
    """One side of a batch, all int32 [batch, length].

    Attributes:
        tokens_bl: Token ids.
        segments_bl: Segment ids of packed examples, from 1 on; 0 is padding.
        positions_bl: Positions within each example.
    """

    tokens_bl: jax.Array
    segments_bl: jax.Array
    positions_bl: jax.Array


class DecodingState(NamedTuple):
    """State of decoding between tokens, passed to and returned by `decode_tokens`.

    Self-attention caches have a row per decoded sequence. The sequences of one input are adjacent
    rows and share its cross-attention cache. Prompts of a decoder-only model are aligned to the
    right, so that all end at the same position.

    Attributes:
        caches: Cache of each layer; keys and values are [sequences, length, heads, head_dim].
        real_inputs_bk: bool [batch, input length], False for padding; None without an encoder.
        length: Number of positions in the caches, an int32 scalar.
        padding_b: Number of padding positions before each prompt [sequences]; None for no padding.
    """

    caches: Caches
    real_inputs_bk: jax.Array | None
    length: jax.Array
    padding_b: jax.Array | None = None

    def gather(self, rows: jax.Array) -> "DecodingState":
        """Return the state in which sequence i continues the sequence `rows[i]`.

        Args:
            rows: int32 [sequences]; a sequence may only continue one of the same input, whose
                cross-attention cache it shares.
        """
        return self._map_self_caches(lambda x: jnp.take(x, rows, axis=0))

    def repeat(self, copies: int) -> "DecodingState":
        """Return the state with `copies` adjacent sequences for each one."""
        padding_b = None if self.padding_b is None else jnp.repeat(self.padding_b, copies)
        repeated = self._map_self_caches(lambda x: jnp.repeat(x, copies, axis=0))
        return repeated._replace(padding_b=padding_b)

    def truncate(self, length: jax.Array) -> "DecodingState":
        """Return the state after the first `length` positions; the next tokens overwrite others."""
        return self._replace(length=length)

    def _map_self_caches(self, function: Callable[[jax.Array], jax.Array]) -> "DecodingState":
        caches = (
            cache._replace(self_kv=jax.tree.map(function, cache.self_kv)) for cache in self.caches
        )
        return self._replace(caches=tuple(caches))


class Transformer(nnx.Module):
    """Encoder, decoder or both, with one token embedding and one output head.

    Attribute names are the paths of the weights in checkpoints ("encoder_places/positions" are the
    learned positions of the encoder), so they do not change.
    """

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
                self.cross = stack_modules(lambda r: CrossAttention(config, rngs=r), decoder, rngs)
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
        """Predict all target positions of a batch.

        Args:
            batch: Features by seqio's names, int32 [batch, length] each. Required are
                "encoder_input_tokens" of a model with an encoder, and "decoder_input_tokens" and
                "decoder_target_tokens" of one with a decoder. "*_segment_ids" and "*_positions" are
                optional: without them a row is one example, and zeros at its end are padding.
                "decoder_causal_attention" marks the inputs of a prefix LM, "encoder_token_types"
                the sentences of BERT.
            key: Dropout key; None in evaluation.
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

    def inputs(self, tokens_bk: jax.Array, batch: Batch | None = None) -> TokenSequence:
        """Return the encoder's tokens with segments and positions.

        A prompt occupies the first positions with segment 1, which requires rows that are not
        packed; tokens then have fewer columns than segments and positions.

        Args:
            tokens_bk: Input tokens [batch, length].
            batch: Where segment ids and positions are taken from, if it has them.
        """
        sequence = _token_sequence(batch or {}, "encoder", tokens_bk)
        prompt = self.config.prompt_length
        if not prompt:
            return sequence
        prompt_bp = jnp.broadcast_to(jnp.arange(prompt), (len(tokens_bk), prompt))
        return sequence._replace(
            segments_bl=jnp.pad(sequence.segments_bl, ((0, 0), (prompt, 0)), constant_values=1),
            positions_bl=jnp.concatenate([prompt_bp, sequence.positions_bl + prompt], axis=1),
        )

    @jax.named_scope("encoder")
    def encode(
        self,
        sequence: TokenSequence,
        types_bl: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, RouterLosses | None]:
        """Run the encoder.

        Args:
            sequence: The inputs, as `inputs` returns them.
            types_bl: Token types [batch, length] of BERT; None means type 0.
            key: Dropout key; None in evaluation.

        Returns:
            The encoder's output [batch, length, embed], which starts with that of a prompt, and
            router losses.
        """
        length, prompt = sequence.segments_bl.shape[1], self.config.prompt_length
        context = LayerContext(
            segments_bl=sequence.segments_bl,
            positions_bl=sequence.positions_bl,
            self_mask_bhqk=segment_mask(sequence.segments_bl, sequence.segments_bl),
            bias=lambda table: table(length, length, bidirectional=True),
        )
        # Learned positions are of the tokens only; the prompt is put in front after they are added.
        positions_bl = sequence.positions_bl[:, prompt:] - prompt
        x_ble = self.encoder_places(self._embed(sequence.tokens_bl), positions_bl, types_bl)
        x_ble = self.prompt(x_ble) if prompt else x_ble
        encoded_ble, output = self.encoder(x_ble, context, key=key)
        return encoded_ble, output.router

    def encode_inputs(self, tokens_bl: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Run the encoder on unpacked inputs without dropout.

        Args:
            tokens_bl: Input tokens [batch, length], zeros at the end being padding.

        Returns:
            The encoder's output [batch, prompt_length + length, embed], and a mask of its positions
            that are not padding, bool [batch, prompt_length + length].
        """
        inputs = self.inputs(tokens_bl)
        return self.encode(inputs)[0], inputs.segments_bl > 0

    @jax.named_scope("decoder")
    def _decode(self, batch: Batch, encoded_bke, inputs: TokenSequence | None, key):
        """Run the decoder on all target positions at once (teacher forcing)."""
        # The start token is 0 as padding is, so padding is derived from the targets.
        sequence = _token_sequence(
            batch, "decoder", batch["decoder_input_tokens"], "decoder_target_tokens"
        )
        segments_bl, length = sequence.segments_bl, sequence.tokens_bl.shape[1]
        bidirectional = self.config.decoder_buckets_bidirectional
        causal = causal_mask(length, batch.get("decoder_causal_attention"))
        context = LayerContext(
            segments_bl=segments_bl,
            positions_bl=sequence.positions_bl,
            self_mask_bhqk=segment_mask(segments_bl, segments_bl) & causal,
            bias=lambda table: table(length, length, bidirectional=bidirectional),
            cross_mask_bhqk=inputs and segment_mask(segments_bl, inputs.segments_bl),
            encoded_bke=encoded_bke,
        )
        x_ble = self.decoder_places(self._embed(sequence.tokens_bl), sequence.positions_bl, None)
        hidden_ble, output = self._run_decoder(x_ble, context, key=key)
        return hidden_ble, output.router

    def _run_decoder(self, x_ble: jax.Array, context: LayerContext, **options):
        if self.config.share_stacks:
            return self.encoder(x_ble, context, cross_layers=self.cross, **options)
        return self.decoder(x_ble, context, **options)

    def logits(self, hidden_ble: jax.Array) -> jax.Array:
        """Compute logits, float32 [batch, length, vocab], from a stack's output."""
        return self._predictions(hidden_ble).logits

    @jax.named_scope("output_layer")
    def _predictions(self, hidden_ble: jax.Array, *others: Any) -> Predictions:
        output = self.head.output(self.token_embedder)
        return Predictions(self.head.transform_hidden(hidden_ble), output, *others)

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
        """Encode the inputs and allocate caches.

        A decoder-only model has no inputs here; its prompts are the first tokens for
        `decode_tokens`.

        Args:
            input_tokens_bk: Unpacked inputs [batch, length]; None for a decoder-only model.
            max_length: Number of positions of the caches.
            batch_size: Number of rows, if there are no inputs.
            copies: Number of sequences decoded for each row.
            padding_b: Number of padding positions before each prompt [batch]; None for none.
        """
        config, real_bk = self.config, None
        (self.encoder if config.share_stacks else self.decoder).unstack_layers()
        crosses: Iterable[KeyValue | None] = [None] * config.num_decoder_layers
        if input_tokens_bk is not None:
            batch_size = input_tokens_bk.shape[0]
            encoded_bke, real_bk = self.encode_inputs(input_tokens_bk)
            crosses = [c.attention.keys_and_values(encoded_bke) for c in self._cross_attentions()]
        assert batch_size is not None
        shape = (batch_size * copies, max_length, config.kv_heads, config.head_dim)
        empty = shard(jnp.zeros(shape, config.dtype), "batch", None, "heads", "kv")
        caches = tuple(LayerCache(KeyValue(empty, empty), cross) for cross in crosses)
        return DecodingState(caches, real_bk, jnp.zeros((), jnp.int32), padding_b)

    @jax.named_scope("decoder")
    def decode_tokens(
        self, tokens_bl: jax.Array, state: DecodingState, *, prefix: bool = False
    ) -> tuple[jax.Array, DecodingState]:
        """Decode the next tokens of every sequence.

        Args:
            tokens_bl: The tokens [sequences, length], at the positions from `state.length` on.
            state: The state before them.
            prefix: Whether the tokens attend to each other in both directions, as a prefix LM's
                inputs do.

        Returns:
            Logits [sequences, length, vocab], and the state after the tokens.
        """
        length, max_length = tokens_bl.shape[1], state.caches[0].self_kv.k_bkhd.shape[1]
        # Index in the cache of each token, of a sequence's first token, and of the last key that
        # each token attends to.
        index_bl = jnp.broadcast_to(state.length + jnp.arange(length), tokens_bl.shape)
        first_b1 = jnp.zeros_like(index_bl[:, :1])
        if state.padding_b is not None:
            first_b1 = state.padding_b[:, None]
        last_bl = jnp.full_like(index_bl, state.length + length - 1) if prefix else index_bl
        index_k = jnp.arange(max_length)
        bidirectional = self.config.decoder_buckets_bidirectional
        cross_mask_bhqk = None
        if state.real_inputs_bk is not None:
            cross_mask_bhqk = state.real_inputs_bk[:, None, None, :]
        context = LayerContext(
            segments_bl=(index_bl >= first_b1).astype(jnp.int32),
            positions_bl=jnp.maximum(index_bl - first_b1, 0),
            self_mask_bhqk=(index_k <= last_bl[:, None, :, None])
            & (index_k >= first_b1[:, None, :, None]),
            bias=lambda table: table.from_position(
                state.length, length, max_length, bidirectional=bidirectional
            ),
            cross_mask_bhqk=cross_mask_bhqk,
            cache_length=state.length,
        )
        x_ble = self.decoder_places(self._embed(tokens_bl), context.positions_bl, None)
        if self.config.share_stacks:
            x_ble, caches = self.encoder.decode_step(
                x_ble, context, state.caches, cross_layers=self.cross
            )
        else:
            x_ble, caches = self.decoder.decode_step(x_ble, context, state.caches)
        return self.logits(x_ble), state._replace(caches=caches, length=state.length + length)

    def decode_token(
        self, tokens_b: jax.Array, state: DecodingState
    ) -> tuple[jax.Array, DecodingState]:
        """Decode one token of every sequence.

        Args:
            tokens_b: The tokens [sequences].
            state: The state before them.

        Returns:
            Logits [sequences, vocab] of the next tokens, and the state after the given ones.
        """
        logits_blv, state = self.decode_tokens(tokens_b[:, None], state)
        return logits_blv[:, 0], state

    def _embed(self, tokens_bl: jax.Array) -> jax.Array:
        return shard(self.token_embedder(tokens_bl), "batch", "length", None)

    def _cross_attentions(self) -> list[CrossAttention]:
        """Return the cross-attention of each decoder layer."""
        units = unstack_modules(self.cross if self.config.share_stacks else self.decoder.layers)
        if self.config.share_stacks:
            return units
        if self.config.moe is None:
            return [layer.cross for layer in units]
        return [cross for block in units for cross in block.cross_attentions()]


def _token_sequence(
    batch: Batch, side: str, tokens_bl: jax.Array, padding_feature: str | None = None
) -> TokenSequence:
    """Take one side of a batch, with default segments and positions for rows of one example.

    `padding_feature` is the feature whose trailing zeros are padding; by default the tokens.
    """
    segments_bl = batch.get(f"{side}_segment_ids")
    if segments_bl is None:
        source = tokens_bl if padding_feature is None else batch.get(padding_feature, tokens_bl)
        # 1 up to the last token that is not 0: a 0 within the row is no padding.
        segments_bl = jax.lax.cummax((source > 0).astype(jnp.int32), axis=1, reverse=True)
    positions_bl = batch.get(f"{side}_positions")
    if positions_bl is None:
        positions_bl = jnp.broadcast_to(jnp.arange(tokens_bl.shape[1]), tokens_bl.shape)
    return TokenSequence(tokens_bl, segments_bl, positions_bl)


def abstract_model(config: TransformerConfig) -> tuple[nnx.GraphDef, Params, Any]:
    """Describe a model without allocating its weights.

    Args:
        config: The model.

    Returns:
        The graph definition for `bind`; the weights as `jax.ShapeDtypeStruct`s in nested dicts; and
        their logical axes in nested dicts of the same structure. Stacked weights have "layers"
        before the axes that the layer declares.
    """
    graphdef, shapes, axes = _abstract_model(config)
    return graphdef, jax.tree.map(lambda leaf: leaf, shapes), unflatten(axes)


@functools.lru_cache(maxsize=16)
def _abstract_model(
    config: TransformerConfig,
) -> tuple[nnx.GraphDef, Params, dict[str, LogicalAxes]]:
    """Trace the model once per configuration: a run asks several times while it starts."""
    model = jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(params=0)))
    graphdef, state = nnx.split(model)

    def axes_of(variable: nnx.Variable) -> LogicalAxes:
        axes = variable.get_metadata()["axes"]
        return ("layers", *axes) if variable.get_value().ndim == len(axes) + 1 else axes

    axes = {
        "/".join(map(str, path)): axes_of(variable) for path, variable in nnx.to_flat_state(state)
    }
    return graphdef, nnx.to_pure_dict(state), axes


def initialize(config: TransformerConfig, key: jax.Array) -> Params:
    """Initialize the weights; jit it with `out_shardings` to create them on the mesh.

    Args:
        config: The model.
        key: PRNG key.

    Returns:
        Nested dicts of float32 arrays.
    """
    return nnx.to_pure_dict(nnx.state(Transformer(config, rngs=nnx.Rngs(params=key))))


def bind(graphdef: nnx.GraphDef, params: Params) -> Transformer:
    """Combine graph definition and weights into a model; costs nothing in a traced function.

    Args:
        graphdef: From `abstract_model`.
        params: The weights.
    """
    return nnx.merge(graphdef, nnx.State(params))


def num_parameters(config: TransformerConfig) -> int:
    """Return the number of parameters of a model."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_model(config)[1]))
