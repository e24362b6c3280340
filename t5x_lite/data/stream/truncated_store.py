"""The beginning of a task's text, to be trained on again and again: the T5 study's repeated data.

Raffel et al. 2020, section 3.4.2: pretraining on 2^35 tokens takes C4 cut to 2^29, 2^27, 2^25 and
2^23 of them, which are so gone through 64, 256, 1,024 and 4,096 times.
"""

import bisect
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.stream.examples import Store
from t5x_lite.errors import ConfigError


def tokens_to_repeat(
    times: int, *, steps: int, batch_size: int, feature_lengths: Mapping[str, int]
) -> int:
    """How many tokens of text are gone through so many times in a run of full rows of inputs.

    >>> tokens_to_repeat(64, steps=2**19, batch_size=128, feature_lengths={"inputs": 512}) == 2**29
    True
    """
    tokens = steps * batch_size * feature_lengths["inputs"]
    if not 1 <= times <= tokens:
        raise ConfigError(
            f"{times:,} times is none in which {tokens:,} tokens can be repeated",
            "tokens_to_repeat.times",
        )
    return tokens // times


@dataclass(frozen=True)
class TruncatedStore:
    """The first examples of a store; it reads like a store."""

    store: Store
    num_examples: int

    @property
    def features(self) -> Collection[str]:
        """The names of the features."""
        return self.store.features

    def tokens(self, feature: str) -> NDArray[np.integer]:
        """Return all tokens of a feature, also those after the last offset."""
        return self.store.tokens(feature)

    def offsets(self, feature: str) -> NDArray[np.int64]:
        """Return where each example begins and, last, where the last one ends."""
        return self.store.offsets(feature)[: self.num_examples + 1]

    def groups(self, feature: str) -> NDArray[np.int64] | None:
        """Return the number and the start of every 128th document with tokens, if they are kept."""
        if (table_g2 := self.store.groups(feature)) is None:
            return None
        return table_g2[: np.searchsorted(np.asarray(table_g2)[:, 0], self.num_examples)]


def truncate_store(name: str, store: Store, tokens: int) -> TruncatedStore:
    """Return the first documents of a store of text that have no more than `tokens` together.

    Raises ConfigError where not even one document is so short, and where the store has no more
    than that: nothing would be left out.
    """
    offsets = store.offsets("targets")
    there = int(offsets[store.num_examples])
    documents = bisect.bisect_right(offsets, tokens) - 1
    if not documents or there <= tokens or int(offsets[documents]) == 0:
        raise ConfigError(
            f"max_text_tokens is {tokens:,}: task {name!r} has {there:,} tokens of text in "
            "documents "
            f"of which the first has {int(offsets[min(1, store.num_examples)]):,}; wanted a number "
            "between",
            "Data.max_text_tokens",
        )
    return TruncatedStore(store, documents)
