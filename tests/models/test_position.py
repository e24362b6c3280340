import numpy as np
import pytest
from flax import nnx

from t5x_lite.models.position import RelativePositionBias, relative_position_buckets

# First distance (how far the key lies behind the query) of each bucket, as published for T5 with
# 32 buckets and a greatest distance of 128; the last bucket reaches to infinity.
STARTS_BOTH_WAYS = (*range(8), 8, 12, 16, 23, 32, 46, 64, 91)
STARTS_CAUSAL = (
    *range(16),
    *(16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113),
)


def buckets_at(distances_behind, **kind):
    return relative_position_buckets(np.array([400]), 400 - np.asarray(distances_behind), **kind)[0]


def published(starts, distance):
    return max(bucket for bucket, start in enumerate(starts) if start <= distance)


def test_encoder_buckets_behind_the_query_are_the_published_ones():
    expected = [published(STARTS_BOTH_WAYS, d) for d in range(401)]
    np.testing.assert_array_equal(buckets_at(range(401), bidirectional=True), expected)


def test_encoder_buckets_ahead_of_the_query_are_the_published_ones_plus_16():
    expected = [16 + published(STARTS_BOTH_WAYS, d) for d in range(1, 401)]
    ahead = [-d for d in range(1, 401)]
    np.testing.assert_array_equal(buckets_at(ahead, bidirectional=True), expected)
    assert 16 not in buckets_at(range(-400, 401), bidirectional=True)


def test_decoder_buckets_behind_the_query_are_the_published_ones():
    expected = [published(STARTS_CAUSAL, d) for d in range(401)]
    np.testing.assert_array_equal(buckets_at(range(401), bidirectional=False), expected)


def test_decoder_bucket_ahead_of_the_query_is_0():
    assert not buckets_at([-d for d in range(1, 401)], bidirectional=False).any()


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_depend_on_nothing_but_the_distance(bidirectional):
    buckets = relative_position_buckets(
        np.arange(30), np.arange(50), bidirectional=bidirectional, num_buckets=8, max_distance=20
    )
    for distance in range(-49, 30):
        assert len(np.unique(np.diagonal(buckets, -distance))) == 1


@pytest.mark.parametrize(
    ("num_buckets", "max_distance"),
    [(8, 20), (16, 64), (32, 128), (32, 512), (64, 256), (128, 1000)],
)
def test_bucket_edges_are_exact_for_other_sizes_too(num_buckets, max_distance):
    """In integers: log(n / m) / log(d / m) >= k / c, where n**c * m**k >= d**k * m**c."""
    exact = num_buckets // 2
    coarse = num_buckets - exact

    def bucket(n):
        if n < exact:
            return n
        reached = (
            k for k in range(coarse) if n**coarse * exact**k >= max_distance**k * exact**coarse
        )
        return exact + max(reached)

    found = relative_position_buckets(
        np.array([1100]),
        np.arange(1100, -1, -1),
        bidirectional=False,
        num_buckets=num_buckets,
        max_distance=max_distance,
    )
    assert found[0].tolist() == [bucket(n) for n in range(1101)]


def test_bias_is_read_from_the_table_for_each_head(tiny_config):
    config = tiny_config()
    bias = RelativePositionBias(config, rngs=nnx.Rngs(params=0))
    table = np.asarray(bias.rel_embedding[...])
    read = np.asarray(bias(9, 140, bidirectional=True))
    buckets = relative_position_buckets(np.arange(9), np.arange(140), bidirectional=True)
    assert read.shape == (1, config.num_heads, 9, 140)
    for head in range(config.num_heads):
        np.testing.assert_array_equal(read[0, head], table[head][buckets])
