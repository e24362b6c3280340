"""Optimizers by name: Adafactor as in T5, AdamW, Lion, Muon, and any optimizer of optax.

All of them treat every layer of a stack, and every expert, as a weight of its own
(`training.per_parameter`). The learning rate of each step comes from the schedule
(`training.schedules`).
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
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

__all__ = ["Adafactor", "AdamW", "Lion", "Muon", "Optax", "Optimizer", "OptimizerConfig"]

ROLES = ("row", "column", "none")


class _RuleOptimizer:
    """An optimizer whose rules depend on no more than the weight's path, shape and axes."""

    def for_weights(self, shapes: Tree, axes: Tree) -> Optimizer:
        """Bind to weights of these shapes and logical axes."""
        return bind_rules(self.rule, shapes, axes)

    def rule(self, path: str, shape: tuple[int, ...], axes: LogicalAxes) -> WeightRule:
        """Return how one layer's weight is updated."""
        raise NotImplementedError

    def without(self, *, decay: bool = False, parameter_scale: bool = False):
        """Return the same without weight decay, or without rates relative to the weight's size."""
        changes: dict[str, Any] = {"weight_decay": None} if decay else {}
        if parameter_scale:
            changes["multiply_by_parameter_scale"] = False
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(_RuleOptimizer):
    """Adafactor as T5 uses it (Shazeer and Stern 2018, arXiv:1804.04235; T5X's defaults).

    Matrices keep row and column means of the squared gradient instead of all squares. Updates are
    clipped by their own RMS, and the learning rate is relative to the RMS of the weight. All
    averages are over one layer, and over one expert.

    Args:
        decay_rate: The second moment's decay is 1 - t**-decay_rate, t = step - step_offset + 1.
        step_offset: Step at which t begins to count, for fine-tuning.
        multiply_by_parameter_scale: Multiply the learning rate by the RMS of the weight, which is
            taken as `epsilon_parameter` at least and `max_parameter_scale` at most.
        max_parameter_scale: None for no upper limit.
        clipping_threshold: Largest RMS of an update before the learning rate; None for no limit.
        momentum: β1 of a moving average of updates; None keeps none.
        momentum_dtype: "float32" or "bfloat16".
        weight_decay: Fraction of the weight removed at each step, times
            rate**weight_decay_lr_exponent if that is given.
        weight_decay_lr_exponent: As above. With it, a weight_decay of None counts as 1.
        factored: Whether second moments of matrices are factored at all.
        factor_rules: Roles of logical axes: "row", "column" or "none". A weight all of whose axes
            have a role is factored by them, whatever its size, or not at all if it has no row or
            no column.
        min_dim_size_to_factor: Without rules, a weight whose second largest dimension is smaller
            than this is not factored.
        epsilon_gradient: Added to squared gradients.
        epsilon_parameter: See multiply_by_parameter_scale.
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
        """Return how one layer's weight is updated."""
        split = self._averaged_dimensions(path, shape, axes)

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
            return self._decay_weight(param, rate) - change, state

        kept = {name: _omit(axes, gone) for name, gone in split.items()}
        if self.momentum is not None:
            kept["m"] = axes

        def init(param):
            shapes = {name: _omit(shape, gone) for name, gone in split.items()}
            state = {name: jnp.zeros(size, jnp.float32) for name, size in shapes.items()}
            if self.momentum is not None:
                state["m"] = jnp.zeros(shape, self.momentum_dtype)
            return state

        return WeightRule(init, update, kept)

    def without(self, *, decay: bool = False, parameter_scale: bool = False):
        """Return the same without weight decay, or without rates relative to the weight's size."""
        plain = super().without(decay=decay, parameter_scale=parameter_scale)
        return dataclasses.replace(plain, weight_decay_lr_exponent=None) if decay else plain

    def _averaged_dimensions(
        self, path: str, shape, axes: LogicalAxes
    ) -> dict[str, tuple[int, ...]]:
        """Return which dimensions each second moment averages over: {name: dimensions}."""
        whole = {"v": ()}
        if not self.factored or len(shape) < 2:
            return whole
        rules = self.factor_rules or {}
        if all(name in rules for name in axes):
            roles = [rules[name] for name in axes if name is not None]
            rows, columns = (
                tuple(i for i, role in enumerate(roles) if role == kind) for kind in ROLES[:2]
            )
            if not rows or not columns:
                return whole
            if "none" in roles:
                raise ConfigError(
                    f"factor_rules give {path} with axes {axes} rows, columns and an axis that is "
                    f"neither; expected only rows and columns, or no factoring",
                    "Adafactor.factor_rules",
                )
            return {"v_row": columns, "v_col": rows}
        order = np.argsort(shape, kind="stable")  # of equal dimensions the later is the larger
        if shape[order[-2]] < self.min_dim_size_to_factor:
            return whole
        return {"v_row": (int(order[-1]),), "v_col": (int(order[-2]),)}

    def _precondition(self, split, grad, state, decay):
        """Return the new second moments, and the gradient divided by their square root.

        The second moments of a matrix are estimated from the means R of its rows and C of its
        columns: V = R * C / mean(R) (section 3 of the paper). Only R and C are kept.
        """
        squared = jnp.square(grad) + self.epsilon_gradient
        state, kept = dict(state), {}
        for name, gone in split.items():
            mean = jnp.mean(squared, axis=gone, keepdims=True)
            state[name] = decay * state[name] + (1.0 - decay) * mean.reshape(state[name].shape)
            kept[name] = state[name].reshape(mean.shape)
        if "v" in kept:
            return state, grad * jax.lax.rsqrt(kept["v"])
        # 1 / sqrt(V) as a product of two factors, [rows, 1] and [1, columns].
        rows = kept["v_row"] / jnp.mean(kept["v_row"], axis=split["v_col"], keepdims=True)
        return state, grad * jax.lax.rsqrt(rows) * jax.lax.rsqrt(kept["v_col"])

    def _scale(self, param, rate):
        if not self.multiply_by_parameter_scale:
            return rate
        size = jnp.maximum(root_mean_square(param), self.epsilon_parameter)
        if self.max_parameter_scale is not None:
            size = jnp.minimum(size, self.max_parameter_scale)
        return rate * size

    def _decay_weight(self, param, rate):
        decay = self.weight_decay
        if self.weight_decay_lr_exponent is not None:
            decay = (1.0 if decay is None else decay) * rate**self.weight_decay_lr_exponent
        return param if decay is None else (1.0 - decay) * param


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(_RuleOptimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101), by optax.

    new weight = weight - rate * (direction + weight_decay * weight)

    Args:
        b1: Decay of the mean of gradients.
        b2: Decay of the mean of squared gradients.
        epsilon: Added to the square root of that mean.
        weight_decay: Multiplied by the learning rate; None for none.
        multiply_by_parameter_scale: Multiply the direction by the RMS of the layer's weight, which
            is taken as `epsilon_parameter` at least. Adam needs it to train T5 as well as
            Adafactor does (nanoT5, arXiv:2309.02373).
        epsilon_parameter: As above.
    """

    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float | None = None
    multiply_by_parameter_scale: bool = False
    epsilon_parameter: float = 1e-3

    def rule(self, path: str, shape: tuple[int, ...], axes: LogicalAxes) -> WeightRule:
        """Return how one layer's weight is updated."""
        adam = optax.scale_by_adam(self.b1, self.b2, self.epsilon)

        def apply(param, direction, rate):
            if self.multiply_by_parameter_scale:
                direction *= jnp.maximum(root_mean_square(param), self.epsilon_parameter)
            return _descend(param, direction, rate, self.weight_decay)

        return optax_rule(adam, shape, axes, apply)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(_RuleOptimizer):
    """The sign of a momentum, with decoupled weight decay (Chen et al. 2023), by optax.

    The paper (arXiv:2302.06675) uses a tenth to a third of AdamW's learning rate and three to ten
    times its weight decay.

    Args:
        b1: Weight of the momentum in the direction.
        b2: Decay of the momentum.
        weight_decay: As in `AdamW`.
        multiply_by_parameter_scale: As in `AdamW`.
        epsilon_parameter: As in `AdamW`.
    """

    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float | None = None
    multiply_by_parameter_scale: bool = False
    epsilon_parameter: float = 1e-3

    def rule(self, path: str, shape: tuple[int, ...], axes: LogicalAxes) -> WeightRule:
        """Return how one layer's weight is updated."""

        def apply(param, direction, rate):
            if self.multiply_by_parameter_scale:
                direction *= jnp.maximum(root_mean_square(param), self.epsilon_parameter)
            return _descend(param, direction, rate, self.weight_decay)

        return optax_rule(optax.scale_by_lion(self.b1, self.b2), shape, axes, apply)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(_RuleOptimizer):
    """Orthogonalized momentum for each matrix of each layer (Jordan 2024), by optax.

    Args:
        beta: Decay of the momentum.
        nesterov: Whether the momentum looks one step ahead.
        newton_schulz_steps: Iterations of the orthogonalization.
        consistent_rms: Updates of a matrix are scaled by consistent_rms * sqrt(larger dimension),
            so that AdamW's learning rate and weight decay fit both (Liu et al. 2025,
            arXiv:2502.16982).
        weight_decay: As in `AdamW`, of the matrices.
        others: Optimizer of all that is not a matrix inside a layer: vectors, embeddings, the
            head and position tables.
    """

    beta: float = 0.95
    nesterov: bool = True
    newton_schulz_steps: int = 5
    consistent_rms: float = 0.2
    weight_decay: float | None = None
    others: AdamW = AdamW()

    TABLES = ("vocab", "length_table", "relpos_buckets", "classes", "experts_whole")

    def rule(self, path: str, shape: tuple[int, ...], axes: LogicalAxes) -> WeightRule:
        """Return how one layer's weight is updated."""
        if len(shape) != 2 or set(axes) & set(self.TABLES):
            return self.others.rule(path, shape, axes)
        muon = contrib.scale_by_muon(
            ns_steps=self.newton_schulz_steps, beta=self.beta, nesterov=self.nesterov
        )
        scale = self.consistent_rms * max(shape) ** 0.5

        def apply(param, direction, rate):
            return _descend(param, scale * direction, rate, self.weight_decay)

        return optax_rule(muon, shape, axes, apply)

    def without(self, *, decay: bool = False, parameter_scale: bool = False):
        """Return the same without weight decay, or `others` without relative learning rates."""
        others = self.others.without(decay=decay, parameter_scale=parameter_scale)
        weight_decay = None if decay else self.weight_decay
        return dataclasses.replace(self, others=others, weight_decay=weight_decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optax(_RuleOptimizer):
    """Any optimizer of optax, or one that is written like those.

        OPTIMIZER = @optimizers.Optax()
        optimizers.Optax.transformation = @optax.adabelief
        optax.adabelief.b2 = 0.99

    Two kinds of transformations are accepted:

    - A function with an argument `learning_rate`, such as `optax.adabelief`. It is called for
      every step with the schedule's rate of that step, and its updates are added to the weight.
    - A transformation without a learning rate, such as `optax.scale_by_adam()`, or a function that
      returns one. Its update is a direction: new weight = weight - rate * direction.

    The transformation sees one weight of one layer at a time. What optax computes over "all
    parameters", such as LAMB's trust ratio per array or a global norm, is therefore per layer; to
    clip by the global norm, set `Update.clip_norm`.

    Args:
        transformation: As above. It needs no more than gradient, state and weight: optimizers that
            need the loss's value or a line search are refused. So are those whose first state
            depends on the learning rate (rprop), and those that draw random numbers.
        arguments: Keyword arguments for the function, beside `learning_rate`.
        weight_decay: Decoupled weight decay as in `AdamW`, in addition to what the transformation
            may do itself; None for none.
    """

    transformation: optax.GradientTransformation | Callable[..., optax.GradientTransformation]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    weight_decay: float | None = None

    def __post_init__(self):
        if self.arguments and not self._is_function:
            raise ConfigError(
                f"arguments = {dict(self.arguments)} need a function, but transformation is the "
                "result of one; write @optax.name without ()",
                "Optax.arguments",
                "Optax.transformation",
            )

    def rule(self, path: str, shape: tuple[int, ...], axes: LogicalAxes) -> WeightRule:
        """Return how one layer's weight is updated.

        Raises:
            ConfigError: If the transformation cannot update such a weight.
        """
        try:
            self._check_first_state(shape)
            rule = self.unchecked_rule(shape, axes)
            self._check_update(rule, shape)
        except ConfigError:
            raise
        except Exception as error:  # of optax or of a user's function: any type
            raise self._refusal(f"it fails for the weight {path} {shape}: {error}") from error
        return rule

    def without(self, *, decay: bool = False, parameter_scale: bool = False):
        """Return the same without weight decay, or without rates relative to the weight's size.

        This sets `weight_decay` and the function's arguments `weight_decay`, `weight_decay_rate`
        and `multiply_by_parameter_scale`, as far as it has them.

        Raises:
            ConfigError: If the transformation is not a function. Nothing inside it can be changed.
        """
        if (decay or parameter_scale) and not self._is_function:
            raise ConfigError(
                "a transformation that is given as the result of a function cannot be without "
                "weight decay or parameter scale for some weights; write @optax.name without ()",
                "Optax.transformation",
                "Grouped.without_decay",
                "Grouped.without_parameter_scale",
            )
        off: dict[str, Any] = {"weight_decay": 0.0, "weight_decay_rate": None} if decay else {}
        if parameter_scale:
            off["multiply_by_parameter_scale"] = False
        off = {name: value for name, value in off.items() if name in self._parameters}
        weight_decay = None if decay else self.weight_decay
        arguments = {**self.arguments, **off}
        return dataclasses.replace(self, arguments=arguments, weight_decay=weight_decay)

    @property
    def _is_function(self) -> bool:
        return not isinstance(self.transformation, optax.GradientTransformation)

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        """The function's parameters."""
        if isinstance(self.transformation, optax.GradientTransformation):
            return {}
        return inspect.signature(self.transformation).parameters

    @property
    def _takes_rate(self) -> bool:
        return "learning_rate" in self._parameters

    def _transformation(self, rate: Any = 1.0) -> optax.GradientTransformation:
        if isinstance(self.transformation, optax.GradientTransformation):
            return self.transformation
        rates = {"learning_rate": rate} if self._takes_rate else {}
        return self.transformation(**rates, **self.arguments)

    def unchecked_rule(self, shape: tuple[int, ...], axes: LogicalAxes) -> WeightRule:
        """Build the rule from the transformation; `rule` also checks what it does to a weight."""

        def subtract(param, direction, rate):
            return _descend(param, direction, rate, self.weight_decay)

        def add(param, change, rate):
            if self.weight_decay is not None:
                change -= rate * self.weight_decay * param
            return param + change

        transformation = self._transformation()
        if not self._takes_rate:
            return optax_rule(transformation, shape, axes, subtract)
        return optax_rule(transformation, shape, axes, add, at_rate=self._transformation)

    def _check_first_state(self, shape: tuple[int, ...]) -> None:
        """Refuse a first state that depends on the learning rate, which is not known then."""

        def init(rate):
            return self._transformation(rate).init(jnp.zeros(shape, jnp.float32))

        # Follow the learning rate through the traced computation: whatever is computed from it
        # depends on it.
        jaxpr = jax.make_jaxpr(init)(1.0).jaxpr
        dependent = list(jaxpr.invars)
        for equation in jaxpr.eqns:
            if any(var is other for var in equation.invars for other in dependent):
                dependent += equation.outvars
        if any(var is other for var in jaxpr.outvars for other in dependent):
            raise self._refusal("its first state depends on the learning rate")

    def _check_update(self, rule: WeightRule, shape: tuple[int, ...]) -> None:
        """Refuse updates that change a type or shape, are random, or do not go downhill."""
        weight, rate = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((), "float32")
        state = jax.eval_shape(rule.init, weight)
        if any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in state.values()):
            raise self._refusal("it draws random numbers, which would be the same in all layers")
        after = jax.eval_shape(rule.update, weight, state, weight, 0, rate)
        for old, new in zip(jax.tree.leaves((weight, state)), jax.tree.leaves(after), strict=True):
            if (old.shape, old.dtype) != (new.shape, new.dtype):
                raise self._refusal(f"an update makes {new} of {old}")
        if not _goes_downhill(self, len(shape)):
            raise self._refusal(
                "its updates go uphill, or have a learning rate already; give a function with an "
                "argument learning_rate, or a transformation without a learning rate, such as "
                "optax.scale_by_adam()"
            )

    def _refusal(self, why: str) -> ConfigError:
        name = getattr(self.transformation, "__name__", "a transformation")
        return ConfigError(f"transformation = {name} cannot be used: {why}", "Optax.transformation")


@functools.lru_cache(maxsize=64)
def _goes_downhill(optimizer: Optax, ndim: int) -> bool:
    """Whether the first update of a tiny weight of `ndim` dimensions opposes the gradient.

    Optax's full optimizers return a negative step, to be added; its `scale_by_...` return a
    direction, to be subtracted. A mistake between the two would make the loss grow.
    """
    shape = (2,) * ndim
    rule = optimizer.unchecked_rule(shape, (None,) * ndim)

    @jax.jit
    def progress():
        grad = jnp.arange(1.0, 1 + 2**ndim).reshape(shape)
        weight = jnp.ones(shape)
        after, _ = rule.update(grad, rule.init(weight), weight, 0, jnp.float32(0.5))
        return jnp.sum(grad * (weight - after))

    return bool(progress() >= 0)


def _descend(param, direction, rate, weight_decay: float | None):
    if weight_decay is not None:
        direction += weight_decay * param
    return param - rate * direction


def _omit(items: tuple, gone: tuple[int, ...]) -> tuple:
    """Return a shape, or its axes, without the dimensions `gone`."""
    return tuple(item for i, item in enumerate(items) if i not in gone)
