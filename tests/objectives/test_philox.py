import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from t5x_lite.objectives import philox

words = st.integers(0, 2**32 - 1)
keys = st.tuples(words, words).map(lambda key: np.array([key], np.uint32))


def uint32(*words):
    return np.array(words, np.uint32)


@pytest.mark.parametrize(
    ("counter", "key", "block"),
    [  # Random123's kat_vectors, philox4x32 with 10 rounds
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            [0xFFFFFFFF] * 4,
            [0xFFFFFFFF] * 2,
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        ),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_blocks_are_the_published_ones(counter, key, block):
    assert philox.philox_4x32(uint32(*counter), uint32(*key)).tolist() == block


def test_draws_are_those_of_tensorflows_stateless_operations():
    tf = pytest.importorskip("tensorflow")
    keys_b2 = np.array([[0, 0], [1, 2], [2**31, 7], [2**32 - 1, 2**31 - 1]], np.uint32)
    uniform_bn, splits_bn2 = philox.uniform(keys_b2, 41), philox.split(keys_b2, 6)
    for row, seed in enumerate(keys_b2.view(np.int32)):
        expected = tf.random.stateless_uniform([41], seed).numpy()
        np.testing.assert_array_equal(uniform_bn[row], expected)
        expected = tf.random.experimental.stateless_split(seed, 6).numpy()
        np.testing.assert_array_equal(splits_bn2[row].view(np.int32), expected)


@given(keys, st.integers(0, 40), st.integers(0, 40))
def test_a_longer_draw_begins_with_the_shorter_one(keys_b2, count, more):
    longer = philox.random_bits(keys_b2, count + more)
    np.testing.assert_array_equal(longer[:, :count], philox.random_bits(keys_b2, count))


@given(st.lists(keys, min_size=1, max_size=5))
def test_a_row_does_not_depend_on_its_batch(rows):
    together = philox.uniform(np.concatenate(rows), 9)
    alone = [philox.uniform(row, 9)[0] for row in rows]
    np.testing.assert_array_equal(together, alone)


def test_uniform_numbers_fill_the_unit_interval_evenly():
    numbers = philox.uniform(uint32(3, 4)[None], 100_000)
    assert numbers.dtype == np.float32
    assert 0 <= numbers.min() < 1e-3
    assert 0.999 < numbers.max() < 1
    shares, _ = np.histogram(numbers, bins=20, range=(0, 1))
    np.testing.assert_allclose(shares / numbers.size, 1 / 20, atol=0.003)


def test_example_keys_differ_whatever_differs():
    index = np.array([0, 1, 2**32, 2**40 + 1])
    drawn = [
        philox.example_keys(seed, stream, epoch + 0 * index, index)
        for seed in (0, 1, 2**32)
        for stream in (0, 1, 2**32 - 1)
        for epoch in (0, 1)
    ]
    distinct = {tuple(key) for keys_b2 in drawn for key in keys_b2.tolist()}
    assert len(distinct) == 3 * 3 * 2 * len(index)


def test_folding_in_numbers_makes_keys_that_differ():
    keys_b2 = np.array([[5, 6], [6, 5]], np.uint32)
    folded = [tuple(key) for data in range(50) for key in philox.fold_in(keys_b2, data).tolist()]
    assert len(set(folded)) == 100
