"""How pairs that are too long are cut where the last tokens must not simply go.

A pair's inputs and targets lose what is beyond their lengths, and EOS follows. Two kinds of tasks
need more: those with sentinels at the end, and questions about texts longer than the inputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.stream.examples import PairExamples, Store, random_stream
from t5x_lite.data.stream.trim_and_eos import append
from t5x_lite.objectives import philox
from t5x_lite.objectives.spans import Rows


@dataclass(frozen=True)
class PairTrimming:
    """What is kept of pairs that are too long.

    keep_last: so many last tokens take the place of the last that would be kept. around_answer:
    inputs become a random stretch of themselves in which the targets occur; where the targets do
    not occur, the pair is left out. Both are the T5 library's.
    """

    keep_last_tokens: int = 0
    window_around_answer: bool = False

    def open(
        self, name: str, store: Store, feature_lengths: Mapping[str, int], *, seed: int
    ) -> "TrimmedPairs":
        """Return the pairs of a task's store."""
        return TrimmedPairs(self, name, store, feature_lengths, seed=seed)

    def cut(self, tokens: NDArray[np.int32], length: int) -> NDArray[np.int32]:
        """Return at most length - 1 of one example's tokens."""
        if len(tokens) < length:
            return tokens
        last = min(self.keep_last_tokens, length - 1)
        return np.concatenate([tokens[: length - 1 - last], tokens[len(tokens) - last :]])


class TrimmedPairs(PairExamples):
    """The pairs of a task, cut as its `PairTrimming` says.

    Answers are looked for when the pairs are opened, in all inputs that are too long: seconds for
    a million of them; 16 bytes a pair stay in memory.
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
        self._ending, self._stream, self._seed = trimming, random_stream(name), seed
        self._kept_n = self._place_n = None
        if trimming.window_around_answer:
            place_n = np.array([self._answer_place(n) for n in range(self.size)], np.int64)
            self._kept_n = np.flatnonzero(place_n >= 0)
            self._place_n = place_n[self._kept_n]
            self.size = len(self._kept_n)

    def stored(self, indices_n: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which of the stored pairs these examples are."""
        return indices_n if self._kept_n is None else self._kept_n[indices_n]

    def lengths(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the lengths of inputs and targets, EOS included: [n, 2]."""
        return super().lengths(epochs_n, self.stored(indices_n))

    def features(
        self, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
    ) -> dict[str, Rows]:
        """Return "inputs" and "targets", each as wide as its feature length."""
        stored_n = self.stored(indices_n)
        made = super().features(epochs_n, stored_n)
        for feature, length in self.widths.items():
            bounds = self._offsets[feature]
            for row in np.flatnonzero(bounds[stored_n + 1] - bounds[stored_n] >= length):
                tokens = self._whole(feature, stored_n[row])
                if feature == "inputs" and self._place_n is not None:
                    first = self._start(epochs_n[row], indices_n[row], len(tokens))
                    tokens = tokens[first : first + length]
                tokens = self._ending.cut(tokens, length)
                made[feature].tokens[row] = append(single_row(tokens), length).tokens[0]
        return made

    def _whole(self, feature: str, number: np.int64) -> NDArray[np.int32]:
        first, last = self._offsets[feature][number : number + 2]
        return self._tokens[feature][first:last].astype(np.int32)

    def _answer_place(self, number: int) -> int:
        """Return where a pair's targets stand in inputs that are too long; -1: nowhere."""
        first, last = self._offsets["inputs"][number : number + 2]
        if last - first <= self.widths["inputs"]:
            return 0
        numbered = np.int64(number)
        return find_answer(self._whole("inputs", numbered), self._whole("targets", numbered))

    def _start(self, epoch: np.int64, index: np.int64, length: int) -> int:
        assert self._place_n is not None
        key = philox.example_keys(self._seed, self._stream, np.array([epoch]), np.array([index]))
        first, last = self._offsets["targets"][self.stored(np.array([index]))[0] :][:2]
        answer = int(last - first)
        return window_start(
            int(self._place_n[index]), answer, length, room=self.widths["inputs"], key_12=key
        )


def find_answer(tokens: NDArray[np.integer], answer: NDArray[np.integer]) -> int:
    """Return where an answer first stands among tokens, or -1."""
    starts = np.arange(max(len(tokens) - len(answer) + 1, 0) if len(answer) else 0)
    for offset, token in enumerate(answer):
        starts = starts[tokens[starts + offset] == token]
    return int(starts[0]) if len(starts) else -1


def window_start(
    place: int, answer: int, length: int, *, room: int, key_12: NDArray[np.uint32]
) -> int:
    """Return where a stretch of `room` tokens begins that has the answer in it.

    All such places are equally likely. Answers longer than the room are cut at their end.
    """
    first = min(max(0, place - (room - answer)), place)
    last = min(place, length - room)
    return first + int(philox.random_bits(key_12, 1)[0, 0] % np.uint32(last - first + 1))


def single_row(tokens: NDArray[np.int32]) -> Rows:
    """Return one example's tokens as rows."""
    return Rows(tokens[None], np.array([len(tokens)], np.int32))
