"""Token stores: a task's examples, tokenized once and addressed by index ever after.

A store is a directory with, for each feature, all tokens end to end and where each example begins,
and a manifest that says what it was made from:

    targets.tokens.bin      5 9 7 | 12 | 8 8        little-endian uint16 (uint32 above 65,536 ids)
    targets.offsets.npy     0 3 4 6                 int64, one more than there are examples
    targets.groups.npy      [0 0]                   int64, of every 128th document with tokens: its
                                                    number, and where it begins
    manifest.json
    checksums.json                                  sizes and CRC-32 of the others

From the groups alone follows how text is cut into pieces (`data.store.document_groups`), so that a
run need not
read the offsets of hundreds of millions of documents before it begins.

It holds what seqio's own `task.preprocess_precache` yields of each file of the source, in the order
of the files, example for example. Building (`data.tokenize.build_store`) needs seqio and
TensorFlow; reading
needs NumPy.
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

HEADER_BYTES = 128  # of NumPy's file of one array of integers, however long it is


PROGRESS = "progress.json"


def partial_directory(directory: Path) -> Path:
    """Return where a store lies while it is being made."""
    return directory.with_name(f".{directory.name}.partial")


FORMAT = 1
READ_BYTES = 1 << 28  # stores up to this size are read as a whole when they are verified


class CorruptStoreError(ConfigError):
    """A store whose files differ from what was written; `corruption` describes the first."""

    def __init__(self, directory: Path, corruption: str):
        super().__init__(
            f"the token store in {directory} is corrupt ({corruption}): delete it", "DATA_DIR"
        )
        self.corruption = corruption


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
        is refused. Raises ConfigError, also where there is no store, and CorruptStoreError where
        its files are not whole; `verify` holds them against their checksums (above `READ_BYTES`
        their sizes alone).
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


def check_same_source(
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


def token_dtype(vocab_size: int) -> str:
    """Return the smallest of the two kinds of integers that hold a vocabulary's ids."""
    return "<u2" if vocab_size <= 65536 else "<u4"
