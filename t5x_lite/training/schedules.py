"""Learning rates as functions of the step; a schedule is a frozen object that is called.

All take `step_offset`: the step they count from, for a run that goes on from another's weights and
step number. Steps before it count as 0.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from t5x_lite.errors import require_field


@runtime_checkable
class Schedule(Protocol):
    """Maps a step (counted from 0, may be traced) to a float32 learning rate."""

    def __call__(self, step: jax.typing.ArrayLike) -> jax.Array: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class InverseSquareRoot:
    """base / sqrt(max(step, warmup_steps)): flat while warming up, then falling (T5, 3.1.2).

    T5's own numbers are base 1 and 10,000 steps: 0.01 at first, 0.001 at step 1,000,000. A positive
    `linear_warmup_steps` raises the rate from 0 in a line over that many first steps. The study's
    baseline takes the rate to 0 in a line over the last `decay_fraction` = 0.1 of `total_steps`.
    """

    base: float = 1.0
    warmup_steps: int = 10_000
    linear_warmup_steps: int = 0
    total_steps: int | None = None
    decay_fraction: float = 0.0
    step_offset: int = 0

    def __post_init__(self):
        require_field(self, "base", self.base > 0, "positive")
        require_field(self, "warmup_steps", self.warmup_steps >= 1, "at least 1")
        require_field(self, "decay_fraction", 0 <= self.decay_fraction <= 1, "in [0, 1]")
        valid = self.decay_fraction == 0 or self.total_steps
        require_field(self, "total_steps", valid, "set for a final decay")

    def __call__(self, step: jax.typing.ArrayLike) -> jax.Array:
        step = _counted(step, self.step_offset)
        rate = self.base * jax.lax.rsqrt(jnp.maximum(step, self.warmup_steps))
        if self.linear_warmup_steps:
            rate *= jnp.minimum(1.0, (step + 1.0) / self.linear_warmup_steps)
        if self.decay_fraction and self.total_steps:
            left = (self.total_steps - step) / (self.total_steps * self.decay_fraction)
            rate *= jnp.clip(left, 0.0, 1.0)
        return rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """The same rate at every step, after a linear warm-up if any; T5 fine-tunes with 0.001."""

    value: float = 1e-3
    warmup_steps: int = 0
    step_offset: int = 0

    def __call__(self, step: jax.typing.ArrayLike) -> jax.Array:
        return self.value * _warm(_counted(step, self.step_offset), self.warmup_steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Decaying:
    """A linear warm-up to `peak`, then down to `final` at `total_steps`, where it stays."""

    peak: float
    total_steps: int
    warmup_steps: int = 0
    final: float = 0.0
    step_offset: int = 0

    def __post_init__(self):
        require_field(self, "peak", self.peak > 0, "positive")
        require_field(self, "final", 0 <= self.final <= self.peak, f"in [0, peak = {self.peak}]")
        require_field(self, "warmup_steps", self.warmup_steps >= 0, "0 or more")
        wanted = f"more than warmup_steps = {self.warmup_steps}"
        require_field(self, "total_steps", self.total_steps > self.warmup_steps, wanted)

    def __call__(self, step: jax.typing.ArrayLike) -> jax.Array:
        step = _counted(step, self.step_offset)
        done = (step - self._first) / (self.total_steps - self._first)
        share = self._share(jnp.clip(done, 0.0, 1.0))
        rate = self.final + (self.peak - self.final) * share
        return jnp.where(step < self.warmup_steps, self.peak * _warm(step, self.warmup_steps), rate)

    @property
    def _first(self) -> int:
        """The step from which on the rate falls."""
        return self.warmup_steps

    def _share(self, done: jax.Array) -> jax.Array:
        """What is left of the way from peak to final once a share of the decay is done."""
        raise NotImplementedError


class Linear(_Decaying):
    """Warm-up, then a straight line down (BERT)."""

    def _share(self, done: jax.Array) -> jax.Array:
        return 1.0 - done


class Cosine(_Decaying):
    """Warm-up, then half a period of a cosine (nanoT5: peak 0.02, final 1e-5)."""

    def _share(self, done: jax.Array) -> jax.Array:
        return 0.5 * (1.0 + jnp.cos(jnp.pi * done))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupStableDecay(_Decaying):
    """Warm-up, a long plateau, and a fall over the last `decay_steps` (WSD; Hu et al. 2024).

    shape: "linear", or "sqrt" for 1 - sqrt(share done) (Hägele et al. 2024).
    """

    decay_steps: int
    shape: str = "linear"

    def __post_init__(self):
        super().__post_init__()
        most = self.total_steps - self.warmup_steps
        require_field(self, "decay_steps", 1 <= self.decay_steps <= most, f"from 1 to {most}")
        require_field(self, "shape", self.shape in ("linear", "sqrt"), "linear or sqrt")

    @property
    def _first(self) -> int:
        return self.total_steps - self.decay_steps

    def _share(self, done: jax.Array) -> jax.Array:
        return 1.0 - (jnp.sqrt(done) if self.shape == "sqrt" else done)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factors:
    """T5X's language of schedules: a product of factors such as "constant * rsqrt_decay".

    constant: base_learning_rate. linear_warmup: min(1, step / w) with w = warmup_steps.
    linear_decay: base * min(step / w, 1 + decay_factor * (w - step)).
    rsqrt_decay: 1 / sqrt(max(step, w)). rsqrt_normalized_decay: sqrt(w) / sqrt(max(step, w)).
    decay_every: decay_factor to the power of floor(step / steps_per_decay).
    cosine_decay: a cosine from 1 to 0 over every steps_per_cycle steps after w, then again.
    The product is at least min_learning_rate. Names and default numbers are T5X's.
    """

    factors: str = "constant * linear_warmup * rsqrt_decay"
    base_learning_rate: float = 0.5
    warmup_steps: int = 1000
    decay_factor: float = 0.5
    steps_per_decay: int = 20_000
    steps_per_cycle: int = 100_000
    step_offset: int = 0
    min_learning_rate: float = 1e-8

    NAMES: ClassVar[dict[str, Callable[["Factors", jax.Array], Any]]] = {
        "constant": lambda self, step: self.base_learning_rate,
        "linear_warmup": lambda self, step: jnp.minimum(1.0, step / self.warmup_steps),
        "linear_decay": lambda self, step: (
            self.base_learning_rate
            * jnp.minimum(
                step / self.warmup_steps, 1.0 + self.decay_factor * (self.warmup_steps - step)
            )
        ),
        "rsqrt_decay": lambda self, step: jax.lax.rsqrt(jnp.maximum(step, self.warmup_steps)),
        "rsqrt_normalized_decay": lambda self, step: (
            math.sqrt(self.warmup_steps) * jax.lax.rsqrt(jnp.maximum(step, self.warmup_steps))
        ),
        "decay_every": lambda self, step: (
            self.decay_factor ** jnp.floor(step / self.steps_per_decay)
        ),
        "cosine_decay": lambda self, step: jnp.maximum(
            0.0, 0.5 * (1.0 + jnp.cos(jnp.pi * (self._cycles(step) % 1.0)))
        ),
    }

    def __post_init__(self):
        unknown = sorted(set(self._names()) - set(self.NAMES))
        require_field(self, "factors", not unknown, f"a product of {', '.join(self.NAMES)}")
        require_field(self, "warmup_steps", self.warmup_steps >= 1, "at least 1")

    def __call__(self, step: jax.typing.ArrayLike) -> jax.Array:
        step = _counted(step, self.step_offset)
        rate = jnp.ones_like(step)
        for name in self._names():
            rate *= self.NAMES[name](self, step)
        return jnp.maximum(rate, self.min_learning_rate)

    def _cycles(self, step: jax.Array) -> jax.Array:
        return jnp.maximum(0.0, (step - self.warmup_steps) / self.steps_per_cycle)

    def _names(self) -> list[str]:
        return [name.strip() for name in self.factors.split("*")]


def _counted(step: jax.typing.ArrayLike, offset: int) -> jax.Array:
    """Steps since the offset, float32."""
    return jnp.maximum(jnp.asarray(step, jnp.float32) - offset, 0.0)


def _warm(step: jax.Array, warmup_steps: int) -> jax.Array:
    """The share of the rate that a linear warm-up grants; the first step has some of it."""
    return jnp.minimum(1.0, (step + 1.0) / max(warmup_steps, 1))
