"""Choose between the numba kernels and plain NumPy for the innermost loops of the data stream.

numba comes with the extra [fast]. Both ways give the same bits, so the choice is one of speed.

The kernels have a module of their own (`numba_kernels`) because their decorators need numba when
that module is imported, while this one must be importable without it.
"""

import functools
import importlib.metadata
import importlib.util
import logging
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import TypeVar

Item = TypeVar("Item")
_LOG = logging.getLogger(__name__)

# Per thread: whether work on the first batch should avoid the import of numba (about a second).
_thread = threading.local()


def kernels() -> ModuleType | None:
    """Return the module `data.stream.numba_kernels`, or None if NumPy is to be used.

    The first call of a kernel compiles it, which takes a few seconds; numba caches the result
    beside the file or in the user's cache directory.

    Returns:
        None if numba is not installed or not usable, and while `first_without_numba` produces its
        first item, unless numba is imported already.
    """
    if getattr(_thread, "avoids_import", False) and not load_kernels.cache_info().currsize:
        return None
    return load_kernels()


def first_without_numba(items: Iterator[Item]) -> Iterator[Item]:
    """Yield all items, the first one without importing numba.

    The first batch then comes a second earlier. The import happens while the training step
    compiles.

    Args:
        items: an iterator whose `__next__` calls `kernels`.

    Yields:
        The items, unchanged.
    """
    _thread.avoids_import = True
    try:
        first = next(items, None)
    finally:
        _thread.avoids_import = False
    if first is not None:
        yield first
        yield from items


@functools.cache
def load_kernels() -> ModuleType | None:
    """Import `data.stream.numba_kernels` once; None if numba is missing or fails to import."""
    if not _is_installed():
        return None
    try:
        return importlib.import_module(".numba_kernels", __package__)
    except Exception as error:  # numba rejects an unknown NumPy version or an unwritable cache
        _LOG.warning(f"numba is installed but cannot be used ({error}); using NumPy instead")
        return None


def describe() -> str:
    """Return what runs the inner loops, for logs: "numba 0.68.1" or "NumPy"."""
    return "NumPy" if kernels() is None else f"numba {importlib.metadata.version('numba')}"


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec("numba") is not None
    except ValueError:  # sys.modules["numba"] = None disables it, as tests do
        return False
