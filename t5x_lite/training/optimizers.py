"""Optimizers by name: T5's Adafactor with its rule per layer, AdamW, Lion, Muon."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from t5x_lite.errors import ConfigError, require_field
from t5x_lite.partitioning import LogicalAxes
from t5x_lite.training.per_parameter import (
    Optimizer,
    OptimizerConfig,
    Tree,
    WeightRule,
    bind_rules,
    optax_rule,
    root_mean_square,
)

__all__ = ["Adafactor", "AdamW", "Lion", "Muon", "Optimizer", "OptimizerConfig"]

ROLES = ("row", "column", "none")


class _ByRule:
    """An optimizer whose rules depend on no more than the weight's path, shape and axes."""

    def for_weights(self, shapes: Tree, axes: Tree) -> Optimizer:
        """Bind to weights of these shapes and logical axes."""
        return bind_rules(self.rule, shapes, axes)

    def rule(self, path: str, shape: tuple[int, ...], axes: LogicalAxes) -> WeightRule:
        raise NotImplementedError

    def without(self, *, decay: bool = False, parameter_scale: bool = False):
        """The same without weight decay, or without rates relative to the weight's size."""
        changes: dict[str, Any] = {"weight_decay": None} if decay else {}
        if parameter_scale:
            changes["multiply_by_parameter_scale"] = False
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(_ByRule):
    """Adafactor as T5 uses it (Shazeer and Stern 2018; T5X's defaults).

    Matrices whose second largest dimension has at least `min_dim_size_to_factor` keep row and
    column means of the squared gradient instead of all squares. Updates are clipped by their own
    RMS, and the learning rate is relative to the RMS of the weight, from `epsilon_parameter` up to
    `max_parameter_scale`. All averages run over one layer, and over one expert.

    decay_rate: second-moment decay is 1 - t**-decay_rate, t = step - step_offset + 1.
    momentum: β1, or None for none; kept in `momentum_dtype`.
    weight_decay: share of the weight removed each step, times rate**weight_decay_lr_exponent if
        that is given (then it is 1 where it is None).
    factor_rules: roles of logical axes, "row", "column" or "none". A weight all of whose axes have
        one is factored by them, whatever its size, or not at all if it has no row or no column.
    """

    decay_rate: float = 0.8
    step_offset: int = 0
    multiply_by_parameter_scale: bool = True
    max_parameter_scale: float | None = None
    clipping_threshold: float | None = 1.0
    momentum: float | None = None
    momentum_dtype: str = "float32"
    weight_decay: float | None = None
    weight_decay_lr_exponent: float | None = None
    factored: bool = True
    factor_rules: Mapping[str, str] | None = None
    min_dim_size_to_factor: int = 128
    epsilon_gradient: float = 1e-30
    epsilon_parameter: float = 1e-3

    def __post_init__(self):
        require_field(self, "decay_rate", 0 < self.decay_rate <= 1, "in (0, 1]")
        valid = self.momentum is None or 0 <= self.momentum < 1
        require_field(self, "momentum", valid, "None or in [0, 1)")
        valid = self.momentum_dtype in ("float32", "bfloat16")
        require_field(self, "momentum_dtype", valid, "float32 or bfloat16")
        valid = set((self.factor_rules or {}).values()) <= set(ROLES)
        require_field(self, "factor_rules", valid, f"None or axes with one of {ROLES}")

    def rule(self, path: str, shape: tuple[int, ...], axes: LogicalAxes) -> WeightRule:
        """How one layer's weight is updated."""
        split = self._split(path, shape, axes)

        def update(grad, state, param, step, rate):
            grad = grad.astype(jnp.float32)
            t = jnp.asarray(step - self.step_offset + 1, jnp.float32)
            state, direction = self._precondition(split, grad, state, 1.0 - t**-self.decay_rate)
            if self.clipping_threshold is not None:
                size = root_mean_square(direction)
                direction /= jnp.maximum(1.0, size / self.clipping_threshold)
            change = self._scale(param, rate) * direction
            if self.momentum is not None:
                change = self.momentum * state["m"] + (1.0 - self.momentum) * change
                state["m"] = change.astype(self.momentum_dtype)
            return self._decayed(param, rate) - change, state

        kept = {name: _without(axes, gone) for name, gone in split.items()}
        if self.momentum is not None:
            kept["m"] = axes

        def init(param):
            shapes = {name: _without(shape, gone) for name, gone in split.items()}
            state = {name: jnp.zeros(size, jnp.float32) for name, size in shapes.items()}
            if self.momentum is not None:
                state["m"] = jnp.zeros(shape, self.momentum_dtype)
            return state

        return WeightRule(init, update, kept)

    def without(self, *, decay: bool = False, parameter_scale: bool = False):
        """The same without weight decay, or without rates relative to the weight's size."""
        plain = super().without(decay=decay, parameter_scale=parameter_scale)
        return dataclasses.replace(plain, weight_decay_lr_exponent=None) if decay else plain

    def _split(self, path: str, shape, axes: LogicalAxes) -> dict[str, tuple[int, ...]]:
        """Which dimensions each second moment has averaged away."""
        whole = {"v": ()}
        if not self.factored or len(shape) < 2:
            return whole
        rules = self.factor_rules or {}
        if all(name in rules for name in axes):
            roles = [rules[name] for name in axes if name is not None]
            rows, columns = (
                tuple(i for i, role in enumerate(roles) if role == wanted) for wanted in ROLES[:2]
            )
            if not rows or not columns:
                return whole
            if "none" in roles:
                raise ConfigError(
                    f"factor_rules give {path} with axes {axes} rows, columns and an axis that is "
                    f"neither; wanted only rows and columns, or no factoring",
                    "Adafactor.factor_rules",
                )
            return {"v_row": columns, "v_col": rows}
        order = np.argsort(shape, kind="stable")  # of equal dimensions the later is the larger
        if shape[order[-2]] < self.min_dim_size_to_factor:
            return whole
        return {"v_row": (int(order[-1]),), "v_col": (int(order[-2]),)}

    def _precondition(self, split, grad, state, decay):
        """The new second moments, and the gradient divided by their root."""
        squared = jnp.square(grad) + self.epsilon_gradient
        state, kept = dict(state), {}
        for name, gone in split.items():
            mean = jnp.mean(squared, axis=gone, keepdims=True)
            state[name] = decay * state[name] + (1.0 - decay) * mean.reshape(state[name].shape)
            kept[name] = state[name].reshape(mean.shape)
        if "v" in kept:
            return state, grad * jax.lax.rsqrt(kept["v"])
        rows = kept["v_row"] / jnp.mean(kept["v_row"], axis=split["v_col"], keepdims=True)
        return state, grad * jax.lax.rsqrt(rows) * jax.lax.rsqrt(kept["v_col"])

    def _scale(self, param, rate):
        if not self.multiply_by_parameter_scale:
            return rate
        size = jnp.maximum(root_mean_square(param), self.epsilon_parameter)
        if self.max_parameter_scale is not None:
            size = jnp.minimum(size, self.max_parameter_scale)
        return rate * size

    def _decayed(self, param, rate):
        decay = self.weight_decay
        if self.weight_decay_lr_exponent is not None:
            decay = (1.0 if decay is None else decay) * rate**self.weight_decay_lr_exponent
        return param if decay is None else (1.0 - decay) * param


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(_ByRule):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), by optax.

    new = weight - rate * (direction + weight_decay * weight). With `multiply_by_parameter_scale`
    the direction is also multiplied by the weight's RMS, at least `epsilon_parameter`: what makes
    Adam train T5 (nanoT5). The RMS is that of one layer.
    """

    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float | None = None
    multiply_by_parameter_scale: bool = False
    epsilon_parameter: float = 1e-3

    def rule(self, path: str, shape: tuple[int, ...], axes: LogicalAxes) -> WeightRule:
        """How one layer's weight is updated."""
        adam = optax.scale_by_adam(self.b1, self.b2, self.epsilon)

        def apply(param, direction, rate):
            if self.multiply_by_parameter_scale:
                direction *= jnp.maximum(root_mean_square(param), self.epsilon_parameter)
            return _moved(param, direction, rate, self.weight_decay)

        return optax_rule(adam, shape, axes, apply)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(_ByRule):
    """The sign of a momentum, with decoupled weight decay (Chen et al. 2023), by optax.

    The paper takes a tenth to a third of AdamW's rate and three to ten times its weight decay.
    """

    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float | None = None
    multiply_by_parameter_scale: bool = False
    epsilon_parameter: float = 1e-3

    def rule(self, path: str, shape: tuple[int, ...], axes: LogicalAxes) -> WeightRule:
        """How one layer's weight is updated."""

        def apply(param, direction, rate):
            if self.multiply_by_parameter_scale:
                direction *= jnp.maximum(root_mean_square(param), self.epsilon_parameter)
            return _moved(param, direction, rate, self.weight_decay)

        return optax_rule(optax.scale_by_lion(self.b1, self.b2), shape, axes, apply)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(_ByRule):
    """Momentum made orthogonal for each matrix of each layer (Jordan 2024), by optax.

    Updates of a matrix are scaled to `consistent_rms` * sqrt(larger dimension), so that AdamW's
    rate and weight decay fit both (Liu et al. 2025). What is no matrix inside a layer (vectors,
    embeddings, the head, position tables) is left to `others`.
    """

    beta: float = 0.95
    nesterov: bool = True
    newton_schulz_steps: int = 5
    consistent_rms: float = 0.2
    weight_decay: float | None = None
    others: AdamW = AdamW()

    TABLES = ("vocab", "length_table", "relpos_buckets", "classes", "experts_whole")

    def rule(self, path: str, shape: tuple[int, ...], axes: LogicalAxes) -> WeightRule:
        """How one layer's weight is updated."""
        if len(shape) != 2 or set(axes) & set(self.TABLES):
            return self.others.rule(path, shape, axes)
        muon = contrib.scale_by_muon(
            ns_steps=self.newton_schulz_steps, beta=self.beta, nesterov=self.nesterov
        )
        scale = self.consistent_rms * max(shape) ** 0.5

        def apply(param, direction, rate):
            return _moved(param, scale * direction, rate, self.weight_decay)

        return optax_rule(muon, shape, axes, apply)

    def without(self, *, decay: bool = False, parameter_scale: bool = False):
        """The same without weight decay; rates of `others` may be relative to the weight's size."""
        others = self.others.without(decay=decay, parameter_scale=parameter_scale)
        weight_decay = None if decay else self.weight_decay
        return dataclasses.replace(self, others=others, weight_decay=weight_decay)


def _moved(param, direction, rate, weight_decay: float | None):
    if weight_decay is not None:
        direction += weight_decay * param
    return param - rate * direction


def _without(items: tuple, gone: tuple[int, ...]) -> tuple:
    return tuple(item for i, item in enumerate(items) if i not in gone)
