"""Self-supervised objectives: from pieces of text to inputs and targets.

An objective is a frozen value with two questions to answer: how long a piece of text fills the
configured features, and what becomes of such pieces. It neither tokenises nor appends EOS.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from t5x_lite.errors import ConfigError
from t5x_lite.objectives import spans
from t5x_lite.objectives.spans import Rows, Sentinels


class Objective(Protocol):
    """What the data path asks of an objective."""

    @property
    def documents_per_group(self) -> int:
        """How many consecutive documents are joined before they are cut into pieces."""
        ...

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Return how many tokens of text fill the features, EOS of each feature included.

        Raises ConfigError where the features cannot hold what the objective makes.
        """
        ...

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: NDArray[np.uint32]
    ) -> dict[str, NDArray[np.int64]]:
        """Return how long the features of pieces of these lengths are, without EOS: [b] each.

        What `__call__` makes of the same keys is as long; packing asks before any text is read.
        """
        ...

    def __call__(
        self, rows: Rows, keys_b2: NDArray[np.uint32], sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Return the features of each piece, without EOS. Row i depends on row i and key i only."""
        ...


@dataclass(frozen=True)
class SpanCorruption:
    """T5's objective: random spans are cut out of the inputs and spelt out in the targets.

        text      Thank you for inviting me to your party last week
        inputs    Thank you <X> me to your party <Y> week
        targets   <X> for inviting <Y> last

    The default, 15 % of the tokens in spans of 3 on average, is the one T5 1.0, T5 1.1 and mT5 were
    trained with (Raffel et al. 2020, tables 5 to 7). `documents_per_group` documents are joined
    without a separator before they are cut; 1 keeps every piece inside one document.
    """

    noise_density: float = 0.15
    mean_noise_span_length: float = 3.0
    documents_per_group: int = 128

    def __post_init__(self):
        """Refuse settings that no text could be corrupted by."""
        if not 0 < self.noise_density < 1:
            raise ConfigError(
                f"noise_density is {self.noise_density}: it must lie between 0 and 1",
                "SpanCorruption.noise_density",
            )
        if self.mean_noise_span_length < 1:
            raise ConfigError(
                f"mean_noise_span_length is {self.mean_noise_span_length}: it must be at least 1",
                "SpanCorruption.mean_noise_span_length",
            )
        if self.documents_per_group < 1:
            raise ConfigError(
                f"documents_per_group is {self.documents_per_group}: it must be at least 1",
                "SpanCorruption.documents_per_group",
            )

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Return how many tokens of text fill the inputs: 568 for 512 inputs and 114 targets."""
        missing = [name for name in ("inputs", "targets") if name not in feature_lengths]
        if missing:
            raise ConfigError(
                f"span corruption needs the lengths of 'inputs' and 'targets': "
                f"{dict(feature_lengths)} lacks {' and '.join(map(repr, missing))}",
                "TASK_FEATURE_LENGTHS",
            )
        inputs_length, targets_length = feature_lengths["inputs"], feature_lengths["targets"]
        if inputs_length < 3:  # one kept token, one sentinel, EOS
            raise ConfigError(
                f"inputs of {inputs_length} tokens hold no corrupted text: use at least 3",
                "TASK_FEATURE_LENGTHS",
            )
        raw_length, needed = spans.span_corruption_lengths(
            inputs_length,
            noise_density=self.noise_density,
            mean_noise_span_length=self.mean_noise_span_length,
        )
        if targets_length < needed:
            raise ConfigError(
                f"targets of {targets_length} tokens are too short: span corruption of inputs of "
                f"{inputs_length} tokens (noise_density {self.noise_density}, "
                f"mean_noise_span_length {self.mean_noise_span_length}) makes targets of {needed}",
                "TASK_FEATURE_LENGTHS",
            )
        return raw_length

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: NDArray[np.uint32]
    ) -> dict[str, NDArray[np.int64]]:
        """Return the lengths of "inputs" and "targets", which chance does not touch."""
        del keys_b2
        lengths_b = np.asarray(lengths_b, np.int64)
        noise_b, spans_b = spans.noise_counts(
            np.maximum(lengths_b, 2), self.noise_density, self.mean_noise_span_length
        )
        # The noise of a single token is the second of the two that its mask is cut from.
        noise_b = np.where(lengths_b < 2, 0, noise_b)
        return {
            "inputs": lengths_b - noise_b + np.where(lengths_b < 2, 0, spans_b),
            "targets": noise_b + np.where(lengths_b < 1, 0, spans_b),
        }

    def __call__(
        self, rows: Rows, keys_b2: NDArray[np.uint32], sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Return "inputs" (noise spans as sentinels) and "targets" (kept spans as sentinels)."""
        mask_bl = spans.random_spans_mask(
            rows.lengths,
            noise_density=self.noise_density,
            mean_noise_span_length=self.mean_noise_span_length,
            keys_b2=keys_b2,
            max_length=rows.tokens.shape[1],
        )
        return {
            "inputs": spans.noise_spans_to_unique_sentinel(rows, mask_bl, sentinels),
            "targets": spans.noise_spans_to_unique_sentinel(rows, ~mask_bl, sentinels),
        }
