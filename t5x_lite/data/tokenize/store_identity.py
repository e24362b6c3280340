"""What decides the content of a token store: vocabularies, steps, source files, versions.

A store's directory is named by a digest of this description, and its manifest contains it. Steps
are described by versions or by code (`data.code_identity`), never by the names of modules.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from t5x_lite.data.code_identity import describe
from t5x_lite.data.data_config import Tokenizer
from t5x_lite.data.store.token_store import FORMAT
from t5x_lite.data.tokenize.tokenize_file import first_line, records_to_tokenize
from t5x_lite.errors import ConfigError
from t5x_lite.io import files
from t5x_lite.io.urls import is_url

if TYPE_CHECKING:
    import seqio

TOKENIZING_PACKAGES = ("seqio", "sentencepiece", "tensorflow-text")

_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16  # of a file, for its fingerprint


def describe_store(
    task: "seqio.Task", split: str, tokenizer: Tokenizer = "seqio"
) -> dict[str, Any]:
    """Return all that decides a store's content, as JSON for its manifest.

        {"format": 1, "task": "embedded_name", "split": "train",
         "vocabularies": {"inputs": {"size": 8100, "extra_ids": 100, "fingerprint": "5e0b"}, ...},
         "preprocessors": [{"call": "documents_to_pairs (version 1)",
                            "arguments": {"make_pair": "embedded_corpus.name_pair (version 1)"}},
                           "seqio.preprocessors.tokenize (seqio 0.0.20)"],
         "source": {"class": "json_lines_source (version 1)", "shards": [...], ...},
         "tokenizer": "seqio", "versions": {"seqio": "0.0.20", ...}}

    Args:
        task: A seqio task. Only the steps before its cache placeholder count.
        split: The split that is stored.
        tokenizer: "seqio" or "sentencepiece". A task that "sentencepiece" cannot run alone is run,
            and described, as "seqio".

    Returns:
        The description.

    Raises:
        ConfigError: If the task has no cache placeholder or no such split, if its source cannot be
            found, or if a step has neither a version nor readable source code.
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
        "preprocessors": [describe(step) for step in steps[:cache_step]],
        "source": _describe_source(task.source, split),
        "tokenizer": "seqio" if records_to_tokenize(task) is None else tokenizer,
        "versions": {name: importlib.metadata.version(name) for name in TOKENIZING_PACKAGES},
    }


def changed_shards(manifest: Mapping[str, Any]) -> list[str]:
    """Return the local source files of a store that have changed since it was built.

    A file counts as changed if its size differs, or if it was modified later and its fingerprint
    differs. A file that no longer exists does not count: the store does not need it.

    Args:
        manifest: The store's manifest.

    Returns:
        Paths.
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
    """Return a hash of a file's size and of 16 evenly spaced samples of 64 KiB.

    It takes milliseconds for a file of any size, and covers all of a file of up to 1 MiB.

    Args:
        path: A local file.

    Returns:
        32 hexadecimal digits.
    """
    digest, size = hashlib.sha256(), os.path.getsize(path)
    digest.update(str(size).encode())
    with open(path, "rb") as file:
        for number in range(_SAMPLES):
            file.seek(max(size - _SAMPLE_BYTES, 0) * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]


def _is_placeholder(step: object) -> bool:
    import seqio

    return isinstance(step, seqio.CacheDatasetPlaceholder)


def _describe_vocabulary(vocabulary: "seqio.Vocabulary") -> dict[str, Any]:
    model_file = getattr(vocabulary, "sentencepiece_model_file", None)
    # A vocabulary without a file, such as bytes, is described by its class and arguments.
    model = (
        files.read_bytes(model_file) if model_file else json.dumps(describe(vocabulary)).encode()
    )
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
    return {
        "class": _describe_reader(source),
        "shards": shards,
        "sizes": sizes,
        "fingerprints": prints,
    }


def _describe_reader(source: Any) -> Any:
    """Describe how a source reads its files: our own by version, others by class and function."""
    if (json_lines := getattr(source, "json_lines", None)) is not None:
        return describe(type(json_lines))
    # What seqio's FunctionDataSource and FileDataSource are given to read with.
    functions = [getattr(source, name, None) for name in ("_dataset_fn", "_reader")]
    return describe([type(source), *(function for function in functions if function is not None)])
