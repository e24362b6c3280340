"""`t5x_lite import`: make a run directory from a Hugging Face directory."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t5x_lite.checkpoints.checkpointer import Checkpointer
from t5x_lite.checkpoints.policy import CheckpointPolicy
from t5x_lite.checkpoints.run_directory import check_model_dir, write_launch
from t5x_lite.convert.huggingface import import_checkpoint
from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic
from t5x_lite.models.config import MixtureOfExperts, TransformerConfig
from t5x_lite.models.transformer import num_parameters
from t5x_lite.tokenizers.text_codec import read_tokenizer_info, write_text_record

_LOG = logging.getLogger(__name__)
MODEL_GIN = "model.gin"


class Weights(NamedTuple):
    """The part of a train state that an import has: no optimizer state.

    Attributes:
        step: The step that the weights count as.
        params: The weights.
    """

    step: Any
    params: Any


def import_weights(
    *,
    source: str,
    model_dir: str,
    step: int = 0,
    vocab_size: int | None = None,
    describe_config: Callable[[], str] = str,
) -> None:
    """Make a run directory from the config.json, safetensors and tokenizer of a model.

    The run directory has a checkpoint with step and weights, without optimizer state, and
    model.gin, the gin file of the model for fine-tuning.

    Args:
        source: Hugging Face directory.
        model_dir: Run directory to make.
        step: The step that the weights count as, from which learning rate schedules continue.
            T5's released checkpoints have about 1,000,000 steps.
        vocab_size: Rows of the embedding: more rows than the source's are zeros, fewer cut it off;
            None keeps them.
        describe_config: Returns the configuration as text, which is saved in the run directory.

    Raises:
        ConfigError: The source cannot be converted, or `model_dir` has a checkpoint already.
    """
    directory = Path(model_dir)
    if step < 0:
        raise ConfigError(f"step is {step}; expected 0 or more", "import_weights.step")
    config, params = import_checkpoint(source, vocab_size=vocab_size)
    check_model_dir(directory, config)
    with Checkpointer(directory, CheckpointPolicy(period=1, keep=None)) as saved:
        if saved.latest_step is not None:
            raise ConfigError(
                f"{directory} already has a checkpoint of step {saved.latest_step:,}; expected a "
                f"new "
                f"directory",
                "MODEL_DIR",
            )
        saved.save(
            step, Weights(np.asarray(step, np.int32), params), {"imported_from": source}, force=True
        )
        saved.wait()
    write_launch(directory, config, start_step=step, describe_config=describe_config)
    write_text_record(directory, read_tokenizer_info(source))
    atomic.write_text(directory / MODEL_GIN, model_gin(config, source))
    _LOG.info(
        f"imported {num_parameters(config):,} parameters from {source} as step {step:,} of "
        f"{directory}; the model's gin file is {directory / MODEL_GIN}"
    )


def model_gin(config: TransformerConfig, source: str) -> str:
    """Return a gin file that sets MODEL to a configuration; default values are omitted.

    Args:
        config: The configuration.
        source: The model's directory, for the head of the file.

    >>> print(model_gin(TransformerConfig(vocab_size=8, ...), "t5-small"))
    # Imported from t5-small.
    ...
    """
    package, _, module = TransformerConfig.__module__.rpartition(".")
    bindings = _bindings(module, "TransformerConfig", config)
    if config.moe is not None:
        bindings += _bindings(module, "MixtureOfExperts", config.moe)
    return (
        f"# Imported from {source}.\n#\n# Gives MODEL. Commonly overridden: "
        "DROPOUT_RATE, TransformerConfig.dtype.\n"
        f"from __gin__ import dynamic_registration\n\nfrom {package} import {module}\n\n"
        f"MODEL = @{module}.TransformerConfig()\n\n{bindings}"
        f"\n{module}.dropout_rate.pretraining = {config.dropout_rate}\n"
    )


def _bindings(module: str, name: str, values: TransformerConfig | MixtureOfExperts) -> str:
    """Return the gin block of a configuration object: its fields that are not default."""
    lines = [f"{module}.{name}:"]
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        if field.name == "dropout_rate":  # DROPOUT_RATE of the run file overrides it
            lines.append(f"    {field.name} = @{module}.dropout_rate()")
        elif isinstance(value, MixtureOfExperts):
            lines.append(f"    {field.name} = @{module}.MixtureOfExperts()")
        elif value != field.default:
            lines.append(f"    {field.name} = {value!r}")
    return "\n".join(lines) + "\n"
