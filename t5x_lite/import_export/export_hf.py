"""`t5x_lite export`: write a run's model in the format of another framework."""

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
from t5x_lite.tokenizers.text_codec import TokenizerInfo, read_tokenizer_info
from t5x_lite.tokenizers.tokenizer_files import write_tokenizer

_LOG = logging.getLogger(__name__)
# Formats that contain the decoding loop: the function that writes them, and how to run them.
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
    """Export the model of a run.

    A Hugging Face directory has config.json, safetensors and the tokenizer. After writing, it is
    read again and its logits are compared with the model's; if they differ, the directory is
    removed.

    Args:
        model_dir: Directory of the run.
        destination: Directory to make.
        step: Checkpoint to export; None is the newest.
        model_type: Model type of transformers, such as "mt5"; None is the first that fits the
            model. For Hugging Face only, like `encoder_only` and `vocab_size`.
        encoder_only: Whether to export the encoder without decoder and head.
        vocab_size: Rows of the embedding: more rows than the model's are zeros, fewer cut it off;
            None keeps them.
        form: "huggingface"; "stablehlo" for programs that generate texts, with a run.py that needs
            only jax and a tokenizer's library; or "saved_model" for a TensorFlow SavedModel from
            token ids to token ids.
        generation: How the exported programs generate. For programs only, like `batch_size` and
            `input_lengths`.
        batch_size: Rows of a batch of the programs.
        input_lengths: Tokens of the inputs; there is one program for each length. The defaults are
            a short one and one for most inputs of T5's tasks.
        describe_config: Not used.

    Raises:
        ConfigError: The form is unknown, the destination exists, the format cannot represent the
            model, or the exported model computes something else.
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
        raise ConfigError(
            f"form is {form!r}; expected one of {forms}", "export_weights.form", "FORM"
        )


def _export_huggingface(directory: Path, destination: str, step: int | None, **family: Any) -> None:
    """Write weights and tokenizer.

    Args:
        directory: The run.
        destination: Directory to make.
        step: Checkpoint; None is the newest.
        **family: Further arguments of `export_checkpoint`.
    """
    config = recorded_model(directory)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: leaf.update(sharding=sharding), transformer.abstract_model(config)[1]
    )
    record = read_tokenizer_info(directory)
    with Checkpointer(directory) as saved:
        step = chosen_step(saved, step, "MODEL_DIR", "export_weights.step")
        params = saved.restore_weights(step, abstract)
    model_type = export_checkpoint(destination, config, params, **family)
    tokenizer = _write_text_files(Path(destination), record)
    _LOG.info(
        f"exported step {step:,} of {directory} to {destination} as {model_type} {tokenizer}; "
        f"loaded again, it gives the same logits"
    )


def _write_text_files(directory: Path, record: TokenizerInfo) -> str:
    """Write tokenizer and special tokens for transformers; return a phrase for the log."""
    start, end = record.special
    special = {"decoder_start_token_id": start, "bos_token_id": start, "eos_token_id": end}
    atomic.write_json(directory / "generation_config.json", {**special, "pad_token_id": 0})
    if record.vocabulary is None:
        return "without a tokenizer, because the run has none"
    write_tokenizer(directory, record.vocabulary)
    return "with its tokenizer"
