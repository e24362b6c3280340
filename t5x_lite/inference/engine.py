"""Batched inference on token ids: generate, score and embed, compiled once for each length."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.stream.prefetch import process_rows, to_devices
from t5x_lite.decoding.generation import GeneratedTokens, Generation, SpecialTokens, generate
from t5x_lite.errors import ConfigError
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.ensemble import bind_models
from t5x_lite.models.transformer import Params, Transformer, abstract_model
from t5x_lite.partitioning import mesh_axes, named_sharding, num_batch_shards

Tokens = NDArray[np.int32]
SHORTEST = 16  # the smallest length that a program is compiled for
LOGITS_CHUNK = 64  # positions whose logits are in memory at a time while targets are scored
# Without a capacity limit, a group's buffers have room for all its tokens at each expert. Small
# groups keep these buffers small.
DROPLESS_GROUP_SIZE = 64


class Generated(NamedTuple):
    """Generated texts of each row.

    Attributes:
        tokens: int32 [rows, returns, length], 0 after EOS. Beams are in descending order of their
            scores, samples in the order in which they were drawn.
        scores: float32 [rows, returns]: log-likelihoods, which beam search divides by its length
            penalty.
    """

    tokens: Tokens
    scores: NDArray[np.float32]


class Scored(NamedTuple):
    """Log-likelihoods of targets.

    Attributes:
        totals: float32 [rows], of all tokens of a row's targets.
        tokens: float32 [rows, length], of each token; 0 at padding.
    """

    totals: NDArray[np.float32]
    tokens: NDArray[np.float32]


class Inference:
    """Generates, scores and embeds rows of token ids with a model on a mesh.

    A batch is a dict of NumPy arrays:

    - "inputs", int32 [rows, length]: the encoder's inputs, or the prompt of a decoder without an
      encoder. Rows are padded with zeros at their end.
    - "targets", int32 [rows, length]: what to score, padded likewise.
    - "numbers", [rows] (optional): the index of each input, on which its random samples depend.
      The default is 0, 1, 2, ...
    - "lengths", [rows] (optional): the number of tokens of each input, for vocabularies in which 0
      is an ordinary token. The default is the position of the last token that is not 0.

    Every process passes the same rows, at most `batch_size`. It computes its part of them and
    receives the results of all. Smaller batches are padded, and decoding does not wait for the
    padding. Lengths are rounded up to few values, so that few programs are compiled.

    Mixture-of-experts layers have no capacity limit here (`dropless`): with one, the results of a
    row would depend on the other rows of its batch.

    `params` may be a tuple of the weights of several models. `generate` and `score` then average
    their logits.

    Args:
        config: The model.
        generation: How texts are generated.
        mesh: The mesh that weights and batches are laid out over.
        batch_size: Rows of a batch, over all devices; a multiple of the mesh's batch shards.
        special: The ids that start and end a text.

    Raises:
        ConfigError: The batch does not divide over the mesh.
    """

    def __init__(
        self,
        config: TransformerConfig,
        generation: Generation = Generation(),  # noqa: B008  (frozen)
        *,
        mesh: jax.sharding.Mesh,
        batch_size: int,
        special: SpecialTokens = SpecialTokens(),  # noqa: B008
    ):
        self.config, self.generation, self.special = dropless(config), generation, special
        self.batch_size = batch_size
        self._mesh = mesh
        if batch_size < 1 or batch_size % num_batch_shards(mesh):
            raise ConfigError(
                f"a batch of {batch_size} rows does not divide into the {num_batch_shards(mesh)} "
                f"parts of the mesh (data * fsdp * expert)",
                "BATCH_SIZE",
                "MESH",
            )
        self._sharding = named_sharding(mesh, ("batch", "length"))
        graphdef = self._graphdef = abstract_model(self.config)[0]

        def program(function: Callable[..., Any]) -> Any:
            def run(params: Params, batch: Mapping[str, jax.Array]):
                return function(bind_models(graphdef, params), batch)

            return jax.jit(run, out_shardings=named_sharding(mesh, ()))

        self._generate = program(self._generate_from_model)
        self._score = program(self._log_probs)
        self._embed = program(_mean_encoding)

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The mesh that weights and batches are laid out over."""
        return self._mesh

    @functools.cached_property
    def _rows(self) -> slice:
        """The rows of a batch that this process computes."""
        return process_rows(self.batch_size, self._sharding)

    def generate(self, params: Params, batch: Mapping[str, NDArray]) -> Generated:
        """Generate the texts of each row of "inputs".

        Args:
            params: Weights on the mesh, or a tuple of the weights of several models.
            batch: "inputs", and optionally "numbers" and "lengths".

        Raises:
            ConfigError: The model has no decoder or too few learned positions, or a prompt is
                empty and the model has no BOS token.
        """
        if self.config.encoder_only:
            raise ConfigError("a model without a decoder cannot generate text", "MODEL_DIR")
        inputs, length = batch["inputs"], self.generation.max_length
        if self.config.decoder_only:
            prompts, padding = self._prompts(inputs, _input_lengths(batch))
            self._check_positions(int((prompts.shape[1] - padding).max(initial=0)) + length)
            arrays: dict[str, NDArray] = {"prompts": prompts, "padding": padding}
        else:
            self._check_positions(length)
            arrays = {"inputs": self._padded(inputs)}
        numbers = batch.get("numbers", np.arange(len(inputs)))
        arrays["numbers"] = np.asarray(numbers, np.uint32)
        return Generated(*self._run(self._generate, params, arrays, len(inputs)))

    def score(self, params: Params, batch: Mapping[str, NDArray]) -> Scored:
        """Compute the log-likelihood of each row's "targets", given its "inputs".

        Args:
            params: Weights on the mesh, or a tuple of the weights of several models.
            batch: "inputs" and "targets", and optionally "lengths".

        Raises:
            ConfigError: The model has no decoder or too few learned positions, or inputs are empty
                and the model has no BOS token.
        """
        if self.config.encoder_only:
            raise ConfigError("a model without a decoder cannot score targets", "MODEL_DIR")
        inputs, targets = batch["inputs"], np.asarray(batch["targets"], np.int32)
        starts = np.zeros(len(targets), int)
        if self.config.decoder_only:
            starts, arrays = self._join(inputs, targets, _input_lengths(batch))
        else:
            padded = self._padded(targets)
            arrays = {
                "encoder_input_tokens": self._padded(inputs),
                "decoder_target_tokens": padded,
                "decoder_input_tokens": self._shifted(padded),
            }
        (log_probs,) = self._run(self._score, params, arrays, len(targets))
        # The program returns a log-probability for each position of the decoder. Those of a row's
        # targets begin at its start; clip to the last column, where only padding is read.
        position_l = np.arange(targets.shape[1])
        column_bl = np.minimum(starts[:, None] + position_l, log_probs.shape[1] - 1)
        log_probs_bl = np.take_along_axis(log_probs, column_bl, axis=1)
        is_target_bl = position_l < _lengths(targets)[:, None]
        log_probs_bl = np.where(is_target_bl, log_probs_bl, np.float32(0))
        return Scored(log_probs_bl.sum(axis=1, dtype=np.float64).astype(np.float32), log_probs_bl)

    def embed(self, params: Params, batch: Mapping[str, NDArray]) -> NDArray[np.float32]:
        """Compute the mean of the encoder's output over the tokens of each row of "inputs".

        Args:
            params: Weights on the mesh.
            batch: "inputs".

        Returns:
            float32 [rows, embed].

        Raises:
            ConfigError: The model has no encoder, or `params` is an ensemble.
        """
        if self.config.decoder_only:
            raise ConfigError("a model without an encoder cannot compute embeddings", "MODEL_DIR")
        if isinstance(params, tuple):
            raise ConfigError("an ensemble cannot compute embeddings", "evaluate.ensemble")
        arrays = {"inputs": self._padded(batch["inputs"])}
        return self._run(self._embed, params, arrays, len(batch["inputs"]))[0]

    def generation_function(
        self, params: Params, batch: Mapping[str, jax.Array]
    ) -> GeneratedTokens:
        """Generate texts: the pure function that `generate` compiles, for export and planning.

        Args:
            params: The weights.
            batch: Arrays with the names and shapes of `generation_shapes`.
        """
        return self._generate_from_model(bind_models(self._graphdef, params), batch)

    def generation_shapes(self, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of the batch of `generation_function`.

        Args:
            length: The length of inputs, or of prompts with their start token.

        Returns:
            "inputs" [rows, length], or for a decoder without an encoder "prompts" [rows, length],
            which are padded on the left, and "padding" [rows], the number of padding tokens;
            "numbers" [rows]; and "active" [rows], False for rows that are not decoded.
        """
        rows, decoder_only = self.batch_size, self.config.decoder_only
        tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
        shapes = {"prompts" if decoder_only else "inputs": tokens}
        shapes["numbers"] = jax.ShapeDtypeStruct((rows,), jnp.uint32)
        shapes["active"] = jax.ShapeDtypeStruct((rows,), bool)
        if decoder_only:
            shapes["padding"] = jax.ShapeDtypeStruct((rows,), jnp.int32)
        return shapes

    def _run(
        self, program: Any, params: Params, arrays: dict[str, NDArray], count: int
    ) -> list[NDArray]:
        """Run a program on this process's part of `count` rows; return the results of all rows."""
        if count > self.batch_size:
            raise ValueError(f"the batch has {count} rows; the largest size is {self.batch_size}")
        arrays["active"] = np.ones(count, bool)
        local_arrays = {
            name: np.pad(x, [(0, self.batch_size - count), *[(0, 0)] * (x.ndim - 1)])[self._rows]
            for name, x in arrays.items()
        }
        with jax.set_mesh(self._mesh):
            out = program(
                params, to_devices(local_arrays, self._sharding, batch_size=self.batch_size)
            )
        return [np.asarray(x)[:count] for x in jax.device_get(jax.tree.leaves(out))]

    def _generate_from_model(self, model: Any, batch: Mapping[str, jax.Array]) -> GeneratedTokens:
        generation, numbers_b = self.generation, batch["numbers"]
        length, copies = generation.max_length, generation.copies
        if self.config.decoder_only:
            tokens_bl = batch["prompts"]
            width = tokens_bl.shape[1]
            state = model.start_decoding(
                None, width + length, batch_size=len(tokens_bl), padding_b=batch["padding"]
            )
            prefix = self.config.prefix_attention
            _, state = model.decode_tokens(tokens_bl, state, prefix=prefix)
            # The loop begins with a token of which it has no logits yet: the last of the prompt.
            # Go back by one position, so that feeding it again overwrites its own cache entry.
            state = state.repeat(copies).truncate(jnp.int32(width - 1))
            start_tokens_b = tokens_bl[:, -1]
        else:
            state = model.start_decoding(batch["inputs"], length, copies=copies)
            start_tokens_b = jnp.full(numbers_b.shape, self.special.start or 0, jnp.int32)
        key = jax.random.key(generation.seed)
        return generate(
            generation,
            model.decode_token,
            state,
            lambda state, rows: state.gather(rows),
            start_tokens_b=start_tokens_b,
            active_b=batch["active"],
            keys_b=jax.vmap(jax.random.fold_in, (None, 0))(key, numbers_b),
            eos_id=self.special.end,
        )

    def _log_probs(self, model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Compute the log-probability of each target token, [batch, length].

        Logits [batch, length, vocab] may not fit into memory. They are computed for LOGITS_CHUNK
        positions at a time.
        """
        predictions = model({k: v for k, v in batch.items() if k != "active"})
        targets_bl = batch["decoder_target_tokens"]
        length = targets_bl.shape[1]
        chunks = -(-length // LOGITS_CHUNK)

        def chunked(x):  # [b, l, ...] -> [n, b, c, ...], for n chunks of c positions
            padding = [(0, 0)] * x.ndim
            padding[1] = (0, chunks * LOGITS_CHUNK - length)
            x = jnp.pad(x, padding) if chunks > 1 else x
            return jnp.moveaxis(x.reshape(len(x), chunks, -1, *x.shape[2:]), 1, 0)

        def log_prob(chunk):
            hidden_bce, targets_bc = chunk
            log_prob_bcv = jax.nn.log_softmax(predictions.output(hidden_bce))
            return jnp.take_along_axis(log_prob_bcv, targets_bc[..., None], axis=-1)[..., 0]

        chunks_nbc = jax.lax.map(log_prob, (chunked(predictions.hidden), chunked(targets_bl)))
        return jnp.moveaxis(chunks_nbc, 0, 1).reshape(len(targets_bl), -1)[:, :length]

    def _prompts(
        self, inputs: Tokens, lengths_b: NDArray[np.int64]
    ) -> tuple[Tokens, NDArray[np.int32]]:
        """Return prompts with their start token, padded on the left, and the padding of each row.

        All prompts then end in the last column, from which decoding starts. With start token 0:

            inputs  [[5, 6, 0], [7, 0, 0]]   ->   prompts [[0, 5, 6], [0, 0, 7]], padding [0, 1]

        The width of the example is 3; a real one is rounded up.
        """
        start = self.special.start
        prompt_lengths_b = lengths_b + (start is not None)
        if (prompt_lengths_b == 0).any():
            raise ConfigError(
                "a prompt is empty, and this model has no BOS token to start from; expected a "
                "prompt of at least one token"
            )
        width = self._width(int(prompt_lengths_b.max(initial=1)))
        # For each column of a prompt, the position in its inputs: -1 is the start token, and what
        # is below it is padding. Position -1 reads the column of zeros that is appended here.
        position_bl = np.arange(width) - (width - lengths_b)[:, None]
        inputs = np.pad(np.asarray(inputs, np.int32), ((0, 0), (0, 1)))
        columns_bl = np.clip(position_bl, -1, inputs.shape[1] - 1)
        prompts = np.take_along_axis(inputs, columns_bl, axis=1)
        if start is not None:
            prompts = np.where(position_bl == -1, start, prompts)
        prompts = np.where(position_bl < -1, 0, prompts)
        return prompts.astype(np.int32), (width - prompt_lengths_b).astype(np.int32)

    def _join(
        self, inputs: Tokens, targets: Tokens, counts_b: NDArray[np.int64]
    ) -> tuple[NDArray, dict[str, NDArray]]:
        """Concatenate inputs and targets, for the scores of a decoder without an encoder.

        Args:
            inputs: The prompts, [rows, length].
            targets: What to score, [rows, length].
            counts_b: The number of tokens of each prompt.

        Returns:
            The position at which each row's first target is predicted, and the model's batch:

                with BOS     decoder_input_tokens [BOS, 5, 6, 7]   targets [5, 6, 7, 8]   start 2
                without BOS  decoder_input_tokens [  5, 6, 7, 8]   targets [6, 7, 8, 0]   start 1

            for the inputs [5, 6] and the targets [7, 8].
        """
        ends_b = counts_b + _lengths(targets)
        self._check_positions(int(ends_b.max(initial=0)))
        has_no_bos = self.special.start is None
        if has_no_bos and (counts_b == 0).any():
            raise ConfigError(
                "inputs are empty, and this model has no BOS token to start from; expected inputs "
                "of at least one token"
            )
        joined = np.zeros((len(inputs), self._width(int(ends_b.max(initial=1)))), np.int32)
        for row, (count, end) in enumerate(zip(counts_b, ends_b, strict=True)):
            joined[row, :count] = inputs[row, :count]
            joined[row, count:end] = targets[row, : end - count]
        following = np.pad(joined[:, 1:], ((0, 0), (0, 1)))
        arrays = {
            "decoder_target_tokens": following if has_no_bos else joined,
            "decoder_input_tokens": joined if has_no_bos else self._shifted(joined),
        }
        starts_b = counts_b - has_no_bos
        if self.config.prefix_attention:
            # Inputs attend to each other in both directions, and so does the position that predicts
            # the first target.
            visible = np.arange(joined.shape[1]) <= starts_b[:, None]
            arrays["decoder_causal_attention"] = visible.astype(np.int32)
        return starts_b, arrays

    def _shifted(self, targets: Tokens) -> Tokens:
        """Return the decoder's inputs: the start token, then all targets but the last."""
        shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        shifted[:, 0] = self.special.start or 0
        return shifted

    def _padded(self, tokens: NDArray) -> Tokens:
        """Return the rows padded to a length that programs are compiled for."""
        width = self._width(int(_lengths(tokens).max(initial=1)))
        tokens = np.asarray(tokens[:, :width], np.int32)
        return np.pad(tokens, ((0, 0), (0, width - tokens.shape[1])))

    def _width(self, length: int) -> int:
        """Round a length up to one that programs are compiled for.

        It divides over the mesh axes that split lengths, and does not exceed the learned positions.
        """
        parts = math.prod(self._mesh.shape[name] for name in mesh_axes("length"))
        width = -(-rounded_up(length) // parts) * parts
        if self.config.positions == "learned" and width > self.config.max_positions:
            self._check_positions(length)
            width = self.config.max_positions
        return width

    def _check_positions(self, length: int) -> None:
        """Raise ConfigError for more tokens than a model with learned positions can take."""
        if self.config.positions == "learned" and length > self.config.max_positions:
            raise ConfigError(
                f"a text has {length} tokens; the model has learned {self.config.max_positions} "
                f"positions",
                "Generation.max_length",
            )


def rounded_up(length: int) -> int:
    """Round a length up to 16, 24, 32, 48, 64, 96, 128, ...: powers of two and 1.5 times these.

    >>> [rounded_up(n) for n in (1, 17, 25, 100)]
    [16, 24, 32, 128]
    """
    power = SHORTEST
    while power < length:
        power *= 2
    return power // 4 * 3 if power > SHORTEST and length <= power // 4 * 3 else power


def dropless(config: TransformerConfig) -> TransformerConfig:
    """Return the model without the capacity limit of its experts, so that no token is dropped."""
    if config.moe is None:
        return config
    moe = dataclasses.replace(
        config.moe,
        group_size=min(config.moe.group_size, DROPLESS_GROUP_SIZE),
        eval_capacity_factor=float(config.moe.num_experts),
    )
    return dataclasses.replace(config, moe=moe)


def _mean_encoding(model: Transformer, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Return the mean of the encoder's output over real tokens; a learned prompt is not counted."""
    prompt = model.config.prompt_length
    encoded_ble, real_bl = (x[:, prompt:] for x in model.encode_inputs(batch["inputs"]))
    real_bl1 = real_bl[..., None].astype(jnp.float32)
    total_be = jnp.sum(encoded_ble.astype(jnp.float32) * real_bl1, axis=1)
    return total_be / jnp.maximum(jnp.sum(real_bl1, axis=1), 1.0)


def _input_lengths(batch: Mapping[str, NDArray]) -> NDArray[np.int64]:
    """Return the number of tokens of each row of "inputs"."""
    lengths = batch.get("lengths")
    return _lengths(batch["inputs"]) if lengths is None else np.asarray(lengths, np.int64)


def _lengths(tokens: NDArray) -> NDArray[np.int64]:
    """Return the number of tokens of each row, without the zeros at its end."""
    real = np.pad(np.asarray(tokens) != 0, ((0, 0), (1, 0)), constant_values=True)
    return real.shape[1] - 1 - np.argmax(real[:, ::-1], axis=1)
