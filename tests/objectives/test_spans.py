import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from t5x_lite.errors import ConfigError
from t5x_lite.objectives import philox, spans
from t5x_lite.objectives.noise import noise_spans_to_unique_sentinel
from t5x_lite.objectives.objective import Rows
from t5x_lite.objectives.sentinels import Sentinels

SENTENCE = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week", "."]
SENTINELS = Sentinels(first=999, count=100)
X, Y, Z = "XYZ"


def rows_of(*token_lists):
    tokens = np.zeros((len(token_lists), max(map(len, token_lists))), np.int32)
    for row, token_list in zip(tokens, token_lists, strict=True):
        row[: len(token_list)] = token_list
    return Rows(tokens, np.array(list(map(len, token_lists)), np.int32))


def lists_of(rows):
    return [
        tokens[:length].tolist() for tokens, length in zip(rows.tokens, rows.lengths, strict=True)
    ]


def replace_words(noise_positions):
    """Corrupt the sentence; return inputs and targets as words, X, Y, Z for the sentinels."""
    words = dict(enumerate(SENTENCE, start=3))
    words |= {999: X, 998: Y, 997: Z}
    rows = rows_of(range(3, 3 + len(SENTENCE)))
    mask = np.isin(np.arange(len(SENTENCE)), noise_positions)[None]
    return tuple(
        " ".join(words[token] for token in lists_of(made)[0])
        for made in (
            noise_spans_to_unique_sentinel(rows, mask, SENTINELS),
            noise_spans_to_unique_sentinel(rows, ~mask, SENTINELS),
        )
    )


def draw_mask(lengths, *, density=0.15, mean=3.0, seed=0, max_length=None):
    lengths = np.asarray(lengths)
    return spans.random_spans_mask(
        lengths,
        noise_density=density,
        mean_noise_span_length=mean,
        keys_b2=philox.example_keys(seed, 0, 0 * lengths, np.arange(len(lengths))),
        max_length=max_length or int(lengths.max()),
    )


def count_runs(mask):
    return int(mask[0]) + int((mask[1:] & ~mask[:-1]).sum())


def facts_count(length, density, mean):
    noise = min(max(round(np.float32(length) * np.float32(density)), 1), length - 1)
    return noise, max(round(noise / mean), 1)


@pytest.mark.parametrize(
    ("noise", "inputs", "targets"),
    [
        ([2, 3, 8], "Thank you X me to your party Y week .", "X for inviting Y last Z"),
        ([2, 3, 10], "Thank you X me to your party last week Y", "X for inviting Y ."),
        ([0, 1, 8], "X for inviting me to your party Y week .", "Thank you X last Y"),
        ([9, 10], "Thank you for inviting me to your party last X", "X week ."),
        ([1, 2], "Thank X inviting me to your party last week .", "X you for Y"),
        ([], " ".join(SENTENCE), "X"),
        (range(11), "X", " ".join(SENTENCE)),
    ],
)
def test_spans_become_sentinels_as_in_the_papers_sentence(noise, inputs, targets):
    assert replace_words(list(noise)) == (inputs, targets)


@given(st.integers(0, 2**40))
def test_eleven_words_have_one_span_of_two_at_the_end(seed):
    assert np.flatnonzero(draw_mask([11], seed=seed)[0]).tolist() == [9, 10]


@given(
    st.lists(st.integers(2, 300), min_size=1, max_size=6),
    st.floats(0.05, 0.5),
    st.sampled_from([1.5, 2.0, 3.0, 5.0, 10.0, 64.0]),
    st.integers(0, 2**32),
)
def test_noise_has_the_promised_amount_and_number_of_spans(lengths, density, mean, seed):
    mask = draw_mask(lengths, density=density, mean=mean, seed=seed)
    for row, length in zip(mask, lengths, strict=True):
        noise, runs = facts_count(length, density, mean)
        assert row.sum() == noise
        assert count_runs(row) == runs
        assert not row[0]
        assert row[length - 1]
        assert not row[length:].any()


@pytest.mark.parametrize("length", [0, 1])
def test_rows_too_short_to_lose_a_token_lose_none(length):
    assert not draw_mask([length], max_length=4).any()


def test_no_density_means_no_noise():
    assert not draw_mask([50], density=0).any()


def test_spans_are_as_many_as_fit_where_the_settings_ask_for_more():
    mask = draw_mask([20], density=0.9, mean=1.0)[0]
    assert mask.sum() == 18
    assert count_runs(mask) == 2


def test_every_way_to_cut_the_noise_is_equally_likely():
    lengths = np.full(6000, 12)
    mask = draw_mask(lengths, density=0.34, mean=2.0)  # 4 noise in 2 spans: 3 x 7 ways
    ways, counts = np.unique(mask, axis=0, return_counts=True)
    assert len(ways) == 21
    np.testing.assert_allclose(counts / len(lengths), 1 / 21, atol=0.01)


def test_a_mask_does_not_depend_on_its_batch():
    keys_b2 = philox.example_keys(1, 2, np.zeros(5, int), np.arange(5))
    lengths = np.array([7, 40, 2, 33, 40])
    settings = {"noise_density": 0.25, "mean_noise_span_length": 3.0}
    together = spans.random_spans_mask(lengths, keys_b2=keys_b2, max_length=40, **settings)
    for row in range(5):
        alone = spans.random_spans_mask(
            lengths[row : row + 1], keys_b2=keys_b2[row : row + 1], max_length=60, **settings
        )
        np.testing.assert_array_equal(alone[0, :40], together[row])


