"""Decoding token by token: greedily, or by sampling.

Array names: b batch, l length, v vocab.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5x_lite.errors import require_field

Cache = Any  # what the model keeps between tokens; opaque here
# (last tokens [batch], cache) -> (logits [batch, vocab], updated cache)
NextToken = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]


class DecodedSequences(NamedTuple):
    """Decoded token sequences and their scores.

    Attributes:
        tokens: int32 [batch, length], or [batch, beams, length]; 0 after EOS.
        scores: float32 [batch], or [batch, beams]: log-probability of the tokens, EOS included, by
            the model's softmax at temperature 1. Beam search divides it by its length penalty.
    """

    tokens: jax.Array
    scores: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is sampled. With both top_k and top_p, top_k is applied first.

    Attributes:
        temperature: Temperature of the softmax; 0 selects the most likely token.
        top_k: Sample from this number of most likely tokens only; 0 for all.
        top_p: Sample from the smallest set of most likely tokens whose total probability reaches
            this (nucleus sampling, Holtzman et al. 2020); 1 for all tokens.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        for name in ("temperature", "top_k"):
            require_field(self, name, getattr(self, name) >= 0, "0 or more")
        require_field(self, "top_p", 0 < self.top_p <= 1, "in (0, 1]")


GREEDY = Sampling()


class _LoopState(NamedTuple):
    step: jax.Array
    tokens_bl: jax.Array
    score_b: jax.Array
    last_b: jax.Array
    done_b: jax.Array
    cache: Cache


@jax.named_scope("token_choice")
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
    """Decode one sequence per row; stops when all rows have ended.

    Args:
        next_token: Computes the logits of the next tokens.
        cache: Its state after everything that precedes `start_tokens_b`.
        start_tokens_b: The token after which each row is decoded, int32 [batch].
        max_length: Largest number of tokens, EOS included.
        sampling: How a token is selected; greedily by default.
        keys_b: A key from `jax.random.key` for each row, needed for a temperature above 0. A row's
            result depends on its own key only, not on other rows.
        min_length: Smallest number of tokens, EOS included.
        eos_id: Token that ends a sequence.
        active_b: bool [batch], False for rows that are not decoded, such as padding of the batch;
            None decodes all.

    Returns:
        Tokens [batch, max_length] and scores [batch].
    """
    batch_size = len(start_tokens_b)
    done_b = jnp.zeros(batch_size, bool) if active_b is None else ~active_b

    def is_unfinished(loop: _LoopState) -> jax.Array:
        return (loop.step < max_length) & ~jnp.all(loop.done_b)

    def body(loop: _LoopState) -> _LoopState:
        logits_bv, cache = next_token(loop.last_b, loop.cache)
        logits_bv = logits_bv.astype(jnp.float32)
        is_early_eos_v = (jnp.arange(logits_bv.shape[-1]) == eos_id) & (loop.step + 1 < min_length)
        allowed_bv = jnp.where(is_early_eos_v, -jnp.inf, logits_bv)
        token_b = _select(allowed_bv, sampling, keys_b, loop.step)
        log_prob_bv = jax.nn.log_softmax(logits_bv)
        log_prob_b = jnp.take_along_axis(log_prob_bv, token_b[:, None], axis=-1)[:, 0]
        token_b = jnp.where(loop.done_b, 0, token_b)
        return _LoopState(
            loop.step + 1,
            jax.lax.dynamic_update_index_in_dim(loop.tokens_bl, token_b, loop.step, axis=1),
            loop.score_b + jnp.where(loop.done_b, 0.0, log_prob_b),
            token_b,
            loop.done_b | (token_b == eos_id),
            cache,
        )

    end = jax.lax.while_loop(
        is_unfinished,
        body,
        _LoopState(
            jnp.zeros((), jnp.int32),
            jnp.zeros((batch_size, max_length), jnp.int32),
            jnp.zeros(batch_size, jnp.float32),
            start_tokens_b,
            done_b,
            cache,
        ),
    )
    return DecodedSequences(end.tokens_bl, end.score_b)


def _select(logits_bv, sampling: Sampling, keys_b, step) -> jax.Array:
    """Select the token of a step, int32 [b]."""
    if sampling.temperature == 0.0:
        return jnp.argmax(logits_bv, axis=-1).astype(jnp.int32)
    if keys_b is None:
        raise ValueError("keys_b is required for a temperature above 0")
    logits_bv = logits_bv / sampling.temperature
    if 0 < sampling.top_k < logits_bv.shape[-1]:
        threshold_b1 = jax.lax.top_k(logits_bv, sampling.top_k)[0][:, -1:]
        logits_bv = jnp.where(logits_bv < threshold_b1, -jnp.inf, logits_bv)
    if sampling.top_p < 1.0:
        logits_bv = _nucleus(logits_bv, sampling.top_p)
    step_keys_b = jax.vmap(jax.random.fold_in, (0, None))(keys_b, step)
    return jax.vmap(jax.random.categorical)(step_keys_b, logits_bv).astype(jnp.int32)


def _nucleus(logits_bv: jax.Array, top_p: float) -> jax.Array:
    """Mask all but the smallest set of most likely tokens whose probability reaches `top_p`."""
    descending_bv = jnp.sort(logits_bv, axis=-1, descending=True)
    probability_bv = jax.nn.softmax(descending_bv, axis=-1)
    # A token is kept if those before it have less than top_p; so the first one always is.
    before_bv = jnp.cumsum(probability_bv, axis=-1) - probability_bv
    kept_bv = jnp.where(before_bv < top_p, descending_bv, jnp.inf)
    threshold_b1 = jnp.min(kept_bv, axis=-1, keepdims=True)
    return jnp.where(logits_bv < threshold_b1, -jnp.inf, logits_bv)
