"""The compiled loops make the bits that NumPy makes, and NumPy takes their place unasked."""

import contextlib
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from t5x_lite.data.stream import numba_loader, shuffle
from t5x_lite.data.stream.examples import PairExamples, TextExamples
from t5x_lite.data.stream.packing import Segments, best_fit_decreasing
from t5x_lite.data.stream.trim_and_eos import example_keys
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.objective import Rows
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import SpanCorruption

needs_numba = pytest.mark.skipif(numba_loader.kernels() is None, reason="needs the extra [fast]")
SENTINELS = Sentinels(31_999, 30_000)


@contextlib.contextmanager
def numpy_alone():
    with mock.patch.object(numba_loader, "kernels", return_value=None):
        yield


def both_ways(make):
    """What a function makes compiled and in NumPy."""
    with numpy_alone():
        by_numpy = make()
    return make(), by_numpy


def assert_same_rows(found, expected):
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        for array, wanted in zip(found[name], rows, strict=True):
            assert array.dtype == wanted.dtype
            np.testing.assert_array_equal(array, wanted)


@needs_numba
@settings(max_examples=60)
@given(
    documents=st.lists(st.integers(0, 700), min_size=1, max_size=12),
    density=st.floats(0.01, 0.95),
    mean=st.floats(1, 20),
    inputs=st.integers(4, 600),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**31),
    kind=st.sampled_from([np.uint16, np.uint32]),
)
def test_span_corruption_is_the_same_compiled(
    memory_store, documents, density, mean, inputs, seed, epoch, kind
):
    objective = SpanCorruption(density, mean, documents_per_group=5)
    lengths = {"inputs": inputs, "targets": 2000}
    random = np.random.default_rng(seed)
    store = memory_store(targets=[random.integers(2, 30_000, length) for length in documents])
    tokens = store.tokens("targets").astype(kind)

    def make():
        with mock.patch.object(type(store), "tokens", return_value=tokens):
            text = TextExamples("t", store, objective, lengths, sentinels=SENTINELS, seed=seed)
        index = np.arange(text.size)
        return text.features(np.full(text.size, epoch), index)

    try:
        found, expected = both_ways(make)
    except ConfigError:  # the inputs cannot hold so much noise
        reject()
    assert_same_rows(found, expected)


@needs_numba
@settings(max_examples=30)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=20),
    inputs=st.integers(1, 25),
    targets=st.integers(1, 25),
)
def test_pairs_are_the_same_compiled(memory_store, pairs, inputs, targets):
    random = np.random.default_rng(0)
    columns = zip(*[[random.integers(0, 900, n) for n in pair] for pair in pairs], strict=True)
    store = memory_store(**dict(zip(("inputs", "targets"), columns, strict=True)))
    examples = PairExamples(store, {"inputs": inputs, "targets": targets})
    index = np.arange(examples.size)[::-1]
    assert_same_rows(*both_ways(lambda: examples.features(index, index)))


@needs_numba
@settings(max_examples=60)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 64), st.integers(1, 20)), max_size=200),
    small=st.booleans(),
)
def test_rows_are_packed_the_same_compiled(lengths, small):
    lengths = np.array(lengths, np.int64).reshape(-1, 2) // (3 if small else 1)
    found, expected = both_ways(lambda: best_fit_decreasing(lengths, (64, 20)))
    np.testing.assert_array_equal(found, expected)


@needs_numba
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_segments_are_written_the_same_compiled(lengths):
    lengths = np.array(lengths)
    tokens = np.random.default_rng(0).integers(0, 99, (len(lengths), 9), dtype=np.int32)
    tokens[np.arange(9) >= lengths[:, None]] = 0
    starts = np.cumsum(lengths) - lengths

    def make():
        segments = Segments.empty(3, 120)
        segments.write(
            Rows(tokens, lengths.astype(np.int32)),
            row_n=np.arange(len(lengths)) % 3,
            start_n=starts,
            segment_n=1 + np.arange(len(lengths)),
        )
        return segments

    for found, expected in zip(*both_ways(make), strict=True):
        np.testing.assert_array_equal(found, expected)


@needs_numba
@given(seed=st.integers(0, 2**64 - 1), window=st.integers(0, 2**40), count=st.integers(1, 90))
def test_the_order_is_the_same_compiled(seed, window, count):
    def make():
        return (
            shuffle.draw_tasks(np.array([1.0, 2.0, 0.5]), window, seed=seed, count=count),
            shuffle.shuffle_rows(count, window, seed=seed),
            *shuffle.shuffled_examples(np.arange(window, window + 60), count, seed=seed, stream=5),
        )

    for found, expected in zip(*both_ways(make), strict=True):
        np.testing.assert_array_equal(found, expected)


@needs_numba
@given(
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 2**31),
    index=st.integers(0, 2**50),
)
def test_the_keys_of_examples_are_the_same_compiled(seed, stream, epoch, index):
    numbers = np.array([epoch, 0]), np.array([index, 3])
    found, expected = both_ways(lambda: example_keys(seed, stream, *numbers))
    np.testing.assert_array_equal(found, expected)


def test_without_numba_numpy_takes_its_place():
    program = (
        "import sys; sys.modules['numba'] = None;"
        "from t5x_lite.data.stream import numba_loader, packing; import numpy as np;"
        "print(numba_loader.describe(), packing.best_fit_decreasing(np.array([[1, 1]]), (2, 2)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["NumPy", "[0]"]), done.stderr


def test_a_numba_that_cannot_run_is_reported_and_replaced(caplog):
    numba_loader.load_kernels.cache_clear()
    with (
        mock.patch.object(numba_loader.importlib.util, "find_spec", lambda name: name),
        mock.patch.object(
            numba_loader.importlib, "import_module", side_effect=ImportError("NumPy 9")
        ),
    ):
        assert numba_loader.describe() == "NumPy"
    numba_loader.load_kernels.cache_clear()
    assert "installed but cannot be used (NumPy 9); using NumPy instead" in caplog.text
