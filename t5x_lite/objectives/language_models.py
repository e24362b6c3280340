"""Language modelling: text as it is, with nothing or a first part of it as inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from t5x_lite.errors import require_field
from t5x_lite.objectives import masks, noise
from t5x_lite.objectives.feature_lengths import length_of
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import EosAfter
from t5x_lite.objectives.spans import Rows


@dataclass(frozen=True)
class LM:
    """The study's language model: no inputs, and targets that are a piece of text and EOS.

    targets   Thank you for inviting me to your party last week .
    """

    documents_per_group: int = 128

    eos_after: ClassVar[EosAfter] = "pieces"

    def __post_init__(self):
        """Refuse a group of no documents."""
        require_field(self, "documents_per_group", self.documents_per_group >= 1, "at least 1")

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Return how many tokens of text fill the targets: with EOS after each piece, one less."""
        name, own_eos = type(self).__name__, int(self.eos_after == "pieces")
        return length_of(feature_lengths, "targets", least=2, objective=name) - own_eos

    def sentinels_needed(self, feature_lengths: Mapping[str, int]) -> int:
        """Return 0."""
        del feature_lengths
        return 0

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: NDArray[np.uint32]
    ) -> dict[str, NDArray[np.int64]]:
        """Return the lengths of "inputs", which are empty, and "targets"."""
        del keys_b2
        lengths_b = np.asarray(lengths_b, np.int64)
        return {"inputs": np.zeros_like(lengths_b), "targets": lengths_b}

    def __call__(
        self, rows: Rows, keys_b2: NDArray[np.uint32], sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Return empty "inputs" and the text as "targets"."""
        del keys_b2, sentinels
        nothing = Rows(np.zeros((len(rows.lengths), 0), np.int32), np.zeros_like(rows.lengths))
        return {"inputs": nothing, "targets": rows}


@dataclass(frozen=True)
class FullLM(LM):
    """A language model of a stream of documents: EOS after every document, none after a piece."""

    eos_after: ClassVar[EosAfter] = "documents"


@dataclass(frozen=True)
class LMAdaptation:
    """A stream of documents, cut to pieces, of which a random prefix is the inputs.

        text      Thank you for inviting me . </s> The party was
        inputs    Thank you for
        targets   inviting me . </s> The party was

    What T5 1.1 was adapted with for prompt tuning (Lester et al. 2021), as the T5 library's newer
    prefix LM has it: EOS after documents only, a prefix of 1 ... n - 1 tokens. Two pieces whose
    prefixes complement one another fill a row there; here packing looks for such company.
    """

    documents_per_group: int = 128

    eos_after: ClassVar[EosAfter] = "documents"

    def __post_init__(self):
        """Refuse a group of no documents."""
        require_field(self, "documents_per_group", self.documents_per_group >= 1, "at least 1")

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Return how many tokens of text either feature holds."""
        return min(
            length_of(feature_lengths, feature, least=2, objective="LMAdaptation")
            for feature in ("inputs", "targets")
        )

    def sentinels_needed(self, feature_lengths: Mapping[str, int]) -> int:
        """Return 0."""
        del feature_lengths
        return 0

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: NDArray[np.uint32]
    ) -> dict[str, NDArray[np.int64]]:
        """Return the lengths of "inputs" and "targets", from the prefix drawn for each piece."""
        lengths_b = np.asarray(lengths_b, np.int64)
        prefix_bl = self._prefix(lengths_b, keys_b2, int(lengths_b.max(initial=0)))
        prefix_b = np.count_nonzero(prefix_bl, axis=1)
        return {"inputs": prefix_b, "targets": lengths_b - prefix_b}

    def __call__(
        self, rows: Rows, keys_b2: NDArray[np.uint32], sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Return the prefix as "inputs" and the rest as "targets"."""
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
