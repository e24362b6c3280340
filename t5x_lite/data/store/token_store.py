"""Token stores on disk: the tokenized examples of one split of a task, addressed by index.

A store is a directory with, for each feature, the tokens of all examples one after another, and
where each example starts:

    targets.tokens.bin      5 9 7 | 12 | 8 8        little-endian uint16 (uint32 above 65,536 ids)
    targets.offsets.npy     0 3 4 6                 int64, one more than there are examples
    targets.groups.npy      [0 0]                   int64, of every 128th non-empty document: its
                                                    index, and where it starts
    manifest.json                                   what the store was made from
    checksums.json                                  sizes and CRC-32 of the others

How text is cut into chunks follows from the groups alone (`data.store.document_groups`), so that a
run need not read the offsets of hundreds of millions of documents before it starts.

A store contains what seqio's `task.preprocess_precache` yields for each file of the source, in the
order of the files, example for example. Building a store (`data.tokenize.build_store`) needs seqio
and TensorFlow; reading it needs NumPy.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t5x_lite.errors import ConfigError
from t5x_lite.io import checksums
from t5x_lite.io.safe_files import link_outside, read_json

FORMAT = 1
HEADER_BYTES = 128  # of a .npy file of integers, whatever the length of the array
PROGRESS = "progress.json"  # how far a growing store has grown
READ_BYTES = 1 << 28  # stores up to this size are read as a whole when they are verified


def partial_directory(directory: Path) -> Path:
    """Return where a store is while it is being written: ".NAME.partial" beside its directory."""
    return directory.with_name(f".{directory.name}.partial")


class CorruptStoreError(ConfigError):
    """A store whose files differ from what was written; `corruption` describes the first."""

    def __init__(self, directory: Path, corruption: str):
        super().__init__(
            f"the token store in {directory} is corrupt ({corruption}): delete it", "DATA_DIR"
        )
        self.corruption = corruption


@dataclass(frozen=True)
class TokenStore:
    """A complete store on disk, read through the page cache of the operating system.

    Attributes:
        directory: of the store.
        manifest: what the store was made from and what it contains.
    """

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

        Args:
            directory: of the store.
            expected: what the store should be made from (`store_identity.describe_store`); None:
                anything.
            verify: whether to compare the files with their checksums. Of stores above 256 MiB, only
                the sizes are compared.

        Raises:
            ConfigError: if there is no store, its manifest is invalid, or it was made from other
                data.
            CorruptStoreError: if its files are incomplete or differ from their checksums.
        """
        directory = Path(directory)
        if verify:
            corruption = checksums.find_corruption(directory, max_bytes=READ_BYTES)
            if corruption is not None:
                raise CorruptStoreError(directory, corruption)
        try:
            manifest = read_json(directory / "manifest.json")
            check_manifest(directory, manifest)
        except FileNotFoundError:
            raise ConfigError(f"there is no token store in {directory}", "DATA_DIR") from None
        except ValueError as error:
            raise ConfigError(f"the token store in {directory} is refused: {error}") from error
        check_same_source(manifest, expected, directory)
        store = cls(directory, manifest)
        if not all(store._is_whole(feature) for feature in store.features):
            raise CorruptStoreError(directory, "its files do not hold what its manifest says")
        return store

    @property
    def num_examples(self) -> int:
        """The number of examples."""
        return self.manifest["num_examples"]

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the stored features."""
        return tuple(self.manifest["features"])

    def tokens(self, feature: str) -> NDArray[np.unsignedinteger]:
        """Return the tokens of a feature of all examples, one after another, mapped: [tokens]."""
        path = self._path(feature, "tokens.bin")
        if path.stat().st_size == 0:  # an empty file cannot be mapped
            return np.zeros(0, self._dtype(feature))
        return np.memmap(path, self._dtype(feature), mode="r")

    def offsets(self, feature: str) -> NDArray[np.int64]:
        """Return where each example starts and, last, where the last one ends: [examples + 1]."""
        return np.load(self._path(feature, "offsets.npy"), mmap_mode="r")

    def groups(self, feature: str) -> NDArray[np.int64] | None:
        """Return the index and the start of every 128th non-empty document: [groups, 2].

        None for a store that was made before this table existed.
        """
        if (count := self.manifest["features"][feature].get("groups")) is None:
            return None
        if not count:  # an empty file cannot be mapped
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
        except (FileNotFoundError, EOFError, ValueError):  # a file is missing or truncated
            return False

    def _dtype(self, feature: str) -> np.dtype:
        return np.dtype(self.manifest["features"][feature]["dtype"])

    def _path(self, feature: str, suffix: str) -> Path:
        return self.directory / f"{feature}.{suffix}"


def check_manifest(directory: Path, manifest: Any) -> None:
    """Raise ValueError if a manifest is invalid, or would make us read files outside the store.

    A store may come from someone else: feature names become file names, and links may lead
    anywhere.
    """
    features = manifest.get("features") if isinstance(manifest, dict) else None
    if not isinstance(features, dict) or not isinstance(manifest.get("num_examples"), int):
        raise ValueError("its manifest names no features or no number of examples")
    for name, described in features.items():
        if not re.fullmatch(r"\w[\w.-]*", name) or not isinstance(described, dict):
            raise ValueError(f"its manifest names the feature {name!r}")
        if described.get("dtype") not in ("<u2", "<u4"):
            raise ValueError(f"its manifest gives {name} the type {described.get('dtype')!r}")
    if (link := link_outside(directory)) is not None:
        raise ValueError(f"{link} is a link to outside the store")


def check_same_source(
    manifest: Mapping[str, Any], expected: Mapping[str, Any] | None, location: str | os.PathLike
) -> None:
    """Raise ConfigError, with the differences, for a store that was made from other data.

    Args:
        manifest: of the store.
        expected: what the store should be made from; None: anything.
        location: of the store, for the error.
    """
    if differing := differences(expected or {}, manifest):
        raise ConfigError(
            f"the token store in {location} was made from other data: "
            + "; ".join(differing)
            + "; delete it or use another directory",
            "DATA_DIR",
        )


def differences(
    expected: Mapping[str, Any], actual: Mapping[str, Any], path: str = ""
) -> list[str]:
    """List where `actual` differs from `expected`; keys that `expected` lacks are ignored.

        {"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}   ->   ["b.c is 3, expected 2"]

    Args:
        expected: nested mappings.
        actual: nested mappings.
        path: the keys above these mappings, each followed by a period.
    """
    differing = []
    for key, expected_value in expected.items():
        name, value = f"{path}{key}", actual.get(key)
        if isinstance(expected_value, Mapping) and isinstance(value, Mapping):
            differing += differences(expected_value, value, f"{name}.")
        elif value != expected_value:
            differing.append(f"{name} is {value!r}, expected {expected_value!r}")
    return differing


def token_dtype(vocab_size: int) -> str:
    """Return the NumPy type of stored ids: uint16 for up to 65,536 ids, else uint32."""
    return "<u2" if vocab_size <= 65536 else "<u4"
