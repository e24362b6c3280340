"""What an optimizer is here: a rule for one weight of one layer, bound to all weights of a model.

Weights that are stacked over layers or experts are updated as that many separate weights: a rule
sees one of them, and `jax.vmap` maps it over the stack. The state is a nested dict like that of the
weights, and is sharded by the same table of logical axes.
"""

import itertools
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
    """An optimizer as pure functions, bound to the weights of one model.

    Args:
        init: Weights -> state.
        update: (gradients, state, weights, step, learning rate) -> (new weights, new state). The
            gradients are of all weights but the frozen ones.
        state_axes: Logical axes of every array of the state, in the state's structure. They decide
            the state's sharding.
        frozen: Paths of the weights that never change. They have no gradient and no state.
        trained: (gradients, step) -> gradients with zeros where a weight does not change at that
            step. Gradient norms and clipping use the result.
    """

    init: Callable[[Tree], Tree]
    update: Callable[[Tree, Tree, Tree, jax.Array, jax.Array], tuple[Tree, Tree]]
    state_axes: Tree
    frozen: frozenset[str] = frozenset()
    trained: Callable[[Tree, jax.Array], Tree] = lambda gradients, step: gradients


@runtime_checkable
class OptimizerConfig(Protocol):
    """A frozen description of an optimizer, which gin builds before the weights are known."""

    def for_weights(self, shapes: Tree, axes: Tree) -> Optimizer:
        """Bind the optimizer to a model's weights.

        Args:
            shapes: Nested dict of arrays or `jax.ShapeDtypeStruct`.
            axes: Logical axes of each weight, in the same structure.

        Returns:
            The optimizer of these weights.
        """
        ...


class WeightRule(NamedTuple):
    """How one weight of one layer is updated.

    Args:
        init: Weight -> {name: array}, the weight's state.
        update: (gradient, state, weight, step, learning rate) -> (new weight, new state).
        state_axes: {name: logical axes} of the state's arrays.
    """

    init: Callable[[jax.Array], dict[str, jax.Array]]
    update: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    state_axes: dict[str, LogicalAxes]


class WeightOptimizer(Protocol):
    """A description of an optimizer that has a rule for every weight."""

    def rule(self, path: str, shape: tuple[int, ...], axes: LogicalAxes) -> WeightRule:
        """Return the rule for one layer's weight.

        Args:
            path: Such as "encoder/layers/mlp/wo/kernel".
            shape: Of one layer, and of one expert.
            axes: Logical axes of the same dimensions.

        Returns:
            The rule.
        """
        ...

    def without(self: Config, *, decay: bool = False, parameter_scale: bool = False) -> Config:
        """Return the same optimizer with a part switched off.

        Args:
            decay: Without weight decay.
            parameter_scale: Without learning rates that are relative to the weight's size.

        Returns:
            The changed description.
        """
        ...

    def for_weights(self, shapes: Tree, axes: Tree) -> Optimizer:
        """Bind the optimizer to a model's weights, as `OptimizerConfig.for_weights`."""
        ...


def bind_rules(
    rule: Callable[[str, tuple[int, ...], LogicalAxes], WeightRule | None],
    shapes: Tree,
    axes: Tree,
) -> Optimizer:
    """Return an optimizer that updates every weight by its rule.

    Args:
        rule: (path, shape, logical axes) -> the rule of a weight, None to freeze it. Shape and axes
            are those of one layer: leading `STACKED` axes are removed before, and the rule is
            mapped over them.
        shapes: Nested dict of the weights' shapes.
        axes: Logical axes of each weight, in the same structure.

    Returns:
        The optimizer.
    """
    rules, state_axes, frozen = {}, {}, set()
    for path, shape, names in described(shapes, axes):
        depth = 0
        while depth < len(names) and names[depth] in STACKED:
            depth += 1
        weight_rule = rule(path, shape[depth:], names[depth:])
        if weight_rule is None:
            frozen.add(path)
            continue
        rules[path] = _stacked(weight_rule, shape[:depth])
        state_axes[path] = {k: (*names[:depth], *v) for k, v in weight_rule.state_axes.items()}

    def init(params: Tree) -> Tree:
        weights = flatten(params)
        return unflatten({path: rule.init(weights[path]) for path, rule in rules.items()})

    def update(grads: Tree, state: Tree, params: Tree, step: jax.Array, rate: jax.Array):
        grads, weights, states = flatten(grads), flatten(params), {}
        for path, rule in rules.items():
            before = _at(state, path)
            weights[path], states[path] = rule.update(
                grads[path], before, weights[path], step, rate
            )
        return unflatten(weights), unflatten(states)

    return Optimizer(init, update, unflatten(state_axes), frozenset(frozen))


