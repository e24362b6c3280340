"""Limit a text task to its first tokens, so that training repeats them (`Data.max_text_tokens`).

The T5 study measures the effect of repeated data so: pretraining on 2^35 tokens with C4 truncated
to 2^29, 2^27, 2^25 and 2^23 of them, which are then seen 64, 256, 1,024 and 4,096 times.

Source: Raffel et al. 2020 (T5), section 3.4.2.
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
    """Return the number of tokens that a run of full rows sees a given number of times.

    >>> tokens_to_repeat(64, steps=2**19, batch_size=128, feature_lengths={"inputs": 512}) == 2**29
    True

    Args:
        times: how often each token is seen.
        steps: of the run.
        batch_size: the number of rows of a batch.
        feature_lengths: the lengths of the features, of which "inputs" counts, in tokens.

    Returns:
        A value for `Data.max_text_tokens`.

    Raises:
        ConfigError: if `times` is below 1 or above the number of tokens of the run.
    """
    tokens = steps * batch_size * feature_lengths["inputs"]
    if not 1 <= times <= tokens:
        raise ConfigError(
            f"times is {times:,}: it takes 1 to {tokens:,}, the number of tokens of the run",
            "tokens_to_repeat.times",
        )
    return tokens // times


@dataclass(frozen=True)
class TruncatedStore:
    """The first examples of a store, with the methods of a store.

    Attributes:
        store: the whole store.
        num_examples: how many of its examples there are.
    """

    store: Store
    num_examples: int

    @property
    def features(self) -> Collection[str]:
        """The names of the features."""
        return self.store.features

    def tokens(self, feature: str) -> NDArray[np.integer]:
        """Return all tokens of a feature of the whole store: [tokens]."""
        return self.store.tokens(feature)

    def offsets(self, feature: str) -> NDArray[np.int64]:
        """Return where each example starts and, last, where the last one ends: [examples + 1]."""
        return self.store.offsets(feature)[: self.num_examples + 1]

    def groups(self, feature: str) -> NDArray[np.int64] | None:
        """Return the part of the group table that belongs to these examples: [groups, 2]."""
        if (table_g2 := self.store.groups(feature)) is None:
            return None
        return table_g2[: np.searchsorted(np.asarray(table_g2)[:, 0], self.num_examples)]


def truncate_store(name: str, store: Store, max_tokens: int) -> TruncatedStore:
    """Return the first documents of a store of text, with at most `max_tokens` tokens in all.

        documents of 3, 2 and 4 tokens, max_tokens 6   ->   the first two

    Args:
        name: of the task, for errors.
        store: a store with the documents as "targets".
        max_tokens: the limit.

    Raises:
        ConfigError: if not even the first document is that short, or the store has no more tokens
            than that, so that nothing would be omitted.
    """
    offsets = store.offsets("targets")
    total = int(offsets[store.num_examples])
    documents = bisect.bisect_right(offsets, max_tokens) - 1
    if not documents or total <= max_tokens or int(offsets[documents]) == 0:
        first = int(offsets[min(1, store.num_examples)])
        raise ConfigError(
            f"max_text_tokens is {max_tokens:,}: task {name!r} has {total:,} tokens of text in "
            f"documents of which the first has {first:,}; expected a number between",
            "Data.max_text_tokens",
        )
    return TruncatedStore(store, documents)
