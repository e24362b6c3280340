"""Looking into a model while it computes: ranges of what its modules put out and of the gradients.

Every module is given a probe, a weight of zeros that it adds to nothing. What a probe's gradient
is can therefore be chosen (`_seen`): here it is what was seen of the module's output on the way
forward and of the gradient on the way back. So ranges come out of scans, recomputation and shards
as any gradient does, and the program stays that of training.
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
_SIDES = ("encoder", "decoder")  # a module that both run has a row of its probe for each


class Range(NamedTuple):
    """Of some numbers: how many, how many of them not finite, and the ends of the others."""

    size: float = 0.0
    bad: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    @property
    def largest(self) -> float:
        """The largest magnitude; 0 where nothing is finite."""
        return max(abs(self.low), abs(self.high)) if self.low <= self.high else 0.0

    def merge(self, other: "Range") -> "Range":
        """The range of both."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        return Range(self.size + other.size, self.bad + other.bad, low, high)

    def __str__(self) -> str:
        ends = f"{self.low:.1e}..{self.high:.1e}" if self.low <= self.high else "nothing finite"
        return f"{ends} {self.bad:,.0f} BAD" if self.bad else ends


class ProbeRow(NamedTuple):
    """A module of one layer: its own weights, its output, and the gradients of both.

    None for what it does not have, or what has no gradient.
    """

    name: str
    weights: Range | None
    output: Range | None
    output_gradient: Range | None
    weights_gradient: Range | None


