"""Importing seqio and TensorFlow where nobody should notice."""

import contextlib
import os
from collections.abc import Iterator


def import_seqio() -> None:
    """Import seqio and TensorFlow quietly, and keep TensorFlow off the accelerators."""
    with _discarded_stderr():
        import seqio  # noqa: F401
        import tensorflow as tf

        for kind in ("GPU", "TPU"):
            with contextlib.suppress(RuntimeError):  # devices in use already
                tf.config.set_visible_devices([], kind)


@contextlib.contextmanager
def _discarded_stderr() -> Iterator[None]:
    """Discard what is written to file descriptor 2: TensorFlow's greetings obey no setting."""
    kept, discarded = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(discarded, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(discarded)
