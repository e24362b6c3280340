"""Rows from lists and back, keys from a seed: what every test of an objective needs."""

import numpy as np
import pytest

from t5x_lite.objectives import philox
from t5x_lite.objectives.objective import Rows


@pytest.fixture(scope="session")
def rows_of():
    """rows_of([5, 6], [7]) -> Rows of two rows, zero padded."""

    def make(*token_lists):
        tokens = np.zeros((len(token_lists), max(map(len, token_lists))), np.int32)
        for row, token_list in zip(tokens, token_lists, strict=True):
            row[: len(token_list)] = token_list
        return Rows(tokens, np.array(list(map(len, token_lists)), np.int32))

    return make


@pytest.fixture(scope="session")
def lists_of():
    """lists_of(rows) -> one list of tokens a row, without padding."""

    def read(rows):
        return [
            tokens[:length].tolist()
            for tokens, length in zip(rows.tokens, rows.lengths, strict=True)
        ]

    return read


@pytest.fixture(scope="session")
def keys_of():
    """keys_of(count, seed=0) -> uint32 [count, 2]."""

    def make(count, seed=0):
        return philox.example_keys(seed, 0, np.zeros(count, int), np.arange(count))

    return make
