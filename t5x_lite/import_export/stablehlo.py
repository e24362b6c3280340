"""Export generation as StableHLO: a directory that runs with jax and a tokenizer's library."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from t5x_lite.decoding.generation import Generation
from t5x_lite.errors import ConfigError
from t5x_lite.import_export import run_exported
from t5x_lite.inference.engine import Inference
from t5x_lite.inference.text_model import TextModel, load
from t5x_lite.io import atomic
from t5x_lite.tokenizers.hf_tokenizer import HFTokenizer
from t5x_lite.tokenizers.text_codec import Tokenizer
from t5x_lite.tokenizers.vocabularies import BYTES, Vocabulary, sentencepiece_bytes
from t5x_lite.tree_paths import flatten, unflatten

PIECES, TOKENIZER = "vocabulary.model", "tokenizer.json"
PROGRAM = "program_{length}.stablehlo"


def export_program(
    *,
    model_dir: str,
    destination: str,
    generation: Generation = Generation(),  # noqa: B008  (frozen)
    batch_size: int = 4,
    input_lengths: Sequence[int] = (64, 256),
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    step: int | None = None,
) -> Path:
    """Write programs, weights, vocabulary and run.py; run it and compare its tokens.

    The directory has program_N.stablehlo for each N of `input_lengths`, weights.npz, about.json
    with the settings, and the files of the vocabulary.

    Args:
        model_dir: Directory of a run, an import or a Hugging Face model.
        destination: Directory to make.
        generation: How the programs generate.
        batch_size: Rows of a batch.
        input_lengths: Tokens of the inputs, for each program.
        platforms: Platforms that the programs run on.
        step: Checkpoint of the run; None is the newest.

    Returns:
        The directory.

    Raises:
        ConfigError: The exported program generates other tokens, or the destination exists.
    """
    directory = free_directory(destination)
    model, inference, weights, program = open_exportable(model_dir, generation, batch_size, step)
    about = {
        "batch_size": batch_size,
        "input_lengths": sorted(input_lengths),
        "decoder_only": model.config.decoder_only,
        # A Hugging Face tokenizer adds the special tokens around a text itself.
        "end_inputs": model.end_inputs and not isinstance(model.vocabulary, HFTokenizer),
        "start": model.special.start,
        "end": model.special.end,
        "generation": dataclasses.asdict(generation),
    }
    directory.parent.mkdir(parents=True, exist_ok=True)
    with atomic.new_directory(directory) as partial:
        np.savez(partial / "weights.npz", allow_pickle=False, **weights)
        for length in sorted(input_lengths):
            exported = jax.export.export(jax.jit(program), platforms=tuple(platforms))(
                {name: jax.ShapeDtypeStruct(w.shape, w.dtype) for name, w in weights.items()},
                inference.generation_shapes(length),
            )
            atomic.write_bytes(partial / PROGRAM.format(length=length), bytes(exported.serialize()))
        about["vocabulary"] = _write_vocabulary(partial, model.vocabulary)
        atomic.write_json(partial / "about.json", about)
        shutil.copy(run_exported.__file__, partial / "run.py")
        _check_tokens(partial, model, generation)
    return directory


class Exportable(NamedTuple):
    """A model to export.

    Attributes:
        model: The loaded model.
        inference: Its inference, with the settings of generation.
        weights: Weights by path.
        program: (weights by path, batch of `Inference.generation_shapes`) -> "tokens"
            [batch, returns, length] and "scores" [batch, returns].
    """

    model: TextModel
    inference: Inference
    weights: dict[str, NDArray]
    program: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, jax.Array]]


def open_exportable(
    model_dir: str, generation: Generation, batch_size: int, step: int | None
) -> Exportable:
    """Load a model to export it.

    Args:
        model_dir: Directory of a run, an import or a Hugging Face model.
        generation: How the program generates.
        batch_size: Rows of a batch.
        step: Checkpoint of the run; None is the newest.
    """
    model = load(model_dir, step=step, batch_size=batch_size)
    inference = Inference(
        model.config, generation, mesh=model.mesh, batch_size=batch_size, special=model.special
    )

    def generate(weights: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        tokens, scores = inference.generation_function(unflatten(weights), batch)
        return {"tokens": tokens.astype(jnp.int32), "scores": scores}

    weights = {name: np.asarray(value) for name, value in flatten(model.params).items()}
    return Exportable(model, inference, weights, generate)


def free_directory(destination: str) -> Path:
    """Return the path of a directory that does not exist or is empty; else raise ConfigError."""
    directory = Path(destination)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(
            f"{directory} exists and is not an empty directory; expected a new or an empty one",
            "DESTINATION",
        )
    return directory


def _write_vocabulary(directory: Path, vocabulary: Tokenizer) -> str:
    """Write the vocabulary and return its name in about.json, by which run.py loads it."""
    if isinstance(vocabulary, HFTokenizer):
        vocabulary.write_json(directory / TOKENIZER)
        return TOKENIZER
    if isinstance(vocabulary, Vocabulary):
        atomic.write_bytes(directory / PIECES, sentencepiece_bytes(vocabulary, sentinels=True))
        return PIECES
    return BYTES


def _check_tokens(directory: Path, model: TextModel, generation: Generation) -> None:
    """Raise ConfigError if run.py's class generates other tokens from the directory."""
    text = "a"  # fits every input length
    expected = model.generate_ids([{"inputs": model.encode(text).ids}], generation)[0][0]
    actual = run_exported.Exported(directory).generate([text])[0]
    if not np.array_equal(expected, actual["tokens"]):
        raise ConfigError(
            "the exported program generates another text than the model; it was not written"
        )
