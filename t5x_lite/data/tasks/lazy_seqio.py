"""Import seqio and TensorFlow when they are needed, quietly and without taking accelerators."""

import contextlib
import os
from collections.abc import Iterator


def import_seqio() -> None:
    """Import seqio and TensorFlow quietly, and keep TensorFlow off the accelerators."""
    with _discarded_stderr():
        import seqio  # noqa: F401
        import tensorflow as tf

        for kind in ("GPU", "TPU"):
            with contextlib.suppress(
                RuntimeError
            ):  # TensorFlow has already initialized the devices
                tf.config.set_visible_devices([], kind)


@contextlib.contextmanager
def _discarded_stderr() -> Iterator[None]:
    """Discard file descriptor 2: no setting silences the lines TensorFlow prints at its import."""
    stderr, discarded = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(discarded, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(discarded)
