from typing import get_args

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from t5x_lite.objectives import noise, philox
from t5x_lite.objectives.noise import Replacement
from t5x_lite.objectives.objective import Rows
from t5x_lite.objectives.sentinels import BYTE_SENTINELS, Sentinels

SENTINELS = Sentinels(999, 100)
SAME_LENGTH = {"mask_tokens", "permute", "gathered_tokens", "random_tokens", "random_or_mask"}
SAME_LENGTH |= {"bert", "nothing"}


def replace(name, rows, mask, seed=0, sentinels=SENTINELS):
    count = len(rows.lengths)
    keys = philox.example_keys(seed, 0, np.zeros(count, int), np.arange(count))
    return noise.replace_noise(name, rows, mask, sentinels, philox.split(keys, 2))


@st.composite
def masked(draw):
    lengths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=4))
    tokens = np.zeros((len(lengths), max(lengths)), np.int32)
    for row, length in zip(tokens, lengths, strict=True):
        same = draw(st.booleans())
        row[:length] = (
            7 if same else draw(st.lists(st.integers(3, 800), min_size=length, max_size=length))
        )
    bits = draw(st.lists(st.booleans(), min_size=tokens.size, max_size=tokens.size))
    return Rows(tokens, np.array(lengths, np.int32)), np.array(bits, bool).reshape(tokens.shape)


@pytest.mark.parametrize("name", get_args(Replacement))
@settings(max_examples=25)
@given(masked(), st.integers(0, 2**32))
def test_kept_tokens_stay_in_order_and_lengths_are_foretold(name, example, seed):
    rows, mask = example
    made = replace(name, rows, mask, seed)
    told = noise.replaced_lengths(name, rows.lengths, mask)
    assert made.lengths.tolist() == told.tolist()
    assert made.tokens.dtype == np.int32
    assert made.tokens.shape == rows.tokens.shape
    assert not made.tokens[~noise.valid_positions(made)].any()
    kept_mask = noise.valid_positions(rows) & ~mask
    if name in SAME_LENGTH:
        assert (made.lengths == rows.lengths).all()
        np.testing.assert_array_equal(made.tokens[kept_mask], rows.tokens[kept_mask])
    else:
        kept = made.tokens[noise.valid_positions(made) & (made.tokens <= 800)]
        np.testing.assert_array_equal(kept, rows.tokens[kept_mask])


@pytest.mark.parametrize("name", get_args(Replacement))
@settings(max_examples=25)
@given(masked(), st.integers(0, 2**32))
def test_a_row_depends_on_itself_alone(name, example, seed):
    rows, mask = example
    together = replace(name, rows, mask, seed)
    count = len(rows.lengths)
    keys = philox.split(philox.example_keys(seed, 0, np.zeros(count, int), np.arange(count)), 2)
    for row in range(count):
        own, width = slice(row, row + 1), int(rows.lengths[row])
        alone = noise.replace_noise(
            name,
            Rows(rows.tokens[own, :width], rows.lengths[own]),
            mask[own, :width],
            SENTINELS,
            keys[own],
        )
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row, :width])
        assert alone.lengths[0] == together.lengths[row]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mask_tokens", [11, 12, 999, 999, 15, 999]),
        ("mask_spans", [11, 12, 999, 15, 999]),
        ("sentinels", [11, 12, 999, 15, 998]),
        ("drop", [11, 12, 15]),
        ("nothing", [11, 12, 13, 14, 15, 16]),
    ],
)
def test_what_is_not_random_is_this(rows_of, lists_of, name, expected):
    rows = rows_of([11, 12, 13, 14, 15, 16])
    mask = np.array([[0, 0, 1, 1, 0, 1]], bool)
    assert lists_of(replace(name, rows, mask)) == [expected]


@given(masked(), st.integers(0, 2**32))
def test_permuting_loses_and_invents_no_token(example, seed):
    rows, mask = example
    made = replace("permute", rows, mask, seed)
    np.testing.assert_array_equal(np.sort(made.tokens, axis=1), np.sort(rows.tokens, axis=1))


def test_all_orders_of_three_tokens_are_equally_likely():
    rows = Rows(np.tile(np.array([1, 5, 6, 7], np.int32), (6000, 1)), np.full(6000, 4, np.int32))
    mask = np.tile([False, True, True, True], (6000, 1))
    orders, counts = np.unique(replace("permute", rows, mask).tokens, axis=0, return_counts=True)
    assert len(orders) == 6
    assert np.sum((counts - 1000) ** 2 / 1000) < 20.5  # chi-squared, 5 degrees, one in a thousand


@given(masked(), st.integers(0, 2**32))
def test_gathered_tokens_come_from_the_same_row(example, seed):
    rows, mask = example
    made = replace("gathered_tokens", rows, mask, seed)
    for before, after, length in zip(rows.tokens, made.tokens, rows.lengths, strict=True):
        assert set(after[:length].tolist()) <= set(before[:length].tolist())


def test_random_tokens_are_every_id_but_the_special_ones():
    rows = Rows(np.full((100, 1000), 50, np.int32), np.full(100, 1000, np.int32))
    made = replace("random_tokens", rows, np.ones((100, 1000), bool)).tokens
    ids, counts = np.unique(made, return_counts=True)
    assert ids.tolist() == list(range(3, 1000))
    degrees = len(ids) - 1
    statistic = np.sum((counts - made.size / len(ids)) ** 2) / (made.size / len(ids))
    assert abs(statistic - degrees) < 4 * np.sqrt(2 * degrees)


@pytest.mark.parametrize(
    ("name", "shares"),
    [("random_or_mask", (0.9, 0.1, 0.0)), ("bert", (0.8, 0.1, 0.1))],
)
def test_mixtures_have_their_shares_of_masks_random_and_unchanged_tokens(name, shares):
    vocabulary = Sentinels(31_999, 100)
    rows = Rows(np.full((100, 1000), 50, np.int32), np.full(100, 1000, np.int32))
    made = replace(name, rows, np.ones((100, 1000), bool), sentinels=vocabulary).tokens
    masks, unchanged = made == vocabulary.first, made == 50
    found = (masks.mean(), 1 - masks.mean() - unchanged.mean(), unchanged.mean())
    np.testing.assert_allclose(found, shares, atol=4 * np.sqrt(0.25 / made.size))


@pytest.mark.parametrize(
    ("vocabulary", "third"),
    [
        (Sentinels(32_099, 100), 32_097),  # T5
        (Sentinels(250_099, 100), 250_097),  # mT5
        (Sentinels(256_299, 300), 256_297),  # umT5
        (BYTE_SENTINELS, 256),  # ByT5
    ],
)
def test_sentinels_descend_from_the_last_id_of_each_vocabulary(rows_of, vocabulary, third):
    rows = rows_of([5, 6, 7, 8, 9])
    mask = np.array([[1, 0, 1, 0, 1]], bool)
    made = replace("sentinels", rows, mask, sentinels=vocabulary)
    assert made.tokens[0].tolist() == [third + 2, 6, third + 1, 8, third]


def test_the_sentinels_of_bytes_are_no_part_of_any_text():
    ids = range(BYTE_SENTINELS.first, BYTE_SENTINELS.first - BYTE_SENTINELS.count, -1)
    every_character = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    used = {3 + byte for byte in set(every_character.encode())}
    assert not used & set(ids)
    assert ids[-1] - 1 in used
