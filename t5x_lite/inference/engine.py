"""A model's compiled programs for texts: generate, score, embed; one for each shape of a batch."""

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
LOGITS_CHUNK = 64  # positions whose logits exist at a time while targets are scored
UNDROPPED_GROUP = 64


class Generated(NamedTuple):
    """For each row: texts [rows, returns, length], 0 behind their EOS, and scores [rows, returns].

    Beams stand best first, draws as they were drawn; scores are log p, which beam search divides by
    its length penalty.
    """

    tokens: Tokens
    scores: NDArray[np.float32]


class Scored(NamedTuple):
    """log p of each row's targets: their sum [rows], and each token's [rows, length], 0 outside."""

    totals: NDArray[np.float32]
    tokens: NDArray[np.float32]


class Inference:
    """Generates, scores and embeds rows of tokens with a model laid out over a mesh.

    Rows are given as "inputs" and "targets", int32 [rows, length], each row filled up with zeros
    from its end: what an encoder reads, or a decoder without an encoder goes on from, and what is
    to be scored. "numbers" [rows] makes the draws of a row its own (default: 0, 1, 2, ...);
    "lengths" [rows] tells how many tokens inputs have that may end in a token 0.

    Every process gives the same rows, at most `batch_size`, computes its part of them and gets all
    results; fewer rows are filled up and those that were added are not waited for. Lengths are
    rounded up to a few, so that texts of another length compile nothing. Experts of a sparse model
    take every token here: with a limit, a row's result would depend on the rows beside it.

    Given a tuple of several models' weights in place of one's, `generate` and `score` average
    their logits.
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
                f"parts of the mesh (data x fsdp x expert)",
                "BATCH_SIZE",
                "MESH",
            )
        self._sharding = named_sharding(mesh, ("batch", "length"))
        graphdef = self._graphdef = abstract_model(self.config)[0]

        def program(function: Callable[..., Any]) -> Any:
            def run(params: Params, batch: Mapping[str, jax.Array]):
                return function(bind_models(graphdef, params), batch)

            return jax.jit(run, out_shardings=named_sharding(mesh, ()))

        self._generate = program(self._written)
        self._score = program(self._log_probs)
        self._embed = program(_embedded)

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The mesh that everything is laid out over."""
        return self._mesh

    @functools.cached_property
    def _rows(self) -> slice:
        """Which rows of a batch are this process's."""
        return process_rows(self.batch_size, self._sharding)

    def generate(self, params: Params, batch: Mapping[str, NDArray]) -> Generated:
        """Texts for each row of "inputs"."""
        if self.config.encoder_only:
            raise ConfigError("a model without a decoder generates nothing", "MODEL_DIR")
        inputs, length = batch["inputs"], self.generation.max_length
        if self.config.decoder_only:
            prompts, padding = self._prompts(inputs, _input_lengths(batch))
            self._check_places(int((prompts.shape[1] - padding).max(initial=0)) + length)
            arrays: dict[str, NDArray] = {"prompts": prompts, "padding": padding}
        else:
            self._check_places(length)
            arrays = {"inputs": self._widened(inputs)}
        numbers = batch.get("numbers", np.arange(len(inputs)))
        arrays["numbers"] = np.asarray(numbers, np.uint32)
        return Generated(*self._run(self._generate, params, arrays, len(inputs)))

    def score(self, params: Params, batch: Mapping[str, NDArray]) -> Scored:
        """Log p of each row's "targets" behind its "inputs"."""
        if self.config.encoder_only:
            raise ConfigError("a model without a decoder scores no targets", "MODEL_DIR")
        inputs, targets = batch["inputs"], np.asarray(batch["targets"], np.int32)
        starts = np.zeros(len(targets), int)
        if self.config.decoder_only:
            starts, arrays = self._joined(inputs, targets, _input_lengths(batch))
        else:
            wide = self._widened(targets)
            arrays = {
                "encoder_input_tokens": self._widened(inputs),
                "decoder_target_tokens": wide,
                "decoder_input_tokens": self._shifted(wide),
            }
        (log_probs,) = self._run(self._score, params, arrays, len(targets))
        place_l = np.arange(targets.shape[1])
        there_bl = np.minimum(starts[:, None] + place_l, log_probs.shape[1] - 1)
        found = np.take_along_axis(log_probs, there_bl, axis=1)
        found = np.where(place_l < _lengths(targets)[:, None], found, np.float32(0))
        return Scored(found.sum(axis=1, dtype=np.float64).astype(np.float32), found)

    def embed(self, params: Params, batch: Mapping[str, NDArray]) -> NDArray[np.float32]:
        """The mean of the encoder's output over each row of "inputs", [rows, embed]."""
        if self.config.decoder_only:
            raise ConfigError("a model without an encoder embeds nothing", "MODEL_DIR")
        if isinstance(params, tuple):
            raise ConfigError("several models together embed nothing", "evaluate.ensemble")
        arrays = {"inputs": self._widened(batch["inputs"])}
        return self._run(self._embed, params, arrays, len(batch["inputs"]))[0]

    def written(self, params: Params, batch: Mapping[str, jax.Array]) -> GeneratedTokens:
        """What `generate` compiles: a pure function of weights and a batch of `shapes`."""
        return self._written(bind_models(self._graphdef, params), batch)

    def shapes(self, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """What `written` takes for inputs, or prompts with their start, of `length` tokens."""
        rows, decoder_only = self.batch_size, self.config.decoder_only
        tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
        shapes = {"prompts" if decoder_only else "inputs": tokens}
        shapes["numbers"] = jax.ShapeDtypeStruct((rows,), jnp.uint32)
        shapes["wanted"] = jax.ShapeDtypeStruct((rows,), bool)
        if decoder_only:
            shapes["padding"] = jax.ShapeDtypeStruct((rows,), jnp.int32)
        return shapes

    def _run(
        self, program: Any, params: Params, arrays: dict[str, NDArray], count: int
    ) -> list[NDArray]:
        """Run a program on this process's part of the rows and fetch the results of all."""
        if count > self.batch_size:
            raise ValueError(f"{count} rows; a batch has {self.batch_size}")
        arrays["wanted"] = np.ones(count, bool)
        own = {
            name: np.pad(x, [(0, self.batch_size - count), *[(0, 0)] * (x.ndim - 1)])[self._rows]
            for name, x in arrays.items()
        }
        with jax.set_mesh(self._mesh):
            out = program(params, to_devices(own, self._sharding, batch_size=self.batch_size))
        return [np.asarray(x)[:count] for x in jax.device_get(jax.tree.leaves(out))]

    def _written(self, model: Any, batch: Mapping[str, jax.Array]) -> GeneratedTokens:
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
            # The last token is fed once more, as the first of the loop: it changes no cache.
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
            active_b=batch["wanted"],
            keys_b=jax.vmap(jax.random.fold_in, (None, 0))(key, numbers_b),
            eos_id=self.special.end,
        )

    def _log_probs(self, model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Log p of each target token, [batch, length]."""
        predictions = model({k: v for k, v in batch.items() if k != "wanted"})
        targets_bl = batch["decoder_target_tokens"]
        length = targets_bl.shape[1]
        chunks = -(-length // LOGITS_CHUNK)

        def chunked(x):
            padding = [(0, 0)] * x.ndim
            padding[1] = (0, chunks * LOGITS_CHUNK - length)
            x = jnp.pad(x, padding) if chunks > 1 else x
            return jnp.moveaxis(x.reshape(len(x), chunks, -1, *x.shape[2:]), 1, 0)

        def log_prob(chunk):
            hidden_bce, targets_bc = chunk
            log_prob_bcv = jax.nn.log_softmax(predictions.output(hidden_bce))
            return jnp.take_along_axis(log_prob_bcv, targets_bc[..., None], axis=-1)[..., 0]

        found_nbc = jax.lax.map(log_prob, (chunked(predictions.hidden), chunked(targets_bl)))
        return jnp.moveaxis(found_nbc, 0, 1).reshape(len(targets_bl), -1)[:, :length]

    def _prompts(
        self, inputs: Tokens, lengths_b: NDArray[np.int64]
    ) -> tuple[Tokens, NDArray[np.int32]]:
        """Prompts behind their start token, against the right edge; places left of them."""
        start = self.special.start
        whole_b = lengths_b + (start is not None)
        if (whole_b == 0).any():
            raise ConfigError(
                "a prompt is empty, and this model's texts begin behind nothing; wanted a prompt"
            )
        width = self._width(int(whole_b.max(initial=1)))
        place_l = np.arange(width) - (width - lengths_b)[:, None]
        inputs = np.pad(np.asarray(inputs, np.int32), ((0, 0), (0, 1)))
        prompts = np.take_along_axis(inputs, np.clip(place_l, -1, inputs.shape[1] - 1), axis=1)
        if start is not None:
            prompts = np.where(place_l == -1, start, prompts)
        prompts = np.where(place_l < -1, 0, prompts)
        return prompts.astype(np.int32), (width - whole_b).astype(np.int32)

    def _joined(
        self, inputs: Tokens, targets: Tokens, counts_b: NDArray[np.int64]
    ) -> tuple[NDArray, dict[str, NDArray]]:
        """Inputs and targets as one text, and where in it each row's targets are predicted."""
        ends_b = counts_b + _lengths(targets)
        self._check_places(int(ends_b.max(initial=0)))
        behind_nothing = self.special.start is None
        if behind_nothing and (counts_b == 0).any():
            raise ConfigError("inputs are empty, and this model's texts begin behind nothing")
        joined = np.zeros((len(inputs), self._width(int(ends_b.max(initial=1)))), np.int32)
        for row, (count, end) in enumerate(zip(counts_b, ends_b, strict=True)):
            joined[row, :count] = inputs[row, :count]
            joined[row, count:end] = targets[row, : end - count]
        following = np.pad(joined[:, 1:], ((0, 0), (0, 1)))
        arrays = {
            "decoder_target_tokens": following if behind_nothing else joined,
            "decoder_input_tokens": joined if behind_nothing else self._shifted(joined),
        }
        starts_b = counts_b - behind_nothing
        if self.config.prefix_attention:
            visible = np.arange(joined.shape[1]) <= starts_b[:, None]
            arrays["decoder_causal_attention"] = visible.astype(np.int32)
        return starts_b, arrays

    def _shifted(self, targets: Tokens) -> Tokens:
        shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        shifted[:, 0] = self.special.start or 0
        return shifted

    def _widened(self, tokens: NDArray) -> Tokens:
        """The rows in a length that a program is compiled for."""
        width = self._width(int(_lengths(tokens).max(initial=1)))
        tokens = np.asarray(tokens[:, :width], np.int32)
        return np.pad(tokens, ((0, 0), (0, width - tokens.shape[1])))

    def _width(self, length: int) -> int:
        """The length, rounded up, that a program is compiled for."""
        parts = math.prod(self._mesh.shape[name] for name in mesh_axes("length"))
        width = -(-rounded_up(length) // parts) * parts
        if self.config.positions == "learned" and width > self.config.max_positions:
            self._check_places(length)
            width = self.config.max_positions
        return width

    def _check_places(self, length: int) -> None:
        """Raise ConfigError for more tokens than a model with learned positions has places for."""
        if self.config.positions == "learned" and length > self.config.max_positions:
            raise ConfigError(
                f"{length} tokens in a text; the model has learned {self.config.max_positions} "
                f"positions",
                "Generation.max_length",
            )


def rounded_up(length: int) -> int:
    """The next of the lengths that programs are compiled for: 16, 24, 32, 48, 64, 96, 128, ...

    >>> [rounded_up(n) for n in (1, 17, 25, 100)]
    [16, 24, 32, 128]
    """
    power = SHORTEST
    while power < length:
        power *= 2
    return power // 4 * 3 if power > SHORTEST and length <= power // 4 * 3 else power


def dropless(config: TransformerConfig) -> TransformerConfig:
    """The model whose experts have room for every token of a group."""
    if config.moe is None:
        return config
    moe = dataclasses.replace(
        config.moe,
        group_size=min(config.moe.group_size, UNDROPPED_GROUP),
        eval_capacity_factor=float(config.moe.num_experts),
    )
    return dataclasses.replace(config, moe=moe)


def _embedded(model: Transformer, batch: Mapping[str, jax.Array]) -> jax.Array:
    prompt = model.config.prompt_length
    encoded_ble, real_bl = (x[:, prompt:] for x in model.encode_inputs(batch["inputs"]))
    real_bl1 = real_bl[..., None].astype(jnp.float32)
    total_be = jnp.sum(encoded_ble.astype(jnp.float32) * real_bl1, axis=1)
    return total_be / jnp.maximum(jnp.sum(real_bl1, axis=1), 1.0)


def _input_lengths(batch: Mapping[str, NDArray]) -> NDArray[np.int64]:
    lengths = batch.get("lengths")
    return _lengths(batch["inputs"]) if lengths is None else np.asarray(lengths, np.int64)


def _lengths(tokens: NDArray) -> NDArray[np.int64]:
    """How many tokens each row has, the zeros at its end not counted."""
    real = np.pad(np.asarray(tokens) != 0, ((0, 0), (1, 0)), constant_values=True)
    return real.shape[1] - 1 - np.argmax(real[:, ::-1], axis=1)
