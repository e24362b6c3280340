"""Decoding token by token: greedy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Cache = Any
NextToken = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]


def greedy(
    next_token: NextToken, cache: Cache, *, batch_size: int, max_length: int, eos_id: int = 1
) -> jax.Array:
    """The most likely token at every step, int32 [batch, max_length], 0 after each row's EOS.

    `next_token` maps (last tokens [batch], cache) to (logits [batch, vocab], cache). Decoding
    starts with token 0 and stops early when every row has its EOS.
    """

    def unfinished(loop):
        index, _, _, done_b, _ = loop
        return (index < max_length) & ~jnp.all(done_b)

    def body(loop):
        index, tokens_bl, last_b, done_b, cache = loop
        logits_bv, cache = next_token(last_b, cache)
        last_b = jnp.where(done_b, 0, jnp.argmax(logits_bv, axis=-1)).astype(jnp.int32)
        tokens_bl = jax.lax.dynamic_update_slice(tokens_bl, last_b[:, None], (0, index))
        return index + 1, tokens_bl, last_b, done_b | (last_b == eos_id), cache

    start_b = jnp.zeros(batch_size, jnp.int32)
    tokens_bl = jnp.zeros((batch_size, max_length), jnp.int32)
    done_b = jnp.zeros(batch_size, bool)
    return jax.lax.while_loop(unfinished, body, (0, tokens_bl, start_b, done_b, cache))[1]
