"""Beam search by T5's rules: Mesh TensorFlow's, as T5X has them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from t5x_lite.decoding.sampling import Cache, DecodedSequences, NextToken

NEG_INF = -1e7  # the score of a beam that does not exist


class _BeamState(NamedTuple):
    """Live beams are beginnings with their log p, best first; finished ones end in EOS."""

    length: jax.Array  # how many tokens the live beams have
    live_bkl: jax.Array
    live_log_prob_bk: jax.Array
    finished_bkl: jax.Array
    finished_score_bk: jax.Array
    cache: Cache


class _BeamSettings(NamedTuple):
    """What a search is held to."""

    eos_id: int
    max_length: int
    min_length: int
    length_penalty: float

    def penalty(self, length):
        """What log p of a text of so many tokens is divided by."""
        return ((5.0 + length) / 6.0) ** self.length_penalty


def beam_search(
    next_token: NextToken,
    cache: Cache,
    gather_cache: Callable[[Cache, jax.Array], Cache],
    *,
    start_tokens_b: jax.Array,
    num_beams: int,
    max_length: int,
    length_penalty: float = 0.6,
    min_length: int = 0,
    eos_id: int = 1,
    active_b: jax.Array | None = None,
) -> DecodedSequences:
    """The best `num_beams` texts of every row, best first: tokens [batch, beams, max_length].

    `next_token` and `cache` are for batch x beams rows, the beams of a row side by side; the row's
    texts begin behind the token `start_tokens_b`. No step is made for rows that are not `active_b`.
    `gather_cache(cache, rows)` gives the cache whose row i was row `rows[i]`.

    A finished text of n tokens (its EOS counts) scores log p / ((5 + n) / 6)**length_penalty. Each
    step takes the best 2 x beams continuations, so that as many as beams go on even if all others
    ended. The search is over after `max_length` tokens, or when in every row no live beam could
    beat the worst finished one, judged by the penalty of the longest text. A row in which nothing
    finished gives its live beams, with log p as their scores. Where fewer texts finished than beams
    there are, the rest is zeros and scores `NEG_INF`.
    """
    rules = _BeamSettings(eos_id, max_length, min_length, length_penalty)
    nobody_b = jnp.zeros(len(start_tokens_b), bool) if active_b is None else ~active_b

    def undecided(search: _BeamState) -> jax.Array:
        reachable_b = search.live_log_prob_bk[:, 0] / rules.penalty(max_length + 1)
        settled_b = (search.finished_score_bk[:, -1] > reachable_b) | nobody_b
        return (search.length < max_length) & ~jnp.all(settled_b)

    def step(search: _BeamState) -> _BeamState:
        last_bk = jax.lax.dynamic_index_in_dim(
            search.live_bkl, jnp.maximum(search.length - 1, 0), axis=2, keepdims=False
        )
        last_bk = jnp.where(search.length == 0, start_tokens_b[:, None], last_bk)
        logits_nv, cache = next_token(last_bk.reshape(-1), search.cache)
        found, rows_bk = _advance_beams(search, logits_nv, rules)
        return found._replace(cache=gather_cache(cache, rows_bk.reshape(-1)))

    empty_bkl = jnp.zeros((len(start_tokens_b), num_beams, max_length), jnp.int32)
    nothing_bk = jnp.full(empty_bkl.shape[:2], NEG_INF, jnp.float32)
    one_bk = nothing_bk.at[:, 0].set(0.0)  # one beam begins; the others would be copies of it
    end = jax.lax.while_loop(
        undecided,
        step,
        _BeamState(jnp.zeros((), jnp.int32), empty_bkl, one_bk, empty_bkl, nothing_bk, cache),
    )
    any_b1 = end.finished_score_bk[:, :1] > NEG_INF
    return DecodedSequences(
        jnp.where(any_b1[..., None], end.finished_bkl, end.live_bkl),
        jnp.where(any_b1, end.finished_score_bk, end.live_log_prob_bk),
    )


def _advance_beams(
    search: _BeamState, logits_nv: jax.Array, rules: _BeamSettings
) -> tuple[_BeamState, jax.Array]:
    """The beams with one token more, and the row of the cache that each live one goes on from."""
    batch_size, num_beams = search.live_log_prob_bk.shape
    length = search.length
    log_prob_bkv = jax.nn.log_softmax(logits_nv.astype(jnp.float32))
    log_prob_bkv = log_prob_bkv.reshape(batch_size, num_beams, -1)
    vocab_size = log_prob_bkv.shape[-1]
    early = (jnp.arange(vocab_size) == rules.eos_id) & (length + 1 < rules.min_length)
    total_bkv = search.live_log_prob_bk[..., None] + jnp.where(early, NEG_INF, log_prob_bkv)
    log_prob_bc, choice_bc = jax.lax.top_k(total_bkv.reshape(batch_size, -1), 2 * num_beams)
    beam_bc, token_bc = jnp.divmod(choice_bc, vocab_size)
    texts_bcl = jnp.take_along_axis(search.live_bkl, beam_bc[..., None], axis=1)
    texts_bcl = jax.lax.dynamic_update_index_in_dim(texts_bcl, token_bc, length, axis=2)
    ends_bc = token_bc == rules.eos_id

    score_bc = jnp.where(ends_bc, log_prob_bc / rules.penalty(length + 1.0), NEG_INF)
    finished_score_bk, kept_bk = jax.lax.top_k(
        jnp.concatenate([search.finished_score_bk, score_bc], axis=1), num_beams
    )
    finished_bkl = _pick(jnp.concatenate([search.finished_bkl, texts_bcl], axis=1), kept_bk)

    live_log_prob_bk, live_bk = jax.lax.top_k(
        jnp.where(ends_bc, log_prob_bc + NEG_INF, log_prob_bc), num_beams
    )
    rows_bk = jnp.arange(batch_size)[:, None] * num_beams
    rows_bk += jnp.take_along_axis(beam_bc, live_bk, axis=1)
    live_bkl = _pick(texts_bcl, live_bk)
    return _BeamState(
        length + 1, live_bkl, live_log_prob_bk, finished_bkl, finished_score_bk, search.cache
    ), rows_bk


def _pick(texts_bnl: jax.Array, which_bk: jax.Array) -> jax.Array:
    return jnp.take_along_axis(texts_bnl, which_bk[..., None], axis=1)
