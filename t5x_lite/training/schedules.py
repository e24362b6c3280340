"""Learning rate schedules: frozen objects that map a step to a learning rate.

All have `step_offset`, the step from which they count, for a run that starts from a checkpoint and
keeps its step number. Steps before the offset count as 0.
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
    """Anything that maps a step to a learning rate."""

    def __call__(self, step: jax.typing.ArrayLike) -> jax.Array:
        """Return the learning rate of a step.

        Args:
            step: Step counted from 0; may be traced.

        Returns:
            float32 scalar, or an array of the shape of `step`.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class InverseSquareRoot:
    """base / sqrt(max(step, warmup_steps)): constant, then decaying (T5, section 3.1.2).

    The defaults are T5's: 0.01 for 10,000 steps, 0.001 at step 1,000,000.

    Attributes:
        base: Numerator.
        warmup_steps: Number of first steps with a constant rate.
        linear_warmup_steps: Number of first steps over which the rate also rises linearly from 0;
            0 for none, as T5.
        total_steps: Last step, needed for a final decay.
        decay_fraction: Fraction of `total_steps` at the end over which the rate also falls linearly
            to 0; the baseline of the T5 paper's study has 0.1. 0 for none.
        step_offset: Step from which the schedule counts.
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
        step = _steps_since(step, self.step_offset)
        rate = self.base * jax.lax.rsqrt(jnp.maximum(step, self.warmup_steps))
        if self.linear_warmup_steps:
            rate *= jnp.minimum(1.0, (step + 1.0) / self.linear_warmup_steps)
        if self.decay_fraction and self.total_steps:
            remaining = (self.total_steps - step) / (self.total_steps * self.decay_fraction)
            rate *= jnp.clip(remaining, 0.0, 1.0)
        return rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """A constant rate, optionally after a linear warmup.

    Attributes:
        value: The rate; T5 fine-tunes with 0.001.
        warmup_steps: Number of first steps over which the rate rises linearly; 0 for none.
        step_offset: Step from which the schedule counts.
    """

    value: float = 1e-3
    warmup_steps: int = 0
    step_offset: int = 0

    def __call__(self, step: jax.typing.ArrayLike) -> jax.Array:
        step = _steps_since(step, self.step_offset)
        return self.value * _warmup_factor(step, self.warmup_steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Decaying:
    """A linear warmup to `peak`, then a decay to `final` at `total_steps`, constant from there.

    Subclasses define the shape of the decay.

    Attributes:
        peak: Highest rate.
        total_steps: Step at which the rate reaches `final`.
        warmup_steps: Number of first steps over which the rate rises linearly; 0 for none.
        final: Rate at the end.
        step_offset: Step from which the schedule counts.
    """

    peak: float
    total_steps: int
    warmup_steps: int = 0
    final: float = 0.0
    step_offset: int = 0

    def __post_init__(self):
        require_field(self, "peak", self.peak > 0, "positive")
        require_field(self, "final", 0 <= self.final <= self.peak, f"in [0, peak = {self.peak}]")
        require_field(self, "warmup_steps", self.warmup_steps >= 0, "0 or more")
        expected = f"more than warmup_steps = {self.warmup_steps}"
        require_field(self, "total_steps", self.total_steps > self.warmup_steps, expected)

    def __call__(self, step: jax.typing.ArrayLike) -> jax.Array:
        step = _steps_since(step, self.step_offset)
        progress = (step - self._decay_start) / (self.total_steps - self._decay_start)
        factor = self._decay_factor(jnp.clip(progress, 0.0, 1.0))
        rate = self.final + (self.peak - self.final) * factor
        warmup_rate = self.peak * _warmup_factor(step, self.warmup_steps)
        return jnp.where(step < self.warmup_steps, warmup_rate, rate)

    @property
    def _decay_start(self) -> int:
        """Step at which the decay starts."""
        return self.warmup_steps

    def _decay_factor(self, progress: jax.Array) -> jax.Array:
        """Map the progress of the decay, 0 to 1, to a factor from 1 (peak) to 0 (final)."""
        raise NotImplementedError


class Linear(_Decaying):
    """Linear warmup, then linear decay (BERT).

    Attributes:
        peak: Highest rate.
        total_steps: Step at which the rate reaches `final`.
        warmup_steps: Number of first steps over which the rate rises linearly; 0 for none.
        final: Rate at the end.
        step_offset: Step from which the schedule counts.
    """

    def _decay_factor(self, progress: jax.Array) -> jax.Array:
        return 1.0 - progress


class Cosine(_Decaying):
    """Linear warmup, then half a period of a cosine (nanoT5: peak 0.02, final 1e-5).

    Attributes:
        peak: Highest rate.
        total_steps: Step at which the rate reaches `final`.
        warmup_steps: Number of first steps over which the rate rises linearly; 0 for none.
        final: Rate at the end.
        step_offset: Step from which the schedule counts.
    """

    def _decay_factor(self, progress: jax.Array) -> jax.Array:
        return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupStableDecay(_Decaying):
    """Linear warmup, a plateau at `peak`, and a decay at the end (WSD; Hu et al. 2024).

    Attributes:
        peak: Highest rate.
        total_steps: Step at which the rate reaches `final`.
        warmup_steps: Number of first steps over which the rate rises linearly; 0 for none.
        final: Rate at the end.
        step_offset: Step from which the schedule counts.
        decay_steps: Number of last steps over which the rate decays.
        shape: "linear", or "sqrt" for 1 - sqrt(progress) (Hägele et al. 2024).
    """

    decay_steps: int
    shape: str = "linear"

    def __post_init__(self):
        super().__post_init__()
        most = self.total_steps - self.warmup_steps
        require_field(self, "decay_steps", 1 <= self.decay_steps <= most, f"from 1 to {most}")
        require_field(self, "shape", self.shape in ("linear", "sqrt"), "linear or sqrt")

    @property
    def _decay_start(self) -> int:
        return self.total_steps - self.decay_steps

    def _decay_factor(self, progress: jax.Array) -> jax.Array:
        return 1.0 - (jnp.sqrt(progress) if self.shape == "sqrt" else progress)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factors:
    """T5X's schedules (`utils.create_learning_rate_scheduler`): a product of named factors.

    Names and defaults are T5X's. With w = warmup_steps, the factors are:

        constant                base_learning_rate
        linear_warmup           min(1, step / w)
        linear_decay            base_learning_rate * min(step / w, 1 + decay_factor * (w - step))
        rsqrt_decay             1 / sqrt(max(step, w))
        rsqrt_normalized_decay  sqrt(w) / sqrt(max(step, w))
        decay_every             decay_factor ** floor(step / steps_per_decay)
        cosine_decay            a cosine from 1 to 0 over steps_per_cycle steps after w, repeated

    Attributes:
        factors: Names joined by "*", such as "constant * rsqrt_decay".
        base_learning_rate: The factor "constant".
        warmup_steps: w, at least 1.
        decay_factor: Base of "decay_every", slope of "linear_decay".
        steps_per_decay: Number of steps between two decays of "decay_every".
        steps_per_cycle: Number of steps of a cycle of "cosine_decay".
        step_offset: Step from which the schedule counts.
        min_learning_rate: Lower bound of the product.
    """

    factors: str = "constant * linear_warmup * rsqrt_decay"
    base_learning_rate: float = 0.5
    warmup_steps: int = 1000
    decay_factor: float = 0.5
    steps_per_decay: int = 20_000
    steps_per_cycle: int = 100_000
    step_offset: int = 0
    min_learning_rate: float = 1e-8

    _FACTORS: ClassVar[dict[str, Callable[["Factors", jax.Array], Any]]] = {
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
        unknown = sorted(set(self._names()) - set(self._FACTORS))
        require_field(self, "factors", not unknown, f"a product of {', '.join(self._FACTORS)}")
        require_field(self, "warmup_steps", self.warmup_steps >= 1, "at least 1")

    def __call__(self, step: jax.typing.ArrayLike) -> jax.Array:
        step = _steps_since(step, self.step_offset)
        rate = jnp.ones_like(step)
        for name in self._names():
            rate *= self._FACTORS[name](self, step)
        return jnp.maximum(rate, self.min_learning_rate)

    def _cycles(self, step: jax.Array) -> jax.Array:
        return jnp.maximum(0.0, (step - self.warmup_steps) / self.steps_per_cycle)

    def _names(self) -> list[str]:
        return [name.strip() for name in self.factors.split("*")]


def _steps_since(step: jax.typing.ArrayLike, offset: int) -> jax.Array:
    """Return the steps since the offset, float32, at least 0."""
    return jnp.maximum(jnp.asarray(step, jnp.float32) - offset, 0.0)


def _warmup_factor(step: jax.Array, warmup_steps: int) -> jax.Array:
    """Return the factor of a linear warmup: 1 / warmup_steps at step 0, 1 after the warmup."""
    return jnp.minimum(1.0, (step + 1.0) / max(warmup_steps, 1))
