"""Token stores: a task's examples, tokenised once and addressed by index ever after.

A store is a directory with, for each feature, all tokens end to end and where each example begins,
and a manifest that says what it was made from:

    targets.tokens.bin      5 9 7 | 12 | 8 8        little-endian uint16 (uint32 above 65,536 ids)
    targets.offsets.npy     0 3 4 6                 int64, one more than there are examples
    manifest.json

It holds what seqio's own `task.preprocess_precache` yields, example for example. Building needs
seqio and TensorFlow; reading needs NumPy.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data import files
from t5x_lite.errors import ConfigError

if TYPE_CHECKING:
    import seqio

FORMAT = 1
TOKENISING_PACKAGES = ("seqio", "sentencepiece", "tensorflow-text")
_EXAMPLES_PER_READ = 512


@dataclass(frozen=True)
class TokenStore:
    """A finished store, read through the operating system's page cache."""

    directory: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(
        cls, directory: str | os.PathLike, expected: Mapping[str, Any] | None = None
    ) -> "TokenStore":
        """Open the store in a directory.

        `expected` is what `describe_store` says of the task today: a store made from anything else
        is refused. Raises ConfigError, also where there is no store or its files are cut short.
        """
        directory = Path(directory)
        try:
            manifest = json.loads((directory / "manifest.json").read_text("utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"there is no token store in {directory}", "DATA_DIR") from None
        if differing := _differences(expected or {}, manifest):
            raise ConfigError(
                f"the token store in {directory} was made from other data: "
                + "; ".join(differing)
                + "; delete it or use another directory",
                "DATA_DIR",
            )
        store = cls(directory, manifest)
        for feature in store.features:
            tokens, offsets = store._path(feature, "tokens.bin"), store.offsets(feature)
            wanted = int(offsets[-1]) * store._dtype(feature).itemsize
            if len(offsets) != store.num_examples + 1 or tokens.stat().st_size != wanted:
                raise ConfigError(
                    f"the token store in {directory} is damaged: delete it", "DATA_DIR"
                )
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

    def _dtype(self, feature: str) -> np.dtype:
        return np.dtype(self.manifest["features"][feature]["dtype"])

    def _path(self, feature: str, ending: str) -> Path:
        return self.directory / f"{feature}.{ending}"


def build_token_store(
    task: "seqio.Task",
    split: str,
    directory: str | os.PathLike,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Tokenise a split of a task, up to its cache placeholder, into a new directory.

    `report` is told of files some of whose lines were left out, and the manifest says so too. The
    directory appears only when everything in it is complete; where another process was faster, its
    store stays. Raises ConfigError where the task cannot be cached, its source cannot be read
    or yields nothing.
    """
    manifest = describe_store(task, split)
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        manifest |= _write_features(task, split, manifest["vocabularies"], partial)
        manifest["left_out"] = _left_out(task.source, manifest["source"]["shards"])
        for shard, what in manifest["left_out"].items():
            report(f"{shard}: {what}")
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
        partial.chmod(0o755)
        with contextlib.suppress(OSError):
            partial.rename(directory)
        TokenStore.open(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def describe_store(task: "seqio.Task", split: str) -> dict[str, Any]:
    """Return everything that decides a store's content, as JSON: what its manifest will say.

    The features' vocabularies, the steps before the cache placeholder with their arguments and a
    hash of the module each is written in, the source's files, and the versions of the packages that
    tokenise.
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
        "versions": {name: importlib.metadata.version(name) for name in TOKENISING_PACKAGES},
    }


def _write_features(
    task: "seqio.Task", split: str, vocabularies: Mapping[str, Any], directory: Path
) -> dict[str, Any]:
    """Write the files of each feature; return the manifest's entries that count what there is."""
    sizes = {name: vocabulary["size"] for name, vocabulary in vocabularies.items()}
    lengths: dict[str, list[NDArray]] = {}
    with contextlib.ExitStack() as stack:
        opened: dict[str, BinaryIO] = {}
        for group in _read_groups(task, split, sizes):
            for name, (tokens, lengths_b) in group.items():
                if name not in opened:
                    path = directory / f"{name}.tokens.bin"
                    opened[name] = stack.enter_context(open(path, "wb"))
                if tokens.size and not 0 <= tokens.min() <= tokens.max() < sizes[name]:
                    raise ConfigError(
                        f"task {task.name!r}: feature {name!r} holds ids from {tokens.min()} to "
                        f"{tokens.max()}, but its vocabulary has {sizes[name]}",
                        "MIXTURE_OR_TASK_NAME",
                    )
                opened[name].write(tokens.astype(_dtype_for(sizes[name])).tobytes())
                lengths.setdefault(name, []).append(lengths_b)
    if not lengths:
        raise ConfigError(
            f"task {task.name!r}: the split {split!r} of {task.source} holds no example", "DATA_DIR"
        )
    offsets = {name: np.cumsum(np.concatenate([[0], *parts])) for name, parts in lengths.items()}
    for name, offset in offsets.items():
        np.save(directory / f"{name}.offsets.npy", offset.astype(np.int64))
    return {
        "num_examples": len(next(iter(offsets.values()))) - 1,
        "features": {
            name: {"tokens": int(offset[-1]), "dtype": _dtype_for(sizes[name])}
            for name, offset in offsets.items()
        },
    }


def _read_groups(
    task: "seqio.Task", split: str, names: Container[str]
) -> Iterator[dict[str, tuple[NDArray, NDArray]]]:
    """Yield, some hundred examples at a time, each feature's tokens end to end and its lengths."""
    import tensorflow as tf

    try:
        documents = task.source.get_dataset(split=split, shuffle=False)
        examples = task.preprocess_precache(documents, seed=0)
        examples = examples.map(lambda example: {k: v for k, v in example.items() if k in names})
        for group in examples.ragged_batch(_EXAMPLES_PER_READ):
            yield {name: _flatten(rows) for name, rows in group.items()}
    except (tf.errors.OpError, OSError, AssertionError) as error:
        raise ConfigError(
            f"task {task.name!r}, split {split!r}: {_first_line(error)}", "DATA_DIR"
        ) from error


def _left_out(source: Any, shards: Collection[str]) -> dict[str, str]:
    """Return what the source says of lines that it could not use, by file."""
    tallies = getattr(source, "tallies", {})
    read = {shard: tallies[shard] for shard in shards if shard in tallies}
    return {shard: tally.describe() for shard, tally in read.items() if tally.bad}


def _flatten(rows: Any) -> tuple[NDArray, NDArray]:
    """Return the tokens of a batch end to end and each row's length.

    TensorFlow makes a plain tensor of a batch whose rows are known to have one length.
    """
    if hasattr(rows, "row_lengths"):
        return rows.flat_values.numpy(), rows.row_lengths().numpy()
    return rows.numpy().reshape(-1), np.full(rows.shape[0], rows.shape[1])


def _first_line(error: Exception) -> str:
    """Return what an error says, without TensorFlow's graph node and the Python class before it."""
    message = getattr(error, "message", None) or str(error)
    return re.sub(r"^(\{\{.*?\}\} )?(\w+Error: )?", "", message).split("\n", 1)[0]


def _differences(
    expected: Mapping[str, Any], found: Mapping[str, Any], path: str = ""
) -> list[str]:
    """Name what `found` has otherwise than `expected`; what `expected` omits may be anything."""
    differing = []
    for key, wanted in expected.items():
        name, value = f"{path}{key}", found.get(key)
        if isinstance(wanted, Mapping) and isinstance(value, Mapping):
            differing += _differences(wanted, value, f"{name}.")
        elif value != wanted:
            differing.append(f"{name} is {value!r}, wanted is {wanted!r}")
    return differing


def _is_placeholder(step: object) -> bool:
    import seqio

    return isinstance(step, seqio.CacheDatasetPlaceholder)


def _dtype_for(vocab_size: int) -> str:
    return "<u2" if vocab_size <= 65536 else "<u4"


def _describe_vocabulary(vocabulary: "seqio.Vocabulary") -> dict[str, Any]:
    model_file = getattr(vocabulary, "sentencepiece_model_file", None)
    model = files.read_bytes(model_file) if model_file else str(vocabulary).encode()
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
            f"the split {split!r} of {source} cannot be found: {_first_line(error)}{advice}",
            "MIXTURE_OR_TASK_NAME",
            "Study.tfds_data_dir",
            "TFDS_DATA_DIR",
        ) from error
    sizes = {shard: size for shard in shards if (size := files.size(shard)) is not None}
    return {"class": type(source).__name__, "shards": shards, "sizes": sizes}


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
