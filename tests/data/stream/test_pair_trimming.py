import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.data.stream.open_examples import open_examples
from t5x_lite.data.stream.pair_trimming import PairTrimming, find_answer, window_start
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.sentinels import Sentinels

TOKENS = st.lists(st.integers(3, 9), min_size=1, max_size=30)


def opened(store, trimming, lengths):
    return open_examples(
        "task",
        store,
        objective=None,
        trimming=trimming,
        feature_lengths=lengths,
        sentinels=Sentinels(999, 100),
        seed=5,
    )


def lists(rows):
    return [tokens[:length].tolist() for tokens, length in zip(*rows, strict=True)]


@given(TOKENS, st.integers(2, 12), st.integers(1, 3))
def test_the_last_tokens_of_a_long_pair_stay(memory_store, tokens, length, keep_last_tokens):
    """Written out as T5's add_task_with_sentinels has it."""
    store = memory_store(inputs=[tokens], targets=[tokens])
    lengths = {"inputs": length, "targets": length}
    made = opened(store, PairTrimming(keep_last_tokens), lengths).features(
        np.zeros(1, int), np.zeros(1, int)
    )
    trimmed = min(length, len(tokens) + 1)
    kept = min(keep_last_tokens, trimmed - 1)
    expected = [*tokens[: trimmed - (kept + 1)], *tokens[len(tokens) - kept :], 1]
    assert lists(made["inputs"]) == lists(made["targets"]) == [expected]


@given(TOKENS, st.lists(st.integers(3, 9), max_size=4))
def test_an_answer_is_found_where_it_first_stands(tokens, answer):
    text, wanted = "".join(map(chr, tokens)), "".join(map(chr, answer))
    expected = text.find(wanted) if wanted else -1
    assert find_answer(np.array(tokens), np.array(answer, int)) == expected


def test_every_stretch_with_the_answer_in_it_is_drawn():
    keys = np.random.default_rng(0).integers(0, 2**32, (400, 1, 2), np.uint32)
    starts = {window_start(20, 3, 60, width=8, key_12=key) for key in keys}
    assert starts == set(range(15, 21))
    assert {window_start(1, 3, 60, width=8, key_12=key) for key in keys} == {0, 1}
    assert {window_start(56, 4, 60, width=8, key_12=key) for key in keys} == {52}


def test_questions_keep_their_answers_and_those_without_are_left_out(memory_store):
    inputs = [list(range(10, 90)), [5, 6], list(range(10, 90))]
    store = memory_store(inputs=inputs, targets=[[80, 81], [5], [81, 80]])
    held = opened(store, PairTrimming(window_around_answer=True), {"inputs": 12, "targets": 4})
    assert held.size == 2
    seen = set()
    for epoch in range(40):
        made = held.features(np.full(2, epoch), np.arange(2))
        (*stretch, eos), short = lists(made["inputs"])
        assert (eos, short) == (1, [5, 6, 1])
        assert stretch == list(range(stretch[0], stretch[0] + 11))
        assert {80} <= set(stretch) <= set(range(10, 90))
        seen.add(stretch[0])
    assert len(seen) > 5


def test_a_task_none_of_whose_answers_is_found_holds_no_example(memory_store):
    store = memory_store(inputs=[[5] * 50], targets=[[6]])
    with pytest.raises(ConfigError, match="holds no example"):
        opened(store, PairTrimming(window_around_answer=True), {"inputs": 12, "targets": 4})
