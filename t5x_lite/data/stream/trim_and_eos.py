"""Stretches of a long array of tokens as rows that end in EOS; compiled where it can be."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.stream import numba_loader
from t5x_lite.objectives import philox, spans
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import Objective, SpanCorruption, TokenLevelObjective
from t5x_lite.objectives.spans import Rows

EOS_ID = 1
FEATURES = ("inputs", "targets")


def feature_widths(objective: Objective, feature_lengths: Mapping[str, int]) -> dict[str, int]:
    """Return how wide each feature of an objective is: as configured, or as the inputs are."""
    widths = {feature: feature_lengths[feature] for feature in FEATURES}
    if isinstance(objective, TokenLevelObjective):
        widths |= dict.fromkeys(objective.aligned_features, widths["inputs"])
        widths |= dict.fromkeys(objective.labels, 1)
    return widths


def finish_features(
    made: Mapping[str, Rows], objective: Objective, widths: Mapping[str, int]
) -> dict[str, Rows]:
    """Return what an objective made as rows of the features' widths.

    Inputs and targets end with EOS, or hold the EOS of their documents already. What stands beside
    the inputs gets, at their EOS, the value that the objective names.
    """
    end = cut if objective.eos_after == "documents" else append
    finished = {feature: end(made[feature], widths[feature]) for feature in FEATURES}
    if isinstance(objective, TokenLevelObjective):
        for feature, value in objective.aligned_features.items():
            finished[feature] = append(made[feature], widths[feature], value)
        finished |= {label: made[label] for label in objective.labels}
    return finished


def append(rows: Rows, length: int, value: int = EOS_ID) -> Rows:
    """Cut rows to length - 1 tokens and append one: rows of width `length`, zero at the end."""
    lengths_n = np.minimum(rows.lengths, length - 1)
    tokens_nl = _widened(rows.tokens, length)
    tokens_nl[np.arange(len(lengths_n)), lengths_n] = value
    return Rows(tokens_nl, lengths_n + 1)


def cut(rows: Rows, length: int) -> Rows:
    """Cut rows to `length` tokens; an empty row becomes EOS alone, that there be something."""
    lengths_n = np.minimum(rows.lengths, length)
    tokens_nl = _widened(rows.tokens, length)
    tokens_nl[lengths_n == 0, 0] = EOS_ID
    return Rows(tokens_nl, np.maximum(lengths_n, 1))


def _widened(tokens_nl: NDArray[np.int32], length: int) -> NDArray[np.int32]:
    wide_nl = np.zeros((len(tokens_nl), length), np.int32)
    width = min(length, tokens_nl.shape[1])
    wide_nl[:, :width] = tokens_nl[:, :width]
    return wide_nl


def has_numba_kernel(objective: Objective) -> bool:
    """Tell whether `corrupt_spans` takes the place of an objective here."""
    is_plain = type(objective) is SpanCorruption and not objective.random_roll
    return is_plain and numba_loader.kernels() is not None


def example_keys(
    seed: int, stream: int, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
) -> NDArray[np.uint32]:
    """Return `philox.example_keys`, compiled where it can be."""
    if (kernels := numba_loader.kernels()) is None:
        return philox.example_keys(seed, stream, epochs_n, indices_n)
    keys_n2 = np.empty((len(indices_n), 2), np.uint32)
    words = np.uint64(seed & 0xFFFFFFFFFFFFFFFF), np.uint64(stream & 0xFFFFFFFF)
    kernels.example_keys(*words, epochs_n, indices_n, keys_n2)
    return keys_n2


def corrupt_spans(
    tokens: NDArray[np.integer],
    starts_n: NDArray[np.int64],
    lengths_n: NDArray[np.int64],
    *,
    objective: Objective,
    keys_n2: NDArray[np.uint32],
    sentinels: Sentinels,
    widths: Mapping[str, int],
) -> dict[str, Rows]:
    """Return the features that `SpanCorruption` makes of stretches, cut and with EOS.

    One compiled pass over the tokens, for objectives of which `has_numba_kernel` is true.
    """
    kernels = numba_loader.kernels()
    assert kernels is not None
    assert isinstance(objective, SpanCorruption)
    noise_n, spans_n = spans.noise_counts(
        np.maximum(lengths_n, 2), objective.noise_density, objective.mean_noise_span_length
    )
    made = [np.zeros((len(lengths_n), widths[name]), np.int32) for name in FEATURES]
    made_lengths_2n = np.empty((2, len(lengths_n)), np.int32)
    kernels.corrupt_spans(
        tokens,
        starts_n,
        lengths_n,
        noise_n,
        spans_n,
        keys_n2,
        sentinels.first,
        EOS_ID,
        *made,
        made_lengths_2n,
    )
    return {name: Rows(made[i], made_lengths_2n[i]) for i, name in enumerate(FEATURES)}


def gather_rows(
    tokens: NDArray[np.integer], starts_n: NDArray[np.int64], lengths_n: NDArray[np.int64]
) -> Rows:
    """Return the stretches of a long token array as rows, as wide as the longest."""
    place_l = np.arange(lengths_n.max(initial=0))
    rows_nl = tokens.take(starts_n[:, None] + place_l, mode="clip").astype(np.int32)
    short_s = np.flatnonzero(lengths_n < len(place_l))
    rows_nl[short_s] *= place_l < lengths_n[short_s, None]
    return Rows(rows_nl, lengths_n.astype(np.int32))


def gather_rows_with_eos(
    tokens: NDArray[np.integer],
    starts_n: NDArray[np.int64],
    lengths_n: NDArray[np.int64],
    length: int,
) -> Rows:
    """Return the stretches, below `length` tokens each, followed by EOS, as rows of that width."""
    if (kernels := numba_loader.kernels()) is None:
        return append(gather_rows(tokens, starts_n, lengths_n), length)
    rows_nl = np.zeros((len(lengths_n), length), np.int32)
    kernels.gather_rows_with_eos(tokens, starts_n, lengths_n, EOS_ID, rows_nl)
    return Rows(rows_nl, (lengths_n + 1).astype(np.int32))


class Fetchable(Protocol):
    """An array that is not at hand: `data.store.remote_store.RemoteArray`."""

    def fetch(
        self, starts_n: NDArray[np.int64], lengths_n: NDArray[np.int64]
    ) -> tuple[NDArray, NDArray[np.int64]]:
        """Return stretches end to end, and where each begins there."""
        ...


def read_ranges(
    array: NDArray | Fetchable, starts_n: NDArray[np.int64], lengths_n: NDArray[np.int64]
) -> tuple[NDArray, NDArray[np.int64]]:
    """Return an array that holds the stretches, and where each begins in it."""
    if isinstance(array, np.ndarray):
        return array, starts_n
    tokens, starts_n = array.fetch(starts_n, lengths_n)
    return read_only(tokens), starts_n


def read_only(array: Any) -> Any:
    """Return a plain array that cannot be written, the one kind compiled loops are made for.

    One that is not at hand stays what it is.
    """
    if not isinstance(array, np.ndarray):
        return array
    array = array.view(np.ndarray)
    array.flags.writeable = False
    return array
