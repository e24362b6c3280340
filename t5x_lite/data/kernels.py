"""Whether the stream's innermost loops run compiled (extra [fast]: numba) or in NumPy.

Both make the same bits; `describe` says which it is.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import logging
from types import ModuleType

_LOGGER = logging.getLogger("t5x_lite.data")


@functools.cache
def compiled() -> ModuleType | None:
    """Return `data.compiled`, None where numba is missing or does not run here.

    Compiling takes some seconds once; numba keeps the result beside the file or in the user's
    cache.
    """
    if not _is_installed():
        return None
    try:
        return importlib.import_module("t5x_lite.data.compiled")
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
