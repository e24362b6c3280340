"""Trim pairs that are too long where their last tokens must not be lost.

By default a pair's inputs and targets lose what is beyond their lengths. Two kinds of tasks need
more: those whose last tokens are sentinels, and questions about texts longer than the inputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.stream.examples import PairExamples, Store, random_stream
from t5x_lite.data.stream.trim_and_eos import trim_and_append
from t5x_lite.objectives import philox
from t5x_lite.objectives.objective import Rows


@dataclass(frozen=True)
class PairTrimming:
    """How pairs that are too long are trimmed, as the T5 library does it.

    Attributes:
        keep_last_tokens: how many of a feature's last tokens replace the last ones that would
            otherwise be kept. With 1, width 5 and the sentinel S: 7 8 9 5 S -> 7 8 9 S and EOS.
        window_around_answer: whether too long inputs become a random window of themselves that
            contains the targets. Pairs whose targets do not occur in their inputs are omitted.
    """

    keep_last_tokens: int = 0
    window_around_answer: bool = False

    def open(
        self, name: str, store: Store, feature_lengths: Mapping[str, int], *, seed: int
    ) -> "TrimmedPairs":
        """Return the trimmed pairs of a task's store.

        Args:
            name: of the task; it decides where windows start, together with the seed.
            store: a store with "inputs" and "targets".
            feature_lengths: the lengths of both features, in tokens, EOS included.
            seed: of the run.
        """
        return TrimmedPairs(self, name, store, feature_lengths, seed=seed)

    def trim(self, tokens: NDArray[np.int32], width: int) -> NDArray[np.int32]:
        """Return at most width - 1 tokens of one feature of one example: EOS must fit too."""
        if len(tokens) < width:
            return tokens
        last = min(self.keep_last_tokens, width - 1)
        return np.concatenate([tokens[: width - 1 - last], tokens[len(tokens) - last :]])


class TrimmedPairs(PairExamples):
    """The pairs of a task, trimmed as its `PairTrimming` says.

    For windows around answers, all inputs that are too long are searched for their targets when the
    pairs are opened. This takes seconds for a million of them, and 16 bytes a pair stay in memory.

    Args:
        trimming: how pairs are trimmed.
        name: of the task; it decides where windows start, together with the seed.
        store: a store with "inputs" and "targets".
        feature_lengths: the lengths of both features, in tokens, EOS included.
        seed: of the run.
    """

    def __init__(
        self,
        trimming: PairTrimming,
        name: str,
        store: Store,
        feature_lengths: Mapping[str, int],
        *,
        seed: int,
    ):
        super().__init__(store, feature_lengths)
        self._trimming, self._stream, self._seed = trimming, random_stream(name), seed
        # Of each pair that is not omitted: its index in the store, and where its answer starts.
        self._stored_n = self._answer_start_n = None
        if trimming.window_around_answer:
            starts_n = np.array([self._find_answer(n) for n in range(self.size)], np.int64)
            self._stored_n = np.flatnonzero(starts_n >= 0)
            self._answer_start_n = starts_n[self._stored_n]
            self.size = len(self._stored_n)

    def stored(self, indices_n: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the index in the store of each example: [n]."""
        return indices_n if self._stored_n is None else self._stored_n[indices_n]

    def lengths(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the lengths of inputs and targets, EOS included: [n, 2]."""
        return super().lengths(epochs_n, self.stored(indices_n))

    def features(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> dict[str, Rows]:
        """Return "inputs" and "targets" as rows of their feature lengths."""
        stored_n = self.stored(indices_n)
        features = super().features(epochs_n, stored_n)
        # Only the pairs that are too long, which are few, are trimmed again one by one.
        for feature, width in self.widths.items():
            bounds = self._offsets[feature]
            for row in np.flatnonzero(bounds[stored_n + 1] - bounds[stored_n] >= width):
                tokens = self._whole(feature, stored_n[row])
                if feature == "inputs" and self._answer_start_n is not None:
                    start = self._window_start(epochs_n[row], indices_n[row], len(tokens))
                    tokens = tokens[start : start + width]
                tokens = self._trimming.trim(tokens, width)
                trimmed = trim_and_append(single_row(tokens), width)
                features[feature].tokens[row] = trimmed.tokens[0]
        return features

    def _whole(self, feature: str, stored: np.int64) -> NDArray[np.int32]:
        """Return all tokens of one feature of a stored pair."""
        first, last = self._offsets[feature][stored : stored + 2]
        return self._tokens[feature][first:last].astype(np.int32)

    def _find_answer(self, stored: int) -> int:
        """Return where a pair's targets start in its inputs: 0 if these are short, -1: nowhere."""
        first, last = self._offsets["inputs"][stored : stored + 2]
        if last - first <= self.widths["inputs"]:
            return 0
        index = np.int64(stored)
        return find_answer(self._whole("inputs", index), self._whole("targets", index))

    def _window_start(self, epoch: np.int64, index: np.int64, length: int) -> int:
        assert self._answer_start_n is not None
        key_12 = philox.example_keys(self._seed, self._stream, np.array([epoch]), np.array([index]))
        first, last = self._offsets["targets"][self.stored(np.array([index]))[0] :][:2]
        return window_start(
            int(self._answer_start_n[index]),
            int(last - first),
            length,
            width=self.widths["inputs"],
            key_12=key_12,
        )


def find_answer(tokens: NDArray[np.integer], answer: NDArray[np.integer]) -> int:
    """Return where an answer first starts among tokens, or -1; an empty answer is nowhere.

    tokens 5 7 8 7 9, answer 7 9   ->   3
    """
    starts = np.arange(max(len(tokens) - len(answer) + 1, 0) if len(answer) else 0)
    # After i steps, `starts` are those at which the first i tokens of the answer match.
    for offset, token in enumerate(answer):
        starts = starts[tokens[starts + offset] == token]
    return int(starts[0]) if len(starts) else -1


def window_start(
    answer_start: int, answer_length: int, length: int, *, width: int, key_12: NDArray[np.uint32]
) -> int:
    """Draw where a window that contains the answer starts, all possible starts equally likely.

        10 tokens, answer at 4 ... 5, width 5   ->   1, 2, 3 or 4

    Args:
        answer_start: where the answer starts.
        answer_length: its length. The end of an answer longer than the window is cut.
        length: of the text, more than `width`.
        width: of the window.
        key_12: a random key [1, 2].
    """
    first = min(max(0, answer_start - (width - answer_length)), answer_start)
    last = min(answer_start, length - width)
    return first + int(philox.random_bits(key_12, 1)[0, 0] % np.uint32(last - first + 1))


def single_row(tokens: NDArray[np.int32]) -> Rows:
    """Return the tokens of one example as rows: [1, l]."""
    return Rows(tokens[None], np.array([len(tokens)], np.int32))
