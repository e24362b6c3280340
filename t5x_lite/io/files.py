"""Files by path or by address: "gs://bucket/..." is read with TensorFlow's file systems.

TensorFlow is imported for addresses only.
"""

import glob
import os
from pathlib import Path
from typing import IO, Any

from t5x_lite.io.urls import is_address


def open_bytes(path: str) -> IO[bytes]:
    """Open a file for reading; raises OSError or, for an address, TensorFlow's OpError."""
    return _gfile().GFile(path, "rb") if is_address(path) else open(path, "rb")


def read_bytes(path: str) -> bytes:
    """Return the content of a file; raises as `open_bytes` does."""
    with open_bytes(path) as file:
        return file.read()


def matching(pattern: str) -> list[str]:
    """Return the files that match a pattern, sorted."""
    return sorted(_gfile().glob(pattern) if is_address(pattern) else glob.glob(pattern))


def size(path: str) -> int | None:
    """Return how many bytes a file has, None where there is none."""
    if is_address(path):
        return _gfile().stat(path).length if _gfile().exists(path) else None
    return Path(path).stat().st_size if os.path.exists(path) else None


def _gfile() -> Any:
    import tensorflow as tf

    return tf.io.gfile
