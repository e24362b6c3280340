"""`t5x_lite import`: a Hugging Face directory becomes a run directory."""

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
from t5x_lite.tokenizers.text_codec import read_text_record, write_text_record

_LOG = logging.getLogger(__name__)
MODEL_GIN = "model.gin"


class Weights(NamedTuple):
    """A train state without its optimizer: what an import can know."""

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
    """Read config.json and safetensors of `source`; write a checkpoint and model.gin.

    step: the step the weights count as (T5's released ones: about 1,000,000), which schedules go on
    from. vocab_size: rows of the embedding, cut off or filled up with zeros; None keeps them.

    The checkpoint holds step and weights under the names of a train state, and no optimizer;
    model.gin is the model file to train it with.
    """
    directory = Path(model_dir)
    if step < 0:
        raise ConfigError(f"step is {step}; wanted 0 or more", "import_weights.step")
    config, params = import_checkpoint(source, vocab_size=vocab_size)
    check_model_dir(directory, config)
    with Checkpointer(directory, CheckpointPolicy(period=1, keep=None)) as saved:
        if saved.latest_step is not None:
            raise ConfigError(
                f"{directory} already holds step {saved.latest_step:,}; wanted a new directory",
                "MODEL_DIR",
            )
        saved.save(
            step, Weights(np.asarray(step, np.int32), params), {"imported_from": source}, force=True
        )
        saved.wait()
    write_launch(directory, config, start_step=step, describe_config=describe_config)
    write_text_record(directory, read_text_record(source))
    atomic.write_text(directory / MODEL_GIN, model_gin(config, source))
    _LOG.info(
        f"imported {num_parameters(config):,} parameters from {source} as step {step:,} of "
        f"{directory}; the model's gin file is {directory / MODEL_GIN}"
    )


def model_gin(config: TransformerConfig, source: str) -> str:
    """A gin file that gives MODEL as this configuration, without what is default anyway.

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
