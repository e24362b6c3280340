"""Beam search against brute force over all texts, and against its rules step by step."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.decoding.beam_search import beam_search

VOCAB, EOS, LENGTH = 5, 1, 4


def markov(log_probs):
    """A next-token function whose cache is the whole text so far: it shows mixed-up beams.

    log_probs: [rows, steps, last token, last but one, next token].
    """
    table = jnp.asarray(log_probs)

    def next_token(last_n, cache):
        step, before_n, row_n = cache
        logits_nv = table[row_n, step, last_n, before_n]
        return logits_nv, (step + 1, last_n, row_n)

    def gather_cache(cache, rows_n):
        step, before_n, row_n = cache
        return step, before_n[rows_n], row_n[rows_n]

    return next_token, gather_cache


def random_scores(seed, rows):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, LENGTH, VOCAB, VOCAB, VOCAB)) * 1.5
    return np.float32(scores - np.log(np.exp(scores).sum(-1, keepdims=True)))


def search(log_probs, beams, **options):
    next_token, gather_cache = markov(log_probs)
    rows = len(log_probs)
    nothing = jnp.zeros(rows * beams, jnp.int32)
    cache = (jnp.zeros((), jnp.int32), nothing, jnp.repeat(jnp.arange(rows), beams))
    out = jax.jit(
        lambda cache: beam_search(
            next_token,
            cache,
            gather_cache,
            start_tokens_b=jnp.zeros(rows, jnp.int32),
            num_beams=beams,
            max_length=LENGTH,
            **options,
        )
    )(cache)
    return np.asarray(out.tokens), np.asarray(out.scores)


def log_prob(table, text):
    """Give log p of a text by one row's table."""
    total, last, before = 0.0, 0, 0
    for step, token in enumerate(text):
        total += float(table[step, last, before, token])
        last, before = token, last
    return total


def all_finished(table, alpha):
    """Every text that ends within the length, with its score, best first."""
    others = [token for token in range(VOCAB) if token != EOS]
    texts = [(*body, EOS) for n in range(LENGTH) for body in itertools.product(others, repeat=n)]
    scored = [(log_prob(table, t) / ((5 + len(t)) / 6) ** alpha, t) for t in texts]
    return sorted(scored, reverse=True)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_with_room_for_all_texts_the_best_are_found_in_order(alpha):
    """85 texts end within four tokens; 160 beams look at all 320 ways to go on from 64."""
    table = random_scores(0, rows=3)
    tokens, scores = search(table, 160, length_penalty=alpha)
    for row in range(3):
        expected = all_finished(table[row], alpha)
        assert len(expected) == 85
        np.testing.assert_allclose(scores[row, :85], [s for s, _ in expected], rtol=1e-5)
        score_of = {(*text, *[0] * (LENGTH - len(text))): score for score, text in expected}
        assert len({tuple(text) for text in tokens[row, :85]}) == 85
        for text, score in zip(tokens[row, :85], scores[row], strict=False):
            assert score == pytest.approx(score_of[tuple(text)], rel=1e-5)


def by_the_rules(table, beams, alpha, min_length=0):
    """One row's search as T5 describes it, with Python's lists."""
    live, finished = [(0.0, ())], []
    for length in range(1, LENGTH + 1):
        found = [
            (
                score + float(table[length - 1, (0, *text)[-1], (0, 0, *text)[-2], token]),
                (*text, token),
            )
            for score, text in live
            for token in range(VOCAB)
            if token != EOS or length >= min_length
        ]
        found = sorted(found, reverse=True)[: 2 * beams]
        penalty = ((5 + length) / 6) ** alpha
        finished += [(score / penalty, text) for score, text in found if text[-1] == EOS]
        finished = sorted(finished, reverse=True)[:beams]
        live = [(score, text) for score, text in found if text[-1] != EOS][:beams]
        best_possible = live[0][0] / ((5 + LENGTH + 1) / 6) ** alpha
        if len(finished) == beams and finished[-1][0] > best_possible:
            break
    return finished or live


@pytest.mark.parametrize("beams", [1, 2, 3, 4])
@pytest.mark.parametrize("min_length", [0, 3])
def test_few_beams_follow_the_rules_step_by_step(beams, min_length):
    table = random_scores(beams, rows=40)
    tokens, scores = search(table, beams, min_length=min_length)
    best_lost = 0
    for row in range(40):
        expected = by_the_rules(table[row], beams, 0.6, min_length)
        np.testing.assert_allclose(
            scores[row, : len(expected)], [s for s, _ in expected], rtol=1e-5
        )
        for found, (_, text) in zip(tokens[row], expected, strict=False):
            assert tuple(found) == (*text, *[0] * (LENGTH - len(text)))
        best_lost += not min_length and expected[0][0] < all_finished(table[row], 0.6)[0][0] - 1e-6
    assert min_length or beams > 2 or best_lost  # a narrow search misses some of the best


def test_a_row_in_which_nothing_ends_gives_its_live_beams():
    table = random_scores(5, rows=2)
    table[1, ..., EOS] = -1e9
    table[1] -= np.log(np.exp(table[1]).sum(-1, keepdims=True))
    tokens, scores = search(table, 3)
    assert EOS in tokens[0, 0]
    assert (tokens[1] != EOS).all()
    for text, score in zip(tokens[1], scores[1], strict=True):
        assert score == pytest.approx(log_prob(table[1], text), rel=1e-5)
    assert list(scores[1]) == sorted(scores[1], reverse=True)


def test_the_search_ends_once_no_live_beam_can_win():
    """Every row ends at once with near certainty: one step a beam is enough."""
    steps = []
    table = np.full((2, LENGTH, VOCAB, VOCAB, VOCAB), -20.0, np.float32)
    table[..., EOS] = 0.0
    next_token, gather_cache = markov(table)

    def counted(last_n, cache):
        jax.debug.callback(steps.append, cache[0])
        return next_token(last_n, cache)

    nothing = jnp.zeros(2, jnp.int32)
    cache = (jnp.zeros((), jnp.int32), nothing, jnp.arange(2))
    beam_search(
        counted,
        cache,
        gather_cache,
        start_tokens_b=jnp.zeros(2, jnp.int32),
        num_beams=1,
        max_length=LENGTH,
    )
    jax.effects_barrier()
    assert len(steps) == 1
