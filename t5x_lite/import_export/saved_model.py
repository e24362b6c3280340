"""Export generation as a TensorFlow SavedModel, from token ids to token ids and scores."""

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
    """Write a SavedModel, load it, and compare the tokens that it generates with the model's.

    It has a signature "length_N" for each N of `input_lengths`. A signature takes the arrays of
    `Inference.generation_shapes` by name and returns "tokens" [batch, returns, length] and "scores"
    [batch, returns].

    TensorFlow runs jax's programs in their serialized form. A TensorFlow release older than jax may
    not support all operations: 2.21 does not support the top-k of jax 0.10, which beam search uses.

    Args:
        model_dir: Directory of a run, an import or a Hugging Face model.
        destination: Directory to make.
        generation: How the programs generate.
        batch_size: Rows of a batch.
        input_lengths: Tokens of the inputs, for each signature.
        platforms: Platforms that the programs run on.
        step: Checkpoint of the run; None is the newest.

    Returns:
        The directory.

    Raises:
        ConfigError: TensorFlow cannot run the program or generates other tokens, or the destination
            exists.
    """
    directory = free_directory(destination)
    exportable = open_exportable(model_dir, generation, batch_size, step)
    import_seqio()  # imports TensorFlow without its log lines and without access to accelerators
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
        specs = {
            name: tf.TensorSpec(shape.shape, shape.dtype, name=name)
            for name, shape in exportable.inference.generation_shapes(length).items()
        }
        function: Any = tf.function(
            lambda **batch: program(dict(module.variables_by_path), batch), autograph=False
        )
        signatures[f"length_{length}"] = function.get_concrete_function(**specs)
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic.new_directory(directory) as partial:
            tf.saved_model.save(module, str(partial), signatures=signatures)
            for name in signatures:
                _check_tokens(partial, exportable, name)
    except tf.errors.OpError as error:
        raise ConfigError(
            f"TensorFlow {tf.__version__} cannot run a program of jax {jax.__version__}: "
            f"{error.message.splitlines()[0]}; greedy decoding and sampling without top_k "
            f"need the fewest operations",
            "Generation.num_beams",
            "Generation.top_k",
        ) from error
    return directory


def _check_tokens(directory: Path, exportable: Exportable, name: str) -> None:
    """Raise ConfigError if a signature of the written model generates other tokens."""
    import tensorflow as tf

    batch = _random_batch(exportable, int(name.removeprefix("length_")))
    loaded: Any = tf.saved_model.load(str(directory))
    actual = loaded.signatures[name](**{key: tf.constant(array) for key, array in batch.items()})
    expected = jax.jit(exportable.program)(exportable.weights, batch)
    if not np.array_equal(expected["tokens"], actual["tokens"].numpy()):
        raise ConfigError(
            "the SavedModel generates other tokens than the model; it was not written"
        )


def _random_batch(exportable: Exportable, length: int) -> dict[str, NDArray]:
    """Return rows of random ids without padding."""
    rng, batch = np.random.default_rng(0), {}
    for name, shape in exportable.inference.generation_shapes(length).items():
        if name in ("inputs", "prompts"):
            ids = rng.integers(2, exportable.model.vocabulary.size, shape.shape)
            batch[name] = ids.astype(np.int32)
        elif name == "numbers":
            batch[name] = np.arange(*shape.shape, dtype=np.uint32)
        else:
            batch[name] = np.full(shape.shape, name == "active", shape.dtype)
    return batch
