"""A model's generation as StableHLO: a directory that runs with jax and a tokenizer's library."""

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
    """Write programs, weights, vocabulary and run.py; read a program again and compare its texts.

    One program for each of `input_lengths` tokens, a batch of `batch_size` rows, to be run on any
    of the `platforms`. The weights stand apart in weights.npz.
    """
    directory = free_directory(destination)
    model, inference, weights, program = open_exportable(model_dir, generation, batch_size, step)
    about = {
        "batch_size": batch_size,
        "input_lengths": sorted(input_lengths),
        "decoder_only": model.config.decoder_only,
        # What stands around a text, a tokenizer of another library adds by itself.
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
                inference.shapes(length),
            )
            atomic.write_bytes(partial / PROGRAM.format(length=length), bytes(exported.serialize()))
        about["vocabulary"] = _write_vocabulary(partial, model.vocabulary)
        atomic.write_json(partial / "about.json", about)
        shutil.copy(run_exported.__file__, partial / "run.py")
        _check(partial, model, generation)
    return directory


class Exportable(NamedTuple):
    """A model to be exported. program: (weights by path, batch of `Inference.shapes`) to arrays."""

    model: TextModel
    inference: Inference
    weights: dict[str, NDArray]
    program: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, jax.Array]]


def open_exportable(
    model_dir: str, generation: Generation, batch_size: int, step: int | None
) -> Exportable:
    """Read a model directory; the program gives "tokens" [batch, returns, length] and "scores"."""
    model = load(model_dir, step=step, batch_size=batch_size)
    inference = Inference(
        model.config, generation, mesh=model.mesh, batch_size=batch_size, special=model.special
    )

    def generate(weights: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        tokens, scores = inference.written(unflatten(weights), batch)
        return {"tokens": tokens.astype(jnp.int32), "scores": scores}

    weights = {name: np.asarray(value) for name, value in flatten(model.params).items()}
    return Exportable(model, inference, weights, generate)


def free_directory(destination: str) -> Path:
    """The path of a directory that is still to be made or empty; else ConfigError."""
    directory = Path(destination)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(
            f"{directory} exists; wanted a directory to be made, or an empty one", "DESTINATION"
        )
    return directory


def _write_vocabulary(directory: Path, vocabulary: Tokenizer) -> str:
    """Write what turns texts into ids, and return the name that run.py knows it by."""
    if isinstance(vocabulary, HFTokenizer):
        vocabulary.write_json(directory / TOKENIZER)
        return TOKENIZER
    if isinstance(vocabulary, Vocabulary):
        atomic.write_bytes(directory / PIECES, sentencepiece_bytes(vocabulary, sentinels=True))
        return PIECES
    return BYTES


def _check(directory: Path, model, generation: Generation) -> None:
    """Raise ConfigError if the directory, read again, generates other tokens."""
    text = "a"  # fits into any length
    ours = model.written([{"inputs": model.encode(text).ids}], generation)[0][0]
    theirs = run_exported.Exported(directory).generate([text])[0]
    if not np.array_equal(ours, theirs["tokens"]):
        raise ConfigError("the exported program, read again, generates another text")
