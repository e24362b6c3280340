"""Write seqio_reference.npz: what seqio and t5 make of a corpus and a mixture, unshuffled.

The tests need neither. To make the file again, from the root:

    python3.11 -m venv /tmp/t5 && /tmp/t5/bin/pip install t5==0.9.4
    /tmp/t5/bin/pip install --force-reinstall --no-deps seqio==0.0.20
    /tmp/t5/bin/python tests/data/references/make_seqio_reference.py

Made with t5 0.9.4, seqio 0.0.20, tensorflow 2.21.0, numpy 2.4.6, Python 3.11 on a CPU. A task of
cached tokens goes through `seqio.get_dataset(shuffle=False)` with T5's span corruption as it is,
but for the noise seeds, which are cast to int32 as the T5 library's newest source does (0.9.4 takes
the int64 that seqio hands it). Keys:

    documents, document_lengths     the tokens, end to end
    <seed>/<feature>                all examples: rows end to end behind their number and lengths
    mixture/<seed>                  the task of each of 2,000 rows at rates 3, 1 and 0.5
"""

import os
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import seqio
import tensorflow as tf
from t5.data import preprocessors as t5

SEEDS = (7, 2026)
LENGTHS = {"inputs": 64, "targets": 18}
RATES = {"three": 3.0, "one": 1.0, "half": 0.5}
VOCABULARY = seqio.PassThroughVocabulary(32_100)


def documents() -> list[np.ndarray]:
    """Three hundred documents, some of them empty."""
    random = np.random.default_rng(0)
    lengths = random.lognormal(3.3, 1.0, 300).astype(int)
    lengths[::41] = 0
    return [random.integers(3, 31_000, length, dtype=np.int32) for length in lengths]


def rows(made: list[np.ndarray]) -> np.ndarray:
    """Rows end to end behind their number and lengths."""
    return np.concatenate([[len(made)], [len(row) for row in made], *made]).astype(np.int32)


def source(rows_of_tokens: list[np.ndarray]) -> seqio.FunctionDataSource:
    """A source of tokens."""

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del split, shuffle_files, seed
        return tf.data.Dataset.from_generator(
            lambda: ({"targets": row} for row in rows_of_tokens),
            output_signature={"targets": tf.TensorSpec([None], tf.int32)},
        )

    return seqio.FunctionDataSource(dataset, ["train"])


def add(name: str, rows_of_tokens: list[np.ndarray], steps: list, eos: bool) -> None:
    """Register a task whose third step is the cache placeholder."""
    features = {name: seqio.Feature(VOCABULARY, add_eos=eos) for name in ("inputs", "targets")}
    nothing = lambda dataset: dataset  # noqa: E731
    seqio.TaskRegistry.add(
        name,
        source(rows_of_tokens),
        preprocessors=[nothing, nothing, seqio.CacheDatasetPlaceholder(), *steps],
        output_features=features if eos else {"targets": features["targets"]},
    )


def main() -> None:
    """Run the pipelines and write the file."""
    as_it_is = t5.single_example_denoise

    def with_int32(features, seed, **settings):
        return as_it_is(features, tf.bitcast(tf.cast(seed, tf.uint32), tf.int32), **settings)

    t5.single_example_denoise = with_int32
    # 0.9.4 would look for EOS in a PassThroughVocabulary, which has none: T5's is 1.
    type(VOCABULARY).eos_id = property(lambda self: 1)
    found = documents()
    arrays = {
        "documents": np.concatenate(found),
        "document_lengths": np.array([len(each) for each in found]),
    }
    steps = [t5.span_corruption, seqio.preprocessors.append_eos_after_trim]
    add("corrupted", found, steps, eos=True)
    for number, name in enumerate(RATES):
        add(name, [np.full(1, number, np.int32)], [], eos=False)
    seqio.MixtureRegistry.add("mixed", list(RATES.items()))
    for seed in SEEDS:
        examples = list(
            seqio.get_mixture_or_task("corrupted")
            .get_dataset(LENGTHS, "train", shuffle=False, seed=seed)
            .as_numpy_iterator()
        )
        for feature in LENGTHS:
            arrays[f"{seed}/{feature}"] = rows([each[feature] for each in examples])
        mixed = seqio.get_mixture_or_task("mixed").get_dataset(
            {"targets": 4}, "train", shuffle=False, seed=seed, num_epochs=None
        )
        taken = mixed.take(2000).as_numpy_iterator()
        arrays[f"mixture/{seed}"] = np.array([each["targets"][0] for each in taken], np.int8)
    np.savez_compressed(Path(__file__).with_name("seqio_reference.npz"), **arrays)


if __name__ == "__main__":
    main()
