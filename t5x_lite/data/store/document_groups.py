"""Group consecutive documents, which are joined before text is cut into chunks.

Empty documents do not count. With two documents a group (positions count tokens):

    documents     abc (empty) de | f gh | i      groups start with documents   0 3 5, of 6 documents
    start at      0   3       3    5 6    8      and at the tokens             0 5 8, of 9 tokens
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# Documents of a group in the tables of token stores, as in T5's `reduce_concat_tokens`.
DOCUMENTS = 128
_OFFSETS_PER_READ = 1 << 20


class Offsets(Protocol):
    """The part of a store that says where its documents start."""

    def offsets(self, feature: str) -> NDArray[np.int64]:
        """Return where each document starts and, last, where the last one ends: [documents + 1]."""
        ...

    def groups(self, feature: str) -> NDArray[np.int64] | None:
        """Return the index and the start of every 128th non-empty document: [groups, 2].

        None for a store without this table.
        """
        ...


def group_documents(
    store: Offsets, feature: str, documents_per_group: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first document of each group, and where its tokens start.

    If the store has a table for groups of 128 documents and the group size is a multiple of it,
    this takes milliseconds for a corpus of any size. Otherwise all offsets are read.

    Args:
        store: a store of documents.
        feature: the feature that contains them.
        documents_per_group: how many non-empty documents make a group.

    Returns:
        The index of the first document of each group and, last, the number of documents; and where
        these documents start and, last, where the last one ends: int64 [groups + 1] each.
    """
    offsets, table_g2 = store.offsets(feature), store.groups(feature)
    last = len(offsets) - 1
    if table_g2 is None or documents_per_group % DOCUMENTS:
        first_g = _first_documents(offsets, documents_per_group)
        starts_g = np.asarray(offsets[first_g])
    else:
        table_g2 = np.asarray(table_g2[:: documents_per_group // DOCUMENTS])
        first_g, starts_g = table_g2[:, 0], table_g2[:, 1]
    return np.append(first_g, last), np.append(starts_g, offsets[last])


def _first_documents(offsets: NDArray[np.int64], documents_per_group: int) -> NDArray[np.int64]:
    """Return the index of the first document of each group, a million offsets at a time.

    Hundreds of millions of offsets need not fit into memory.
    """
    parts, seen = [np.zeros(0, np.int64)], 0
    for low in range(0, len(offsets) - 1, _OFFSETS_PER_READ):
        bounds = np.asarray(offsets[low : low + _OFFSETS_PER_READ + 1])
        documents = low + np.flatnonzero(np.diff(bounds) > 0)
        # The first group that starts here: -seen % n documents still belong to the group before.
        parts.append(documents[-seen % documents_per_group :: documents_per_group])
        seen += len(documents)
    return np.concatenate(parts)
