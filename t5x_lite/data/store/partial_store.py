"""Read a token store while another process writes it, as far as it has grown.

A reader waits for examples that are not written yet. It takes the last example for the end of the
store only when the store is complete.
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

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class StorePrefix:
    """The examples that a growing store had at one time, with the methods of a store.

    Attributes:
        directory: where the growing store is.
        features: what its progress file says of each feature: type and number of tokens, and how
            many groups of documents there are.
        num_examples: how many examples it had.
        num_groups: how many groups of documents are complete; None: all in the progress file, of
            which the last may be incomplete.
    """

    directory: Path
    features: Mapping[str, Mapping[str, Any]]
    num_examples: int
    num_groups: int | None = None

    def tokens(self, feature: str) -> NDArray[np.unsignedinteger]:
        """Return the tokens of a feature of all examples, one after another: [tokens]."""
        described = self.features[feature]
        return _mapped(self._path(feature, "tokens.bin"), described["dtype"], described["tokens"])

    def offsets(self, feature: str) -> NDArray[np.int64]:
        """Return where each example starts and, last, where the last one ends: [examples + 1]."""
        path = self._path(feature, "offsets.npy")
        return _mapped(path, "<i8", self.num_examples + 1, at=HEADER_BYTES)

    def groups(self, feature: str) -> NDArray[np.int64]:
        """Return the index and the start of every 128th non-empty document: [groups, 2]."""
        count = self.features[feature]["groups"] if self.num_groups is None else self.num_groups
        path = self._path(feature, "groups.npy")
        return _mapped(path, "<i8", 2 * count, at=HEADER_BYTES).reshape(count, 2)

    def _path(self, feature: str, suffix: str) -> Path:
        return self.directory / f"{feature}.{suffix}"


@dataclass(frozen=True)
class PartialStore:
    """A store that another process is writing.

    Attributes:
        directory: where the complete store will be.
        check: raises an error if the process that writes it has failed.
    """

    directory: Path
    check: Callable[[], None]

    def read_available(
        self, documents_per_group: int | None = None
    ) -> TokenStore | StorePrefix | None:
        """Return the complete store, or the examples that are certain, or None if there are none.

        Args:
            documents_per_group: of text. Only complete groups are certain: whatever documents
                follow, they are cut into the same chunks. None for pairs.
        """
        partial = partial_directory(self.directory)
        # The progress is read before the check for completeness: when the store is completed in
        # between, the complete one is opened.
        progress = read_json_if_exists(partial / PROGRESS)
        if self.directory.exists():
            return TokenStore.open(self.directory)
        if not progress or not progress["num_examples"]:
            return None
        try:
            prefix = StorePrefix(partial, progress["features"], progress["num_examples"])
            if documents_per_group is None:
                return prefix
            return _complete_groups(prefix, documents_per_group)
        except FileNotFoundError:  # the store was completed meanwhile
            return None

    def wait(self) -> None:
        """Wait a moment, unless the process that writes the store has failed."""
        self.check()
        time.sleep(_POLL_SECONDS)


def _complete_groups(prefix: StorePrefix, documents_per_group: int) -> StorePrefix | None:
    """Return the text up to the last end of a group of documents that is also one in the table.

    The table has groups of 128 documents: with 192 documents a group, that is every 384.
    """
    step = math.lcm(documents_per_group, DOCUMENTS) // DOCUMENTS
    table_g2 = prefix.groups("targets")
    count = max(len(table_g2) - 1, 0) // step * step  # the last entry starts an incomplete group
    if not count:
        return None
    return StorePrefix(prefix.directory, prefix.features, int(table_g2[count, 0]), count)


def _mapped(path: Path, dtype: str, count: int, *, at: int = 0) -> NDArray[Any]:
    if not count:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r", offset=at, shape=(count,))
