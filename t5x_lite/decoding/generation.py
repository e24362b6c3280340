"""Generation settings, and generation by beam search or sampling according to them."""

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
    """Settings of text generation; the defaults decode greedily.

    Attributes:
        max_length: Largest number of tokens of a text, EOS included.
        min_length: Smallest number of tokens of a text, EOS included.
        num_beams: Number of beams; above 1, beam search (`decoding.beam_search`).
        length_penalty: Exponent of beam search's length penalty; 0.6 is T5's.
        temperature: Sampling temperature; 0 selects the most likely token.
        top_k: Sample from this number of most likely tokens only; 0 for all.
        top_p: Sample from the smallest set of most likely tokens with this total probability; 1 for
            all tokens.
        num_returns: Number of texts per input: the best beams, or as many samples.
        seed: Seed of the samples. An input's samples depend on the seed and on the input's index,
            not on the batch it is in.
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
        """Settings of sampling, used with one beam."""
        try:
            return Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        except ConfigError as error:
            message, *names = (
                text.replace("Sampling.", "Generation.") for text in (error.message, *error.names)
            )
            raise ConfigError(message, *names) from None

    @property
    def copies(self) -> int:
        """Number of sequences that are decoded at a time for each input."""
        return self.num_beams if self.num_beams > 1 else self.num_returns


class SpecialTokens(NamedTuple):
    """Special tokens of decoding; the defaults are T5's.

    Attributes:
        start: Token before the first generated one; None if the model has none (no BOS token).
        end: EOS.
    """

    start: int | None = 0
    end: int = 1


class GeneratedTokens(NamedTuple):
    """Generated texts of each row.

    Attributes:
        tokens: int32 [batch, returns, length], 0 after EOS. Beams are in descending order of their
            scores, samples in the order in which they were drawn.
        scores: float32 [batch, returns], as in `DecodedSequences`.
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
    """Generate the texts of each row.

    `next_token` and `cache` have batch * `generation.copies` rows, those of an input adjacent.

    Args:
        generation: The settings.
        next_token: Computes the logits of the next tokens.
        cache: Its state after everything that precedes `start_tokens_b`.
        gather_cache: (cache, rows) -> the cache whose row i was row `rows[i]`, for beam search.
        start_tokens_b: The token after which each row is decoded, int32 [batch].
        active_b: bool [batch], False for rows that are not decoded.
        keys_b: A key from `jax.random.key` for each row [batch], for sampling.
        eos_id: Token that ends a text.
    """
    lengths = dict(max_length=generation.max_length, min_length=generation.min_length)
    returns = generation.num_returns
    if generation.num_beams > 1:
        beams = beam_search(
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
        return GeneratedTokens(beams.tokens[:, :returns], beams.scores[:, :returns])
    fold_in_all = jax.vmap(jax.random.fold_in, (None, 0))  # one key, all samples
    keys_br = jax.vmap(fold_in_all, (0, None))(keys_b, jnp.arange(returns))
    samples: DecodedSequences = decode(
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
    return GeneratedTokens(samples.tokens.reshape(*shape, -1), samples.scores.reshape(shape))
