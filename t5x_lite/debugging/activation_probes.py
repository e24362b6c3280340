"""Measure the range of every module's output and gradient while a model computes.

Every module gets a probe: a weight of zeros that has no effect on its output. `_probed` is the
identity with a custom gradient: it defines the "gradient" of the probe as the measurements, namely
the range of the module's output in the forward pass and of that output's gradient in the backward
pass. Measurements thus leave scans, recomputation and shards as any gradient does, and the rest of
the program is that of training.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t5x_lite.models.transformer import Params, bind
from t5x_lite.tree_paths import flatten, merge

_PROBE = "probe"
_STACKS = ("encoder", "decoder")  # the probe of a module has a row for each stack that calls it


class Range(NamedTuple):
    """The range of some numbers.

    Attributes:
        size: How many there are.
        bad: How many are not finite.
        low: The smallest finite one.
        high: The largest finite one.
    """

    size: float = 0.0
    bad: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    @property
    def largest(self) -> float:
        """The largest finite magnitude; 0 if nothing is finite."""
        return max(abs(self.low), abs(self.high)) if self.low <= self.high else 0.0

    def merge(self, other: "Range") -> "Range":
        """Return the range of both sets of numbers."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        return Range(self.size + other.size, self.bad + other.bad, low, high)

    def __str__(self) -> str:
        ends = f"{self.low:.1e}..{self.high:.1e}" if self.low <= self.high else "nothing finite"
        return f"{ends} {self.bad:,.0f} BAD" if self.bad else ends


class ProbeRow(NamedTuple):
    """The measurements of a module of one layer; None for what it does not have.

    Attributes:
        name: Path of the module, with the number of the layer.
        weights: Range of its own weights.
        output: Range of its output.
        output_gradient: Range of the gradient of its output.
        weights_gradient: Range of the gradients of its own weights.
    """

    name: str
    weights: Range | None
    output: Range | None
    output_gradient: Range | None
    weights_gradient: Range | None