class Probes:
    """A model with probes, to be traced once: `graphdef` binds with the weights of `added`."""

    def __init__(self, graphdef: nnx.GraphDef, shapes: Params):
        self._order: list[tuple[str, str]] = []  # (module, side), as they end
        self._side = _SIDES[0]
        self._layers = _layers(shapes, graphdef)
        model = bind(graphdef, shapes)
        self._zeros: dict[str, tuple[int, ...]] = {}
        for path, module in nnx.iter_modules(model):
            name = "/".join(map(str, path))
            if name and "__call__" in vars(type(module)):
                shape = (*self._layers.get(name, ("", ()))[1], len(_SIDES), 2, len(Range._fields))
                setattr(module, _PROBE, nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32)))
                module.__class__ = self._watched(type(module), name)
                self._zeros[f"{name}/{_PROBE}"] = shape
        model.__class__ = self._told_sides(type(model))
        self.graphdef = nnx.split(model)[0]

    def added(self, params: Params) -> Params:
        """Weights with the probes beside them."""
        zeros = {path: jnp.zeros(shape, jnp.float32) for path, shape in self._zeros.items()}
        return merge(params, zeros)

    def apart(self, grads: Params) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """The gradient of weights with probes as that of the probes and that of the weights."""
        found = flatten(grads)
        return (
            {path: leaf for path, leaf in found.items() if path in self._zeros},
            {path: leaf for path, leaf in found.items() if path not in self._zeros},
        )

    def ranges_of_weights(self, weights: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Summaries of arrays by their paths; of a stack's, one for each layer. To be jitted."""
        return {
            path: jax.vmap(summary)(leaf) if self._count(_parent(path)) else summary(leaf)
            for path, leaf in weights.items()
        }

    def rows(
        self,
        seen: Mapping[str, np.ndarray],
        weights: Mapping[str, np.ndarray],
        weight_gradients: Mapping[str, np.ndarray],
    ) -> list[ProbeRow]:
        """What was found, fetched, by modules in the order in which they come to their results.

        seen: the probes' gradients, with a leading axis of parts of the batch. weights,
        weight_gradients: of `ranges_of_weights`.
        """
        both = {name for name, side in self._order if (name, _SIDES[1]) in self._order}
        both &= {name for name, side in self._order if side == _SIDES[0]}
        rows, told = [], set()
        for name, side, layer in self._in_order():
            probe = seen[f"{name}/{_PROBE}"]
            probe = probe if layer is None else probe[:, layer]
            forward, backward = (_all(probe[:, _SIDES.index(side), way]) for way in (0, 1))
            shown = self._shown(name, layer) + (f" ({side})" if name in both else "")
            own = (_own(of, name, layer) for of in (weights, weight_gradients))
            rows.append(ProbeRow(shown, next(own), forward, backward, next(own)))
            told.add(name)
        for name in dict.fromkeys(map(_parent, weights)):
            if name not in told:  # a module that is never called, such as the head
                for layer in range(self._count(name)) if self._count(name) else [None]:
                    own = (_own(of, name, layer) for of in (weights, weight_gradients))
                    shown = self._shown(name, layer)
                    rows.append(ProbeRow(shown, next(own), None, None, next(own)))
        return rows

    def _in_order(self) -> Iterator[tuple[str, str, int | None]]:
        """Modules as they end, layer after layer of a stack: (name, side, layer)."""
        place = lambda each: (self._count(each[0]), each[1])  # noqa: E731
        for (count, side), group in itertools.groupby(self._order, place):
            names = [name for name, _ in group]
            for layer in range(count) if count else [None]:
                yield from ((name, side, layer) for name in names)

    def _count(self, name: str) -> int:
        """Of how many layers a module is one, 0 outside stacks."""
        return next(iter(self._layers.get(name, ("", ()))[1]), 0)

    def _shown(self, name: str, layer: int | None) -> str:
        if layer is None:
            return name
        root = self._layers[name][0]
        return f"{root}/{layer}{name.removeprefix(root)}"

    def _watched(self, kind: type, name: str) -> type:
        called: Callable[..., Any] = kind.__call__

        def __call__(module: Any, *arguments: Any, **named: Any) -> Any:  # noqa: N807
            result = called(module, *arguments, **named)
            first = result[0] if isinstance(result, tuple) else result
            if not (isinstance(first, jax.Array) and jnp.issubdtype(first.dtype, jnp.floating)):
                return result
            if (name, self._side) not in self._order:
                self._order.append((name, self._side))
            first = _seen(first, module.probe[...], _SIDES.index(self._side))
            return (first, *result[1:]) if isinstance(result, tuple) else first

        return type(kind.__name__, (kind,), {"__call__": __call__, "__module__": kind.__module__})

    def _told_sides(self, kind: type) -> type:
        def on(side: str, method: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(method)
            def run(*arguments: Any, **named: Any) -> Any:
                self._side = side
                return method(*arguments, **named)

            return run

        methods = {"encode": on("encoder", kind.encode), "_decode": on("decoder", kind._decode)}
        return type(kind.__name__, (kind,), {**methods, "__module__": kind.__module__})


def as_range(found: Sequence[float] | np.ndarray) -> Range:
    """A fetched summary."""
    return Range(*(float(x) for x in found))


def summary(x: jax.Array) -> jax.Array:
    """A `Range` of an array as one array, in float32; to be jitted."""
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
def _seen(x: jax.Array, probe: jax.Array, side: int) -> jax.Array:
    """`x`; the gradient of the probe is what is seen of it and of its gradient."""
    return x


def _seen_forward(x: jax.Array, probe: jax.Array, side: int):
    return x, summary(x)


def _seen_backward(side: int, forward: jax.Array, slopes: jax.Array):
    found = jnp.zeros((len(_SIDES), 2, len(Range._fields)), jnp.float32)
    return slopes, found.at[side].set(jnp.stack([forward, summary(slopes)]))


_seen.defvjp(_seen_forward, _seen_backward)


def _layers(shapes: Params, graphdef: nnx.GraphDef) -> dict[str, tuple[str, tuple[int, ...]]]:
    """For each module in a stack: the path of the stack's layers, and their number as a shape."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path, variable in nnx.to_flat_state(nnx.split(bind(graphdef, shapes))[1]):
        axes, shape = variable.get_metadata()["axes"], variable.get_value().shape
        if len(shape) == len(axes):
            continue
        parts = list(map(str, path[:-1]))
        root = parts.index("layers") + 1 if "layers" in parts else 1
        for end in range(root, len(parts) + 1):
            found["/".join(parts[:end])] = "/".join(parts[:root]), (shape[0],)
    return found


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _own(of: Mapping[str, np.ndarray], name: str, layer: int | None) -> Range | None:
    """The range of a module's own weights."""
    own = [found for path, found in of.items() if _parent(path) == name]
    if not own:
        return None
    ranges = [as_range(found if layer is None else found[layer]) for found in own]
    return functools.reduce(Range.merge, ranges)


def _all(found: np.ndarray) -> Range | None:
    """Of all parts of a batch; None where nothing was seen, as no gradient came by."""
    ranges = [as_range(each) for each in found]
    return functools.reduce(Range.merge, ranges) if ranges[0].size else None
