"""Beam search with the rules of T5X (`t5x/decoding.py`), which are Mesh TensorFlow's.

Array names: b batch, k beams, l length, v vocab, c candidates (2 * beams), r rows (batch * beams).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from t5x_lite.decoding.sampling import Cache, DecodedSequences, NextToken

NEG_INF = -1e7  # score of a beam that does not exist; finite as in T5X, so that sums are not NaN


class _BeamState(NamedTuple):
    """State of the search. Live beams have no EOS yet; finished ones end in EOS.

    Attributes:
        length: Number of tokens of the live beams.
        live_bkl: Tokens of live beams, best first.
        live_log_prob_bk: Their log-probabilities.
        finished_bkl: Tokens of finished beams, best first.
        finished_score_bk: Their log-probabilities over the length penalty.
        cache: Cache of the live beams.
    """

    length: jax.Array
    live_bkl: jax.Array
    live_log_prob_bk: jax.Array
    finished_bkl: jax.Array
    finished_score_bk: jax.Array
    cache: Cache


class _BeamSettings(NamedTuple):
    eos_id: int
    max_length: int
    min_length: int
    length_penalty: float

    def brevity_penalty(self, length):
        """Divisor of the log-probability of a sequence of this length (T5X's name)."""
        return ((5.0 + length) / 6.0) ** self.length_penalty


@jax.named_scope("token_choice")
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
    """Decode the best sequences of each row by beam search.

    A finished sequence of n tokens, EOS included, has the score
    log p / ((5 + n) / 6)**length_penalty (Wu et al. 2016, equation 14). Each step considers the
    best 2 * num_beams continuations, so that num_beams of them remain live even if the others end.
    The search stops after `max_length` tokens, or when in no row a live beam could reach a better
    score than the worst finished one, with the penalty of the longest sequence.

    `next_token` and `cache` have batch * num_beams rows; the beams of a row are adjacent.

    Args:
        next_token: Computes the logits of the next tokens.
        cache: Its state after everything that precedes `start_tokens_b`.
        gather_cache: (cache, rows) -> the cache whose row i was row `rows[i]`.
        start_tokens_b: The token after which each row is decoded, int32 [batch].
        num_beams: Number of beams.
        max_length: Largest number of tokens, EOS included.
        length_penalty: Exponent of the length penalty; 0.6 is T5's.
        min_length: Smallest number of tokens, EOS included.
        eos_id: Token that ends a sequence.
        active_b: bool [batch], False for rows whose search need not finish, such as padding of the
            batch; None for none.

    Returns:
        Tokens [batch, beams, max_length], best first, and scores [batch, beams]. If no sequence of
        a row finished, these are its live beams with their log-probabilities; if fewer than
        num_beams did, the others are zeros with the score `NEG_INF`.
    """
    settings = _BeamSettings(eos_id, max_length, min_length, length_penalty)
    inactive_b = jnp.zeros(len(start_tokens_b), bool) if active_b is None else ~active_b

    def is_undecided(state: _BeamState) -> jax.Array:
        # Log-probabilities only fall, so the best live beam bounds what can still finish.
        bound_b = state.live_log_prob_bk[:, 0] / settings.brevity_penalty(max_length + 1)
        is_settled_b = (state.finished_score_bk[:, -1] > bound_b) | inactive_b
        return (state.length < max_length) & ~jnp.all(is_settled_b)

    def step(state: _BeamState) -> _BeamState:
        last_bk = jax.lax.dynamic_index_in_dim(
            state.live_bkl, jnp.maximum(state.length - 1, 0), axis=2, keepdims=False
        )
        last_bk = jnp.where(state.length == 0, start_tokens_b[:, None], last_bk)
        logits_rv, cache = next_token(last_bk.reshape(-1), state.cache)
        state, source_bk = _advance_beams(state, logits_rv, settings)
        return state._replace(cache=gather_cache(cache, source_bk.reshape(-1)))

    empty_bkl = jnp.zeros((len(start_tokens_b), num_beams, max_length), jnp.int32)
    no_score_bk = jnp.full(empty_bkl.shape[:2], NEG_INF, jnp.float32)
    # All beams start alike: only the first is given a probability, or they would remain copies.
    start_log_prob_bk = no_score_bk.at[:, 0].set(0.0)
    end = jax.lax.while_loop(
        is_undecided,
        step,
        _BeamState(
            length=jnp.zeros((), jnp.int32),
            live_bkl=empty_bkl,
            live_log_prob_bk=start_log_prob_bk,
            finished_bkl=empty_bkl,
            finished_score_bk=no_score_bk,
            cache=cache,
        ),
    )
    has_finished_b1 = end.finished_score_bk[:, :1] > NEG_INF
    return DecodedSequences(
        jnp.where(has_finished_b1[..., None], end.finished_bkl, end.live_bkl),
        jnp.where(has_finished_b1, end.finished_score_bk, end.live_log_prob_bk),
    )


def _advance_beams(
    state: _BeamState, logits_rv: jax.Array, settings: _BeamSettings
) -> tuple[_BeamState, jax.Array]:
    """Extend the beams by one token.

    Returns the state, with the old cache, and the cache row that each live beam continues, [b, k].
    """
    batch_size, num_beams = state.live_log_prob_bk.shape
    length = state.length

    # The best 2 * beams continuations of each row, over all beams and tokens.
    log_prob_rv = jax.nn.log_softmax(logits_rv.astype(jnp.float32))
    log_prob_bkv = log_prob_rv.reshape(batch_size, num_beams, -1)
    vocab_size = log_prob_bkv.shape[-1]
    is_early_eos_v = jnp.arange(vocab_size) == settings.eos_id
    is_early_eos_v &= length + 1 < settings.min_length
    log_prob_bkv = jnp.where(is_early_eos_v, NEG_INF, log_prob_bkv)
    total_bkv = state.live_log_prob_bk[..., None] + log_prob_bkv
    log_prob_bc, choice_bc = jax.lax.top_k(total_bkv.reshape(batch_size, -1), 2 * num_beams)
    beam_bc, token_bc = jnp.divmod(choice_bc, vocab_size)
    candidates_bcl = _take_beams(state.live_bkl, beam_bc)
    candidates_bcl = jax.lax.dynamic_update_index_in_dim(candidates_bcl, token_bc, length, axis=2)
    is_finished_bc = token_bc == settings.eos_id

    # The best finished beams, of the previous ones and those that end with this token.
    penalty = settings.brevity_penalty(length + 1.0)
    score_bc = jnp.where(is_finished_bc, log_prob_bc / penalty, NEG_INF)
    finished_score_bk, kept_bk = jax.lax.top_k(
        jnp.concatenate([state.finished_score_bk, score_bc], axis=1), num_beams
    )
    finished_bkl = _take_beams(
        jnp.concatenate([state.finished_bkl, candidates_bcl], axis=1), kept_bk
    )

    # The best live beams, of the candidates that do not end.
    live_log_prob_bk, live_bk = jax.lax.top_k(
        jnp.where(is_finished_bc, log_prob_bc + NEG_INF, log_prob_bc), num_beams
    )
    source_bk = jnp.arange(batch_size)[:, None] * num_beams
    source_bk += jnp.take_along_axis(beam_bc, live_bk, axis=1)
    live_bkl = _take_beams(candidates_bcl, live_bk)
    return _BeamState(
        length + 1, live_bkl, live_log_prob_bk, finished_bkl, finished_score_bk, state.cache
    ), source_bk


def _take_beams(tokens_bnl: jax.Array, index_bk: jax.Array) -> jax.Array:
    """Select beams of each row: [b, n, l], [b, k] -> [b, k, l]."""
    return jnp.take_along_axis(tokens_bnl, index_bk[..., None], axis=1)
