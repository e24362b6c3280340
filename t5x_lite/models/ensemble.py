"""Ensembles: several models of one configuration whose logits are averaged before the softmax.

Source: Raffel et al. 2020 (T5), section 3.6.

The members are applied one after another instead of by `vmap` over stacked parameters. Stacking
would copy all weights inside the program, and would turn the slices of the layers' weights that
`Stack.unstack_layers` makes once before the decoding loop into slices in every step of it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.models.transformer import DecodingState, Params, Transformer, bind


class EnsembleState(NamedTuple):
    """The decoding states of all members, with the methods of `DecodingState`."""

    members: tuple[DecodingState, ...]

    def gather(self, rows: jax.Array) -> "EnsembleState":
        """Apply `DecodingState.gather` to each member."""
        return self._map(lambda state: state.gather(rows))

    def repeat(self, copies: int) -> "EnsembleState":
        """Apply `DecodingState.repeat` to each member."""
        return self._map(lambda state: state.repeat(copies))

    def truncate(self, length: jax.Array) -> "EnsembleState":
        """Apply `DecodingState.truncate` to each member."""
        return self._map(lambda state: state.truncate(length))

    def _map(self, function: Callable[[DecodingState], DecodingState]) -> "EnsembleState":
        return EnsembleState(tuple(map(function, self.members)))


class EnsemblePredictions(NamedTuple):
    """Result of a forward pass of all members.

    Attributes:
        hidden: Hidden states of all members [batch, length, members, embed].
        output: Maps them, or a part of the positions, to mean logits [batch, length, vocab].
    """

    hidden: jax.Array
    output: Callable[[jax.Array], jax.Array]


class Ensemble:
    """Predicts and decodes as a `Transformer` does, with the mean of its members' logits."""

    def __init__(self, members: Sequence[Transformer]):
        self.members = tuple(members)

    def __call__(self, batch: Mapping[str, jax.Array]) -> EnsemblePredictions:
        """Predict all target positions of a batch; see `Transformer.__call__`."""
        predictions = [member(batch) for member in self.members]

        def output(hidden_blne: jax.Array) -> jax.Array:
            return _mean([p.output(hidden_blne[..., i, :]) for i, p in enumerate(predictions)])

        return EnsemblePredictions(jnp.stack([p.hidden for p in predictions], axis=2), output)

    def start_decoding(self, *args: Any, **kwargs: Any) -> EnsembleState:
        """Encode the inputs and allocate caches for each member.

        Args:
            *args: Passed to `Transformer.start_decoding`.
            **kwargs: Passed to `Transformer.start_decoding`.
        """
        return EnsembleState(tuple(m.start_decoding(*args, **kwargs) for m in self.members))

    def decode_tokens(
        self, tokens_bl: jax.Array, state: EnsembleState, *, prefix: bool = False
    ) -> tuple[jax.Array, EnsembleState]:
        """Decode the next tokens of every sequence with each member.

        Args:
            tokens_bl: As for `Transformer.decode_tokens`.
            state: The members' states before them.
            prefix: As for `Transformer.decode_tokens`.

        Returns:
            Mean logits [sequences, length, vocab], and the states after the tokens.
        """
        results = [
            member.decode_tokens(tokens_bl, member_state, prefix=prefix)
            for member, member_state in zip(self.members, state.members, strict=True)
        ]
        states = EnsembleState(tuple(member_state for _, member_state in results))
        return _mean([logits for logits, _ in results]), states

    def decode_token(
        self, tokens_b: jax.Array, state: EnsembleState
    ) -> tuple[jax.Array, EnsembleState]:
        """Decode one token of every sequence with each member.

        Args:
            tokens_b: The tokens [sequences].
            state: The members' states before them.

        Returns:
            Mean logits [sequences, vocab] of the next tokens, and the states after the given ones.
        """
        logits_blv, state = self.decode_tokens(tokens_b[:, None], state)
        return logits_blv[:, 0], state


def bind_models(graphdef: nnx.GraphDef, params: Params | tuple[Params, ...]) -> Any:
    """Combine graph definition and weights into a `Transformer` or an `Ensemble`.

    Args:
        graphdef: From `abstract_model`.
        params: The weights of one model, or a tuple of several models' weights.
    """
    if isinstance(params, tuple):
        return Ensemble([bind(graphdef, member) for member in params])
    return bind(graphdef, params)


def _mean(logits: Sequence[jax.Array]) -> jax.Array:
    return sum(logits[1:], logits[0]) / len(logits)
