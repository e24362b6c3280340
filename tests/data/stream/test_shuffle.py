import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.data.stream import shuffle

SEEDS = st.integers(0, 2**64 - 1)
STREAMS = st.integers(0, 2**32 - 1)


@given(st.integers(1, 700), SEEDS, STREAMS, st.integers(0, 2**31))
def test_each_epoch_meets_each_example_exactly_once(size, seed, stream, epoch):
    draws = np.arange(epoch * size, (epoch + 1) * size)
    epochs, examples = shuffle.shuffled_examples(draws, size, seed=seed, stream=stream)
    assert (epochs == epoch).all()
    assert sorted(examples) == list(range(size))


@given(st.integers(1, 50), st.integers(0, 10**15), st.integers(1, 25), SEEDS, STREAMS)
def test_a_draw_does_not_depend_on_what_is_drawn_with_it(size, first, count, seed, stream):
    draws = np.arange(first, first + count)
    together = shuffle.shuffled_examples(draws, size, seed=seed, stream=stream)
    alone = [
        shuffle.shuffled_examples(draws[i : i + 1], size, seed=seed, stream=stream)
        for i in range(count)
    ]
    np.testing.assert_array_equal(together, np.concatenate(alone, axis=1))


@given(st.integers(1, 300), st.integers(1, 80), SEEDS, STREAMS)
def test_epochs_that_begin_in_blocks_meet_each_example_once_too(size, block, seed, stream):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "BLOCK_EXAMPLES", block)
        shuffle._cached_round_keys.cache_clear()
        draws = np.arange(3 * size)
        epochs, examples = shuffle.block_shuffled_examples(draws, size, seed=seed, stream=stream)
        for epoch in range(3):
            assert sorted(examples[epochs == epoch]) == list(range(size))
        for first in range(0, size, block):
            last = min(first + block, size)
            assert sorted(examples[first:last]) == list(range(first, last))
        later = shuffle.shuffled_examples(draws[size:], size, seed=seed, stream=stream)
        np.testing.assert_array_equal(examples[size:], later[1])


@given(st.integers(1, 300), st.integers(1, 80), st.integers(0, 299), st.data())
def test_a_block_looks_alike_however_much_of_the_rest_is_known(size, block, draw, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "BLOCK_EXAMPLES", block)
        draws = np.array([min(draw, size - 1)])
        known = data.draw(
            st.integers(min(shuffle.round_up_to_block(int(draws[0]) + 1), size), size)
        )
        of_all, of_some = (
            shuffle.block_shuffled_examples(draws, count, seed=5, stream=1)
            for count in (size, known)
        )
        np.testing.assert_array_equal(of_all, of_some)


def test_blocks_each_have_an_order_of_their_own(monkeypatch):
    monkeypatch.setattr(shuffle, "BLOCK_EXAMPLES", 1000)
    _, examples = shuffle.block_shuffled_examples(np.arange(3000), 3000, seed=3, stream=1)
    for one, other in itertools.combinations(examples.reshape(3, 1000) % 1000, 2):
        assert (one == other).mean() < 0.01


def test_epochs_tasks_and_seeds_each_have_an_order_of_their_own():
    size = 1000
    orders = [
        shuffle.shuffled_examples(np.arange(size) + epoch * size, size, seed=seed, stream=stream)[1]
        for seed, stream, epoch in itertools.product((0, 1), (3, 4), (0, 1))
    ]
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).mean() < 0.01


def test_all_orders_of_four_examples_are_equally_likely():
    epochs = 24_000
    _, examples = shuffle.shuffled_examples(np.arange(4 * epochs), 4, seed=7, stream=1)
    counts = Counter(map(tuple, examples.reshape(epochs, 4).tolist()))
    assert len(counts) == 24
    chi_square = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert chi_square < 49.7  # 23 degrees of freedom, p = 0.001


def test_neighbors_in_the_store_are_not_neighbors_in_the_stream():
    size = 100_003
    _, examples = shuffle.shuffled_examples(np.arange(size), size, seed=3, stream=1)
    steps = np.abs(np.diff(examples))
    assert steps.mean() == pytest.approx(size / 3, rel=0.01)
    assert (steps < 10).mean() < 0.001
    assert abs(np.corrcoef(np.arange(size), examples)[0, 1]) < 0.01


@given(SEEDS, st.integers(0, 2**50))
def test_tasks_are_drawn_at_their_rates(seed, window):
    tasks = shuffle.draw_tasks(np.array([6.0, 0.0, 2.0]), window, seed=seed, count=8192)
    fractions = np.bincount(tasks, minlength=3) / 8192
    np.testing.assert_allclose(fractions, [0.75, 0, 0.25], atol=0.03)


def test_windows_and_seeds_draw_tasks_of_their_own():
    def draw(window, seed):
        return shuffle.draw_tasks(np.array([1.0, 1.0]), window, seed=seed, count=4096)

    np.testing.assert_array_equal(draw(0, 0), draw(0, 0))
    for window, seed in ((1, 0), (0, 1), (2**40, 0)):
        assert 0.45 < (draw(0, 0) == draw(window, seed)).mean() < 0.55


@given(st.integers(1, 300), st.integers(0, 2**50), SEEDS)
def test_rows_are_shuffled_without_loss(count, window, seed):
    rows = shuffle.shuffle_rows(count, window, seed=seed)
    assert sorted(rows) == list(range(count))
    other = shuffle.shuffle_rows(count, window + 1, seed=seed)
    assert count < 10 or (rows != other).any()


@given(
    rates=st.lists(st.floats(0.01, 1), min_size=1, max_size=5),
    remaining=st.lists(st.integers(0, 60), min_size=5, max_size=5),
    window=st.integers(0, 2**40),
    policy=st.sampled_from(["stop", "renormalize"]),
)
def test_draws_stop_or_go_on_without_what_is_gone_through(rates, remaining, window, policy):
    """Held against drawing one by one."""
    rates, remaining = np.array(rates), np.array(remaining[: len(rates)])
    settings = dict(seed=3, count=100)
    free = shuffle.draw_tasks(rates, window, **settings)
    drawn = shuffle.draw_tasks(
        rates, window, **settings, remaining=remaining, on_task_exhausted=policy
    )
    counts = np.bincount(drawn, minlength=len(rates))
    assert (counts <= remaining).all()
    same = 0
    while same < len(drawn) and drawn[same] == free[same]:
        same += 1
    before = np.bincount(free[:same], minlength=len(rates))
    if same < 100:
        assert (
            before[free[same]] == remaining[free[same]]
        )  # it differs from where one was gone through
    if policy == "stop":
        assert len(drawn) == same
    else:
        assert len(drawn) == min(100, remaining.sum())
