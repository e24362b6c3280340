import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from t5x_lite.objectives import masks, philox

MASKS = {
    "iid": masks.iid_mask,
    "regular": masks.regular_spans_mask,
    "prefix": masks.random_prefix_mask,
    "block": masks.block_mask,
    "geometric": masks.geometric_spans_mask,
}
CHI_SQUARED_999 = {4: 18.5, 9: 27.9, 10: 29.6}  # by degrees of freedom: exceeded once in a thousand


def draw(name, lengths, *, density=0.15, seed=0, max_length=None):
    lengths = np.asarray(lengths)
    return MASKS[name](
        lengths,
        noise_density=density,
        keys_b2=philox.example_keys(seed, 0, 0 * lengths, np.arange(len(lengths))),
        max_length=int(lengths.max()) if max_length is None else max_length,
    )


def runs_of(row):
    """The (start, length) of each run of noise."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]])))
    return list(zip(edges[::2].tolist(), (edges[1::2] - edges[::2]).tolist(), strict=True))


def chi_squared(counts, expected):
    return float(np.sum((counts - expected) ** 2 / expected))


@pytest.mark.parametrize("name", MASKS)
@settings(max_examples=25)
@given(st.lists(st.integers(0, 70), min_size=1, max_size=6), st.integers(0, 2**40))
def test_a_mask_follows_from_its_rows_length_and_key_alone(name, lengths, seed):
    together = draw(name, lengths, seed=seed, max_length=70)
    assert together.shape == (len(lengths), 70)
    assert together.dtype == np.bool_
    lengths = np.array(lengths)
    assert not together[np.arange(70) >= lengths[:, None]].any()
    keys = philox.example_keys(seed, 0, 0 * lengths, np.arange(len(lengths)))
    for row in range(len(lengths)):
        own = slice(row, row + 1)
        width = int(lengths[row])
        alone = MASKS[name](lengths[own], noise_density=0.15, keys_b2=keys[own], max_length=width)
        np.testing.assert_array_equal(alone[0], together[row, :width])


@pytest.mark.parametrize("density", [0.1, 0.15, 0.25, 0.5])
def test_iid_noise_is_independent_from_token_to_token(density):
    mask = draw("iid", np.full(400, 500), density=density)
    error = 4 * np.sqrt(density * (1 - density) / mask.size)  # four standard errors
    assert abs(mask.mean() - density) < error
    pairs = (mask[:, 1:] & mask[:, :-1]).mean()
    assert abs(pairs - density**2) < 4 * density / np.sqrt(mask.size)


@pytest.mark.parametrize("density", [0.15, 0.25, 0.5])
def test_regular_spans_are_equal_and_equally_spaced(density):
    mask = draw("regular", np.full(300, 120), density=density)
    seen = set()
    for row in mask:
        runs = runs_of(row)[1:-1]  # the row's ends may cut the first and the last
        assert len({length for _, length in runs}) <= 1
        starts = np.diff([start for start, _ in runs])
        assert len(set(starts.tolist())) <= 1
        if len(starts):
            assert starts[0] == np.round(np.float32(runs[0][1]) / np.float32(density))
            seen.add(runs[0][1])
    assert seen == {1, 2, 3, 4, 5}


@given(st.integers(0, 90), st.floats(0.05, 0.5), st.integers(0, 2**32))
def test_a_prefix_is_no_shorter_than_its_density_says_and_leaves_a_token(length, density, seed):
    row = draw("prefix", [length], density=density, seed=seed, max_length=90)[0]
    prefix = int(row.sum())
    assert row[:prefix].all()
    if length >= 2:
        asked = np.round(np.float32(1 - 2 * density) * np.float32(length - 1))
        assert min(max(asked, 1), length - 1) <= prefix <= length - 1
    else:
        assert prefix == 0


def test_prefixes_of_all_lengths_are_equally_likely():
    prefixes = draw("prefix", np.full(11_000, 12), density=0.5).sum(axis=1)
    counts = np.bincount(prefixes, minlength=12)[1:]
    assert chi_squared(counts, 1000) < CHI_SQUARED_999[10]


@given(st.integers(0, 90), st.floats(0.05, 0.95), st.integers(0, 2**32))
def test_a_block_is_one_run_of_the_promised_length(length, density, seed):
    runs = runs_of(draw("block", [length], density=density, seed=seed, max_length=90)[0])
    noise = int(np.round(np.float32(length) * np.float32(density)))
    assert [found for _, found in runs] == ([noise] if noise else [])


def test_blocks_start_everywhere_with_equal_chances():
    starts = [runs_of(row)[0][0] for row in draw("block", np.full(5000, 8), density=0.5)]
    assert chi_squared(np.bincount(starts, minlength=5), 1000) < CHI_SQUARED_999[4]


@given(st.lists(st.integers(0, 90), min_size=1, max_size=5), st.integers(0, 2**32))
def test_geometric_spans_keep_to_the_budget_and_to_ten_tokens(lengths, seed):
    mask = draw("geometric", lengths, seed=seed, max_length=90)
    for row, length in zip(mask, lengths, strict=True):
        budget = int(np.round(np.float32(length) * np.float32(0.15)))
        assert row.sum() <= min(max(budget, 1), max(length - 1, 0))
        assert all(found <= 10 for _, found in runs_of(row))


def test_geometric_spans_use_up_their_budget_and_have_spanberts_lengths():
    mask = draw("geometric", np.full(400, 500))
    assert mask.sum(axis=1).tolist() == [75] * 400
    drawn = masks.geometric_lengths(np.linspace(0, 1, 100_000, endpoint=False), 0.2, 10)
    assert drawn.mean() == pytest.approx(3.797, abs=1e-3)  # the 3.8 of Joshi et al., figure 2
    # A run is a span, but for the last of a row, which the budget cuts: mean 3.8 less a little.
    lengths = [length for row in mask for _, length in runs_of(row)]
    assert 3.5 < np.mean(lengths) < 3.8
    weights = 0.8 ** np.arange(10)
    shares = np.bincount(lengths, minlength=11)[1:] / len(lengths)
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.02)
