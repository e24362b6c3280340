"""`t5x_lite export`: the weights of a run become a Hugging Face directory."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from t5x_lite.checkpoints.checkpointer import Checkpointer, chosen_step
from t5x_lite.checkpoints.run_directory import recorded_model
from t5x_lite.convert.huggingface import export_checkpoint
from t5x_lite.decoding.generation import Generation
from t5x_lite.errors import ConfigError
from t5x_lite.import_export.saved_model import export_saved_model
from t5x_lite.import_export.stablehlo import export_program
from t5x_lite.io import atomic
from t5x_lite.models import transformer
from t5x_lite.tokenizers.text_codec import TextRecord, read_text_record
from t5x_lite.tokenizers.tokenizer_files import write_tokenizer

_LOG = logging.getLogger(__name__)
# How a model that generates by itself is exported, and how to run it.
_PROGRAMS = {
    "stablehlo": (export_program, "python {destination}/run.py TEXT"),
    "saved_model": (export_saved_model, 'tf.saved_model.load("{destination}").signatures'),
}


def export_weights(
    *,
    model_dir: str,
    destination: str,
    step: int | None = None,
    model_type: str | None = None,
    encoder_only: bool = False,
    vocab_size: int | None = None,
    form: Literal["huggingface", "stablehlo", "saved_model"] = "huggingface",
    generation: Generation = Generation(),  # noqa: B008  (frozen)
    batch_size: int = 4,
    input_lengths: Sequence[int] = (64, 256),
    describe_config: Callable[[], str] = str,
) -> None:
    """Write config.json, safetensors and the tokenizer; read the weights again, compare logits.

    step: which checkpoint; None is the newest. model_type: transformers' name of the family, or
    None for the first that is this model. encoder_only: without decoder and head. vocab_size: rows
    of the embedding, cut off or filled up with zeros; None keeps them. If the logits differ,
    nothing is left at `destination`.

    form: "stablehlo" writes programs that generate as `generation` says, for batches of
    `batch_size` texts of each of `input_lengths` tokens, with a run.py that needs jax alone;
    "saved_model" the same for TensorFlow, from token ids to token ids.
    """
    if form in _PROGRAMS:
        export, how_to_run = _PROGRAMS[form]
        export(
            model_dir=model_dir,
            destination=destination,
            generation=generation,
            batch_size=batch_size,
            input_lengths=input_lengths,
            step=step,
        )
        run = how_to_run.format(destination=destination)
        _LOG.info(f"exported {model_dir} to {destination}; run it with: {run}")
    elif form == "huggingface":
        _export_huggingface(
            Path(model_dir),
            destination,
            step,
            model_type=model_type,
            encoder_only=encoder_only,
            vocab_size=vocab_size,
        )
    else:
        forms = ", ".join(map(repr, ["huggingface", *_PROGRAMS]))
        raise ConfigError(f"form is {form!r}; wanted one of {forms}", "export_weights.form", "FORM")


def _export_huggingface(directory: Path, destination: str, step: int | None, **family: Any) -> None:
    """Write weights and tokenizer."""
    config = recorded_model(directory)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: leaf.update(sharding=place), transformer.abstract_model(config)[1]
    )
    record = read_text_record(directory)
    with Checkpointer(directory) as saved:
        step = chosen_step(saved, step, "MODEL_DIR", "export_weights.step")
        params = saved.restore_weights(step, abstract)
    written = export_checkpoint(destination, config, params, **family)
    tokenizer = _write_text_files(Path(destination), record)
    _LOG.info(
        f"exported step {step:,} of {directory} to {destination} as {written} {tokenizer}; "
        f"loaded again, it gives the same logits"
    )


def _write_text_files(directory: Path, record: TextRecord) -> str:
    """Write tokenizer and special tokens as transformers reads them; return which, in words."""
    start, end = record.special
    special = {"decoder_start_token_id": start, "bos_token_id": start, "eos_token_id": end}
    atomic.write_json(directory / "generation_config.json", {**special, "pad_token_id": 0})
    if record.vocabulary is None:
        return "without a tokenizer, as the run has not recorded one"
    write_tokenizer(directory, record.vocabulary)
    return "with its tokenizer"
