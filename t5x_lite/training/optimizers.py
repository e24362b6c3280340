"""Optimizers that know what their weights' axes mean: T5's Adafactor, with its rule per layer.

An `Optimizer` is bound to the shapes and logical axes of the weights it will update. Its state is a
nested dict like the weights', sharded by the same table, and the step is an argument.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.errors import ConfigError
from t5x_lite.partitioning import LogicalAxes, is_axes

Tree = Any


class Optimizer(NamedTuple):
    """Functions of one set of weights.

    init: weights -> state. update: (gradients, state, weights, step, learning rate) ->
    (new weights, new state). state_axes: logical axes of the state, in the state's structure.
    """

    init: Callable[[Tree], Tree]
    update: Callable[[Tree, Tree, Tree, jax.Array, jax.Array], tuple[Tree, Tree]]
    state_axes: Tree


class OptimizerConfig(Protocol):
    """A frozen description that gin builds; an `Optimizer` once the weights are known."""

    def for_weights(self, shapes: Tree, axes: Tree) -> Optimizer: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor:
    """Adafactor as T5 uses it (Shazeer and Stern 2018; T5X's defaults).

    Matrices whose second largest dimension has at least `min_dim_size_to_factor` keep row and
    column means of the squared gradient instead of all squares. Updates are clipped by their own
    RMS, and the learning rate is relative to the RMS of the weight. All averages run over one
    layer: a weight stacked over "layers" is updated as that many separate weights.

    decay_rate: second-moment decay is 1 - t**-decay_rate, t = step - step_offset + 1.
    momentum: β1, or None for none. weight_decay: share of the weight removed each step.
    """

    decay_rate: float = 0.8
    step_offset: int = 0
    multiply_by_parameter_scale: bool = True
    clipping_threshold: float | None = 1.0
    momentum: float | None = None
    weight_decay: float | None = None
    min_dim_size_to_factor: int = 128
    epsilon_gradient: float = 1e-30
    epsilon_parameter: float = 1e-3

    def __post_init__(self):
        if not 0 < self.decay_rate <= 1:
            raise ConfigError(
                f"decay_rate must be in (0, 1]; got {self.decay_rate}", "Adafactor.decay_rate"
            )
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ConfigError(
                f"momentum must be None or in [0, 1); got {self.momentum}", "Adafactor.momentum"
            )

    def for_weights(self, shapes: Tree, axes: Tree) -> Optimizer:
        """Bind to weights of these shapes and logical axes."""
        leaves, treedef = jax.tree.flatten(shapes)
        axes_of_leaves = treedef.flatten_up_to(axes)
        weights = [
            _Weight.describe(self, s.shape, a) for s, a in zip(leaves, axes_of_leaves, strict=True)
        ]

        def init(params: Tree) -> Tree:
            states = [
                w.init(self, p) for w, p in zip(weights, treedef.flatten_up_to(params), strict=True)
            ]
            return treedef.unflatten(states)

        def update(grads: Tree, state: Tree, params: Tree, step: jax.Array, rate: jax.Array):
            t = jnp.asarray(step - self.step_offset + 1, jnp.float32)
            decay = 1.0 - t**-self.decay_rate
            flat = (treedef.flatten_up_to(tree) for tree in (grads, state, params))
            new = [
                w.update(self, *gsp, decay, rate) for w, *gsp in zip(weights, *flat, strict=True)
            ]
            return treedef.unflatten([p for p, _ in new]), treedef.unflatten([s for _, s in new])

        return Optimizer(init, update, treedef.unflatten([w.state_axes(self) for w in weights]))


class _Weight(NamedTuple):
    """How one weight is treated: per layer or whole, factored along which of its dimensions."""

    axes: LogicalAxes  # of one layer
    stacked: bool
    factored: tuple[int, int] | None  # (largest, second largest) dimension of one layer

    @classmethod
    def describe(cls, config: Adafactor, shape: tuple[int, ...], axes: LogicalAxes) -> "_Weight":
        assert is_axes(axes)
        stacked = bool(axes) and axes[0] == "layers"
        shape, axes = (shape[1:], axes[1:]) if stacked else (shape, axes)
        factored = None
        if len(shape) >= 2:
            order = np.argsort(shape, kind="stable")  # of equal dimensions the later is the larger
            if shape[order[-2]] >= config.min_dim_size_to_factor:
                factored = int(order[-1]), int(order[-2])
        return cls(axes, stacked, factored)

    def state_axes(self, config: Adafactor) -> dict[str, LogicalAxes]:
        if self.factored is None:
            axes = {"v": self.axes}
        else:
            largest, second = self.factored
            axes = {"v_row": _without(self.axes, largest), "v_col": _without(self.axes, second)}
        if config.momentum is not None:
            axes["m"] = self.axes
        return {k: ("layers", *v) if self.stacked else v for k, v in axes.items()}

    def init(self, config: Adafactor, param: jax.Array) -> dict[str, jax.Array]:
        shape = param.shape[1:] if self.stacked else param.shape
        if self.factored is None:
            shapes = {"v": shape}
        else:
            largest, second = self.factored
            shapes = {"v_row": _without(shape, largest), "v_col": _without(shape, second)}
        if config.momentum is not None:
            shapes["m"] = shape
        lead = param.shape[:1] if self.stacked else ()
        return {k: jnp.zeros((*lead, *v), jnp.float32) for k, v in shapes.items()}

    def update(self, config: Adafactor, grad, state, param, decay, rate):
        one = lambda g, s, p: self._update_layer(config, g, s, p, decay, rate)  # noqa: E731
        return (jax.vmap(one) if self.stacked else one)(grad, state, param)

    def _update_layer(self, config: Adafactor, grad, state, param, decay, rate):
        grad = grad.astype(jnp.float32)
        state, direction = self._precondition(config, grad, state, decay)
        if config.clipping_threshold is not None:
            direction /= jnp.maximum(1.0, _rms(direction) / config.clipping_threshold)
        scale = rate
        if config.multiply_by_parameter_scale:
            scale = rate * jnp.maximum(_rms(param), config.epsilon_parameter)
        change = scale * direction
        if config.momentum is not None:
            change = config.momentum * state["m"] + (1.0 - config.momentum) * change
            state["m"] = change
        kept = param if config.weight_decay is None else (1.0 - config.weight_decay) * param
        return kept - change, state

    def _precondition(self, config: Adafactor, grad, state, decay):
        """The new second moments, and the gradient divided by their root."""
        squared = jnp.square(grad) + config.epsilon_gradient
        state = dict(state)
        if self.factored is None:
            state["v"] = decay * state["v"] + (1.0 - decay) * squared
            return state, grad * jax.lax.rsqrt(state["v"])
        largest, second = self.factored
        for name, averaged in (("v_row", largest), ("v_col", second)):
            mean = jnp.mean(squared, axis=averaged)
            state[name] = decay * state[name] + (1.0 - decay) * mean
        # v_row lost its largest dimension, so the second largest moved down if it came after.
        row_axis = second - (second > largest)
        row = state["v_row"] / jnp.mean(state["v_row"], axis=row_axis, keepdims=True)
        row = jnp.expand_dims(jax.lax.rsqrt(row), largest)
        column = jnp.expand_dims(jax.lax.rsqrt(state["v_col"]), second)
        return state, grad * row * column


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def _without(items: tuple, index: int) -> tuple:
    return items[:index] + items[index + 1 :]
