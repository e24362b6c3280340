"""Nested dicts, as weights and optimizer states are, by the paths of their leaves."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax


def flat(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """The leaves of a tree by their path, "encoder/layers/mlp/wo/kernel", in JAX's order."""
    leaves = jax.tree.leaves_with_path(tree, is_leaf=is_leaf)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from leaves by their paths: `flat`, undone.

    >>> nested({"a/b": 1, "c": 2})
    {'a': {'b': 1}, 'c': 2}
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def without(tree: Any, paths: Collection[str]) -> Any:
    """The tree without the leaves at these paths; itself where there are none."""
    if not paths:
        return tree
    return nested({path: leaf for path, leaf in flat(tree).items() if path not in paths})


def joined(tree: Any, others: Mapping[str, Any]) -> Any:
    """The tree with more leaves, by their paths; itself where there are none."""
    return nested({**flat(tree), **others}) if others else tree
