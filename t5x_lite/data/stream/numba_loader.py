"""Whether the stream's innermost loops run compiled (extra [fast]: numba) or in NumPy.

Both make the same bits; `describe` says which it is.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import TypeVar

Item = TypeVar("Item")
_LOGGER = logging.getLogger("t5x_lite.data")


_here = threading.local()


def compiled() -> ModuleType | None:
    """Return `data.stream.numba_kernels`, None where numba is missing or can wait.

    Compiling takes some seconds once; numba keeps the result beside the file or in the user's
    cache.
    """
    if getattr(_here, "can_wait", False) and not loaded.cache_info().currsize:
        return None
    return loaded()


def first_without_numba(items: Iterator[Item]) -> Iterator[Item]:
    """Yield items, the first without waiting for numba, which takes a second to import."""
    _here.can_wait = True
    try:
        first = next(items, None)
    finally:
        _here.can_wait = False
    if first is not None:
        yield first
        yield from items


@functools.cache
def loaded() -> ModuleType | None:
    """Import `data.stream.numba_kernels`, if that can be."""
    if not _is_installed():
        return None
    try:
        return importlib.import_module("t5x_lite.data.stream.numba_kernels")
    except Exception as error:  # of numba: a NumPy it does not know, nowhere to keep its results
        _LOGGER.warning("numba cannot be used, NumPy takes its place: %s", error)
        return None


def describe() -> str:
    """Return "numba 0.68.1" or "NumPy"."""
    return "NumPy" if compiled() is None else f"numba {importlib.metadata.version('numba')}"


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec("numba") is not None
    except ValueError:  # it was put out of reach: sys.modules["numba"] = None
        return False
