"""A model's generation as a TensorFlow SavedModel: token ids in, token ids and scores out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.tasks.lazy_seqio import import_seqio
from t5x_lite.decoding.generation import Generation
from t5x_lite.errors import ConfigError
from t5x_lite.import_export.stablehlo import Exportable, free_directory, open_exportable
from t5x_lite.io import atomic


def export_saved_model(
    *,
    model_dir: str,
    destination: str,
    generation: Generation = Generation(),  # noqa: B008  (frozen)
    batch_size: int = 4,
    input_lengths: Sequence[int] = (64, 256),
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    step: int | None = None,
) -> Path:
    """Write a SavedModel, read it again and compare its tokens; ConfigError if that fails.

    TensorFlow runs jax's programs from their serialized form, and a release that is older than jax
    may not know all of it: 2.21 knows no top-k of jax 0.10, and thus no beam search.
    It has a signature "length_N" for each N of `input_lengths`, which takes the arrays of
    `Inference.shapes` by their names and gives "tokens" [batch, returns, length] and "scores".
    """
    directory = free_directory(destination)
    exportable = open_exportable(model_dir, generation, batch_size, step)
    import_seqio()  # TensorFlow with it, quiet and off the accelerators
    import tensorflow as tf
    from jax.experimental import jax2tf

    program = jax2tf.convert(
        exportable.program,
        with_gradient=False,
        native_serialization_platforms=tuple(platforms),
    )
    module: Any = tf.Module()
    module.variables_by_path = {n: tf.Variable(w) for n, w in exportable.weights.items()}  # pyright: ignore
    signatures = {}
    for length in sorted(input_lengths):
        wanted = {
            name: tf.TensorSpec(shape.shape, shape.dtype, name=name)
            for name, shape in exportable.inference.shapes(length).items()
        }
        function: Any = tf.function(
            lambda **batch: program(dict(module.variables_by_path), batch), autograph=False
        )
        signatures[f"length_{length}"] = function.get_concrete_function(**wanted)
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic.new_directory(directory) as partial:
            tf.saved_model.save(module, str(partial), signatures=signatures)
            for name in signatures:
                _check(partial, exportable, name)
    except tf.errors.OpError as error:
        raise ConfigError(
            f"TensorFlow {tf.__version__} cannot run what jax {jax.__version__} wrote: "
            f"{error.message.splitlines()[0]}; greedy search and sampling of all ids need the "
            f"fewest operations",
            "Generation.num_beams",
            "Generation.top_k",
        ) from error
    return directory


def _check(directory: Path, exportable: Exportable, name: str) -> None:
    """Raise ConfigError if a signature, read again, generates other tokens than the model."""
    import tensorflow as tf

    batch = _some_batch(exportable, int(name.removeprefix("length_")))
    read: Any = tf.saved_model.load(str(directory))
    theirs = read.signatures[name](**{key: tf.constant(array) for key, array in batch.items()})
    ours = jax.jit(exportable.program)(exportable.weights, batch)
    if not np.array_equal(ours["tokens"], theirs["tokens"].numpy()):
        raise ConfigError("the SavedModel, read again, generates other tokens")


def _some_batch(exportable: Exportable, length: int) -> dict[str, NDArray]:
    """Rows of random ids, all of them wanted, without padding."""
    rng, found = np.random.default_rng(0), {}
    for name, shape in exportable.inference.shapes(length).items():
        if name in ("inputs", "prompts"):
            ids = rng.integers(2, exportable.model.vocabulary.size, shape.shape)
            found[name] = ids.astype(np.int32)
        elif name == "numbers":
            found[name] = np.arange(*shape.shape, dtype=np.uint32)
        else:
            found[name] = np.full(shape.shape, name == "wanted", shape.dtype)
    return found
