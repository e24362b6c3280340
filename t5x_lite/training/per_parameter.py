"""What an optimizer is here: a rule for one weight of one layer, bound to all weights of a model.

Weights stacked over "layers" (or experts) are updated as that many separate weights: a rule sees
one of them, and `jax.vmap` runs it over the stack. State is a nested dict like the weights', and
sharded by the same table of logical axes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from t5x_lite.partitioning import LogicalAxes, is_logical_axes
from t5x_lite.tree_paths import flatten, unflatten

Tree = Any
STACKED = ("layers", "expert")  # leading axes that make several weights of one array
Config = TypeVar("Config", bound="WeightOptimizer")


class Optimizer(NamedTuple):
    """Functions of one set of weights.

    init: weights -> state. update: (gradients, state, weights, step, learning rate) ->
    (new weights, new state), of gradients of all weights but the frozen ones. state_axes: logical
    axes of the state, in the state's structure. frozen: paths of the weights that never change.
    trained: (gradients, step) -> the same, with zeros for what does not change at that step.
    """

    init: Callable[[Tree], Tree]
    update: Callable[[Tree, Tree, Tree, jax.Array, jax.Array], tuple[Tree, Tree]]
    state_axes: Tree
    frozen: frozenset[str] = frozenset()
    trained: Callable[[Tree, jax.Array], Tree] = lambda gradients, step: gradients


@runtime_checkable
class OptimizerConfig(Protocol):
    """A frozen description that gin builds; an `Optimizer` once the weights are known."""

    def for_weights(self, shapes: Tree, axes: Tree) -> Optimizer: ...


class WeightRule(NamedTuple):
    """How one weight is updated.

    init: weight -> {name: array}. update: (gradient, state, weight, step, learning rate) ->
    (new weight, new state). state_axes: {name: logical axes}.
    """

    init: Callable[[jax.Array], dict[str, jax.Array]]
    update: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    state_axes: dict[str, LogicalAxes]


class WeightOptimizer(Protocol):
    """A description that has a rule for every weight."""

    def rule(self, path: str, shape: tuple[int, ...], axes: LogicalAxes) -> WeightRule:
        """The rule for one layer's weight; its path is such as "encoder/layers/mlp/wo/kernel"."""
        ...

    def without(self: Config, *, decay: bool = False, parameter_scale: bool = False) -> Config:
        """The same without weight decay, or without rates relative to the weight's size."""
        ...

    def for_weights(self, shapes: Tree, axes: Tree) -> Optimizer: ...


def bind_rules(
    rule: Callable[[str, tuple[int, ...], LogicalAxes], WeightRule | None],
    shapes: Tree,
    axes: Tree,
) -> Optimizer:
    """An optimizer that updates every weight by its rule, and leaves those that have none."""
    rules, state_axes, frozen = {}, {}, set()
    for path, shape, names in described(shapes, axes):
        depth = 0
        while depth < len(names) and names[depth] in STACKED:
            depth += 1
        found = rule(path, shape[depth:], names[depth:])
        if found is None:
            frozen.add(path)
            continue
        rules[path] = _stacked(found, shape[:depth])
        state_axes[path] = {k: (*names[:depth], *v) for k, v in found.state_axes.items()}

    def init(params: Tree) -> Tree:
        weights = flatten(params)
        return unflatten({path: rule.init(weights[path]) for path, rule in rules.items()})

    def update(grads: Tree, state: Tree, params: Tree, step: jax.Array, rate: jax.Array):
        grads, weights, states = flatten(grads), flatten(params), {}
        for path, rule in rules.items():
            own = _at(state, path)
            weights[path], states[path] = rule.update(grads[path], own, weights[path], step, rate)
        return unflatten(weights), unflatten(states)

    return Optimizer(init, update, unflatten(state_axes), frozenset(frozen))


def described(shapes: Tree, axes: Tree) -> list[tuple[str, tuple[int, ...], LogicalAxes]]:
    """Path, shape and logical axes of every weight."""
    names = flatten(axes, is_leaf=is_logical_axes)
    return [(path, tuple(leaf.shape), names[path]) for path, leaf in flatten(shapes).items()]


def optax_rule(
    transformation: optax.GradientTransformation,
    shape: tuple[int, ...],
    axes: LogicalAxes,
    apply: Callable[[jax.Array, Any, jax.Array], jax.Array],
) -> WeightRule:
    """A rule whose direction comes from optax: new weight = apply(weight, direction, rate).

    What optax keeps in the weight's shape is sharded as the weight; the rest is on every device.
    """
    state = jax.eval_shape(transformation.init, jax.ShapeDtypeStruct(shape, jnp.float32))
    leaves, treedef = jax.tree.flatten_with_path(state)
    names = [jax.tree_util.keystr(path, simple=True, separator="_") for path, _ in leaves]

    def init(param):
        return dict(zip(names, jax.tree.leaves(transformation.init(param)), strict=True))

    def update(grad, state, param, step, rate):
        before = treedef.unflatten([state[name] for name in names])
        direction, after = transformation.update(grad.astype(jnp.float32), before, param)
        after = dict(zip(names, jax.tree.leaves(after), strict=True))
        return apply(param, direction, rate), after

    own = {
        name: axes if leaf.shape == shape else (None,) * leaf.ndim
        for name, (_, leaf) in zip(names, leaves, strict=True)
    }
    return WeightRule(init, update, own)


def root_mean_square(x: jax.Array) -> jax.Array:
    """The root of the mean of all squares."""
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def _stacked(rule: WeightRule, sizes: tuple[int, ...]) -> WeightRule:
    for _ in sizes:
        init, update = jax.vmap(rule.init), jax.vmap(rule.update, in_axes=(0, 0, 0, None, None))
        rule = rule._replace(init=init, update=update)
    return rule


def _at(tree: Tree, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree
