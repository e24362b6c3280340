"""Hugging Face directories (config.json and safetensors) to models of ours, and back."""

import dataclasses
import json
import math
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t5x_lite.convert import bart_family, bert_family, decoder_family, t5_family
from t5x_lite.convert.family import CheckpointFacts, Family, Fields
from t5x_lite.convert.param_mapping import check_names, export_tensors, load_params, tensor_mappings
from t5x_lite.convert.parity_check import check_same_logits, differences
from t5x_lite.errors import ConfigError
from t5x_lite.io.tensor_files import CONFIG, TensorFiles, read_json, write_tensors
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.transformer import Params
from t5x_lite.tree_paths import flatten

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for module in (t5_family, bert_family, decoder_family, bart_family)
    for family in module.FAMILIES
}
# TensorFlow's names, as the oldest BERT files have them.
OLD_SUFFIXES = {".gamma": ".weight", ".beta": ".bias"}


def import_checkpoint(
    directory: str | Path, *, vocab_size: int | None = None
) -> tuple[TransformerConfig, Params]:
    """The model of a Hugging Face directory: our configuration, and float32 weights on the host.

    vocab_size: how many rows embedding and head shall have, by cutting rows off or adding zeros
    (T5's 32,100 ids are stored in 32,100 or in 32,128 rows). Raises ConfigError for a model type we
    do not know, and for tensors that are missing, too many or of another shape, by their names.
    """
    directory = Path(directory)
    fields = read_json(directory / CONFIG)
    family = _known(fields.get("model_type"))
    tensors = _Tensors(TensorFiles(directory), family)
    config = family.read(fields, tensors.found)
    wanted = tensor_mappings(config, family.table(config))
    check_names(wanted, tensors.shapes_for(config), where=str(directory))
    params = load_params(config, wanted, tensors.read)
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
    """Write a Hugging Face directory, read it again, and compare logits; return its model type.

    model_type: a family's name over there, or None for the first that is this model ("mt5" is
    the same as "t5" for a T5 1.1). encoder_only: leave out decoder and head. vocab_size: as in
    `import_checkpoint`. The directory must not exist, or be empty. If the model that was read
    again gives other logits, nothing is left behind and ConfigError is raised.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} exists; wanted a directory to be made, or an empty one")
    if encoder_only:
        config, params = _encoder_of(config, params)
    config, params = resize_vocabulary(config, params, vocab_size or config.vocab_size)
    family = _family_of(config, model_type)
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        _write(unfinished, family, config, params, max_shard_bytes)
        check_same_logits((config, params), import_checkpoint(unfinished))
        unfinished.chmod(0o755)
        unfinished.replace(directory)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return family.model_type


def resize_vocabulary(
    config: TransformerConfig, params: Params, vocab_size: int
) -> tuple[TransformerConfig, Params]:
    """The model with so many rows of embedding and head; new rows are zeros."""
    if vocab_size == config.vocab_size:
        return config, params
    if vocab_size < 1:
        raise ConfigError(f"vocab_size is {vocab_size}; wanted a positive number")

    def resized(path: str, array: Any) -> Any:
        axes = {"token_embedder/embedding": 0, "head/kernel": 1, "head/bias": 0}
        if path not in axes:
            return array
        array = np.moveaxis(np.asarray(array), axes[path], 0)[:vocab_size]
        padding = [(0, vocab_size - len(array)), *[(0, 0)] * (array.ndim - 1)]
        return np.moveaxis(np.pad(array, padding), 0, axes[path])

    arrays = [resized(path, array) for path, array in flatten(params).items()]
    params = jax.tree.unflatten(jax.tree.structure(params), arrays)
    return dataclasses.replace(config, vocab_size=vocab_size), params


class _Tensors:
    """A directory's tensors under their family's full names, without what is there twice."""

    def __init__(self, files: TensorFiles, family: Family):
        self._files, self._family = files, family
        self._own_name = {self._full_name(name): name for name in files.shapes}
        names = self._own_name.keys()
        self._drop_copies()
        self.found = CheckpointFacts(
            decoder=not family.decoder or any(name.startswith(family.decoder) for name in names),
            own_head=family.head in names,
            head_bias=family.head_bias in names and bool(self.read(family.head_bias).any()),
            next_sentence=family.next_sentence in names,
        )

    def read(self, name: str) -> np.ndarray:
        return self._files.read(self._own_name[name])

    def shapes_for(self, config: TransformerConfig) -> dict[str, tuple[int, ...]]:
        """Shapes by full name; a bias that is all zeros needs no place of its own."""
        shapes = {name: self._files.shapes[own] for name, own in self._own_name.items()}
        if not config.head_bias:
            shapes.pop(self._family.head_bias, None)
        return shapes

    def _full_name(self, name: str) -> str:
        for old, new in OLD_SUFFIXES.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        prefix, outside = self._family.prefix, self._family.outside
        complete = any(known.startswith(prefix) for known in self._files.shapes)
        return name if complete or name.startswith(outside) else prefix + name

    def _drop_copies(self) -> None:
        for pattern in self._family.ignored:
            for name in [name for name in self._own_name if re.fullmatch(pattern, name)]:
                del self._own_name[name]
        copies = {**self._family.copies, self._family.head: self._family.embedding}
        for copy, original in copies.items():
            if copy not in self._own_name or original not in self._own_name:
                continue
            if np.array_equal(self.read(copy), self.read(original)):
                del self._own_name[copy]
            elif copy != self._family.head:
                raise ConfigError(f"{self._files.directory}: {copy} differs from {original}")


def _known(model_type: Any) -> Family:
    if model_type not in FAMILIES:
        raise ConfigError(f"model_type is {model_type!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def _family_of(config: TransformerConfig, model_type: str | None) -> Family:
    """The family that says of its own config.json what our configuration says."""
    candidates = FAMILIES.values() if model_type is None else [_known(model_type)]
    reasons, distances = {}, {}
    for family in candidates:
        try:
            back = family.read(family.write(config), _found_in(config))
        except ConfigError as error:
            reasons[family.model_type], distances[family.model_type] = error.message, math.inf
            continue
        if not (different := differences(config, back)):
            return family
        reasons[family.model_type] = ", ".join(different)
        distances[family.model_type] = len(different)
    nearest = min(distances, key=lambda name: distances[name])
    raise ConfigError(f"transformers has no such model: as {nearest}, {reasons[nearest]}")


def _found_in(config: TransformerConfig) -> CheckpointFacts:
    return CheckpointFacts(
        decoder=bool(config.num_decoder_layers),
        own_head=not config.logits_via_embedding,
        head_bias=config.head_bias,
        next_sentence=config.next_sentence_head,
    )


def _encoder_of(config: TransformerConfig, params: Params) -> tuple[TransformerConfig, Params]:
    """The encoder alone, which says nothing about words: its logits are nobody's."""
    if config.decoder_only:
        raise ConfigError("the model has no encoder to export", "TransformerConfig")
    config = dataclasses.replace(
        config, num_decoder_layers=0, share_stacks=False, logits_via_embedding=True
    )
    kept = ("token_embedder", "encoder", "encoder_places", "head")
    params = {name: params[name] for name in kept if name in params}
    if "head" in params:
        params["head"] = {name: w for name, w in params["head"].items() if name != "kernel"}
    return config, {name: part for name, part in params.items() if part}


def _write(
    directory: Path, family: Family, config: TransformerConfig, params: Params, max_bytes: int
) -> None:
    fields: Fields = {
        "architectures": [family.architecture(config)],
        "model_type": family.model_type,
        "dtype": "float32",
        **family.write(config),
    }
    (directory / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    tensors = tensor_mappings(config, family.table(config))
    write_tensors(directory, export_tensors(params, tensors), max_shard_bytes=max_bytes)
