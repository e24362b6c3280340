"""Addresses of files in a cloud's store, such as "gs://bucket/file", and who may reach them."""

import importlib
import os

from t5x_lite.errors import ConfigError


def is_address(path: str | os.PathLike[str]) -> bool:
    """Tell an address from a path on this machine."""
    return "://" in os.fspath(path)


def check_reachable(path: os.PathLike[str]) -> None:
    """Raise ConfigError for a bucket without the package that orbax speaks to it with."""
    if os.fspath(path).startswith("gs://"):
        try:
            importlib.import_module("google.cloud.storage")
        except ImportError as error:
            raise ConfigError(
                f"checkpoints at {os.fspath(path)} need the package google-cloud-storage: "
                "pip install 't5x_lite[gcs]'",
                "MODEL_DIR",
            ) from error
