import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.decoding.sampling import greedy
from t5x_lite.models.transformer import abstract, bind

VOCAB, EOS = 6, 1


def chain(scores):
    """A next-token function by row, step and last token; scores are [step, row, last, vocab]."""

    def next_token(last_b, step):
        rows = jnp.arange(last_b.shape[0])
        return scores[step, rows, last_b], step + 1

    return next_token


def brute_force(scores, *, eos_id):
    """Token by token, row by row: the highest score, then nothing more after EOS."""
    steps, rows = scores.shape[:2]
    tokens = np.zeros((rows, steps), np.int32)
    for row in range(rows):
        last = 0
        for step in range(steps):
            last = int(np.argmax(scores[step, row, last]))
            tokens[row, step] = last
            if last == eos_id:
                break
    return tokens


@pytest.mark.parametrize("eos_id", [1, 4])
def test_greedy_takes_the_most_likely_token_until_each_rows_eos(eos_id):
    scores = np.random.default_rng(0).normal(size=(9, 40, VOCAB, VOCAB)).astype(np.float32)
    expected = brute_force(scores, eos_id=eos_id)
    decode = functools.partial(greedy, chain(jnp.asarray(scores)), jnp.int32(0))
    tokens = jax.jit(lambda: decode(batch_size=40, max_length=9, eos_id=eos_id))()
    assert tokens.dtype == jnp.int32
    np.testing.assert_array_equal(tokens, expected)
    lengths = np.argmax(expected == eos_id, axis=1)
    assert len(set(lengths)) > 3  # rows end at different places, some not at all
    assert not (expected == eos_id).any(axis=1).all()


@pytest.mark.parametrize(("ends", "expected_calls"), [([2, 0, 4], 5), ([0, 0, 0], 1), ([2, 99], 8)])
def test_decoding_stops_when_the_last_row_has_its_eos(ends, expected_calls):
    calls = []

    def next_token(last_b, step):
        jax.debug.callback(calls.append, step)
        token_b = jnp.where(step == jnp.array(ends), EOS, 3)
        return jax.nn.one_hot(token_b, VOCAB), step + 1

    tokens = greedy(next_token, jnp.int32(0), batch_size=len(ends), max_length=8)
    jax.effects_barrier()
    assert len(calls) == expected_calls
    for row, end in zip(tokens.tolist(), ends, strict=True):
        assert row == ([3] * end + [EOS] + [0] * 8)[:8]


def test_greedy_from_caches_equals_scoring_the_whole_prefix_anew(
    tiny_config, random_params, random_batch
):
    config = tiny_config()
    graphdef, params = abstract(config)[0], random_params(config)
    inputs = random_batch(4, rows=6)["encoder_input_tokens"]
    length = 10

    @jax.jit
    def cached(params):
        model = bind(graphdef, params)
        state = model.start_decoding(inputs, length)
        return greedy(model.decode_token, state, batch_size=6, max_length=length)

    @jax.jit
    def score(params, so_far):
        batch = {
            "encoder_input_tokens": inputs,
            "decoder_input_tokens": so_far,
            "decoder_segment_ids": jnp.ones_like(so_far),
            "encoder_segment_ids": (inputs > 0).astype(jnp.int32),
        }
        return bind(graphdef, params)(batch).logits

    so_far = np.zeros((6, length + 1), np.int32)
    for step in range(length):
        so_far[:, step + 1] = np.argmax(score(params, so_far[:, :length])[:, step], axis=-1)
    expected = so_far[:, 1:]
    for row in expected:
        ended = np.flatnonzero(row == EOS)
        row[ended[0] + 1 if len(ended) else length :] = 0
    np.testing.assert_array_equal(cached(params), expected)
    assert len(np.unique(expected, axis=0)) > 1
