"""A loaded model with its vocabulary: generate, fill, score and embed texts."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from t5x_lite.checkpoints.checkpointer import Checkpointer, chosen_step
from t5x_lite.checkpoints.run_directory import MODEL, recorded_model
from t5x_lite.convert.huggingface import import_checkpoint
from t5x_lite.decoding.generation import Generation, SpecialTokens
from t5x_lite.distributed import processes
from t5x_lite.errors import ConfigError
from t5x_lite.inference.engine import Inference
from t5x_lite.io.tensor_files import CONFIG
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.transformer import Params, abstract_model
from t5x_lite.partitioning import check_divisible, make_mesh, num_batch_shards, tree_shardings
from t5x_lite.tokenizers.text_codec import (
    SENTINEL,
    Encoded,
    TextCodec,
    Tokenizer,
    read_tokenizer_info,
)
from t5x_lite.tokenizers.vocabularies import AnyVocabulary


class Output(NamedTuple):
    """A generated text.

    Attributes:
        text: The text.
        score: Its log-likelihood, which beam search divides by its length penalty.
    """

    text: str
    score: float


class Filled(NamedTuple):
    """A text whose sentinels were filled.

    Attributes:
        text: The whole text.
        spans: The text of each sentinel, in the order of the sentinels in the input.
        score: As in `Output`, of all spans together.
    """

    text: str
    spans: list[str]
    score: float


class TextModel:
    """A loaded model that takes and returns texts. `load` makes one.

        model = load("runs/tiny")
        model.generate("summarize: ...", num_beams=4)[0].text
        model.fill("The <extra_id_0> sat.").spans

    Methods take a list of texts, or a single text for a single result. Settings of `Generation` are
    keyword arguments of `generate` and `fill`.

    Args:
        config: The model.
        params: Its weights, on the mesh.
        vocabulary: Its vocabulary or Hugging Face tokenizer.
        special: The ids that start and end a text.
        mesh: The mesh that weights and batches are laid out over.
        batch_size: Rows of a batch, over all devices.
        max_input_length: Tokens of an input at most, EOS included; the end of longer ones is cut.
        end_inputs: Whether inputs end with EOS; None: if the model has an encoder, as T5's do.
    """

    def __init__(
        self,
        config: TransformerConfig,
        params: Params,
        vocabulary: Tokenizer,
        *,
        special: SpecialTokens,
        mesh: jax.sharding.Mesh,
        batch_size: int,
        max_input_length: int = 512,
        end_inputs: bool | None = None,
    ):
        self.config, self.params, self.vocabulary = config, params, vocabulary
        self.special, self.mesh, self.batch_size = special, mesh, batch_size
        self._texts = TextCodec(
            vocabulary, special, decoder_only=config.decoder_only, end_inputs=end_inputs
        )
        self.end_inputs = self._texts.end_inputs
        learned = config.positions == "learned"
        self.max_input_length = min(max_input_length, config.max_positions if learned else 10**9)
        self._programs: dict[Generation, Inference] = {}

    def generate(self, texts: str | Sequence[str], **settings: Any) -> Any:
        """Generate texts: `generate(texts, num_beams=4)`.

        Args:
            texts: An input, or a list of inputs.
            **settings: Fields of `Generation`.

        Returns:
            For each input a list of `Output`, best first.
        """
        rows = [{"inputs": ids} for ids, _ in map(self.encode, _listed(texts))]
        return _like(texts, self.generate_from_ids(rows, Generation(**settings)))

    def score(self, inputs: str | Sequence[str], targets: str | Sequence[str]) -> Any:
        """Compute the log-likelihood of each target, EOS included, given its input.

        Args:
            inputs: An input, or a list of inputs.
            targets: A target, or as many targets.

        Returns:
            A float for each pair.

        Raises:
            ValueError: The numbers of inputs and targets differ.
        """
        texts, target_texts = _listed(inputs), _listed(targets)
        if len(texts) != len(target_texts):
            raise ValueError(
                f"got {len(texts)} inputs and {len(target_texts)} targets; expected equal numbers"
            )
        rows = [
            {"inputs": self.encode(text).ids, "targets": self.encode_target(target)}
            for text, target in zip(texts, target_texts, strict=True)
        ]
        return _like(inputs, [float(total) for total in self.score_ids(rows)])

    def embed(self, texts: str | Sequence[str]) -> NDArray[np.float32]:
        """Compute the mean of the encoder's output over each text, [texts, embed]."""
        vectors = self.embed_ids([{"inputs": self.encode(text).ids} for text in _listed(texts)])
        return vectors[0] if isinstance(texts, str) else vectors

    def fill(self, texts: str | Sequence[str], **settings: Any) -> Any:
        """Fill the sentinels of texts such as "The <extra_id_0> sat <extra_id_1>".

        Args:
            texts: A text, or a list of texts.
            **settings: Fields of `Generation`.

        Returns:
            A `Filled` for each text.
        """
        listed = _listed(texts)
        rows = [{"inputs": self.encode(text).ids} for text in listed]
        generated = self.generate_ids(rows, Generation(**settings))
        filled = [
            self.fill_sentinels(text, tokens[0], float(scores[0]))
            for text, (tokens, scores) in zip(listed, generated, strict=True)
        ]
        return _like(texts, filled)

    def generate_from_ids(
        self, rows: Sequence[Mapping[str, Any]], generation: Generation
    ) -> list[list[Output]]:
        """Generate texts from token ids.

        Args:
            rows: For each input "inputs", its token ids, and optionally "number", the index on
                which its random samples depend; the default is the index in the list.
            generation: How texts are generated.

        Returns:
            For each row a list of `Output`, best first.
        """
        return [
            [Output(self.decode(t), float(s)) for t, s in zip(tokens, scores, strict=True)]
            for tokens, scores in self.generate_ids(rows, generation)
        ]

    def generate_ids(
        self, rows: Sequence[Mapping[str, Any]], generation: Generation
    ) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        """Generate from token ids: tokens [returns, length] and scores [returns] of each row."""
        run = self._inference(generation).generate
        return self._batched(rows, lambda batch: zip(*run(self.params, batch), strict=True))

    def score_ids(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """Compute the log-likelihood of the "targets" of each row, given its "inputs": ids."""
        run = self._inference(Generation()).score
        return self._batched(rows, lambda batch: run(self.params, batch).totals.tolist())

    def embed_ids(self, rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
        """Compute the mean of the encoder's output over the "inputs" of each row: ids."""
        run = self._inference(Generation()).embed
        vectors = self._batched(rows, lambda batch: run(self.params, batch))
        return np.array(vectors, np.float32).reshape(len(rows), self.config.emb_dim)

    def encode(self, text: str) -> Encoded:
        """Return the ids of an input; "<extra_id_0>" and so on become sentinels."""
        return self._texts.encode(text, self.max_input_length)

    def encode_target(self, text: str) -> list[int]:
        """Return the ids of a target, with EOS."""
        return self._texts.encode_target(text)

    def decode(self, tokens: Sequence[int] | NDArray[np.int32]) -> str:
        """Return the text of ids up to EOS."""
        return self._texts.decode(tokens)

    def fill_sentinels(self, text: str, tokens: NDArray[np.int32], score: float) -> Filled:
        """Insert generated spans into a text.

            "The <extra_id_0> sat." and ids of "<extra_id_0> cat <extra_id_1>"  ->  "The cat sat."

        Args:
            text: A text with sentinels.
            tokens: The generated ids: each sentinel is followed by its span.
            score: The score of the generated ids.
        """
        sentinels = self.vocabulary.sentinels
        ids: dict[int, list[int]] = {}  # of each span, by the number of its sentinel
        number = None
        for token in self._texts.until_end(tokens):
            # Sentinel ids descend: "<extra_id_0>" has the largest.
            if sentinels.first - sentinels.count < token <= sentinels.first:
                number = sentinels.first - token
                ids.setdefault(number, [])
            elif number is not None:
                ids[number].append(token)
        spans = {n: self.vocabulary.decode([t for t in span if t]) for n, span in ids.items()}
        numbers = [int(match[1]) for match in SENTINEL.finditer(text)]
        whole = SENTINEL.sub(lambda match: f" {spans.get(int(match[1]), '')} ", text)
        whole = re.sub(r" +([,.;:!?)])", r"\1", re.sub(r" {2,}", " ", whole)).strip()
        return Filled(whole, [spans.get(n, "") for n in numbers], score)

    def _inference(self, generation: Generation) -> Inference:
        """Return the compiled programs of some generation settings; they are kept."""
        if generation not in self._programs:
            self._programs[generation] = Inference(
                self.config,
                generation,
                mesh=self.mesh,
                batch_size=self.batch_size,
                special=self.special,
            )
        return self._programs[generation]

    def _batched(self, rows: Sequence[Mapping[str, Any]], run: Callable[..., Any]) -> list[Any]:
        """Run rows in batches of similar lengths; return the results in the order of the rows."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["inputs"]))
        results: list[Any] = [None] * len(rows)
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            batch: dict[str, NDArray[Any]] = {
                name: _padded([rows[i][name] for i in chosen])
                for name in ("inputs", "targets")
                if name in rows[chosen[0]]
            }
            batch["lengths"] = np.array([len(rows[i]["inputs"]) for i in chosen])
            batch["numbers"] = np.array([rows[i].get("number", i) for i in chosen], np.uint32)
            for i, result in zip(chosen, run(batch), strict=True):
                results[i] = result
        return results


def load(
    directory: str | Path,
    *,
    step: int | None = None,
    vocabulary: AnyVocabulary | None = None,
    batch_size: int = 8,
    mesh: Mapping[str, int] | None = None,
    dtype: str | None = None,
    max_input_length: int = 512,
    end_inputs: bool | None = None,
) -> TextModel:
    """Load the model of a run, of an import, or of a Hugging Face directory.

    Args:
        directory: The directory.
        step: Checkpoint of the run; None is the newest.
        vocabulary: The vocabulary of a directory that has none.
        batch_size: Rows of a batch, over all devices; rounded up to a multiple of the mesh's batch
            shards.
        mesh: Sizes of the mesh axes by name; None is one device, or all devices of several
            processes.
        dtype: Type of activations, "bfloat16" or "float32"; None is float32 on a CPU, else
            bfloat16.
        max_input_length: Tokens of an input at most, EOS included.
        end_inputs: Whether inputs end with EOS; None: if the model has an encoder.

    Raises:
        ConfigError: The directory has no model or no vocabulary, the vocabulary does not fit the
            model, or the model does not divide over the mesh.
    """
    directory = Path(directory)
    if not any((directory / name).exists() for name in (MODEL, CONFIG)):
        raise ConfigError(
            f"{directory} has no model: expected the {MODEL} of a run, or {CONFIG} and safetensors",
            "MODEL_DIR",
        )
    is_single = processes.count() == 1
    check_batch_size(batch_size)
    devices = jax.devices() if mesh or not is_single else jax.devices()[:1]
    device_mesh = make_mesh(mesh or ({} if is_single else {"data": -1}), devices)
    dtype = dtype or ("float32" if devices[0].platform == "cpu" else "bfloat16")
    record = read_tokenizer_info(directory)
    tokenizer = vocabulary or record.vocabulary
    if tokenizer is None:
        raise ConfigError(
            f"{directory} has no vocabulary (text.json of a run, or the tokenizer of a Hugging "
            f"Face directory); expected it, or one that is given as `vocabulary`",
            "VOCABULARY",
            "MODEL_DIR",
        )
    config, params = read_weights(directory, step, device_mesh)
    if tokenizer.size > config.vocab_size:
        raise ConfigError(
            f"the vocabulary {tokenizer.path} has {tokenizer.size} ids; the embedding of the model "
            f"in {directory} has {config.vocab_size} rows",
            "VOCABULARY",
            "MODEL_DIR",
        )
    parts = num_batch_shards(device_mesh)
    return TextModel(
        dataclasses.replace(config, dtype=dtype),
        params,
        tokenizer,
        special=record.special,
        mesh=device_mesh,
        batch_size=-(-batch_size // parts) * parts,
        max_input_length=max_input_length,
        end_inputs=end_inputs,
    )


def check_batch_size(batch_size: int) -> None:
    """Raise ConfigError for a batch size below 1."""
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; expected 1 or more", "BATCH_SIZE")


def read_weights(
    directory: Path, step: int | None, mesh: jax.sharding.Mesh
) -> tuple[TransformerConfig, Params]:
    """Read a run directory or a Hugging Face directory: configuration, and weights on the mesh."""
    if (directory / MODEL).exists():
        config = recorded_model(directory)
        _, shapes, axes = abstract_model(config)
        check_divisible(mesh, shapes, axes)
        shardings = tree_shardings(mesh, axes)
        abstract_weights = jax.tree.map(
            lambda leaf, sharding: leaf.update(sharding=sharding), shapes, shardings
        )
        with Checkpointer(directory) as saved:
            return config, saved.restore_weights(
                chosen_step(saved, step, "MODEL_DIR", "STEP"), abstract_weights
            )
    config, params = import_checkpoint(directory)
    axes = abstract_model(config)[2]
    check_divisible(mesh, abstract_model(config)[1], axes)
    return config, jax.device_put(params, tree_shardings(mesh, axes))


def _listed(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def _like(given: str | Sequence[str], results: list[Any]) -> Any:
    """Return a single result for a single text, else the list."""
    return results[0] if isinstance(given, str) else results


def _padded(rows: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """Return token lists as an array [rows, length], padded with 0; at least one column."""
    padded = np.zeros((len(rows), max(1, *map(len, rows))), np.int32)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded
