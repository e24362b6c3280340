"""Cut features to their lengths, append EOS, and gather ranges of stored tokens as rows.

These are the array operations between a token store and a batch. Those that take the most time run
as numba kernels where numba is installed (`data.stream.numba_loader`), with the same result.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.stream import numba_loader
from t5x_lite.objectives import philox, spans
from t5x_lite.objectives.objective import Objective, Rows, TokenLevelObjective
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import SpanCorruption

EOS_ID = 1
FEATURES = ("inputs", "targets")

_UINT32, _UINT64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


def feature_widths(objective: Objective, feature_lengths: Mapping[str, int]) -> dict[str, int]:
    """Return the row width of every feature that an objective makes.

    Args:
        objective: the objective of the task.
        feature_lengths: the configured lengths of "inputs" and "targets", in tokens.

    Returns:
        The width by feature: as configured for inputs and targets, that of the inputs for features
        aligned with them (loss weights, segments), 1 for labels.
    """
    widths = {feature: feature_lengths[feature] for feature in FEATURES}
    if isinstance(objective, TokenLevelObjective):
        widths |= dict.fromkeys(objective.aligned_features, widths["inputs"])
        widths |= dict.fromkeys(objective.labels, 1)
    return widths


def finish_features(
    features: Mapping[str, Rows], objective: Objective, widths: Mapping[str, int]
) -> dict[str, Rows]:
    """Cut the output of an objective to the widths of the features and end it with EOS.

        inputs [7 8 9], width 6   ->   7 8 9 1 0 0
        inputs [7 8 9], width 3   ->   7 8 1

    Args:
        features: what the objective returned, without EOS unless it places EOS after documents.
        objective: decides where EOS goes, and what stands at the position of the inputs' EOS in
            the features that are aligned with the inputs.
        widths: the width of each feature (`feature_widths`).

    Returns:
        The features, each as wide as `widths` says and zero after its end.
    """
    end = trim if objective.eos_after == "documents" else trim_and_append
    finished = {feature: end(features[feature], widths[feature]) for feature in FEATURES}
    if isinstance(objective, TokenLevelObjective):
        for feature, value in objective.aligned_features.items():
            finished[feature] = trim_and_append(features[feature], widths[feature], value)
        finished |= {label: features[label] for label in objective.labels}
    return finished


def trim_and_append(rows: Rows, width: int, value: int = EOS_ID) -> Rows:
    """Cut each row to width - 1 tokens and append one value, like T5's `append_eos_after_trim`.

    Args:
        rows: tokens [n, l] and their lengths [n].
        width: of the result.
        value: what is appended.

    Returns:
        Rows [n, width], zero after their end.
    """
    lengths_n = np.minimum(rows.lengths, width - 1)
    tokens_nl = _resized(rows.tokens, width)
    tokens_nl[np.arange(len(lengths_n)), lengths_n] = value
    return Rows(tokens_nl, lengths_n + 1)


def trim(rows: Rows, width: int) -> Rows:
    """Cut each row to `width` tokens; an empty row becomes EOS alone, as no feature may be empty.

    Args:
        rows: tokens [n, l] and their lengths [n].
        width: of the result.

    Returns:
        Rows [n, width], zero after their end.
    """
    lengths_n = np.minimum(rows.lengths, width)
    tokens_nl = _resized(rows.tokens, width)
    tokens_nl[lengths_n == 0, 0] = EOS_ID
    return Rows(tokens_nl, np.maximum(lengths_n, 1))


def _resized(tokens_nl: NDArray[np.int32], width: int) -> NDArray[np.int32]:
    """Return a copy cut or padded with zeros to a width: [n, width]."""
    resized_nl = np.zeros((len(tokens_nl), width), np.int32)
    common = min(width, tokens_nl.shape[1])
    resized_nl[:, :common] = tokens_nl[:, :common]
    return resized_nl


def gather_rows(
    tokens_t: NDArray[np.integer], starts_n: NDArray[np.int64], lengths_n: NDArray[np.int64]
) -> Rows:
    """Copy ranges of a long token array into rows.

        tokens 5 6 7 8 9, starts [0 3], lengths [3 2]   ->   5 6 7
                                                             8 9 0

    Args:
        tokens_t: all tokens [t].
        starts_n: where each range starts [n].
        lengths_n: the length of each range [n].

    Returns:
        Rows as wide as the longest range, zero after their end.
    """
    position_l = np.arange(lengths_n.max(initial=0))
    # [n, l]: a short range reads beyond its end, and "clip" keeps the last one inside the array.
    rows_nl = tokens_t.take(starts_n[:, None] + position_l, mode="clip").astype(np.int32)
    # Zero what lies beyond the end, only in the rows that have it: most rows are full.
    short_s = np.flatnonzero(lengths_n < len(position_l))
    rows_nl[short_s] *= position_l < lengths_n[short_s, None]
    return Rows(rows_nl, lengths_n.astype(np.int32))


def gather_rows_with_eos(
    tokens_t: NDArray[np.integer],
    starts_n: NDArray[np.int64],
    lengths_n: NDArray[np.int64],
    width: int,
) -> Rows:
    """Copy ranges of a long token array into rows, each followed by EOS.

    Args:
        tokens_t: all tokens [t].
        starts_n: where each range starts [n].
        lengths_n: the length of each range, below `width` [n].
        width: of the result.

    Returns:
        Rows [n, width], zero after their EOS.
    """
    if (kernels := numba_loader.kernels()) is None:
        return trim_and_append(gather_rows(tokens_t, starts_n, lengths_n), width)
    rows_nl = np.zeros((len(lengths_n), width), np.int32)
    kernels.gather_rows_with_eos(tokens_t, starts_n, lengths_n, EOS_ID, rows_nl)
    return Rows(rows_nl, (lengths_n + 1).astype(np.int32))


class Fetchable(Protocol):
    """An array that is not in memory or mapped: `data.store.remote_store.RemoteArray`."""

    def fetch(
        self, starts_n: NDArray[np.int64], lengths_n: NDArray[np.int64]
    ) -> tuple[NDArray, NDArray[np.int64]]:
        """Return the ranges one after another in one array, and where each starts there."""
        ...


def read_ranges(
    array: NDArray | Fetchable, starts_n: NDArray[np.int64], lengths_n: NDArray[np.int64]
) -> tuple[NDArray, NDArray[np.int64]]:
    """Return an array that contains the given ranges, and where each range starts in it.

    Args:
        array: an array, which is returned as it is, or one to fetch the ranges from.
        starts_n: where each range starts [n].
        lengths_n: the length of each range [n].

    Returns:
        A read-only array [t], and the start of each range in it: int64 [n].
    """
    if isinstance(array, np.ndarray):
        return array, starts_n
    tokens_t, starts_n = array.fetch(starts_n, lengths_n)
    return read_only(tokens_t), starts_n


def read_only(array: Any) -> Any:
    """Return a plain read-only view of an array, the one type that the kernels are compiled for.

    numba compiles a kernel once per combination of argument types, and a memory map or a writable
    array is another type. What is not an array is returned as it is.
    """
    if not isinstance(array, np.ndarray):
        return array
    array = array.view(np.ndarray)
    array.flags.writeable = False
    return array


def example_keys(
    seed: int, stream: int, epochs_n: NDArray[np.int64], indices_n: NDArray[np.int64]
) -> NDArray[np.uint32]:
    """Return `philox.example_keys`: the random key of each example, uint32 [n, 2].

    Args:
        seed: of the run.
        stream: distinguishes the tasks of a run (`data.stream.examples.random_stream`).
        epochs_n: the epoch of each example [n].
        indices_n: the index of each example in its task [n].
    """
    if (kernels := numba_loader.kernels()) is None:
        return philox.example_keys(seed, stream, epochs_n, indices_n)
    keys_n2 = np.empty((len(indices_n), 2), np.uint32)
    words = np.uint64(seed & _UINT64), np.uint64(stream & _UINT32)
    kernels.example_keys(*words, epochs_n, indices_n, keys_n2)
    return keys_n2


def has_numba_kernel(objective: Objective) -> bool:
    """Return whether `corrupt_spans` can compute an objective here and now."""
    is_plain = type(objective) is SpanCorruption and not objective.random_roll
    return is_plain and numba_loader.kernels() is not None


def corrupt_spans(
    tokens_t: NDArray[np.integer],
    starts_n: NDArray[np.int64],
    lengths_n: NDArray[np.int64],
    *,
    objective: Objective,
    keys_n2: NDArray[np.uint32],
    sentinels: Sentinels,
    widths: Mapping[str, int],
) -> dict[str, Rows]:
    """Apply `SpanCorruption` to ranges of tokens, trim the features and append EOS.

    One compiled pass over the tokens, with the same result as gathering the rows, calling the
    objective and `finish_features`.

    Args:
        tokens_t: all tokens [t].
        starts_n: where each range starts [n].
        lengths_n: the length of each range [n].
        objective: one for which `has_numba_kernel` is true.
        keys_n2: the random key of each example [n, 2].
        sentinels: the sentinel ids of the vocabulary.
        widths: the widths of "inputs" and "targets".

    Returns:
        "inputs" and "targets" as rows of these widths.
    """
    kernels = numba_loader.kernels()
    assert kernels is not None
    assert isinstance(objective, SpanCorruption)
    noise_n, spans_n = spans.noise_counts(
        np.maximum(lengths_n, 2), objective.noise_density, objective.mean_noise_span_length
    )
    features = [np.zeros((len(lengths_n), widths[name]), np.int32) for name in FEATURES]
    feature_lengths_2n = np.empty((2, len(lengths_n)), np.int32)
    kernels.corrupt_spans(
        tokens_t,
        starts_n,
        lengths_n,
        noise_n,
        spans_n,
        keys_n2,
        sentinels.first,
        EOS_ID,
        *features,
        feature_lengths_2n,
    )
    return {name: Rows(features[i], feature_lengths_2n[i]) for i, name in enumerate(FEATURES)}
