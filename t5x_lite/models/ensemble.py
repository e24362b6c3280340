"""Several models of one configuration that speak with one voice: the mean of their logits."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.models.transformer import DecodingState, Params, Transformer, bind


class EnsembleState(NamedTuple):
    """The members' states of decoding, moved together."""

    members: tuple[DecodingState, ...]

    def taken(self, rows: jax.Array) -> "EnsembleState":
        """As `DecodingState.taken`."""
        return self._each(lambda state: state.taken(rows))

    def repeated(self, copies: int) -> "EnsembleState":
        """As `DecodingState.repeated`."""
        return self._each(lambda state: state.repeated(copies))

    def at(self, length: jax.Array) -> "EnsembleState":
        """As `DecodingState.at`."""
        return self._each(lambda state: state.at(length))

    def _each(self, change: Callable[[DecodingState], DecodingState]) -> "EnsembleState":
        return EnsembleState(tuple(map(change, self.members)))


class EnsemblePredictions(NamedTuple):
    """Hidden states of all members, [batch, length, members, embed], and how they become logits."""

    hidden: jax.Array
    output: Callable[[jax.Array], jax.Array]


class Ensemble:
    """Models whose logits are averaged before the softmax, as the T5 study's ensembles did.

    Decodes and predicts as a `Transformer` does. Source: Raffel et al. 2020, section 3.6.
    """

    def __init__(self, members: Sequence[Transformer]):
        self.members = tuple(members)

    def __call__(self, batch: Mapping[str, jax.Array]) -> EnsemblePredictions:
        """Every member's hidden states, whose logits are averaged."""
        told = [member(batch) for member in self.members]

        def output(hidden_blne: jax.Array) -> jax.Array:
            return _mean([one.output(hidden_blne[..., i, :]) for i, one in enumerate(told)])

        return EnsemblePredictions(jnp.stack([one.hidden for one in told], axis=2), output)

    def start_decoding(self, *arguments: Any, **named: Any) -> EnsembleState:
        """As `Transformer.start_decoding`."""
        return EnsembleState(tuple(m.start_decoding(*arguments, **named) for m in self.members))

    def decode_tokens(
        self, tokens_bl: jax.Array, state: EnsembleState, *, prefix: bool = False
    ) -> tuple[jax.Array, EnsembleState]:
        """As `Transformer.decode_tokens`."""
        pairs = zip(self.members, state.members, strict=True)
        found = [member.decode_tokens(tokens_bl, own, prefix=prefix) for member, own in pairs]
        return _mean([logits for logits, _ in found]), EnsembleState(tuple(s for _, s in found))

    def decode_token(
        self, tokens_b: jax.Array, state: EnsembleState
    ) -> tuple[jax.Array, EnsembleState]:
        """As `Transformer.decode_token`."""
        logits_blv, state = self.decode_tokens(tokens_b[:, None], state)
        return logits_blv[:, 0], state


def bind_all(graphdef: nnx.GraphDef, params: Params | tuple[Params, ...]) -> Any:
    """The model that has these weights, or, of a tuple, several together; as `bind`."""
    if isinstance(params, tuple):
        return Ensemble([bind(graphdef, each) for each in params])
    return bind(graphdef, params)


def _mean(logits: Sequence[jax.Array]) -> jax.Array:
    return sum(logits[1:], logits[0]) / len(logits)
