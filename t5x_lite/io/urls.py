"""URLs of files in object stores, such as "gs://bucket/file", and what is needed to reach them."""

import importlib
import os

from t5x_lite.errors import ConfigError


def is_url(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a URL rather than a path on a file system of this machine."""
    return "://" in os.fspath(path)


def check_reachable(path: os.PathLike[str]) -> None:
    """Check that the package with which orbax reads and writes a bucket is installed.

    Args:
        path: A model directory. Only gs:// URLs need a package.

    Raises:
        ConfigError: The package google-cloud-storage is missing.
    """
    if os.fspath(path).startswith("gs://"):
        try:
            importlib.import_module("google.cloud.storage")
        except ImportError as error:
            raise ConfigError(
                f"checkpoints at {os.fspath(path)} need the package google-cloud-storage: "
                "pip install 't5x_lite[gcs]'",
                "MODEL_DIR",
            ) from error