def described(shapes: Tree, axes: Tree) -> list[tuple[str, tuple[int, ...], LogicalAxes]]:
    """Return path, shape and logical axes of every weight, layers and experts included."""
    names = flatten(axes, is_leaf=is_logical_axes)
    return [(path, tuple(leaf.shape), names[path]) for path, leaf in flatten(shapes).items()]


def optax_rule(
    transformation: optax.GradientTransformation,
    shape: tuple[int, ...],
    axes: LogicalAxes,
    apply: Callable[[jax.Array, Any, jax.Array], jax.Array],
    *,
    at_rate: Callable[[jax.Array], optax.GradientTransformation] | None = None,
) -> WeightRule:
    """Return a rule whose update of a weight comes from optax.

    Args:
        transformation: Makes the state and, unless `at_rate` is given, the update.
        shape: Shape of the weight.
        axes: Logical axes of the weight. The state's arrays inherit those of the dimensions that
            they share with the weight (`infer_state_axes`).
        apply: (weight, optax's update, learning rate) -> new weight.
        at_rate: Learning rate of a step -> the transformation for that step, with the same state.

    Returns:
        The rule. Its state's names are the paths inside optax's state, such as "0_mu".
    """
    state = jax.eval_shape(transformation.init, jax.ShapeDtypeStruct(shape, jnp.float32))
    leaves, treedef = jax.tree.flatten_with_path(state)
    names = [jax.tree_util.keystr(path, simple=True, separator="_") for path, _ in leaves]

    def init(param):
        leaves = jax.tree.leaves(transformation.init(param))
        # A state that keeps the first weight (prodigy) needs a copy: both are donated to the step.
        copies = [jnp.copy(leaf) if leaf is param else leaf for leaf in leaves]
        return dict(zip(names, copies, strict=True))

    def update(grad, state, param, step, rate):
        at_step = transformation if at_rate is None else at_rate(rate)
        before = treedef.unflatten([state[name] for name in names])
        direction, after = at_step.update(grad.astype(jnp.float32), before, param)
        after = dict(zip(names, jax.tree.leaves(after), strict=True))
        return apply(param, direction, rate), after

    leaf_axes = {
        name: infer_state_axes(leaf.shape, shape, axes)
        for name, (_, leaf) in zip(names, leaves, strict=True)
    }
    return WeightRule(init, update, leaf_axes)


def infer_state_axes(
    leaf_shape: tuple[int, ...], shape: tuple[int, ...], axes: LogicalAxes
) -> LogicalAxes:
    """Return the logical axes of an array of a weight's state, from the sizes alone.

        weight (512, 2048) with axes ("embed", "mlp")
        state  (512, 2048)   ->  ("embed", "mlp")
               (512, 1)      ->  ("embed", None)
               (2048,)       ->  ("mlp",)
               (3, 512, 2048) -> (None, "embed", "mlp")
               ()            ->  ()

    An array whose dimensions match the weight's in no way, or in several (a row of a square
    matrix), is replicated.

    Args:
        leaf_shape: Shape of the state's array.
        shape: Shape of the weight.
        axes: Logical axes of the weight.

    Returns:
        One logical axis, or None, for each dimension of the state's array.
    """
    more = len(leaf_shape) - len(shape)
    if more >= 0 and leaf_shape[more:] == shape:
        return ((None,) * more) + axes
    if more == 0 and all(size in (1, whole) for size, whole in zip(leaf_shape, shape, strict=True)):
        kept = zip(leaf_shape, shape, axes, strict=True)
        return tuple(name if size == whole else None for size, whole, name in kept)
    matches = [
        dims
        for dims in itertools.combinations(range(len(shape)), len(leaf_shape))
        if tuple(shape[dim] for dim in dims) == leaf_shape
    ]
    if len(matches) == 1:
        return tuple(axes[dim] for dim in matches[0])
    return (None,) * len(leaf_shape)


def root_mean_square(x: jax.Array) -> jax.Array:
    """Return the square root of the mean of all squares."""
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def _stacked(rule: WeightRule, sizes: tuple[int, ...]) -> WeightRule:
    # Step and learning rate are the same for all layers: they are not mapped over.
    for _ in sizes:
        init, update = jax.vmap(rule.init), jax.vmap(rule.update, in_axes=(0, 0, 0, None, None))
        rule = rule._replace(init=init, update=update)
    return rule


def _at(tree: Tree, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree
