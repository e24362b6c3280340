"""Import and export of Hugging Face directories (config.json and safetensors)."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t5x_lite.convert import bart_family, bert_family, decoder_family, t5_family
from t5x_lite.convert.family import CheckpointFacts, Family, Fields
from t5x_lite.convert.param_mapping import check_names, export_tensors, load_params, tensor_mappings
from t5x_lite.convert.parity_check import check_same_logits, differences
from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic
from t5x_lite.io.safe_files import read_json_object
from t5x_lite.io.tensor_files import CONFIG, TensorFiles, write_tensors
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.transformer import Params
from t5x_lite.tree_paths import flatten

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for module in (t5_family, bert_family, decoder_family, bart_family)
    for family in module.FAMILIES
}
# Suffixes of TensorFlow's names, which the oldest BERT checkpoints have.
OLD_SUFFIXES = {".gamma": ".weight", ".beta": ".bias"}


def import_checkpoint(
    directory: str | Path, *, vocab_size: int | None = None
) -> tuple[TransformerConfig, Params]:
    """Read a model from a Hugging Face directory.

    Args:
        directory: The directory.
        vocab_size: Rows of embedding and head, which are truncated or padded with zeros (T5's
            32,100 ids are stored in 32,100 or in 32,128 rows); None keeps their number.

    Returns:
        Our configuration, and the weights as float32 NumPy arrays.

    Raises:
        ConfigError: The model type is not supported, or tensors are missing, unexpected or of
            another shape.
    """
    directory = Path(directory)
    fields = read_json_object(directory / CONFIG)
    family = _known(fields.get("model_type"))
    tensors = _Tensors(TensorFiles(directory), family)
    config = family.read(fields, tensors.facts)
    mappings = tensor_mappings(config, family.table(config))
    check_names(mappings, tensors.shapes_for(config), where=str(directory))
    params = load_params(config, mappings, tensors.read)
    return resize_vocabulary(config, params, vocab_size or config.vocab_size)


def export_checkpoint(
    directory: str | Path,
    config: TransformerConfig,
    params: Params,
    *,
    model_type: str | None = None,
    encoder_only: bool = False,
    vocab_size: int | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> str:
    """Write a model to a Hugging Face directory, read it again, and compare logits.

    The directory appears only if the comparison succeeds.

    Args:
        directory: The directory, which must not exist or be empty.
        config: Our configuration.
        params: Our weights.
        model_type: The family; None takes the first that can represent the model (a T5 1.1 can be
            "t5" or "mt5").
        encoder_only: Export the encoder without decoder and head.
        vocab_size: As for `import_checkpoint`.
        max_shard_bytes: Largest size of a safetensors file, in bytes; 5 GB as in transformers.

    Returns:
        The model type.

    Raises:
        ConfigError: The directory is not empty, no family can represent the model, or the model
            that was read again differs.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} exists; expected a new or an empty directory")
    if encoder_only:
        config, params = _encoder_of(config, params)
    config, params = resize_vocabulary(config, params, vocab_size or config.vocab_size)
    family = _family_of(config, model_type)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with atomic.new_directory(directory) as partial:
        _write(partial, family, config, params, max_shard_bytes)
        check_same_logits((config, params), import_checkpoint(partial))
    return family.model_type


def resize_vocabulary(
    config: TransformerConfig, params: Params, vocab_size: int
) -> tuple[TransformerConfig, Params]:
    """Change the number of rows of embedding and head.

    Args:
        config: Our configuration.
        params: Our weights.
        vocab_size: New number of rows; added rows are zeros.

    Returns:
        Configuration and weights of the resized model.
    """
    if vocab_size == config.vocab_size:
        return config, params
    if vocab_size < 1:
        raise ConfigError(f"vocab_size must be positive; got {vocab_size}")

    def resize(path: str, array: Any) -> Any:
        axes = {"token_embedder/embedding": 0, "head/kernel": 1, "head/bias": 0}
        if path not in axes:
            return array
        array = np.moveaxis(np.asarray(array), axes[path], 0)[:vocab_size]
        padding = [(0, vocab_size - len(array)), *[(0, 0)] * (array.ndim - 1)]
        return np.moveaxis(np.pad(array, padding), 0, axes[path])

    arrays = [resize(path, array) for path, array in flatten(params).items()]
    params = jax.tree.unflatten(jax.tree.structure(params), arrays)
    return dataclasses.replace(config, vocab_size=vocab_size), params


class _Tensors:
    """The tensors of a directory under the names of a complete model, without copies.

    Names differ between directories: base models have no prefix, and old BERT checkpoints have
    TensorFlow's suffixes.
    """

    def __init__(self, files: TensorFiles, family: Family):
        self._files, self._family = files, family
        self._saved_name = {self._full_name(name): name for name in files.shapes}
        names = self._saved_name.keys()
        self._drop_copies()
        self.facts = CheckpointFacts(
            decoder=not family.decoder or any(name.startswith(family.decoder) for name in names),
            own_head=family.head in names,
            head_bias=family.head_bias in names and bool(self.read(family.head_bias).any()),
            next_sentence=family.next_sentence in names,
        )

    def read(self, name: str) -> np.ndarray:
        return self._files.read(self._saved_name[name])

    def shapes_for(self, config: TransformerConfig) -> dict[str, tuple[int, ...]]:
        """Return shapes by full name, without a bias of the logits that is all zeros."""
        shapes = {name: self._files.shapes[saved] for name, saved in self._saved_name.items()}
        if not config.head_bias:
            shapes.pop(self._family.head_bias, None)
        return shapes

    def _full_name(self, name: str) -> str:
        for old, new in OLD_SUFFIXES.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        prefix, outside = self._family.prefix, self._family.outside
        is_complete = any(saved.startswith(prefix) for saved in self._files.shapes)
        return name if is_complete or name.startswith(outside) else prefix + name

    def _drop_copies(self) -> None:
        for pattern in self._family.ignored:
            for name in [name for name in self._saved_name if re.fullmatch(pattern, name)]:
                del self._saved_name[name]
        # A head that equals the embedding means tied embeddings. One that differs is a head of its
        # own; any other copy must equal its original.
        copies = {**self._family.copies, self._family.head: self._family.embedding}
        for copy, original in copies.items():
            if copy not in self._saved_name or original not in self._saved_name:
                continue
            if np.array_equal(self.read(copy), self.read(original)):
                del self._saved_name[copy]
            elif copy != self._family.head:
                raise ConfigError(f"{self._files.directory}: {copy} differs from {original}")


def _known(model_type: Any) -> Family:
    if model_type not in FAMILIES:
        raise ConfigError(f"model_type is {model_type!r}; supported: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def _family_of(config: TransformerConfig, model_type: str | None) -> Family:
    """Return the first family whose config.json, read again, gives our configuration."""
    candidates = FAMILIES.values() if model_type is None else [_known(model_type)]
    reasons, distances = {}, {}
    for family in candidates:
        try:
            read_again = family.read(family.write(config), _facts_of(config))
        except ConfigError as error:
            reasons[family.model_type], distances[family.model_type] = error.message, math.inf
            continue
        if not (different := differences(config, read_again)):
            return family
        reasons[family.model_type] = ", ".join(different)
        distances[family.model_type] = len(different)
    nearest = min(distances, key=lambda name: distances[name])
    raise ConfigError(
        f"no family of transformers can represent this model: as {nearest}, {reasons[nearest]}"
    )


def _facts_of(config: TransformerConfig) -> CheckpointFacts:
    return CheckpointFacts(
        decoder=bool(config.num_decoder_layers),
        own_head=not config.logits_via_embedding,
        head_bias=config.head_bias,
        next_sentence=config.next_sentence_head,
    )


def _encoder_of(config: TransformerConfig, params: Params) -> tuple[TransformerConfig, Params]:
    """Return the encoder without decoder and head; its logits have no meaning."""
    if config.decoder_only:
        raise ConfigError("the model has no encoder to export", "TransformerConfig")
    config = dataclasses.replace(
        config, num_decoder_layers=0, share_stacks=False, logits_via_embedding=True
    )
    kept = ("token_embedder", "encoder", "encoder_places", "head")
    params = {name: params[name] for name in kept if name in params}
    if "head" in params:
        params["head"] = {name: w for name, w in params["head"].items() if name != "kernel"}
    return config, {name: subtree for name, subtree in params.items() if subtree}


def _write(
    directory: Path, family: Family, config: TransformerConfig, params: Params, max_bytes: int
) -> None:
    fields: Fields = {
        "architectures": [family.architecture(config)],
        "model_type": family.model_type,
        "dtype": "float32",
        **family.write(config),
    }
    text = json.dumps(fields, indent=2, sort_keys=True)
    atomic.write_text(directory / CONFIG, f"{text}\n")
    tensors = tensor_mappings(config, family.table(config))
    write_tensors(directory, export_tensors(params, tensors), max_shard_bytes=max_bytes)
