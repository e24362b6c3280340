"""A model and its vocabulary: texts in, texts, scores and embeddings out."""

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
from t5x_lite.tokenizers.text_codec import SENTINEL, Encoded, TextCodec, Tokenizer, read_text_record
from t5x_lite.tokenizers.vocabularies import AnyVocabulary


class Output(NamedTuple):
    """A text that was generated, and its score: log p, divided by beam search's length penalty."""

    text: str
    score: float


class Filled(NamedTuple):
    """A text whose sentinels were filled, what stands at each of them, and the score of it all."""

    text: str
    spans: list[str]
    score: float


class TextModel:
    """A loaded model. Texts are given as a list; a single text gives a single result.

    Settings of `Generation` are keyword arguments of `generate` and `fill`. Inputs longer than
    `max_input_length` tokens lose their end. end_inputs: whether inputs get an EOS, as T5's have
    for an encoder; the default.
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
        """For each text a list of `Output`, best first: `generate(texts, num_beams=4)`."""
        rows = [{"inputs": ids} for ids, _ in map(self.encode, _listed(texts))]
        return _like(texts, self.outputs(rows, Generation(**settings)))

    def score(self, inputs: str | Sequence[str], targets: str | Sequence[str]) -> Any:
        """Log p of each target behind its input, its EOS included."""
        texts, wanted = _listed(inputs), _listed(targets)
        if len(texts) != len(wanted):
            raise ValueError(f"{len(texts)} inputs and {len(wanted)} targets; wanted as many")
        rows = [
            {"inputs": self.encode(text).ids, "targets": self.encode_target(target)}
            for text, target in zip(texts, wanted, strict=True)
        ]
        return _like(inputs, [float(total) for total in self.scores(rows)])

    def embed(self, texts: str | Sequence[str]) -> NDArray[np.float32]:
        """The mean of the encoder's output over each text, [texts, embed]."""
        found = self.embeddings([{"inputs": self.encode(text).ids} for text in _listed(texts)])
        return found[0] if isinstance(texts, str) else found

    def fill(self, texts: str | Sequence[str], **settings: Any) -> Any:
        """For each text with sentinels, "The <extra_id_0> sat <extra_id_1>", a `Filled`."""
        asked = _listed(texts)
        rows = [{"inputs": self.encode(text).ids} for text in asked]
        written = self.written(rows, Generation(**settings))
        filled = [
            self.filled(text, tokens[0], float(scores[0]))
            for text, (tokens, scores) in zip(asked, written, strict=True)
        ]
        return _like(texts, filled)

    def outputs(
        self, rows: Sequence[Mapping[str, Any]], generation: Generation
    ) -> list[list[Output]]:
        """`generate` from token ids."""
        return [
            [Output(self.decode(t), float(s)) for t, s in zip(tokens, scores, strict=True)]
            for tokens, scores in self.written(rows, generation)
        ]

    def written(
        self, rows: Sequence[Mapping[str, Any]], generation: Generation
    ) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        """Tokens [returns, length] and scores [returns] of each row."""
        run = self._inference(generation).generate
        return self._batched(rows, lambda batch: zip(*run(self.params, batch), strict=True))

    def scores(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """`score` from token ids."""
        run = self._inference(Generation()).score
        return self._batched(rows, lambda batch: run(self.params, batch).totals.tolist())

    def embeddings(self, rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
        """`embed` from token ids."""
        run = self._inference(Generation()).embed
        found = self._batched(rows, lambda batch: run(self.params, batch))
        return np.array(found, np.float32).reshape(len(rows), self.config.emb_dim)

    def encode(self, text: str) -> Encoded:
        """A text's ids; "<extra_id_0>" is a sentinel wherever it stands."""
        return self._texts.encode(text, self.max_input_length)

    def encode_target(self, text: str) -> list[int]:
        """A target's ids, with the EOS of a text."""
        return self._texts.encode_target(text)

    def decode(self, tokens: Sequence[int] | NDArray[np.int32]) -> str:
        """The text of some ids up to their EOS."""
        return self._texts.decode(tokens)

    def filled(self, text: str, tokens: NDArray[np.int32], score: float) -> Filled:
        """A text with what was generated for its sentinels in their places."""
        sentinels, spans = self.vocabulary.sentinels, {}
        number = None
        for token in self._texts.until_end(tokens):
            if sentinels.first - sentinels.count < token <= sentinels.first:
                number = sentinels.first - token
                spans.setdefault(number, [])
            elif number is not None:
                spans[number].append(token)
        said = {n: self.vocabulary.decode([t for t in span if t]) for n, span in spans.items()}
        order = [int(found[1]) for found in SENTINEL.finditer(text)]
        whole = SENTINEL.sub(lambda found: f" {said.get(int(found[1]), '')} ", text)
        whole = re.sub(r" +([,.;:!?)])", r"\1", re.sub(r" {2,}", " ", whole)).strip()
        return Filled(whole, [said.get(n, "") for n in order], score)

    def _inference(self, generation: Generation) -> Inference:
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
        """Run rows in batches of similar lengths; results in the order of the rows."""
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
    """The model of a run directory, of an import, or of a Hugging Face directory.

    step: of a run's checkpoint; None is the newest. vocabulary: where the directory knows none.
    mesh: sizes of mesh axes; None is one device, or all those of several processes. batch_size:
    rows computed at a time, rounded up to what the mesh divides. dtype: of activations ("bfloat16",
    "float32"); None: float32 on a CPU, else bfloat16.
    """
    directory = Path(directory)
    if not any((directory / name).exists() for name in (MODEL, CONFIG)):
        raise ConfigError(
            f"{directory} holds no model: wanted a run's {MODEL}, or {CONFIG} and safetensors",
            "MODEL_DIR",
        )
    alone = processes.count() == 1
    check_batch_size(batch_size)
    devices = jax.devices() if mesh or not alone else jax.devices()[:1]
    device_mesh = make_mesh(mesh or ({} if alone else {"data": -1}), devices)
    dtype = dtype or ("float32" if devices[0].platform == "cpu" else "bfloat16")
    record = read_text_record(directory)
    tokenizer = vocabulary or record.vocabulary
    if tokenizer is None:
        raise ConfigError(
            f"{directory} says nothing about a vocabulary (text.json of a run, a tokenizer's files "
            f"of a Hugging Face directory); wanted one, given as `vocabulary`",
            "VOCABULARY",
            "MODEL_DIR",
        )
    config, params = read_weights(directory, step, device_mesh)
    if tokenizer.size > config.vocab_size:
        raise ConfigError(
            f"the vocabulary {tokenizer.path} has {tokenizer.size} ids; the model of {directory} "
            f"has {config.vocab_size} rows for them",
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
    """Raise ConfigError for batches without rows."""
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; wanted 1 or more", "BATCH_SIZE")


def read_weights(
    directory: Path, step: int | None, mesh: jax.sharding.Mesh
) -> tuple[TransformerConfig, Params]:
    """Configuration and weights of a directory of either kind, placed on a mesh."""
    if (directory / MODEL).exists():
        config = recorded_model(directory)
        _, shapes, axes = abstract_model(config)
        check_divisible(mesh, shapes, axes)
        placed = jax.tree.map(
            lambda leaf, place: leaf.update(sharding=place), shapes, tree_shardings(mesh, axes)
        )
        with Checkpointer(directory) as saved:
            return config, saved.restore_weights(
                chosen_step(saved, step, "MODEL_DIR", "STEP"), placed
            )
    config, params = import_checkpoint(directory)
    axes = abstract_model(config)[2]
    check_divisible(mesh, abstract_model(config)[1], axes)
    return config, jax.device_put(params, tree_shardings(mesh, axes))


def _listed(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def _like(given: str | Sequence[str], results: list[Any]) -> Any:
    return results[0] if isinstance(given, str) else results


def _padded(rows: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    padded = np.zeros((len(rows), max(1, *map(len, rows))), np.int32)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded
