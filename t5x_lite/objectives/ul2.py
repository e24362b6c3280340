"""UL2's mixture of denoisers: each piece is corrupted by one of several, named by a mode token.

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
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import EosAfter, SpanCorruption
from t5x_lite.objectives.spans import Rows

_CHOICE = 0x554C32  # what is folded into an example's key to draw its denoiser


@dataclass(frozen=True)
class SequentialDenoising:
    """The last part of a piece, always the same share of it, is predicted from the first.

    inputs    Thank you for inviting me to your party
    targets   last week .
    """

    target_share: float = 0.25
    documents_per_group: int = 128

    eos_after: ClassVar[EosAfter] = "pieces"

    def __post_init__(self):
        """Refuse a share that leaves no inputs or no targets."""
        require_field(self, "target_share", 0 < self.target_share < 1, "in (0, 1)")
        require_field(self, "documents_per_group", self.documents_per_group >= 1, "at least 1")

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Return how many tokens of text fill the inputs."""
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
        """Return 0."""
        del feature_lengths
        return 0

    def lengths(
        self, lengths_b: NDArray[np.integer], keys_b2: NDArray[np.uint32]
    ) -> dict[str, NDArray[np.int64]]:
        """Return the lengths of "inputs" and "targets", which chance does not touch."""
        del keys_b2
        inputs_b, targets_b = self._counts(np.asarray(lengths_b, np.int64))
        return {"inputs": inputs_b, "targets": targets_b}

    def __call__(
        self, rows: Rows, keys_b2: NDArray[np.uint32], sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Return the first part as "inputs" and the last as "targets"."""
        del keys_b2, sentinels
        inputs_b, _ = self._counts(rows.lengths.astype(np.int64))
        is_last_bl = np.arange(rows.tokens.shape[1]) >= inputs_b[:, None]
        return {
            "inputs": noise.drop_noise(rows, is_last_bl),
            "targets": noise.drop_noise(rows, ~is_last_bl),
        }

    def _counts(self, lengths_b: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        asked_b = np.round(lengths_b * self.target_share).astype(np.int64)
        targets_b = np.minimum(np.maximum(asked_b, 1), np.maximum(lengths_b - 1, 0))
        return lengths_b - targets_b, targets_b


class Denoiser(NamedTuple):
    """One of a mixture: what it does, and the number of the mode token that tells it apart."""

    objective: SpanCorruption | SequentialDenoising
    mode: int
    rate: float = 1.0


R, S, X = range(3)
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
    """A denoiser is drawn for every piece, and its mode token stands before the inputs.

        denoiser   inputs                                    targets
        R          <R> Thank you <X> me to your party <Y> .   <X> for inviting <Y> last week
        S          <S> Thank you for inviting me to your party  last week .
        X          <X> Thank <X> to <Y> .                     <X> you ... me <Y> your ... week

    mode_tokens: the ids of R's, S's and X's mode (released models: those of "[NLU]", "[S2S]" and
    "[NLG]"); by default the last three sentinels of the vocabulary, which then mark no span.

    All denoisers get pieces of one length, the longest that fits every one of them (567 tokens for
    512 inputs): what corrupts much leaves room, which packing fills. The paper's own pieces are up
    to 1,006 tokens long for the two denoisers with long spans and half the tokens.
    """

    denoisers: tuple[Denoiser, ...] = UL2_DENOISERS
    mode_tokens: tuple[tuple[int, ...], ...] = ()
    documents_per_group: int = 128

    eos_after: ClassVar[EosAfter] = "pieces"

    def __post_init__(self):
        """Refuse a mixture of nothing and modes without a token."""
        require_field(self, "documents_per_group", self.documents_per_group >= 1, "at least 1")
        rates = [denoiser.rate for denoiser in self.denoisers]
        if not rates or min(rates) < 0 or not sum(rates):
            raise ConfigError(
                f"the denoisers' rates are {rates}: they must be none below 0, one above 0",
                "UL2.denoisers",
            )
        if self.mode_tokens and len(self.mode_tokens) < self._modes:
            raise ConfigError(
                f"{len(self.mode_tokens)} mode tokens are given for {self._modes} modes",
                "UL2.mode_tokens",
            )

    def raw_length(self, feature_lengths: Mapping[str, int]) -> int:
        """Return the length of the longest piece that fits the features under every denoiser."""
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
        """Return the most spans of a full piece, and the mode tokens where they are sentinels."""
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
        """Return the lengths of "inputs", mode token included, and "targets"."""
        lengths_b = np.asarray(lengths_b, np.int64)
        made = {name: np.zeros_like(lengths_b) for name in ("inputs", "targets")}
        for denoiser, own in self._draw(keys_b2):
            part = denoiser.objective.lengths(lengths_b[own], keys_b2[own])
            made["inputs"][own] = part["inputs"] + self._mode_length(denoiser.mode)
            made["targets"][own] = part["targets"]
        return made

    def __call__(
        self, rows: Rows, keys_b2: NDArray[np.uint32], sentinels: Sentinels
    ) -> dict[str, Rows]:
        """Return "inputs", which begin with the mode token, and "targets"."""
        modes, sentinels = self._mode_ids(sentinels)
        count, length = rows.tokens.shape
        made = {
            name: Rows(np.zeros((count, length + extra), np.int32), np.zeros(count, np.int32))
            for name, extra in (("inputs", self._prefix_length), ("targets", 1))
        }
        for denoiser, own in self._draw(keys_b2):
            corrupted = denoiser.objective(
                Rows(rows.tokens[own], rows.lengths[own]), keys_b2[own], sentinels
            )
            for name, prefix in (("inputs", modes[denoiser.mode]), ("targets", ())):
                part, start = corrupted[name], len(prefix)
                made[name].tokens[own, :start] = prefix
                made[name].tokens[own, start : start + part.tokens.shape[1]] = part.tokens
                made[name].lengths[own] = part.lengths + start
        return made

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
        """Return the ids of each mode and the sentinels that are left to mark spans."""
        if self.mode_tokens:
            return self.mode_tokens, sentinels
        left = sentinels.count - self._modes
        ids = tuple((sentinels.first - left - mode,) for mode in range(self._modes))
        return ids, Sentinels(sentinels.first, left)

    def _counts(self, denoiser: Denoiser, raw_length: int) -> tuple[int, int]:
        """Return the lengths of what a denoiser makes of a piece, without mode token and EOS."""
        made = denoiser.objective.lengths(np.array([raw_length]), np.zeros((1, 2), np.uint32))
        return int(made["inputs"][0]), int(made["targets"][0])

    def _draw(self, keys_b2: NDArray[np.uint32]) -> list[tuple[Denoiser, NDArray[np.int64]]]:
        """Return the rows that each denoiser gets."""
        rates = np.array([denoiser.rate for denoiser in self._used])
        shares = np.cumsum(rates)[:-1] / rates.sum()
        drawn_b1 = philox.uniform(philox.fold_in(keys_b2, _CHOICE), 1)
        which_b = np.searchsorted(shares, drawn_b1[:, 0], side="right")
        rows = [np.flatnonzero(which_b == number) for number in range(len(self._used))]
        return [(each, own) for each, own in zip(self._used, rows, strict=True) if len(own)]
