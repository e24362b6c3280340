"""UL2's mixture of denoisers: each chunk is corrupted by one of them, marked by a mode token.

Source: Tay et al. 2022 (UL2), section 3.1 and table 1.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from t5x_lite.errors import ConfigError, require_field
from t5x_lite.objectives import noise, philox
from t5x_lite.objectives.feature_lengths import check_targets, length_of
from t5x_lite.objectives.objective import EosAfter, Rows
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import SpanCorruption

# Folded into a chunk's key to draw its denoiser, as the key itself draws the noise ("UL2").
_DENOISER_STREAM = 0x554C32


@dataclass(frozen=True)
class SequentialDenoising:
    """UL2's S-denoiser: the last part of a chunk, a fixed fraction, is predicted from the first.

        inputs    Thank you for inviting me to your party
        targets   last week .

    Attributes:
        target_share: Fraction of the tokens in the targets.
        documents_per_group: Number of documents that are concatenated before they are cut into
            chunks.
    """

    target_share: float = 0.25
    documents_per_group: int = 128

    eos_after: ClassVar[EosAfter] = "chunks"

    def __post_init__(self):
        """Check the settings."""
        require_field(self, "target_share", 0 < self.target_share < 1, "in (0, 1)")
        require_field(self, "documents_per_group", self.documents_per_group >= 1, "at least 1")

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Compute the chunk length that fills the inputs."""
        inputs_length = length_of(
            feature_lengths, "inputs", least=3, objective="sequential denoising"
        )
        length_of(feature_lengths, "targets", least=2, objective="sequential denoising")
        raw_length = int((inputs_length - 1) / (1 - self.target_share)) + 2
        while self._counts(np.array([raw_length]))[0][0] > inputs_length - 1:
            raw_length -= 1
        needed = int(self._counts(np.array([raw_length]))[1][0]) + 1
        made_by = f"sequential denoising of inputs of {inputs_length} tokens"
        check_targets(feature_lengths, needed, made_by=made_by)
        return raw_length

    def sentinels_needed(self, feature_lengths: Mapping[str, int]) -> int:
        """Return 0: no sentinels are used."""
        del feature_lengths
        return 0

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: NDArray[np.uint32]
    ) -> dict[str, NDArray[np.int64]]:
        """Compute the lengths of "inputs" and "targets", which are not random."""
        del keys_b2
        inputs_b, targets_b = self._counts(np.asarray(lengths_b, np.int64))
        return {"inputs": inputs_b, "targets": targets_b}

    def __call__(
        self, rows: Rows, keys_b2: NDArray[np.uint32], sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Make "inputs", the first part, and "targets", the last."""
        del keys_b2, sentinels
        inputs_b, _ = self._counts(rows.lengths.astype(np.int64))
        is_last_bl = np.arange(rows.tokens.shape[1]) >= inputs_b[:, None]
        return {
            "inputs": noise.drop_noise(rows, is_last_bl),
            "targets": noise.drop_noise(rows, ~is_last_bl),
        }

    def _counts(self, lengths_b: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the lengths of inputs and targets without EOS; 2 tokens are split into 1 and 1."""
        targets_b = np.round(lengths_b * self.target_share).astype(np.int64)
        targets_b = np.minimum(np.maximum(targets_b, 1), np.maximum(lengths_b - 1, 0))
        return lengths_b - targets_b, targets_b


class Denoiser(NamedTuple):
    """A component of the mixture.

    Attributes:
        objective: How it corrupts chunks.
        mode: Index of its mode token: 0 for R, 1 for S, 2 for X.
        rate: Its relative frequency.
    """

    objective: SpanCorruption | SequentialDenoising
    mode: int
    rate: float = 1.0


R, S, X = range(3)
# R: regular span corruption; S: sequential; X: extreme, with much noise or long spans.
UL2_DENOISERS = (
    Denoiser(SpanCorruption(0.15, 3.0), R),
    Denoiser(SpanCorruption(0.15, 8.0), R),
    Denoiser(SequentialDenoising(0.25), S),
    Denoiser(SpanCorruption(0.5, 3.0), X),
    Denoiser(SpanCorruption(0.5, 8.0), X),
    Denoiser(SpanCorruption(0.15, 64.0), X),
    Denoiser(SpanCorruption(0.5, 64.0), X),
)


@dataclass(frozen=True)
class UL2:
    """UL2's objective: a denoiser is drawn for each chunk, and its mode token precedes the inputs.

        denoiser   inputs                                       targets
        R          [R] Thank you <X> me to your party <Y> .     <X> for inviting <Y> last week
        S          [S] Thank you for inviting me to your party  last week .
        X          [X] Thank <X> to <Y> .                       <X> you ... me <Y> your ... week

    All denoisers get chunks of one length, the longest that fits each of them (567 tokens for
    inputs of 512). High noise densities leave room in the inputs, which packing fills. In the paper
    chunks have up to 1,006 tokens for the two denoisers with long spans and half the tokens.

    Attributes:
        denoisers: The mixture; the seven denoisers of the paper by default.
        mode_tokens: Ids that precede the inputs for the modes R, S and X (in the released models,
            those of "[NLU]", "[S2S]" and "[NLG]"). By default each mode is one of the last three
            sentinels of the vocabulary, which then mark no spans.
        documents_per_group: Number of documents that are concatenated before they are cut into
            chunks.
    """

    denoisers: tuple[Denoiser, ...] = UL2_DENOISERS
    mode_tokens: tuple[tuple[int, ...], ...] = ()
    documents_per_group: int = 128

    eos_after: ClassVar[EosAfter] = "chunks"

    def __post_init__(self):
        """Check the settings."""
        require_field(self, "documents_per_group", self.documents_per_group >= 1, "at least 1")
        rates = [denoiser.rate for denoiser in self.denoisers]
        if not rates or min(rates) < 0 or not sum(rates):
            raise ConfigError(
                f"the rates of the denoisers must be 0 or more, one of them positive; got {rates}",
                "UL2.denoisers",
            )
        if self.mode_tokens and len(self.mode_tokens) < self._modes:
            raise ConfigError(
                f"mode_tokens needs an entry for each of {self._modes} modes; got "
                f"{len(self.mode_tokens)}",
                "UL2.mode_tokens",
            )

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Compute the longest chunk that fits the features under every denoiser."""
        inputs_length = length_of(
            feature_lengths, "inputs", least=3 + self._prefix_length, objective="UL2"
        )
        length_of(feature_lengths, "targets", least=2, objective="UL2")
        room = {"inputs": inputs_length - self._prefix_length, "targets": 4 * inputs_length}
        raw_length = min(denoiser.objective.raw_length(room) for denoiser in self._used)
        needed = max(self._counts(denoiser, raw_length)[1] for denoiser in self._used) + 1
        made_by = f"UL2 of inputs of {inputs_length} tokens"
        check_targets(feature_lengths, needed, made_by=made_by)
        return raw_length

    def sentinels_needed(self, feature_lengths: Mapping[str, int]) -> int:
        """Return the most spans of a full chunk, plus the mode tokens if they are sentinels."""
        raw_length = self.raw_length(feature_lengths)
        most = 0
        for denoiser in self._used:
            if isinstance(denoiser.objective, SpanCorruption):
                # Each span is marked once in the inputs and once in the targets.
                spans = (sum(self._counts(denoiser, raw_length)) - raw_length) // 2
                most = max(most, 1 if denoiser.objective.borrow_pieces else spans)
        return most + (0 if self.mode_tokens else self._modes)

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: NDArray[np.uint32]
    ) -> dict[str, NDArray[np.int64]]:
        """Compute the lengths of "inputs", mode token included, and "targets"."""
        lengths_b = np.asarray(lengths_b, np.int64)
        lengths = {name: np.zeros_like(lengths_b) for name in ("inputs", "targets")}
        for denoiser, rows_r in self._draw(keys_b2):
            corrupted = denoiser.objective.lengths(lengths_b[rows_r], keys_b2[rows_r])
            lengths["inputs"][rows_r] = corrupted["inputs"] + self._mode_length(denoiser.mode)
            lengths["targets"][rows_r] = corrupted["targets"]
        return lengths

    def __call__(
        self, rows: Rows, keys_b2: NDArray[np.uint32], sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Make "inputs", which start with the mode token, and "targets"."""
        modes, sentinels = self._mode_ids(sentinels)
        count, width = rows.tokens.shape
        # Targets can be one token longer than the text: a sentinel before all of it.
        features = {
            name: Rows(np.zeros((count, width + extra), np.int32), np.zeros(count, np.int32))
            for name, extra in (("inputs", self._prefix_length), ("targets", 1))
        }
        for denoiser, rows_r in self._draw(keys_b2):
            corrupted = denoiser.objective(
                Rows(rows.tokens[rows_r], rows.lengths[rows_r]), keys_b2[rows_r], sentinels
            )
            for name, prefix in (("inputs", modes[denoiser.mode]), ("targets", ())):
                tokens, lengths = corrupted[name]
                start, end = len(prefix), len(prefix) + tokens.shape[1]
                features[name].tokens[rows_r, :start] = prefix
                features[name].tokens[rows_r, start:end] = tokens
                features[name].lengths[rows_r] = lengths + start
        return features

    @property
    def _used(self) -> list[Denoiser]:
        return [denoiser for denoiser in self.denoisers if denoiser.rate]

    @functools.cached_property
    def _modes(self) -> int:
        return 1 + max(denoiser.mode for denoiser in self.denoisers)

    @property
    def _prefix_length(self) -> int:
        return max(self._mode_length(mode) for mode in range(self._modes))

    def _mode_length(self, mode: int) -> int:
        return len(self.mode_tokens[mode]) if self.mode_tokens else 1

    def _mode_ids(self, sentinels: Sentinels) -> tuple[tuple[tuple[int, ...], ...], Sentinels]:
        """Return the ids of each mode, and the sentinels that remain to mark spans."""
        if self.mode_tokens:
            return self.mode_tokens, sentinels
        remaining = sentinels.count - self._modes
        ids = tuple((sentinels.first - remaining - mode,) for mode in range(self._modes))
        return ids, Sentinels(sentinels.first, remaining)

    def _counts(self, denoiser: Denoiser, raw_length: int) -> tuple[int, int]:
        """Return the lengths of a denoiser's inputs and targets, without mode token and EOS."""
        lengths = denoiser.objective.lengths(np.array([raw_length]), np.zeros((1, 2), np.uint32))
        return int(lengths["inputs"][0]), int(lengths["targets"][0])

    def _draw(self, keys_b2: NDArray[np.uint32]) -> list[tuple[Denoiser, NDArray[np.int64]]]:
        """Draw a denoiser for each row; return each drawn denoiser with the indices of its rows."""
        rates = np.array([denoiser.rate for denoiser in self._used])
        cumulative = np.cumsum(rates)[:-1] / rates.sum()
        uniform_b1 = philox.uniform(philox.fold_in(keys_b2, _DENOISER_STREAM), 1)
        index_b = np.searchsorted(cumulative, uniform_b1[:, 0], side="right")
        drawn = []
        for index, denoiser in enumerate(self._used):
            rows_r = np.flatnonzero(index_b == index)
            if len(rows_r):
                drawn.append((denoiser, rows_r))
        return drawn
