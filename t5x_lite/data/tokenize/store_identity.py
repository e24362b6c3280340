"""What decides the content of a token store: vocabularies, steps, source files, versions."""

import functools
import hashlib
import importlib.metadata
import inspect
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5x_lite.data.data_config import Tokenizer
from t5x_lite.data.store.token_store import FORMAT
from t5x_lite.data.tokenize.tokenize_file import first_line, records_to_tokenize
from t5x_lite.errors import ConfigError
from t5x_lite.io import files
from t5x_lite.io.urls import is_url

if TYPE_CHECKING:
    import seqio


TOKENIZING_PACKAGES = ("seqio", "sentencepiece", "tensorflow-text")


_STRETCHES, _STRETCH_BYTES = 16, 1 << 16


def describe_store(
    task: "seqio.Task", split: str, tokenizer: Tokenizer = "seqio"
) -> dict[str, Any]:
    """Return everything that decides a store's content, as JSON: what its manifest will say.

    The features' vocabularies, the steps before the cache placeholder with their arguments and a
    hash of the module each is written in, the source's files with their sizes and fingerprints, and
    what tokenizes, with the versions of its packages. A task that "sentencepiece" cannot run alone
    is run by "seqio".
    """
    if not task.supports_caching:
        raise ConfigError(
            f"task {task.name!r} has no seqio.CacheDatasetPlaceholder among its preprocessors: put "
            "one after the last step that does not depend on chance or on the feature lengths",
            "MIXTURE_OR_TASK_NAME",
        )
    if split not in task.splits:
        raise ConfigError(
            f"task {task.name!r} has no split {split!r}: it has {', '.join(sorted(task.splits))}",
            "MIXTURE_OR_TASK_NAME",
        )
    steps = list(task.preprocessors)
    cache_step = next(i for i, step in enumerate(steps) if _is_placeholder(step))
    return {
        "format": FORMAT,
        "task": task.name,
        "split": split,
        "vocabularies": {
            name: _describe_vocabulary(feature.vocabulary)
            for name, feature in task.output_features.items()
            if feature.dtype.is_integer and feature.rank == 1
        },
        "preprocessors": [_describe_step(step) for step in steps[:cache_step]],
        "source": _describe_source(task.source, split),
        "tokenizer": "seqio" if records_to_tokenize(task) is None else tokenizer,
        "versions": {name: importlib.metadata.version(name) for name in TOKENIZING_PACKAGES},
    }


def changed_shards(manifest: Mapping[str, Any]) -> list[str]:
    """Return the local files of a store's source that are no longer what they were.

    A file that is not there any more is not meant: a store does without. Another size, or a later
    change whose fingerprint differs, counts.
    """
    source, modified = manifest["source"], manifest.get("modified", {})
    changed = []
    for shard, size in source["sizes"].items():
        if is_url(shard) or not os.path.exists(shard):
            continue
        now = os.stat(shard)
        if now.st_size != size or (
            now.st_mtime_ns != modified.get(shard, now.st_mtime_ns)
            and fingerprint(shard) != source["fingerprints"][shard]
        ):
            changed.append(shard)
    return changed


def fingerprint(path: str) -> str:
    """Return a hash of a file's size and of 16 stretches of it, evenly spread, of 64 KiB each.

    So it takes milliseconds however long the file is; up to 1 MiB it is all of the file.
    """
    digest, size = hashlib.sha256(), os.path.getsize(path)
    digest.update(str(size).encode())
    with open(path, "rb") as file:
        for number in range(_STRETCHES):
            file.seek(max(size - _STRETCH_BYTES, 0) * number // (_STRETCHES - 1))
            digest.update(file.read(_STRETCH_BYTES))
    return digest.hexdigest()[:32]


def _is_placeholder(step: object) -> bool:
    import seqio

    return isinstance(step, seqio.CacheDatasetPlaceholder)


def _describe_vocabulary(vocabulary: "seqio.Vocabulary") -> dict[str, Any]:
    model_file = getattr(vocabulary, "sentencepiece_model_file", None)
    model = files.read_bytes(model_file) if model_file else _describe_value(vocabulary).encode()
    return {
        "size": vocabulary.vocab_size,
        "extra_ids": vocabulary.extra_ids,
        "fingerprint": hashlib.sha256(model).hexdigest(),
    }


def _describe_source(source: Any, split: str) -> dict[str, Any]:
    try:
        shards = list(source.list_shards(split))
    except Exception as error:  # TFDS has a kind for every way in which a data set is not there
        tfds = getattr(source, "tfds_dataset", None)
        advice = f"; `tfds build {tfds.name}` prepares it in {tfds.data_dir}" if tfds else ""
        raise ConfigError(
            f"the split {split!r} of {source} cannot be found: {first_line(error)}{advice}",
            "MIXTURE_OR_TASK_NAME",
            "Study.tfds_data_dir",
            "TFDS_DATA_DIR",
        ) from error
    sizes = {shard: size for shard in shards if (size := files.size(shard)) is not None}
    prints = {shard: fingerprint(shard) for shard in sizes if not is_url(shard)}
    kind = type(source).__name__
    return {"class": kind, "shards": shards, "sizes": sizes, "fingerprints": prints}


def _describe_step(step: Any) -> dict[str, Any]:
    """Describe a preprocessor: the function or class, its module's content, its arguments."""
    arguments: dict[str, Any] = {}
    while isinstance(step, functools.partial):
        positional = {str(place): value for place, value in enumerate(step.args)}
        arguments = {**positional, **step.keywords, **arguments}
        step = step.func
    if not hasattr(step, "__qualname__"):  # an instance with __call__
        arguments["self"] = step
        step = type(step)
    return {
        "step": _describe_function(step),
        "arguments": {name: _describe_value(value) for name, value in sorted(arguments.items())},
    }


def _describe_value(value: Any) -> str:
    """Return a text that is the same in every process: no memory addresses."""
    if isinstance(value, functools.partial):
        return json.dumps(_describe_step(value), sort_keys=True)
    if callable(value) and hasattr(value, "__qualname__"):
        return _describe_function(value)
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _describe_function(function: Any) -> str:
    """Return the name of a function and a hash of the module it is written in."""
    module = sys.modules.get(inspect.unwrap(function).__module__)
    source = Path(file).read_bytes() if (file := getattr(module, "__file__", None)) else b""
    digest = hashlib.sha256(source).hexdigest()[:16]
    return f"{function.__module__}.{function.__qualname__} ({digest})"
