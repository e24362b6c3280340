"""How text is cut into pieces, where that is not as long as the features hold."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from t5x_lite.errors import ConfigError, require_field
from t5x_lite.objectives import philox
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import (
    EosAfter,
    Objective,
    PairObjective,
    SpanCorruption,
    TokenLevelObjective,
)
from t5x_lite.objectives.spans import Rows


@dataclass(frozen=True)
class RandomLengths:
    """An objective on pieces of random lengths, so that a model meets short texts too.

    All pieces of a group of documents have one length, between `shortest` and what the features
    hold, whose logarithm is uniform: of 8 ... 511 tokens every second group has 64 or fewer.
    Source: the T5 library's `split_tokens_to_random_length`.
    """

    objective: Objective = field(default_factory=SpanCorruption)
    shortest: int = 8

    eos_after: ClassVar[EosAfter] = "pieces"

    def __post_init__(self):
        """Refuse pieces of nothing, and objectives whose random choices need other pieces."""
        require_field(self, "shortest", self.shortest >= 1, "at least 1")
        is_other = isinstance(self.objective, PairObjective | TokenLevelObjective)
        if is_other or self.objective.eos_after != self.eos_after:
            raise ConfigError(
                f"{type(self.objective).__name__} cannot have pieces of random lengths; wanted an "
                "objective that makes inputs and targets of single pieces, each with EOS",
                "RandomLengths.objective",
            )

    @property
    def documents_per_group(self) -> int:
        """How many documents the objective joins."""
        return self.objective.documents_per_group

    def piece_lengths(self, longest: int, keys_b2: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return how long the pieces of each group are: [b]."""
        if longest < self.shortest:
            raise ConfigError(
                f"the features hold pieces of {longest} tokens, the shortest are to have "
                f"{self.shortest}",
                "RandomLengths.shortest",
                "TASK_FEATURE_LENGTHS",
            )
        low, high = np.log(np.array([self.shortest, longest], np.float32))
        drawn_b = np.exp(low + philox.uniform(keys_b2, 1)[:, 0] * (high - low))
        # The logarithm of 8 and back is a little less than 8.
        return np.clip(drawn_b.astype(np.int64), self.shortest, longest)

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Return how long the longest pieces are."""
        return self.objective.raw_length(feature_lengths)

    def sentinels_needed(self, feature_lengths: Mapping[str, int]) -> int:
        """Return how many sentinels the longest piece takes at most."""
        return self.objective.sentinels_needed(feature_lengths)

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: NDArray[np.uint32]
    ) -> dict[str, NDArray[np.int64]]:
        """Return the objective's."""
        return self.objective.lengths(lengths_b, keys_b2)

    def __call__(
        self, rows: Rows, keys_b2: NDArray[np.uint32], sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Return what the objective makes."""
        return self.objective(rows, keys_b2, sentinels)
