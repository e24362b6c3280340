"""Token stores: a task's examples, tokenised once and addressed by index ever after.

A store is a directory with, for each feature, all tokens end to end and where each example begins,
and a manifest that says what it was made from:

    targets.tokens.bin      5 9 7 | 12 | 8 8        little-endian uint16 (uint32 above 65,536 ids)
    targets.offsets.npy     0 3 4 6                 int64, one more than there are examples
    targets.groups.npy      [0 0]                   int64, of every 128th document with tokens: its
                                                    number, and where it begins
    manifest.json
    checksums.json                                  sizes and CRC-32 of the others

From the groups alone follows how text is cut into pieces (`data.groups`), so that a run need not
read the offsets of hundreds of millions of documents before it begins.

It holds what seqio's own `task.preprocess_precache` yields of each file of the source, in the order
of the files, example for example. Building (`data.caching`) needs seqio and TensorFlow; reading
needs NumPy.
"""

import functools
import hashlib
import importlib.metadata
import inspect
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from t5x_lite import checksums
from t5x_lite.addresses import is_address
from t5x_lite.data import files
from t5x_lite.data.reading import Tokenizer, first_line, plain_records
from t5x_lite.errors import ConfigError
from t5x_lite.untrusted import link_outside, read_json

if TYPE_CHECKING:
    import seqio

FORMAT = 1
READ_BYTES = 1 << 28  # stores up to this size are read as a whole when they are verified
TOKENISING_PACKAGES = ("seqio", "sentencepiece", "tensorflow-text")
_STRETCHES, _STRETCH_BYTES = 16, 1 << 16


class DamagedStoreError(ConfigError):
    """A store whose files are not what was written; `damage` says what is wrong."""

    def __init__(self, directory: Path, damage: str):
        said = f"the token store in {directory} is damaged ({damage}): delete it"
        super().__init__(said, "DATA_DIR")
        self.damage = damage


