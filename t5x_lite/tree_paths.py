"""Nested dicts of arrays (weights, optimizer states) addressed by slash-separated leaf paths."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Map each leaf's path to the leaf.

    >>> flatten({"encoder": {"norm": {"scale": 1}}, "step": 2})
    {'encoder/norm/scale': 1, 'step': 2}

    Args:
        tree: Any pytree. Dict keys, attribute names and sequence indices become path components.
        is_leaf: As in `jax.tree.leaves`: subtrees for which it returns True are leaves.

    Returns:
        Leaves by path, in the order in which JAX flattens the tree.
    """
    leaves = jax.tree.leaves_with_path(tree, is_leaf=is_leaf)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Build nested dicts from leaves by path, the inverse of `flatten` for a tree of dicts.

    >>> unflatten({"a/b": 1, "c": 2})
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


def omit(tree: Any, paths: Collection[str]) -> Any:
    """Return the tree without some of its leaves.

    Args:
        tree: Nested dicts.
        paths: Paths of the leaves to omit; paths that the tree lacks have no effect.

    Returns:
        New nested dicts, or `tree` itself if `paths` is empty.
    """
    if not paths:
        return tree
    return unflatten({path: leaf for path, leaf in flatten(tree).items() if path not in paths})


def merge(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """Return the tree with leaves added or replaced.

    Args:
        tree: Nested dicts.
        leaves: New leaves by path; one of a path that the tree has replaces the tree's.

    Returns:
        New nested dicts, or `tree` itself if `leaves` is empty.
    """
    return unflatten({**flatten(tree), **leaves}) if leaves else tree
