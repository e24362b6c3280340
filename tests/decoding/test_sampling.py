import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.decoding.sampling import Sampling, decode
from t5x_lite.errors import ConfigError
from t5x_lite.models.transformer import abstract_model, bind

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
    greedy = functools.partial(decode, chain(jnp.asarray(scores)), jnp.int32(0))
    tokens, _ = jax.jit(
        lambda: greedy(start_tokens_b=jnp.zeros(40, jnp.int32), max_length=9, eos_id=eos_id)
    )()
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

    tokens, _ = decode(
        next_token, jnp.int32(0), start_tokens_b=jnp.zeros(len(ends), jnp.int32), max_length=8
    )
    jax.effects_barrier()
    assert len(calls) == expected_calls
    for row, end in zip(tokens.tolist(), ends, strict=True):
        assert row == ([3] * end + [EOS] + [0] * 8)[:8]


def test_greedy_from_caches_equals_scoring_the_whole_prefix_anew(
    tiny_config, random_params, random_batch
):
    config = tiny_config()
    graphdef, params = abstract_model(config)[0], random_params(config)
    inputs = random_batch(4, rows=6)["encoder_input_tokens"]
    length = 10

    @jax.jit
    def cached(params):
        model = bind(graphdef, params)
        state = model.start_decoding(inputs, length)
        return decode(
            model.decode_token, state, start_tokens_b=jnp.zeros(6, jnp.int32), max_length=length
        ).tokens

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


# One row's scores, the same at every step; token 1 is EOS.
LOGITS = np.array([0.5, -1.0, 2.0, 1.0, 0.0, -3.0], np.float32)


def drawn(sampling, *, rows=20_000, length=2, logits=LOGITS, keys=None, **options):
    """Tokens and scores of many rows that are all given the same scores."""

    def next_token(last_b, cache):
        return jnp.broadcast_to(jnp.asarray(logits), (last_b.shape[0], len(logits))), cache

    keys = jax.random.split(jax.random.key(0), rows) if keys is None else keys
    out = decode(
        next_token,
        (),
        start_tokens_b=jnp.zeros(len(keys), jnp.int32),
        max_length=length,
        sampling=sampling,
        keys_b=keys,
        **options,
    )
    return np.asarray(out.tokens), np.asarray(out.scores)


def softmax(x):
    e = np.exp(np.float64(x) - np.max(x))
    return e / e.sum()


@pytest.mark.parametrize(
    ("sampling", "allowed", "temperature"),
    [
        (dict(temperature=1.0), [0, 1, 2, 3, 4, 5], 1.0),
        (dict(temperature=2.0), [0, 1, 2, 3, 4, 5], 2.0),
        (dict(temperature=0.7, top_k=3), [0, 2, 3], 0.7),
        (dict(temperature=1.0, top_k=100), [0, 1, 2, 3, 4, 5], 1.0),
        (dict(temperature=1.0, top_p=0.75), [2, 3], 1.0),  # 0.55 and 0.20 reach it just
        (dict(temperature=1.0, top_p=0.01), [2], 1.0),
        (dict(temperature=1.0, top_k=3, top_p=0.8), [2, 3], 1.0),
    ],
)
def test_tokens_are_drawn_by_the_probabilities_that_are_left(sampling, allowed, temperature):
    tokens, _ = drawn(Sampling(**sampling))
    expected = np.zeros(len(LOGITS))
    expected[allowed] = softmax(LOGITS[allowed] / temperature)
    share = np.bincount(tokens[:, 0], minlength=len(LOGITS)) / len(tokens)
    assert (share[expected == 0] == 0).all()
    deviation = np.sqrt(expected * (1 - expected) / len(tokens))
    assert (np.abs(share - expected) <= 5 * deviation + 1e-12).all()


def test_a_rows_text_depends_on_its_own_key_and_not_on_its_neighbors():
    keys = jax.random.split(jax.random.key(1), 40)
    sampling = Sampling(temperature=1.0)
    together, _ = drawn(sampling, keys=keys, length=12)
    alone, _ = drawn(sampling, keys=keys[17:18], length=12)
    np.testing.assert_array_equal(together[17], alone[0])
    assert len(np.unique(together, axis=0)) > 30


def test_a_texts_score_is_its_log_probability_up_to_its_eos():
    tokens, scores = drawn(Sampling(temperature=3.0, top_k=4), rows=50, length=6)
    log_p = np.log(softmax(LOGITS))
    for row, score in zip(tokens, scores, strict=True):
        ended = np.flatnonzero(row == EOS)
        length = ended[0] + 1 if len(ended) else 6
        assert score == pytest.approx(log_p[row[:length]].sum(), rel=1e-5)


def test_no_text_ends_before_its_least_length():
    likely_eos = np.array([0.0, 9.0, 1.0, 0.0, 0.0, 0.0], np.float32)
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        tokens, _ = drawn(sampling, rows=200, length=5, logits=likely_eos, min_length=4)
        assert (tokens[:, :3] != EOS).all()
        assert (tokens[:, 3] == EOS).mean() > 0.9


@pytest.mark.parametrize("changes", [dict(temperature=-1.0), dict(top_p=0.0), dict(top_k=-1)])
def test_impossible_settings_are_refused(changes):
    ((name, value),) = changes.items()
    with pytest.raises(ConfigError, match=f"{name} must be .* got {value}") as error:
        Sampling(**changes)
    assert error.value.names == (f"Sampling.{name}",)


def test_drawing_without_keys_is_refused():
    with pytest.raises(ValueError, match="keys_b is required"):
        decode(
            lambda t, c: (t, c),
            (),
            start_tokens_b=jnp.zeros(1, jnp.int32),
            max_length=1,
            sampling=Sampling(temperature=1.0),
        )
