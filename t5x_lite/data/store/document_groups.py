"""Groups of documents, which text is joined in before it is cut into pieces.

Empty documents count for nothing. With two documents a group:

    documents     abc (empty) de | f gh | i      groups begin with documents   0 3 5, 6 documents
    places        0   3       3    5 6    8      and at the tokens             0 5 8, 9 tokens
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

DOCUMENTS = 128  # of a group in the tables of token stores, as T5's `reduce_concat_tokens` has
_OFFSETS_PER_READ = 1 << 20


class Offsets(Protocol):
    """What is needed of a store: where its documents begin, and the table of its groups."""

    def offsets(self, feature: str) -> NDArray[np.int64]:
        """Return where each document begins and, last, where the last one ends."""
        ...

    def groups(self, feature: str) -> NDArray[np.int64] | None:
        """Return the number and the start of every 128th document with tokens, if they are kept."""
        ...


def group_documents(
    store: Offsets, feature: str, documents_per_group: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first document of each group and where it begins; last, where all ends.

    From the store's table where that serves, which takes a moment for any corpus; otherwise from
    all offsets, a million at a time.
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
    parts, seen = [np.zeros(0, np.int64)], 0
    for low in range(0, len(offsets) - 1, _OFFSETS_PER_READ):
        bounds = np.asarray(offsets[low : low + _OFFSETS_PER_READ + 1])
        documents = low + np.flatnonzero(np.diff(bounds) > 0)
        parts.append(documents[-seen % documents_per_group :: documents_per_group])
        seen += len(documents)
    return np.concatenate(parts)
