"""The interface of objectives; to add one, implement `Objective` and write a gin file for it.

An objective maps chunks of text, as token ids, to inputs and targets. It also computes how many
tokens of text fill the configured features. It neither tokenizes nor appends EOS. Objectives are
frozen dataclasses and pure functions of chunks and keys. `span_corruption` is an example, and
gin_configs/objectives/ has a file for each.

Array names: b chunks of the batch, l positions.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from t5x_lite.objectives.sentinels import Sentinels

EosAfter = Literal["chunks", "documents"]


class Rows(NamedTuple):
    """A batch of token sequences of unequal length.

    Attributes:
        tokens: int32 [batch, width], 0 beyond a row's length.
        lengths: int32 [batch].
    """

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]


class Objective(Protocol):
    """What the data pipeline requires of an objective.

    Attributes:
        eos_after: "chunks": EOS is appended to both features of every chunk. "documents": the text
            contains the EOS of each document, and nothing is appended to features, except that an
            empty feature becomes EOS alone.
    """

    eos_after: ClassVar[EosAfter]

    @property
    def documents_per_group(self) -> int:
        """Number of consecutive documents that are concatenated before they are cut into chunks."""
        ...

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Compute how many tokens of text fill the features, leaving room for EOS.

        If the lengths of the features are random, the configured ones must hold the average; the
        caller truncates what is longer and keeps EOS.

        Args:
            feature_lengths: Length of "inputs" and "targets" (TASK_FEATURE_LENGTHS), EOS included.

        Returns:
            Length of a chunk.

        Raises:
            ConfigError: The features cannot hold what the objective makes.
        """
        ...

    def sentinels_needed(self, feature_lengths: Mapping[str, int]) -> int:
        """Return the largest number of sentinels of a chunk, which the vocabulary must have.

        Args:
            feature_lengths: As for `raw_length`.
        """
        ...

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: NDArray[np.uint32]
    ) -> dict[str, NDArray[np.int64]]:
        """Compute the lengths of the features that `__call__` makes with the same keys.

        Packing uses them before any text is read.

        Args:
            lengths_b: Length of each chunk [b].
            keys_b2: Key of each chunk, uint32 [b, 2].

        Returns:
            int64 [b] for each feature, without appended EOS.
        """
        ...

    def __call__(
        self, rows: Rows, keys_b2: NDArray[np.uint32], sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Make the features of chunks; row i depends on chunk i and key i only.

        Args:
            rows: The chunks.
            keys_b2: Key of each chunk, uint32 [b, 2].
            sentinels: The vocabulary's sentinels.

        Returns:
            Rows of each feature, without appended EOS.
        """
        ...


@runtime_checkable
class PairObjective(Protocol):
    """An objective that combines each chunk with another one drawn from the same task (BERT)."""

    def pair_lengths(
        self,
        lengths_b: NDArray[np.integer],
        other_lengths_b: NDArray[np.integer],
        keys_b2: NDArray[np.uint32],
    ) -> dict[str, NDArray[np.int64]]:
        """Compute the lengths of the features that `pair` makes with the same keys.

        Args:
            lengths_b: Length of each chunk [b].
            other_lengths_b: Length of the other chunk of each [b].
            keys_b2: Key of each chunk, uint32 [b, 2].

        Returns:
            int64 [b] for each feature, without appended EOS.
        """
        ...

    def pair(
        self, rows: Rows, others: Rows, keys_b2: NDArray[np.uint32], sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Make the features of pairs of chunks.

        Args:
            rows: The chunks.
            others: The other chunk of each.
            keys_b2: Key of each chunk, uint32 [b, 2].
            sentinels: The vocabulary's sentinels.

        Returns:
            Rows of each feature, without appended EOS.
        """
        ...


@runtime_checkable
class TokenLevelObjective(Protocol):
    """An objective for encoders, which predict tokens at the positions of the inputs.

    Attributes:
        aligned_features: Additional features with one value per token of the inputs, and the value
            of each at the EOS that ends them. One is "weights", 1 for positions that are predicted.
        labels: Additional features with one value per example.
    """

    aligned_features: ClassVar[Mapping[str, int]]
    labels: ClassVar[tuple[str, ...]]


@runtime_checkable
class RandomLengthObjective(Protocol):
    """An objective whose chunk length is drawn for each group of documents."""

    def chunk_lengths(self, longest: int, keys_b2: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Draw the chunk length of each group of documents.

        Args:
            longest: Largest chunk length, which fills the features.
            keys_b2: Key of each group, uint32 [b, 2].

        Returns:
            int64 [b].
        """
        ...
