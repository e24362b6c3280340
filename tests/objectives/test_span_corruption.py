import dataclasses

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from t5x_lite.errors import ConfigError
from t5x_lite.objectives import philox, spans
from t5x_lite.objectives.objective import Rows
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import SpanCorruption

SENTINELS = Sentinels(first=32099, count=100)


def corrupt(lengths, seed=0, objective=SpanCorruption()):  # noqa: B008
    lengths = np.asarray(lengths, np.int32)
    tokens = np.arange(3, 3 + lengths.max(), dtype=np.int32) * (
        np.arange(lengths.max()) < lengths[:, None]
    )
    keys_b2 = philox.example_keys(seed, 0, 0 * lengths, np.arange(len(lengths)))
    return objective(Rows(tokens.astype(np.int32), lengths), keys_b2, SENTINELS)


def test_t5s_geometry_fills_both_features():
    objective = SpanCorruption()
    assert objective.raw_length({"inputs": 512, "targets": 114}) == 568
    features = corrupt([568] * 3)
    assert features["inputs"].lengths.tolist() == [511] * 3  # and EOS
    assert features["targets"].lengths.tolist() == [113] * 3


def test_inputs_begin_with_text_and_targets_with_the_first_sentinel():
    features = corrupt([100, 57])
    assert features["inputs"].tokens[:, 0].tolist() == [3, 3]
    assert features["targets"].tokens[:, 0].tolist() == [SENTINELS.first] * 2


def test_noise_depends_on_the_key_alone():
    twice = [corrupt([300, 300], seed=5)["inputs"].tokens for _ in range(2)]
    np.testing.assert_array_equal(*twice)
    assert not np.array_equal(twice[0][0], twice[0][1])
    assert not np.array_equal(twice[0], corrupt([300, 300], seed=6)["inputs"].tokens)


def test_targets_shorter_than_the_objective_makes_are_refused():
    with pytest.raises(
        ConfigError, match=r"targets of 113 tokens are too short.* of 114"
    ) as caught:
        SpanCorruption().raw_length({"inputs": 512, "targets": 113})
    assert caught.value.names == ("TASK_FEATURE_LENGTHS",)


def test_a_missing_feature_is_named():
    with pytest.raises(ConfigError, match="needs the length of 'targets'; got"):
        SpanCorruption().raw_length({"inputs": 512})


def test_inputs_too_short_for_a_corrupted_text_are_refused():
    with pytest.raises(ConfigError, match="inputs of 2 tokens"):
        SpanCorruption().raw_length({"inputs": 2, "targets": 8})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise_density", 0.0),
        ("noise_density", 1.0),
        ("mean_noise_span_length", 0.5),
        ("documents_per_group", 0),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=field) as caught:
        SpanCorruption(**{field: value})
    assert caught.value.names == (f"SpanCorruption.{field}",)


def test_an_objective_is_a_value():
    assert SpanCorruption() == SpanCorruption(0.15, 3.0, 128)
    with pytest.raises(dataclasses.FrozenInstanceError):
        SpanCorruption().noise_density = 0.5


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=8),
    density=st.floats(0.05, 0.9),
    mean_length=st.floats(1.0, 8.0),
    seed=st.integers(0, 2**31 - 1),
)
def test_lengths_foretell_what_corruption_makes_of_the_same_pieces(
    lengths, density, mean_length, seed
):
    objective = SpanCorruption(noise_density=density, mean_noise_span_length=mean_length)
    rows = Rows(np.full((len(lengths), 60), 7, np.int32), np.array(lengths, np.int32))
    keys = philox.example_keys(seed, 0, np.zeros(len(lengths), int), np.arange(len(lengths)))
    made = objective(rows, keys, Sentinels(1000, 100))
    told = objective.lengths(rows.lengths, keys)
    assert {name: told[name].tolist() for name in made} == {
        name: feature.lengths.tolist() for name, feature in made.items()
    }


@given(
    st.integers(8, 700),
    st.sampled_from([0.1, 0.15, 0.25, 0.35, 0.5]),
    st.sampled_from([1, 2, 3, 5, 10, 64]),
    st.booleans(),
)
@example(362, 0.15, 2, False)  # 390 tokens x 0.15 is 58.5 in float64 and more in the mask's float32
@example(9, 0.15, 10, False)  # the arithmetic counts no span in 8 tokens, the mask always one
def test_full_pieces_fit_the_inputs_and_the_targets_that_are_asked_for(
    inputs_length, density, mean, roll
):
    objective = SpanCorruption(density, mean, random_roll=roll, borrow_pieces=True)
    raw_length = objective.raw_length({"inputs": inputs_length, "targets": 4 * inputs_length})
    made = corrupt([raw_length] * 20, objective=objective)
    assert made["inputs"].lengths.max() < inputs_length
    longest = int(made["targets"].lengths.max()) + 1
    with pytest.raises(ConfigError, match="too short"):
        objective.raw_length({"inputs": inputs_length, "targets": longest - 1})
    told = spans.span_corruption_lengths(
        inputs_length - roll, noise_density=density, mean_noise_span_length=mean
    )
    enough = max(told[1], longest) + roll
    assert objective.raw_length({"inputs": inputs_length, "targets": enough}) == raw_length


def test_a_piece_leaves_the_reserved_tokens_free():
    objective = SpanCorruption(reserved_for_packing=100)
    raw_length = objective.raw_length({"inputs": 612, "targets": 114})
    assert raw_length == 568


def test_sentinels_needed_are_the_spans_of_a_full_piece():
    lengths = {"inputs": 512, "targets": 512}
    assert SpanCorruption().sentinels_needed(lengths) == 28
    assert SpanCorruption(0.5, 3.0).sentinels_needed(lengths) == 128
    assert SpanCorruption(0.5, 3.0, borrow_pieces=True).sentinels_needed(lengths) == 1
    assert (
        SpanCorruption(0.15, 20.0).sentinels_needed({"inputs": 1024, "targets": 189}) == 9
    )  # ByT5


def test_spans_beyond_the_sentinels_borrow_the_last_pieces_if_they_may():
    features = corrupt([766], objective=SpanCorruption(0.5, 3.0, borrow_pieces=True))
    targets = features["targets"].tokens[0]
    marks = targets[targets > 31_000]
    assert marks.tolist() == list(range(32_099, 32_099 - 128, -1))
    with pytest.raises(ConfigError, match=r"128 noise spans, but .* 100 sentinels"):
        corrupt([766], objective=SpanCorruption(0.5, 3.0))