@dataclass(frozen=True)
class TokenStore:
    """A finished store, read through the operating system's page cache."""

    directory: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike,
        expected: Mapping[str, Any] | None = None,
        *,
        verify: bool = False,
    ) -> "TokenStore":
        """Open the store in a directory.

        `expected` is what `describe_store` says of the task today: a store made from anything else
        is refused. Raises ConfigError, also where there is no store, and DamagedStoreError where
        its files are not whole; `verify` holds them against their checksums (above `READ_BYTES`
        their sizes alone).
        """
        directory = Path(directory)
        damage = checksums.damage(directory, most_bytes=READ_BYTES) if verify else None
        if damage is not None:
            raise DamagedStoreError(directory, damage)
        try:
            manifest = read_json(directory / "manifest.json")
            check_manifest(directory, manifest)
        except FileNotFoundError:
            raise ConfigError(f"there is no token store in {directory}", "DATA_DIR") from None
        except ValueError as error:
            raise ConfigError(f"the token store in {directory} is refused: {error}") from error
        refuse_other(manifest, expected, directory)
        store = cls(directory, manifest)
        if not all(store._is_whole(feature) for feature in store.features):
            raise DamagedStoreError(directory, "its files do not hold what its manifest says")
        return store

    @property
    def num_examples(self) -> int:
        """How many examples the store holds."""
        return self.manifest["num_examples"]

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the stored features."""
        return tuple(self.manifest["features"])

    def tokens(self, feature: str) -> NDArray[np.unsignedinteger]:
        """Return all tokens of a feature, end to end, mapped from disk."""
        path = self._path(feature, "tokens.bin")
        if path.stat().st_size == 0:  # which cannot be mapped
            return np.zeros(0, self._dtype(feature))
        return np.memmap(path, self._dtype(feature), mode="r")

    def offsets(self, feature: str) -> NDArray[np.int64]:
        """Return where each example begins and, last, where the last one ends: int64 [n + 1]."""
        return np.load(self._path(feature, "offsets.npy"), mmap_mode="r")

    def groups(self, feature: str) -> NDArray[np.int64] | None:
        """Return the number and the start of every 128th document with tokens: int64 [g, 2].

        None for a store that was made before there were groups.
        """
        if (count := self.manifest["features"][feature].get("groups")) is None:
            return None
        if not count:  # which cannot be mapped
            return np.zeros((0, 2), np.int64)
        return np.load(self._path(feature, "groups.npy"), mmap_mode="r")

    def _is_whole(self, feature: str) -> bool:
        try:
            tokens, offsets = self._path(feature, "tokens.bin"), self.offsets(feature)
            groups = self.groups(feature)
            return (
                len(offsets) == self.num_examples + 1
                and tokens.stat().st_size == int(offsets[-1]) * self._dtype(feature).itemsize
                and (groups is None or len(groups) == self.manifest["features"][feature]["groups"])
            )
        except (FileNotFoundError, EOFError, ValueError):  # a file is gone, or shorter than it says
            return False

    def _dtype(self, feature: str) -> np.dtype:
        return np.dtype(self.manifest["features"][feature]["dtype"])

    def _path(self, feature: str, ending: str) -> Path:
        return self.directory / f"{feature}.{ending}"


def check_manifest(directory: Path, manifest: Any) -> None:
    """Raise ValueError where a manifest is none, or would have other files read than its own."""
    features = manifest.get("features") if isinstance(manifest, dict) else None
    if not isinstance(features, dict) or not isinstance(manifest.get("num_examples"), int):
        raise ValueError("its manifest names no features or no number of examples")
    for name, described in features.items():
        if not re.fullmatch(r"\w[\w.-]*", name) or not isinstance(described, dict):
            raise ValueError(f"its manifest names the feature {name!r}")
        if described.get("dtype") not in ("<u2", "<u4"):
            raise ValueError(f"its manifest gives {name} the type {described.get('dtype')!r}")
    if (link := link_outside(directory)) is not None:
        raise ValueError(f"{link} is a link that leads elsewhere")


def describe_store(
    task: "seqio.Task", split: str, tokenizer: Tokenizer = "seqio"
) -> dict[str, Any]:
    """Return everything that decides a store's content, as JSON: what its manifest will say.

    The features' vocabularies, the steps before the cache placeholder with their arguments and a
    hash of the module each is written in, the source's files with their sizes and fingerprints, and
    what tokenises, with the versions of its packages. A task that "sentencepiece" cannot run alone
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
        "tokenizer": "seqio" if plain_records(task) is None else tokenizer,
        "versions": {name: importlib.metadata.version(name) for name in TOKENISING_PACKAGES},
    }


def changed_shards(manifest: Mapping[str, Any]) -> list[str]:
    """Return the local files of a store's source that are no longer what they were.

    A file that is not there any more is not meant: a store does without. Another size, or a later
    change whose fingerprint differs, counts.
    """
    source, modified = manifest["source"], manifest.get("modified", {})
    changed = []
    for shard, size in source["sizes"].items():
        if is_address(shard) or not os.path.exists(shard):
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


def refuse_other(
    manifest: Mapping[str, Any], expected: Mapping[str, Any] | None, place: str | os.PathLike
) -> None:
    """Raise ConfigError, which says what differs, for a store that was made from other data."""
    if differing := differences(expected or {}, manifest):
        raise ConfigError(
            f"the token store in {place} was made from other data: "
            + "; ".join(differing)
            + "; delete it or use another directory",
            "DATA_DIR",
        )


def differences(expected: Mapping[str, Any], found: Mapping[str, Any], path: str = "") -> list[str]:
    """Name what `found` has otherwise than `expected`; what `expected` omits may be anything."""
    differing = []
    for key, wanted in expected.items():
        name, value = f"{path}{key}", found.get(key)
        if isinstance(wanted, Mapping) and isinstance(value, Mapping):
            differing += differences(wanted, value, f"{name}.")
        elif value != wanted:
            differing.append(f"{name} is {value!r}, wanted is {wanted!r}")
    return differing


def _is_placeholder(step: object) -> bool:
    import seqio

    return isinstance(step, seqio.CacheDatasetPlaceholder)


def token_dtype(vocab_size: int) -> str:
    """Return the smallest of the two kinds of integers that hold a vocabulary's ids."""
    return "<u2" if vocab_size <= 65536 else "<u4"


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
    prints = {shard: fingerprint(shard) for shard in sizes if not is_address(shard)}
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
