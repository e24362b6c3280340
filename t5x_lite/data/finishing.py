"""The last thing that happens to an example: cut to its features' lengths, EOS where it belongs."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from t5x_lite.objectives.denoising import Objective, PredictsInPlace
from t5x_lite.objectives.spans import Rows

EOS_ID = 1
FEATURES = ("inputs", "targets")


def feature_widths(objective: Objective, feature_lengths: Mapping[str, int]) -> dict[str, int]:
    """Return how wide each feature of an objective is: as configured, or as the inputs are."""
    widths = {feature: feature_lengths[feature] for feature in FEATURES}
    if isinstance(objective, PredictsInPlace):
        widths |= dict.fromkeys(objective.beside_inputs, widths["inputs"])
        widths |= dict.fromkeys(objective.labels, 1)
    return widths


def finish(
    made: Mapping[str, Rows], objective: Objective, widths: Mapping[str, int]
) -> dict[str, Rows]:
    """Return what an objective made as rows of the features' widths.

    Inputs and targets end with EOS, or hold the EOS of their documents already. What stands beside
    the inputs gets, at their EOS, the value that the objective names.
    """
    end = cut if objective.eos_after == "documents" else append
    finished = {feature: end(made[feature], widths[feature]) for feature in FEATURES}
    if isinstance(objective, PredictsInPlace):
        for feature, value in objective.beside_inputs.items():
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
