"""What one call of a decoder gives: which search, how many texts, how long."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from t5x_lite.decoding.beam_search import beam_search
from t5x_lite.decoding.sampling import Cache, DecodedSequences, NextToken, Sampling, decode
from t5x_lite.errors import ConfigError, require_field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """How texts are generated; the defaults give the most likely token at each step.

    max_length: tokens of a text, its EOS included. min_length: no EOS among the first
    `min_length` - 1 tokens.
    num_beams: beam search by T5's rules if more than 1; length_penalty: its exponent.
    temperature, top_k, top_p: as in `Sampling`; 0 takes the most likely token.
    num_returns: texts of an input: the best beams, or as many draws.
    seed: of the draws; an input's texts depend on its own number and on nothing beside it.
    """

    max_length: int = 128
    min_length: int = 0
    num_beams: int = 1
    length_penalty: float = 0.6
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    num_returns: int = 1
    seed: int = 0

    def __post_init__(self):
        _ = self.sampling
        for name in ("max_length", "num_beams", "num_returns"):
            require_field(self, name, getattr(self, name) >= 1, "1 or more")
        valid = 0 <= self.min_length <= self.max_length
        require_field(self, "min_length", valid, f"from 0 to max_length = {self.max_length}")
        beams, draws = self.num_beams > 1, self.temperature > 0
        expected = f"0 with num_beams = {self.num_beams}: beam search does not sample"
        require_field(self, "temperature", not (beams and draws), expected)
        valid = not beams or self.num_returns <= self.num_beams
        require_field(self, "num_returns", valid, f"at most num_beams = {self.num_beams}")
        expected = "1 where temperature is 0 and num_beams is 1: all texts would be the same"
        require_field(self, "num_returns", beams or draws or self.num_returns == 1, expected)

    @property
    def sampling(self) -> Sampling:
        """How a token is drawn, where there are no beams."""
        try:
            return Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        except ConfigError as error:
            message, *names = (
                text.replace("Sampling.", "Generation.") for text in (error.message, *error.names)
            )
            raise ConfigError(message, *names) from None

    @property
    def copies(self) -> int:
        """How many texts of an input are written at a time."""
        return self.num_beams if self.num_beams > 1 else self.num_returns


class SpecialTokens(NamedTuple):
    """What a model's texts begin behind (None: nothing) and end with; the defaults are T5's."""

    start: int | None = 0
    end: int = 1


class GeneratedTokens(NamedTuple):
    """Texts int32 [batch, returns, length], 0 behind their EOS, and scores [batch, returns].

    Beams stand best first, draws as they were drawn. Scores are as `DecodedSequences` says.
    """

    tokens: jax.Array
    scores: jax.Array


def generate(
    generation: Generation,
    next_token: NextToken,
    cache: Cache,
    gather_cache: Callable[[Cache, jax.Array], Cache],
    *,
    start_tokens_b: jax.Array,
    active_b: jax.Array,
    keys_b: jax.Array,
    eos_id: int = 1,
) -> GeneratedTokens:
    """The texts of every row, behind the tokens `start_tokens_b`.

    `next_token` and `cache` are for batch x `generation.copies` rows, the copies of a row side by
    side; `gather_cache(cache, rows)` gives the cache whose row i was row `rows[i]`. Rows that are not
    `active_b` are not waited for. keys_b: a key of `jax.random.key` for each row.
    """
    lengths = dict(max_length=generation.max_length, min_length=generation.min_length)
    returns = generation.num_returns
    if generation.num_beams > 1:
        found = beam_search(
            next_token,
            cache,
            gather_cache,
            start_tokens_b=start_tokens_b,
            num_beams=generation.num_beams,
            length_penalty=generation.length_penalty,
            eos_id=eos_id,
            active_b=active_b,
            **lengths,
        )
        return GeneratedTokens(found.tokens[:, :returns], found.scores[:, :returns])
    numbers_r = jnp.arange(returns)
    keys_br = jax.vmap(lambda key: jax.vmap(lambda n: jax.random.fold_in(key, n))(numbers_r))(
        keys_b
    )
    drawn: DecodedSequences = decode(
        next_token,
        cache,
        start_tokens_b=jnp.repeat(start_tokens_b, returns),
        sampling=generation.sampling,
        keys_b=keys_br.reshape(-1),
        eos_id=eos_id,
        active_b=jnp.repeat(active_b, returns),
        **lengths,
    )
    shape = (len(start_tokens_b), returns)
    return GeneratedTokens(drawn.tokens.reshape(*shape, -1), drawn.scores.reshape(shape))
