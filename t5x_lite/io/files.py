"""Reading files by path or by URL: "gs://bucket/..." is read with TensorFlow's file systems.

TensorFlow is imported only for URLs.
"""

import glob
import os
from pathlib import Path
from typing import IO, Any

from t5x_lite.io.urls import is_url


def open_bytes(path: str) -> IO[bytes]:
    """Open a file for reading in binary mode.

    Args:
        path: A local path or a URL.

    Returns:
        The open file, which is also a context manager.

    Raises:
        OSError: A local file cannot be read.
        tensorflow.errors.OpError: A URL cannot be read.
    """
    return _gfile().GFile(path, "rb") if is_url(path) else open(path, "rb")


def read_bytes(path: str) -> bytes:
    """Return the content of a file; raises as `open_bytes` does."""
    with open_bytes(path) as file:
        return file.read()


def matching(pattern: str) -> list[str]:
    """Return the sorted paths or URLs that match a glob pattern."""
    return sorted(_gfile().glob(pattern) if is_url(pattern) else glob.glob(pattern))


def size(path: str) -> int | None:
    """Return the size of a file in bytes, or None if it does not exist."""
    if is_url(path):
        return _gfile().stat(path).length if _gfile().exists(path) else None
    return Path(path).stat().st_size if os.path.exists(path) else None


def _gfile() -> Any:
    import tensorflow as tf

    return tf.io.gfile
