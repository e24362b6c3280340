import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from t5x_lite.errors import ConfigError
from t5x_lite.objectives import bart, philox
from t5x_lite.objectives.bart import Bart
from t5x_lite.objectives.objective import Rows
from t5x_lite.objectives.sentinels import Sentinels

SENTINELS = Sentinels(first=999, count=1)
STOP = 4
ALONE = {
    "masking": Bart("masking", permuted_sentences=0.0),
    "deletion": Bart("deletion", permuted_sentences=0.0),
    "infilling": Bart("infilling", permuted_sentences=0.0),
    "sentences": Bart("none", full_stops=(STOP,)),
    "rotation": Bart("none", permuted_sentences=0.0, rotation_probability=1.0),
    "all": Bart(full_stops=(STOP,), rotation_probability=0.5, random_share=0.1),
}


@pytest.mark.parametrize("name", ALONE)
@settings(max_examples=25)
@given(
    st.lists(st.lists(st.integers(3, 9), max_size=40), min_size=1, max_size=4),
    st.integers(0, 2**32),
)
def test_rows_are_foretold_alone_and_never_longer_than_the_text(
    name, rows_of, lists_of, keys_of, texts, seed
):
    objective, rows, keys = ALONE[name], rows_of(*texts), keys_of(len(texts), seed)
    made, told = objective(rows, keys, SENTINELS), objective.lengths(rows.lengths, keys)
    assert lists_of(made["targets"]) == texts
    assert made["inputs"].lengths.tolist() == told["inputs"].tolist()
    assert told["targets"].tolist() == rows.lengths.tolist()
    assert (made["inputs"].lengths <= rows.lengths).all()
    for number, text in enumerate(texts):
        alone = objective(rows_of(text), keys[number : number + 1], SENTINELS)
        assert lists_of(alone["inputs"])[0] == lists_of(made["inputs"])[number]


def transform(name, texts, keys_of, seed=0):
    tokens = np.array(texts, np.int32)
    rows = Rows(tokens, np.full(len(tokens), tokens.shape[1], np.int32))
    return ALONE[name](rows, keys_of(len(tokens), seed), SENTINELS)["inputs"]


def test_masking_takes_the_share_rounded_up_and_leaves_the_rest(keys_of):
    inputs = transform("masking", [range(10, 61)] * 200, keys_of).tokens
    masks = inputs == 999
    assert masks.sum(axis=1).tolist() == [math.ceil(0.3 * 51)] * 200
    assert (inputs == np.arange(10, 61))[~masks].all()
    assert masks.mean(axis=0).std() < 0.06  # every place alike


def test_deletion_leaves_no_trace_but_the_order(lists_of, keys_of):
    for row in lists_of(transform("deletion", [range(10, 61)] * 20, keys_of)):
        assert len(row) == 51 - 16
        assert row == sorted(set(row))


def test_infilling_puts_one_mask_for_each_span_and_some_for_none(lists_of, keys_of):
    made = lists_of(transform("infilling", [range(1000, 1500)] * 300, keys_of))
    for row in made:
        kept = [token for token in row if token != 999]
        assert kept == sorted(set(kept))
    lost = np.mean([500 - sum(t != 999 for t in row) for row in made])
    masks = np.mean([sum(t == 999 for t in row) for row in made])
    assert 0.85 * 150 < lost <= 150  # the budget, less what overlapping spans share
    # Of 50 draws 50 e^-3 are empty; another span reaches over a start with a chance of
    # 1 - exp(-(150 - 47.5) / 500), and there no mask is left.
    spans = 50 * (1 - math.exp(-3))
    expected = spans * math.exp(-(150 - spans) / 500) + 50 * math.exp(-3)
    assert masks == pytest.approx(expected, rel=0.03)


def test_span_lengths_are_poisson_distributed():
    table = bart.poisson_cdf(3.0)
    drawn = np.searchsorted(table, np.linspace(0, 1, 100_000, endpoint=False), side="right")
    expected = [math.exp(-3) * 3**k / math.factorial(k) for k in range(10)]
    np.testing.assert_allclose(np.bincount(drawn)[:10] / 100_000, expected, atol=2e-5)
    assert len(table) == 16  # P(16) is 1.02e-7, the last that counts


def test_sentences_change_places_whole_and_all_orders_are_equally_likely(keys_of):
    text = [10, 11, STOP, 12, STOP, STOP, 13, 14, 15]
    inputs = transform("sentences", [text] * 6000, keys_of).tokens
    orders, counts = np.unique(inputs, axis=0, return_counts=True)
    sentences = [(10, 11, STOP), (12, STOP), (STOP, 13, 14, 15)]
    found = {tuple(order) for order in orders.tolist()}
    assert found == {a + b + c for a in sentences for b in sentences for c in sentences
                     if len({a, b, c}) == 3}  # fmt: skip
    assert np.sum((counts - 1000) ** 2 / 1000) < 20.5  # chi-squared, 5 degrees, one in a thousand


def test_a_share_of_the_sentences_leaves_the_others_in_place(keys_of):
    text = [token for first in range(10, 20) for token in (first, STOP)]
    rows = Rows(np.array([text] * 500, np.int32), np.full(500, 20, np.int32))
    keys = philox.split(keys_of(500), 2)
    made = bart.permute_sentences(rows, (STOP,), keys, fraction=0.31).tokens
    moved = (made[:, ::2] != np.arange(10, 20)).sum(axis=1)
    assert set(moved.tolist()) <= {0, 2, 3, 4}
    assert moved.max() == 4


def test_rotation_begins_at_every_other_token_equally_often(keys_of):
    inputs = transform("rotation", [range(10, 16)] * 5000, keys_of).tokens
    starts, counts = np.unique(inputs[:, 0], return_counts=True)
    assert starts.tolist() == [11, 12, 13, 14, 15]
    assert np.sum((counts - 1000) ** 2 / 1000) < 18.5  # chi-squared, 4 degrees, one in a thousand
    offset = (inputs[:, :1] - 10 + np.arange(6)) % 6 + 10
    np.testing.assert_array_equal(inputs, offset)


def test_inserted_tokens_stand_anywhere(rows_of, lists_of, keys_of):
    rows = rows_of(*[[5, 6, 7]] * 4000)
    made = bart.insert_tokens(rows, 9, np.ones(4000, int), keys_of(4000))
    places, counts = np.unique(np.argmax(made.tokens == 9, axis=1), return_counts=True)
    assert places.tolist() == [0, 1, 2, 3]
    assert np.sum((counts - 1000) ** 2 / 1000) < 16.3  # chi-squared, 3 degrees, one in a thousand
    assert {tuple(t for t in row if t != 9) for row in lists_of(made)} == {(5, 6, 7)}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"noise_ratio": 0.0}, "Bart.noise_ratio"),
        ({"mean_span_length": 0.0}, "Bart.mean_span_length"),
        ({"random_share": 1.5}, "Bart.random_share"),
        ({"rotation_probability": -0.1}, "Bart.rotation_probability"),
        ({"documents_per_group": 0}, "Bart.documents_per_group"),
        ({"full_stops": ()}, "Bart.full_stops"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, name):
    with pytest.raises(ConfigError) as caught:
        Bart(**{"full_stops": (STOP,), **changes})
    assert name in caught.value.names


def test_targets_must_hold_the_text():
    assert ALONE["all"].raw_length({"inputs": 512, "targets": 512}) == 511
    with pytest.raises(ConfigError, match="makes targets of 512"):
        ALONE["all"].raw_length({"inputs": 512, "targets": 511})
