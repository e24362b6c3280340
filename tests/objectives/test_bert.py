import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from t5x_lite.errors import ConfigError
from t5x_lite.objectives.bert import Bert, MaskedLM, ReplacedTokens, SpanBert
from t5x_lite.objectives.sentinels import Sentinels

SENTINELS = Sentinels(first=999, count=100)
MASK, CLS, SEP = 999, 998, 1
MASK_OF_MANY = 31_999  # of a vocabulary so large that no random token is the mask
TEXTS = st.lists(st.lists(st.integers(3, 800), max_size=40), min_size=1, max_size=4)


@pytest.mark.parametrize("objective", [MaskedLM(), SpanBert(), ReplacedTokens()])
@settings(max_examples=25)
@given(TEXTS, st.integers(0, 2**32))
def test_weights_stand_where_tokens_are_to_be_predicted(
    objective, rows_of, lists_of, keys_of, texts, seed
):
    rows, keys = rows_of(*texts), keys_of(len(texts), seed)
    made = objective(rows, keys, SENTINELS)
    assert lists_of(made["targets"]) == texts
    for text, inputs, weights in zip(
        texts, lists_of(made["inputs"]), lists_of(made["weights"]), strict=True
    ):
        assert len(inputs) == len(weights) == len(text)
        assert all(now == was for now, was, w in zip(inputs, text, weights, strict=True) if not w)
        assert sum(weights) <= max(round(0.15 * len(text)), 1)
    assert objective.lengths(rows.lengths, keys)["inputs"].tolist() == rows.lengths.tolist()


def test_berts_noise_is_masked_random_or_left_alone(rows_of, keys_of):
    text = list(range(3, 503))
    made = MaskedLM()(rows_of(*[text] * 200), keys_of(200), SENTINELS)
    chosen = made["weights"].tokens == 1
    assert chosen.sum(axis=1).tolist() == [75] * 200
    inputs, targets = made["inputs"].tokens[chosen], made["targets"].tokens[chosen]
    shares = [(inputs == MASK).mean(), (inputs == targets).mean()]
    np.testing.assert_allclose(shares, [0.8, 0.1], atol=4 * 0.5 / np.sqrt(len(inputs)))


def test_a_span_of_spanbert_has_one_fate(rows_of, keys_of):
    text = list(range(3, 503))
    made = SpanBert()(rows_of(*[text] * 200), keys_of(200), Sentinels(MASK_OF_MANY, 100))
    fates = []
    for inputs, targets, weights in zip(
        made["inputs"].tokens, made["targets"].tokens, made["weights"].tokens, strict=True
    ):
        for span in np.split(np.arange(500), np.flatnonzero(np.diff(weights)) + 1):
            if not weights[span[0]]:
                continue
            masked, same = inputs[span] == MASK_OF_MANY, inputs[span] == targets[span]
            assert masked.all() or not masked.any()
            fates.append("mask" if masked.all() else "same" if same.all() else "random")
    assert fates.count("mask") / len(fates) == pytest.approx(0.8, abs=0.03)
    assert fates.count("same") / len(fates) == pytest.approx(0.1, abs=0.03)


@given(TEXTS, st.data(), st.integers(0, 2**32))
def test_pairs_are_laid_out_as_in_bert(rows_of, lists_of, keys_of, texts, data, seed):
    others = data.draw(
        st.lists(
            st.lists(st.integers(3, 800), max_size=40), min_size=len(texts), max_size=len(texts)
        )
    )
    rows, beside, keys = rows_of(*texts), rows_of(*others), keys_of(len(texts), seed)
    made = Bert().pair(rows, beside, keys, SENTINELS)
    told = Bert().pair_lengths(rows.lengths, beside.lengths, keys)
    for name in ("inputs", "targets"):
        assert made[name].lengths.tolist() == told[name].tolist()
    for text, other, targets, inputs, segments, weights, label in zip(
        texts,
        others,
        *(lists_of(made[name]) for name in ("targets", "inputs", "segments", "weights")),
        made["next_sentence"].tokens[:, 0],
        strict=True,
    ):
        first, rest = text[: (len(text) + 1) // 2], text[(len(text) + 1) // 2 :]
        second = rest if label else other[: len(rest)]
        assert targets == [CLS, *first, SEP, *second]
        assert segments == [0] * (len(first) + 2) + [1] * len(second)
        assert weights[0] == weights[len(first) + 1] == 0
        for now, was, weight in zip(inputs, targets, weights, strict=True):
            assert weight or now == was


def test_half_of_the_second_stretches_are_the_next(rows_of, keys_of):
    rows = rows_of(*[[5, 6, 7, 8]] * 4000)
    made = Bert().pair(rows, rows, keys_of(4000), SENTINELS)
    assert made["next_sentence"].tokens.mean() == pytest.approx(0.5, abs=0.032)


def test_a_piece_alone_is_followed_by_itself(rows_of, lists_of, keys_of):
    rows, keys = rows_of([5, 6, 7, 8, 9]), keys_of(1)
    made = Bert(cls_id=2)(rows, keys, SENTINELS)
    assert lists_of(made["targets"]) == [[2, 5, 6, 7, SEP, 8, 9]]
    assert Bert().lengths(rows.lengths, keys)["inputs"].tolist() == [7]


def test_replaced_tokens_come_from_elsewhere_in_the_piece(rows_of, keys_of):
    text = [5] * 300 + [6] * 100
    rows, keys = rows_of(*[text] * 100), keys_of(100)
    made = ReplacedTokens()(rows, keys, SENTINELS)
    chosen = made["weights"].tokens == 1
    assert chosen.sum(axis=1).tolist() == [60] * 100
    put = made["inputs"].tokens[chosen]
    assert set(put) == {5, 6}
    assert (put == 5).mean() == pytest.approx(0.75, abs=4 * 0.5 / np.sqrt(len(put)))
    found = ReplacedTokens(everywhere=True)(rows, keys, SENTINELS)
    np.testing.assert_array_equal(found["inputs"].tokens, made["inputs"].tokens)
    assert found["weights"].tokens.all()


def test_features_must_hold_text_and_special_tokens():
    assert MaskedLM().raw_length({"inputs": 512, "targets": 512}) == 511
    assert Bert().raw_length({"inputs": 512, "targets": 512}) == 509
    with pytest.raises(ConfigError, match="makes targets of 512"):
        Bert().raw_length({"inputs": 512, "targets": 511})
    with pytest.raises(ConfigError, match=r"noise_density must be in \(0, 1\); got 1.0") as caught:
        SpanBert(noise_density=1.0)
    assert caught.value.names == ("SpanBert.noise_density",)