class Probes:
    """A model with probes, to be traced once.

    Args:
        graphdef: The model's graph definition.
        shapes: Shapes of its weights.

    Attributes:
        graphdef: The graph definition with probes, to be bound to the weights of `with_probes`.
    """

    def __init__(self, graphdef: nnx.GraphDef, shapes: Params):
        self._order: list[tuple[str, str]] = []  # (module, stack), in the order in which they end
        self._stack = _STACKS[0]
        self._layers = _layers(shapes, graphdef)
        model = bind(graphdef, shapes)
        self._zeros: dict[str, tuple[int, ...]] = {}
        for path, module in nnx.iter_modules(model):
            name = "/".join(map(str, path))
            if name and "__call__" in vars(type(module)):
                shape = (*self._layers.get(name, ("", ()))[1], len(_STACKS), 2, len(Range._fields))
                setattr(module, _PROBE, nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32)))
                module.__class__ = self._probed_class(type(module), name)
                self._zeros[f"{name}/{_PROBE}"] = shape
        model.__class__ = self._stack_aware_class(type(model))
        self.graphdef = nnx.split(model)[0]

    def with_probes(self, params: Params) -> Params:
        """Return weights with the probes."""
        zeros = {path: jnp.zeros(shape, jnp.float32) for path, shape in self._zeros.items()}
        return merge(params, zeros)

    def split_gradients(self, grads: Params) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Split the gradients of weights with probes into those of probes and those of weights."""
        by_path = flatten(grads)
        return (
            {path: leaf for path, leaf in by_path.items() if path in self._zeros},
            {path: leaf for path, leaf in by_path.items() if path not in self._zeros},
        )

    def ranges_of_weights(self, weights: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Return `summary` of each array, and of each layer of stacked arrays. To be jitted."""
        return {
            path: jax.vmap(summary)(leaf) if self._count(_parent(path)) else summary(leaf)
            for path, leaf in weights.items()
        }

    def rows(
        self,
        probes: Mapping[str, np.ndarray],
        weights: Mapping[str, np.ndarray],
        weight_gradients: Mapping[str, np.ndarray],
    ) -> list[ProbeRow]:
        """Return the measurements of all modules, in the order in which their calls end.

        Args:
            probes: Gradients of the probes, with a leading axis of microbatches.
            weights: `ranges_of_weights` of the weights.
            weight_gradients: `ranges_of_weights` of the gradients.
        """
        both = {name for name, stack in self._order if (name, _STACKS[1]) in self._order}
        both &= {name for name, stack in self._order if stack == _STACKS[0]}
        rows, listed = [], set()
        for name, stack, layer in self._in_order():
            probe = probes[f"{name}/{_PROBE}"]
            probe = probe if layer is None else probe[:, layer]
            forward, backward = (_merged(probe[:, _STACKS.index(stack), way]) for way in (0, 1))
            label = self._label(name, layer) + (f" ({stack})" if name in both else "")
            ranges = (_weights_range(of, name, layer) for of in (weights, weight_gradients))
            rows.append(ProbeRow(label, next(ranges), forward, backward, next(ranges)))
            listed.add(name)
        for name in dict.fromkeys(map(_parent, weights)):
            if name not in listed:  # a module that is never called, such as the head
                for layer in range(self._count(name)) if self._count(name) else [None]:
                    ranges = (_weights_range(of, name, layer) for of in (weights, weight_gradients))
                    label = self._label(name, layer)
                    rows.append(ProbeRow(label, next(ranges), None, None, next(ranges)))
        return rows

    def _in_order(self) -> Iterator[tuple[str, str, int | None]]:
        """Yield (name, stack, layer) of modules as their calls end, layer by layer.

        The layers of a stack are one scanned module, which is traced once.
        """

        def stack_of(entry: tuple[str, str]) -> tuple[int, str]:
            name, stack = entry
            return self._count(name), stack

        for (count, stack), group in itertools.groupby(self._order, stack_of):
            names = [name for name, _ in group]
            for layer in range(count) if count else [None]:
                yield from ((name, stack, layer) for name in names)

    def _count(self, name: str) -> int:
        """Return the number of layers of a module's stack; 0 outside of stacks."""
        return next(iter(self._layers.get(name, ("", ()))[1]), 0)

    def _label(self, name: str, layer: int | None) -> str:
        """Return the path of a module with the number of its layer."""
        if layer is None:
            return name
        root = self._layers[name][0]
        return f"{root}/{layer}{name.removeprefix(root)}"

    def _probed_class(self, kind: type, name: str) -> type:
        """Return a subclass of a module's class that measures the module's output."""
        call: Callable[..., Any] = kind.__call__

        def __call__(module: Any, *arguments: Any, **options: Any) -> Any:  # noqa: N807
            result = call(module, *arguments, **options)
            first = result[0] if isinstance(result, tuple) else result
            if not (isinstance(first, jax.Array) and jnp.issubdtype(first.dtype, jnp.floating)):
                return result
            if (name, self._stack) not in self._order:
                self._order.append((name, self._stack))
            first = _probed(first, module.probe[...], _STACKS.index(self._stack))
            return (first, *result[1:]) if isinstance(result, tuple) else first

        return type(kind.__name__, (kind,), {"__call__": __call__, "__module__": kind.__module__})

    def _stack_aware_class(self, kind: type) -> type:
        """Return a subclass of the model's class that records which stack is being computed."""

        def on(stack: str, method: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(method)
            def run(*arguments: Any, **options: Any) -> Any:
                self._stack = stack
                return method(*arguments, **options)

            return run

        methods = {"encode": on("encoder", kind.encode), "_decode": on("decoder", kind._decode)}
        return type(kind.__name__, (kind,), {**methods, "__module__": kind.__module__})


def as_range(values: Sequence[float] | np.ndarray) -> Range:
    """Return a `summary` that was fetched from the device as a `Range`."""
    return Range(*(float(x) for x in values))


def summary(x: jax.Array) -> jax.Array:
    """Compute the `Range` of an array as a float32 array [4]; to be jitted."""
    x = x.astype(jnp.float32)
    finite = jnp.isfinite(x)
    return jnp.stack(
        [
            jnp.float32(x.size),
            jnp.sum(~finite, dtype=jnp.float32),
            jnp.min(jnp.where(finite, x, jnp.inf), initial=jnp.inf),
            jnp.max(jnp.where(finite, x, -jnp.inf), initial=-jnp.inf),
        ]
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _probed(x: jax.Array, probe: jax.Array, stack: int) -> jax.Array:
    """Return `x`. The gradient of the probe is defined as the ranges of x and its gradient."""
    return x


def _probed_forward(x: jax.Array, probe: jax.Array, stack: int):
    return x, summary(x)


def _probed_backward(stack: int, forward: jax.Array, gradient: jax.Array):
    ranges = jnp.zeros((len(_STACKS), 2, len(Range._fields)), jnp.float32)
    return gradient, ranges.at[stack].set(jnp.stack([forward, summary(gradient)]))


_probed.defvjp(_probed_forward, _probed_backward)


def _layers(shapes: Params, graphdef: nnx.GraphDef) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return for each module in a stack the path of the stack's layers, and (number of layers,)."""
    layers: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path, variable in nnx.to_flat_state(nnx.split(bind(graphdef, shapes))[1]):
        axes, shape = variable.get_metadata()["axes"], variable.get_value().shape
        if len(shape) == len(axes):  # no axis of layers
            continue
        parts = list(map(str, path[:-1]))
        root = parts.index("layers") + 1 if "layers" in parts else 1
        for end in range(root, len(parts) + 1):
            layers["/".join(parts[:end])] = "/".join(parts[:root]), (shape[0],)
    return layers


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _weights_range(
    summaries: Mapping[str, np.ndarray], name: str, layer: int | None
) -> Range | None:
    """Return the range of a module's own weights; None if it has none."""
    own = [values for path, values in summaries.items() if _parent(path) == name]
    if not own:
        return None
    ranges = [as_range(values if layer is None else values[layer]) for values in own]
    return functools.reduce(Range.merge, ranges)


def _merged(summaries: np.ndarray) -> Range | None:
    """Return the range over all microbatches; None if there was no gradient to measure."""
    ranges = [as_range(values) for values in summaries]
    return functools.reduce(Range.merge, ranges) if ranges[0].size else None
