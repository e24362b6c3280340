"""Language modeling: the text is the target, except for a prefix that may be the inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from t5x_lite.errors import require_field
from t5x_lite.objectives import masks, noise
from t5x_lite.objectives.feature_lengths import length_of
from t5x_lite.objectives.objective import EosAfter, Rows
from t5x_lite.objectives.sentinels import Sentinels


@dataclass(frozen=True)
class LM:
    """The language model of the T5 paper's study: no inputs; targets are a chunk of text and EOS.

        targets   Thank you for inviting me to your party last week .

    Attributes:
        documents_per_group: Number of documents that are concatenated before they are cut into
            chunks.
    """

    documents_per_group: int = 128

    eos_after: ClassVar[EosAfter] = "chunks"

    def __post_init__(self):
        """Check the settings."""
        require_field(self, "documents_per_group", self.documents_per_group >= 1, "at least 1")

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Compute the chunk length: that of the targets, without EOS if it is appended."""
        name, appended_eos = type(self).__name__, int(self.eos_after == "chunks")
        return length_of(feature_lengths, "targets", least=2, objective=name) - appended_eos

    def sentinels_needed(self, feature_lengths: Mapping[str, int]) -> int:
        """Return 0: no sentinels are used."""
        del feature_lengths
        return 0

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: NDArray[np.uint32]
    ) -> dict[str, NDArray[np.int64]]:
        """Return 0 for "inputs" and the length of the text for "targets"."""
        del keys_b2
        lengths_b = np.asarray(lengths_b, np.int64)
        return {"inputs": np.zeros_like(lengths_b), "targets": lengths_b}

    def __call__(
        self, rows: Rows, keys_b2: NDArray[np.uint32], sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Make empty "inputs", and "targets", the text."""
        del keys_b2, sentinels
        empty = Rows(np.zeros((len(rows.lengths), 0), np.int32), np.zeros_like(rows.lengths))
        return {"inputs": empty, "targets": rows}


@dataclass(frozen=True)
class FullLM(LM):
    """A language model of a stream of documents: EOS after each document, none after chunks.

    Attributes:
        documents_per_group: Number of documents that are concatenated before they are cut into
            chunks.
    """

    eos_after: ClassVar[EosAfter] = "documents"


@dataclass(frozen=True)
class LMAdaptation:
    """LM adaptation: a random prefix of each chunk of a stream of documents is the inputs.

        text      Thank you for inviting me . </s> The party was
        inputs    Thank you for
        targets   inviting me . </s> The party was

    T5 1.1 was adapted with it for prompt tuning (Lester et al. 2021). It is the T5 library's
    later prefix LM, with EOS after documents only and a prefix of 1 to n - 1 tokens. There, two
    chunks with complementary prefixes fill a row; here packing combines examples that fit.

    Attributes:
        documents_per_group: Number of documents that are concatenated before they are cut into
            chunks.
    """

    documents_per_group: int = 128

    eos_after: ClassVar[EosAfter] = "documents"

    def __post_init__(self):
        """Check the settings."""
        require_field(self, "documents_per_group", self.documents_per_group >= 1, "at least 1")

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Compute the chunk length: the smaller of the features' lengths."""
        return min(
            length_of(feature_lengths, feature, least=2, objective="LMAdaptation")
            for feature in ("inputs", "targets")
        )

    def sentinels_needed(self, feature_lengths: Mapping[str, int]) -> int:
        """Return 0: no sentinels are used."""
        del feature_lengths
        return 0

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: NDArray[np.uint32]
    ) -> dict[str, NDArray[np.int64]]:
        """Compute the lengths of "inputs" and "targets" from the prefix drawn for each chunk."""
        lengths_b = np.asarray(lengths_b, np.int64)
        prefix_bl = self._prefix(lengths_b, keys_b2, int(lengths_b.max(initial=0)))
        prefix_b = np.count_nonzero(prefix_bl, axis=1)
        return {"inputs": prefix_b, "targets": lengths_b - prefix_b}

    def __call__(
        self, rows: Rows, keys_b2: NDArray[np.uint32], sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Make "inputs", the prefix, and "targets", the rest."""
        del sentinels
        prefix_bl = self._prefix(rows.lengths, keys_b2, rows.tokens.shape[1])
        return {
            "inputs": noise.drop_noise(rows, ~prefix_bl),
            "targets": noise.drop_noise(rows, prefix_bl),
        }

    def _prefix(
        self, lengths_b: NDArray[np.integer], keys_b2: NDArray[np.uint32], max_length: int
    ) -> NDArray[np.bool_]:
        return masks.random_prefix_mask(
            lengths_b, noise_density=0.5, keys_b2=keys_b2, max_length=max_length
        )
