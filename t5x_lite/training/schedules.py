"""Learning rates as functions of the step; a schedule is a frozen object that is called."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from t5x_lite.errors import ConfigError


class Schedule(Protocol):
    """Maps a step (counted from 0, may be traced) to a float32 learning rate."""

    def __call__(self, step: jax.typing.ArrayLike) -> jax.Array: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class InverseSquareRoot:
    """base / sqrt(max(step, warmup_steps)): flat while warming up, then falling (T5, 3.1.2).

    T5's own numbers are base 1 and 10,000 steps: 0.01 at first, 0.001 at step 1,000,000. A positive
    `linear_warmup_steps` raises the rate from 0 in a line over that many first steps.
    """

    base: float = 1.0
    warmup_steps: int = 10_000
    linear_warmup_steps: int = 0

    def __post_init__(self):
        if self.base <= 0:
            raise ConfigError(
                f"the learning rate's base must be positive; got {self.base}",
                "InverseSquareRoot.base",
            )
        if self.warmup_steps < 1:
            raise ConfigError(
                f"warmup_steps must be at least 1; got {self.warmup_steps}",
                "InverseSquareRoot.warmup_steps",
            )

    def __call__(self, step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rate = self.base * jax.lax.rsqrt(jnp.maximum(step, self.warmup_steps))
        if self.linear_warmup_steps:
            rate *= jnp.minimum(1.0, (step + 1.0) / self.linear_warmup_steps)
        return rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """The same rate at every step; T5 fine-tunes with 0.001."""

    value: float = 1e-3

    def __call__(self, step: jax.typing.ArrayLike) -> jax.Array:
        return jnp.full(jnp.shape(step), self.value, jnp.float32)
