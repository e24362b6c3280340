"""Decoding token by token: the most likely one, or one drawn by its probability."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5x_lite.errors import require_field

Cache = Any
NextToken = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]


class DecodedSequences(NamedTuple):
    """Texts int32 [batch, length], or [batch, beams, length], and what they score.

    Behind a text's EOS stands 0. Scores are float32, sums of log p over its tokens, EOS included,
    by the model's own probabilities; beam search divides them by its length penalty.
    """

    tokens: jax.Array
    scores: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn.

    temperature: of the softmax; 0 takes the most likely token. top_k: only so many of the most
    likely tokens, 0 for all. top_p: only the fewest most likely tokens that together have this
    probability (nucleus sampling); 1 for all. With both, top_k comes first.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        for name in ("temperature", "top_k"):
            require_field(self, name, getattr(self, name) >= 0, "0 or more")
        require_field(self, "top_p", 0 < self.top_p <= 1, "in (0, 1]")


GREEDY = Sampling()


class _Loop(NamedTuple):
    step: jax.Array
    tokens_bl: jax.Array
    score_b: jax.Array
    last_b: jax.Array
    done_b: jax.Array
    cache: Cache


def decode(
    next_token: NextToken,
    cache: Cache,
    *,
    start_tokens_b: jax.Array,
    max_length: int,
    sampling: Sampling = GREEDY,
    keys_b: jax.Array | None = None,
    min_length: int = 0,
    eos_id: int = 1,
    active_b: jax.Array | None = None,
) -> DecodedSequences:
    """One text a row, of at most `max_length` tokens; tokens [batch, max_length].

    `next_token` maps (last tokens [batch], cache) to (logits [batch, vocab], cache). Decoding
    starts behind the tokens `start_tokens_b` and stops early when every row has its EOS, which no
    row may have among its first `min_length` - 1 tokens. Rows that are not `active_b` stay empty.

    keys_b: a key of `jax.random.key` for each row, needed at a temperature above 0: a row's text
    depends on its own key alone, whatever stands beside it.
    """
    batch_size = len(start_tokens_b)
    done_b = jnp.zeros(batch_size, bool) if active_b is None else ~active_b

    def unfinished(loop: _Loop) -> jax.Array:
        return (loop.step < max_length) & ~jnp.all(loop.done_b)

    def body(loop: _Loop) -> _Loop:
        logits_bv, cache = next_token(loop.last_b, loop.cache)
        logits_bv = logits_bv.astype(jnp.float32)
        early = (jnp.arange(logits_bv.shape[-1]) == eos_id) & (loop.step + 1 < min_length)
        allowed_bv = jnp.where(early, -jnp.inf, logits_bv)
        token_b = _draw(allowed_bv, sampling, keys_b, loop.step)
        log_prob_bv = jax.nn.log_softmax(logits_bv)
        log_prob_b = jnp.take_along_axis(log_prob_bv, token_b[:, None], axis=-1)[:, 0]
        token_b = jnp.where(loop.done_b, 0, token_b)
        return _Loop(
            loop.step + 1,
            jax.lax.dynamic_update_index_in_dim(loop.tokens_bl, token_b, loop.step, axis=1),
            loop.score_b + jnp.where(loop.done_b, 0.0, log_prob_b),
            token_b,
            loop.done_b | (token_b == eos_id),
            cache,
        )

    end = jax.lax.while_loop(
        unfinished,
        body,
        _Loop(
            jnp.zeros((), jnp.int32),
            jnp.zeros((batch_size, max_length), jnp.int32),
            jnp.zeros(batch_size, jnp.float32),
            start_tokens_b,
            done_b,
            cache,
        ),
    )
    return DecodedSequences(end.tokens_bl, end.score_b)


def _draw(logits_bv, sampling: Sampling, keys_b, index) -> jax.Array:
    if sampling.temperature == 0.0:
        return jnp.argmax(logits_bv, axis=-1).astype(jnp.int32)
    if keys_b is None:
        raise ValueError("a temperature above 0 needs keys_b")
    logits_bv = logits_bv / sampling.temperature
    if 0 < sampling.top_k < logits_bv.shape[-1]:
        least_b1 = jax.lax.top_k(logits_bv, sampling.top_k)[0][:, -1:]
        logits_bv = jnp.where(logits_bv < least_b1, -jnp.inf, logits_bv)
    if sampling.top_p < 1.0:
        logits_bv = _nucleus(logits_bv, sampling.top_p)
    step_keys_b = jax.vmap(jax.random.fold_in, (0, None))(keys_b, index)
    return jax.vmap(jax.random.categorical)(step_keys_b, logits_bv).astype(jnp.int32)


def _nucleus(logits_bv: jax.Array, top_p: float) -> jax.Array:
    """Keep the fewest most likely tokens whose probabilities reach `top_p`; always the first."""
    descending_bv = jnp.sort(logits_bv, axis=-1, descending=True)
    probability_bv = jax.nn.softmax(descending_bv, axis=-1)
    before_bv = jnp.cumsum(probability_bv, axis=-1) - probability_bv
    least_b1 = jnp.min(jnp.where(before_bv < top_p, descending_bv, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_bv < least_b1, -jnp.inf, logits_bv)
