"""Chunks of random length, instead of chunks that fill the features."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from t5x_lite.errors import ConfigError, require_field
from t5x_lite.objectives import philox
from t5x_lite.objectives.objective import (
    EosAfter,
    Objective,
    PairObjective,
    Rows,
    TokenLevelObjective,
)
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import SpanCorruption


@dataclass(frozen=True)
class RandomLengths:
    """Applies an objective to chunks of random length, so that a model also sees short texts.

    All chunks of a group of documents have one length. Its logarithm is uniform between `shortest`
    and the length that fills the features: with 8 to 511 tokens, half of the groups have 64 or
    fewer. Source: the T5 library's `split_tokens_to_random_length`.

    Attributes:
        objective: The objective; it must append EOS to each chunk.
        shortest: Smallest chunk length; 8 as in the T5 library.
    """

    objective: Objective = field(default_factory=SpanCorruption)
    shortest: int = 8

    eos_after: ClassVar[EosAfter] = "chunks"

    def __post_init__(self):
        """Check the settings."""
        require_field(self, "shortest", self.shortest >= 1, "at least 1")
        is_other = isinstance(self.objective, PairObjective | TokenLevelObjective)
        if is_other or self.objective.eos_after != self.eos_after:
            raise ConfigError(
                f"{type(self.objective).__name__} does not support chunks of random length; "
                "expected an objective that makes inputs and targets of single chunks, with EOS",
                "RandomLengths.objective",
            )

    @property
    def documents_per_group(self) -> int:
        """Number of documents that the objective concatenates."""
        return self.objective.documents_per_group

    def chunk_lengths(self, longest: int, keys_b2: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Draw the chunk length of each group of documents, [b]; see `RandomLengthObjective`."""
        if longest < self.shortest:
            raise ConfigError(
                f"the features hold chunks of {longest} tokens, fewer than shortest = "
                f"{self.shortest}",
                "RandomLengths.shortest",
                "TASK_FEATURE_LENGTHS",
            )
        low, high = np.log(np.array([self.shortest, longest], np.float32))
        drawn_b = np.exp(low + philox.uniform(keys_b2, 1)[:, 0] * (high - low))
        # exp(log(8)) is a little less than 8 in float32.
        return np.clip(drawn_b.astype(np.int64), self.shortest, longest)

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Compute the length of the longest chunks."""
        return self.objective.raw_length(feature_lengths)

    def sentinels_needed(self, feature_lengths: Mapping[str, int]) -> int:
        """Return the largest number of sentinels of the longest chunks."""
        return self.objective.sentinels_needed(feature_lengths)

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: NDArray[np.uint32]
    ) -> dict[str, NDArray[np.int64]]:
        """Compute the lengths of the objective's features."""
        return self.objective.lengths(lengths_b, keys_b2)

    def __call__(
        self, rows: Rows, keys_b2: NDArray[np.uint32], sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Make the objective's features."""
        return self.objective(rows, keys_b2, sentinels)
