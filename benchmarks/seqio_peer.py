"""Measure seqio with t5's span corruption over the tokens of a store, for data_stream.py.

The documents are those of seqio's offline cache: TFRecords of token ids. They are shuffled with a
buffer of 1,000, corrupted, converted and batched by `seqio.get_dataset`, without packing.
"""

import os
import resource
import statistics
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import seqio
import tensorflow as tf
from t5.data import preprocessors as t5

BATCH, RAW, REPEATS, BATCHES = 128, 568, 5, 30
SHARDS = 16


def cpu_seconds() -> float:
    """CPU time of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def write_records(store: Path, directory: Path) -> None:
    """Write the documents of a store as TFRecords."""
    tokens = np.memmap(store / "targets.tokens.bin", "<u2", mode="r")
    offsets = np.load(store / "targets.offsets.npy")
    directory.mkdir()
    for shard in range(SHARDS):
        with tf.io.TFRecordWriter(str(directory / f"train.tfrecord-{shard:05d}")) as writer:
            for n in range(shard, len(offsets) - 1, SHARDS):
                ids = tokens[offsets[n] : offsets[n + 1]].tolist()
                feature = tf.train.Feature(int64_list=tf.train.Int64List(value=ids))
                features = tf.train.Features(feature={"targets": feature})
                writer.write(tf.train.Example(features=features).SerializeToString())


def main(store: Path) -> None:
    """Measure and print."""
    records = store.with_name("records")
    if not records.exists():
        write_records(store, records)
    pieces = seqio.PassThroughVocabulary(32_100, 1)
    pieces.__class__.extra_ids = property(lambda self: 100)
    seqio.TaskRegistry.add(
        "peer",
        seqio.TFExampleDataSource(
            {"train": str(records / "*")},
            {"targets": tf.io.RaggedFeature(tf.int64)},
        ),
        preprocessors=[
            lambda ds: ds.map(lambda e: {"targets": tf.cast(e["targets"], tf.int32)}),
            seqio.CacheDatasetPlaceholder(),
            t5.span_corruption,
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={
            "inputs": seqio.Feature(pieces, add_eos=True),
            "targets": seqio.Feature(pieces, add_eos=True),
        },
    )
    dataset = seqio.get_dataset(
        "peer",
        task_feature_lengths={"inputs": 512, "targets": 114},
        dataset_split="train",
        shuffle=True,
        num_epochs=None,
        feature_converter=seqio.EncDecFeatureConverter(pack=False),
        seed=0,
    ).batch(BATCH, drop_remainder=True)
    began = cpu_seconds()
    iterator = dataset.as_numpy_iterator()
    next(iterator)
    first = cpu_seconds() - began
    found = []
    for _ in range(REPEATS):
        began = cpu_seconds()
        for _ in range(BATCHES):
            next(iterator)
        found.append(BATCHES * BATCH * RAW / (cpu_seconds() - began) / 1e6)
    print(
        f"| seqio {seqio.__version__} with t5, one a row | {statistics.median(found):,.2f} M raw "
        f"tokens/s | {min(found):,.2f} to {max(found):,.2f} |"
    )
    print(f"| seqio's first batch, without imports | {first:.2f} s CPU | |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
