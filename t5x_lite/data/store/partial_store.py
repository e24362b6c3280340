"""A token store that another process is making, read as far as it has grown.

Whoever reads waits for what is not there yet, and never takes anything for the end before it is.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.store.document_groups import DOCUMENTS
from t5x_lite.data.store.token_store import HEADER_BYTES, PROGRESS, TokenStore, partial_directory
from t5x_lite.io.safe_files import read_json_if_exists

_SECONDS = 0.2  # between two looks


@dataclass(frozen=True)
class StorePrefix:
    """The examples that a growing store had at one time; it reads like a store."""

    directory: Path
    features: Mapping[str, Mapping[str, Any]]
    num_examples: int
    num_groups: int | None = None  # of text; None are all, of which the last may be unfinished

    def tokens(self, feature: str) -> NDArray[np.unsignedinteger]:
        """Return all tokens of a feature, end to end."""
        described = self.features[feature]
        return _mapped(self._path(feature, "tokens.bin"), described["dtype"], described["tokens"])

    def offsets(self, feature: str) -> NDArray[np.int64]:
        """Return where each example begins and, last, where the last one ends."""
        path = self._path(feature, "offsets.npy")
        return _mapped(path, "<i8", self.num_examples + 1, at=HEADER_BYTES)

    def groups(self, feature: str) -> NDArray[np.int64]:
        """Return the number and the start of every 128th document with tokens."""
        count = self.features[feature]["groups"] if self.num_groups is None else self.num_groups
        path = self._path(feature, "groups.npy")
        return _mapped(path, "<i8", 2 * count, at=HEADER_BYTES).reshape(count, 2)

    def _path(self, feature: str, ending: str) -> Path:
        return self.directory / f"{feature}.{ending}"


@dataclass(frozen=True)
class PartialStore:
    """The store that will be in a directory.

    check: raises where nobody makes it any more.
    """

    directory: Path
    check: Callable[[], None]

    def read_available(
        self, documents_per_group: int | None = None
    ) -> TokenStore | StorePrefix | None:
        """Return the store if it is complete, else what is certain of it, None before anything is.

        Of text, of which so many documents are a group, only whole groups are: whatever is still to
        come, they are cut into the pieces that they are cut into now.
        """
        partial = partial_directory(self.directory)
        progress = read_json_if_exists(partial / PROGRESS)
        if self.directory.exists():
            return TokenStore.open(self.directory)
        if not progress or not progress["num_examples"]:
            return None
        try:
            found = StorePrefix(partial, progress["features"], progress["num_examples"])
            return (
                found if documents_per_group is None else _whole_groups(found, documents_per_group)
            )
        except FileNotFoundError:  # it has become complete since
            return None

    def wait(self) -> None:
        """Let some time pass, if anybody still makes the store."""
        self.check()
        time.sleep(_SECONDS)


def _whole_groups(found: StorePrefix, documents_per_group: int) -> StorePrefix | None:
    """Return the text before the last place where a group of documents and one of the table end."""
    step = math.lcm(documents_per_group, DOCUMENTS) // DOCUMENTS
    table_g2 = found.groups("targets")
    count = max(len(table_g2) - 1, 0) // step * step
    if not count:
        return None
    return StorePrefix(found.directory, found.features, int(table_g2[count, 0]), count)


def _mapped(path: Path, dtype: str, count: int, *, at: int = 0) -> NDArray[Any]:
    if not count:  # which cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r", offset=at, shape=(count,))
