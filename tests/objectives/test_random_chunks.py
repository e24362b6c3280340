import numpy as np
import pytest

from t5x_lite.errors import ConfigError
from t5x_lite.objectives.bert import Bert, MaskedLM
from t5x_lite.objectives.language_models import FullLM
from t5x_lite.objectives.random_chunks import RandomLengths
from t5x_lite.objectives.span_corruption import SpanCorruption


def test_the_logarithm_of_the_lengths_is_uniform(keys_of):
    drawn = RandomLengths().chunk_lengths(512, keys_of(20_000))
    assert (drawn.min(), drawn.max()) == (8, 511)
    shares = np.histogram(np.log2(drawn), [3, 4, 5, 6, 7, 8, 9])[0] / 20_000
    np.testing.assert_allclose(shares, 1 / 6, atol=0.012)


def test_everything_else_is_the_objectives(rows_of, lists_of, keys_of):
    lengths = {"inputs": 64, "targets": 32}
    wrapped, plain = RandomLengths(SpanCorruption(0.2)), SpanCorruption(0.2)
    rows, keys = rows_of(list(range(3, 60)), [5, 6, 7]), keys_of(2)
    assert wrapped.raw_length(lengths) == plain.raw_length(lengths)
    assert wrapped.sentinels_needed(lengths) == plain.sentinels_needed(lengths)
    assert RandomLengths(SpanCorruption(documents_per_group=9)).documents_per_group == 9
    from t5x_lite.objectives.sentinels import Sentinels

    for name, made in wrapped(rows, keys, Sentinels(999, 100)).items():
        assert lists_of(made) == lists_of(plain(rows, keys, Sentinels(999, 100))[name])
        assert wrapped.lengths(rows.lengths, keys)[name].tolist() == made.lengths.tolist()


def test_what_cannot_be_is_refused(keys_of):
    for objective in (Bert(), MaskedLM(), FullLM()):
        with pytest.raises(ConfigError, match="does not support chunks of random length"):
            RandomLengths(objective)
    with pytest.raises(ConfigError, match="shortest must be at least 1; got 0"):
        RandomLengths(shortest=0)
    with pytest.raises(ConfigError, match="hold chunks of 5 tokens"):
        RandomLengths().chunk_lengths(5, keys_of(1))