def test_masks_are_those_of_the_t5_librarys_operations():
    tf = pytest.importorskip("tensorflow")

    def composition(items, parts, seed):
        """T5's way: shuffle parts - 1 ones among items - 1 places by an argsort of uniforms."""
        ones = tf.cast(tf.range(items - 1) < parts - 1, tf.int32)
        order = tf.argsort(tf.random.stateless_uniform([items - 1], seed))
        segments = tf.cumsum(tf.pad(tf.gather(ones, order), [[1, 0]]))
        return tf.math.segment_sum(tf.ones_like(segments), segments)

    keys_b2 = philox.example_keys(11, 5, np.zeros(4, int), np.arange(4))
    lengths = np.array([568, 11, 137, 300])
    masks = spans.random_spans_mask(
        lengths, noise_density=0.15, mean_noise_span_length=3.0, keys_b2=keys_b2, max_length=568
    )
    for mask, length, seed in zip(masks, lengths, keys_b2.view(np.int32), strict=True):
        noise, runs = facts_count(int(length), 0.15, 3.0)
        seeds = tf.random.experimental.stateless_split(seed, 6)
        pieces = [composition(length - noise, runs, seeds[1]), composition(noise, runs, seeds[0])]
        pieces = np.stack(pieces, axis=1).reshape(-1)
        expected = np.repeat(np.arange(2 * runs) % 2 == 1, pieces)
        np.testing.assert_array_equal(mask[:length], expected)


@st.composite
def corrupted(draw):
    lengths = draw(st.lists(st.integers(0, 60), min_size=1, max_size=4))
    tokens = [draw(st.lists(st.integers(3, 800), min_size=n, max_size=n)) for n in lengths]
    rows = rows_of(*tokens)
    bits = draw(st.lists(st.booleans(), min_size=rows.tokens.size, max_size=rows.tokens.size))
    return tokens, rows, np.array(bits, bool).reshape(rows.tokens.shape)


@given(corrupted())
def test_inputs_and_targets_together_hold_exactly_the_original_tokens(example):
    tokens, rows, mask = example
    inputs = lists_of(noise_spans_to_unique_sentinel(rows, mask, SENTINELS))
    targets = lists_of(noise_spans_to_unique_sentinel(rows, ~mask, SENTINELS))
    for original, noise, kept, dropped in zip(tokens, mask, inputs, targets, strict=True):
        kept_words = [t for t, is_noise in zip(original, noise, strict=False) if not is_noise]
        dropped_words = [t for t, is_noise in zip(original, noise, strict=False) if is_noise]
        assert [t for t in kept if t < 900] == kept_words
        assert [t for t in dropped if t < 900] == dropped_words
        runs = count_runs(noise[: len(original)]) if original else 0
        assert [t for t in kept if t >= 900] == [999 - k for k in range(runs)]


@given(corrupted())
def test_rows_keep_their_width_and_are_zero_beyond_their_lengths(example):
    _, rows, mask = example
    made = noise_spans_to_unique_sentinel(rows, mask, SENTINELS)
    assert made.tokens.shape == rows.tokens.shape
    assert made.tokens.dtype == np.int32
    beyond = np.arange(made.tokens.shape[1]) >= made.lengths[:, None]
    assert not made.tokens[beyond].any()


def test_more_spans_than_sentinels_are_refused():
    rows, mask = rows_of([5, 6, 7, 8, 9]), np.array([[1, 0, 1, 0, 1]], bool)
    with pytest.raises(ConfigError, match=r"has 3 noise spans, .* has 2 sentinels") as caught:
        noise_spans_to_unique_sentinel(rows, mask, Sentinels(first=99, count=2))
    assert caught.value.names == ("TASK_FEATURE_LENGTHS",)


# Facts 2.5: (inputs, mean span, density) -> raw length, targets length.
LENGTHS = {
    (512, 2, 10): (538, 82),
    (512, 2, 15): (552, 126),
    (512, 2, 25): (584, 220),
    (512, 2, 50): (682, 512),
    (512, 3, 10): (548, 74),
    (512, 3, 15): (568, 114),
    (512, 3, 25): (614, 206),
    (512, 3, 50): (766, 512),
    (512, 5, 10): (556, 68),
    (512, 5, 15): (581, 105),
    (512, 5, 25): (639, 193),
    (512, 5, 50): (852, 512),
    (512, 10, 10): (561, 63),
    (512, 10, 15): (591, 99),
    (512, 10, 25): (660, 182),
    (512, 10, 50): (930, 512),
    (128, 2, 15): (138, 32),
    (128, 3, 15): (141, 29),
    (128, 5, 15): (145, 27),
    (128, 10, 15): (147, 25),
    (256, 2, 15): (276, 62),
    (256, 3, 15): (284, 58),
    (256, 5, 15): (290, 54),
    (256, 10, 15): (295, 49),
    (1024, 2, 15): (1106, 250),
    (1024, 3, 15): (1137, 229),
    (1024, 5, 15): (1162, 210),
    (1024, 10, 15): (1182, 196),
    (1024, 20, 15): (1193, 189),
    (512, 8, 15): (588, 100),
    (512, 8, 50): (908, 512),
    (512, 64, 15): (600, 92),
    (512, 64, 50): (1006, 512),
}


@pytest.mark.parametrize("setting", LENGTHS)
def test_lengths_are_those_of_the_published_configurations(setting):
    inputs_length, mean, percent = setting
    lengths = spans.span_corruption_lengths(
        inputs_length, noise_density=percent / 100, mean_noise_span_length=mean
    )
    assert lengths == LENGTHS[setting]
