import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from t5x_lite.errors import ConfigError
from t5x_lite.objectives import ul2
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import SpanCorruption
from t5x_lite.objectives.ul2 import UL2, UL2_DENOISERS, Denoiser, SequentialDenoising

SENTINELS = Sentinels(first=999, count=100)
LENGTHS = {"inputs": 512, "targets": 512}
MODES = {902: "R", 901: "S", 900: "X"}


def test_sequential_denoising_predicts_the_last_quarter(rows_of, lists_of, keys_of):
    made = SequentialDenoising()(rows_of(range(3, 15), [5, 6], [5], []), keys_of(4), SENTINELS)
    assert lists_of(made["inputs"]) == [[*range(3, 12)], [5], [5], []]
    assert lists_of(made["targets"]) == [[12, 13, 14], [6], [], []]


@pytest.mark.parametrize("denoiser", UL2_DENOISERS, ids=str)
def test_each_denoisers_output_bears_its_mode_and_is_what_it_makes_alone(
    denoiser, rows_of, lists_of, keys_of
):
    text, keys = [*range(3, 203)], keys_of(6)
    rows = rows_of(*[text] * 6)
    made = UL2((denoiser,), mode_tokens=((7,), (8, 8), (9,)))(rows, keys, SENTINELS)
    alone = denoiser.objective(rows, keys, SENTINELS)
    prefix = ([7], [8, 8], [9])[denoiser.mode]
    assert lists_of(made["inputs"]) == [prefix + row for row in lists_of(alone["inputs"])]
    assert lists_of(made["targets"]) == lists_of(alone["targets"])


def test_the_seven_denoisers_are_drawn_alike(rows_of, keys_of):
    rows = rows_of(*[[*range(3, 43)]] * 7000)
    made = UL2()(rows, keys_of(7000), SENTINELS)
    modes, counts = np.unique(made["inputs"].tokens[:, 0], return_counts=True)
    assert [MODES[mode] for mode in modes.tolist()] == ["X", "S", "R"]
    expected = np.array([4000, 1000, 2000])
    assert np.sum((counts - expected) ** 2 / expected) < 13.8  # chi-squared, 2 degrees, 1 in 1000


def test_rates_decide_which_denoisers_are_drawn(rows_of, keys_of):
    mixture = UL2(
        (Denoiser(SpanCorruption(), ul2.R, 3.0), Denoiser(SequentialDenoising(), ul2.S, 1.0))
    )
    made = mixture(rows_of(*[[*range(3, 43)]] * 4000), keys_of(4000), SENTINELS)
    assert (made["inputs"].tokens[:, 0] == 901).mean() == pytest.approx(0.75, abs=0.03)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.integers(0, 2**32))
def test_lengths_are_foretold_and_no_token_is_lost(rows_of, lists_of, keys_of, lengths, seed):
    texts = [list(range(3, 3 + length)) for length in lengths]
    rows, keys = rows_of(*texts), keys_of(len(texts), seed)
    made, told = UL2()(rows, keys, SENTINELS), UL2().lengths(rows.lengths, keys)
    for name, feature in made.items():
        assert feature.lengths.tolist() == told[name].tolist()
    for text, inputs, targets in zip(
        texts, lists_of(made["inputs"]), lists_of(made["targets"]), strict=True
    ):
        assert inputs[0] in MODES
        assert sorted(t for t in inputs + targets if t < 900) == text
        assert not set(inputs[1:] + targets) & set(MODES)


@settings(max_examples=25)
@given(st.integers(16, 600), st.integers(0, 2**32))
def test_full_pieces_fit_the_features(rows_of, keys_of, inputs_length, seed):
    lengths = {"inputs": inputs_length, "targets": inputs_length}
    objective = UL2()
    raw_length = objective.raw_length(lengths)
    text = [*range(3, 3 + raw_length)]
    enough = Sentinels(9999, objective.sentinels_needed(lengths))
    made = objective(rows_of(*[text] * 20), keys_of(20, seed), enough)
    for name, length in lengths.items():
        assert made[name].lengths.max() + 1 <= length


def test_the_published_lengths_fit_a_vocabulary_of_a_hundred_sentinels():
    assert UL2().raw_length(LENGTHS) == 567
    assert UL2().sentinels_needed(LENGTHS) == 98
    with pytest.raises(ConfigError, match="UL2 of inputs of 512 tokens makes targets of 380"):
        UL2().raw_length({"inputs": 512, "targets": 379})


def test_a_mixture_that_cannot_be_drawn_from_is_refused():
    with pytest.raises(ConfigError, match="one of them positive"):
        UL2(())
    with pytest.raises(ConfigError, match="one of them positive"):
        UL2((Denoiser(SpanCorruption(), ul2.R, 0.0),))
    with pytest.raises(ConfigError, match="each of 3 modes; got 2"):
        UL2(mode_tokens=((5,), (6,)))
    with pytest.raises(ConfigError, match=r"target_share must be in \(0, 1\); got 1.0"):
        SequentialDenoising(1.0)
