"""Compute baselines for the loss: that of a uniform guess, and that of token frequencies alone."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.stream import shuffle
from t5x_lite.data.stream.examples import Examples, random_stream
from t5x_lite.data.stream.open_examples import UnsizedExamples, open_examples
from t5x_lite.data.stream.stream import StreamTask
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.sentinels import Sentinels

_EXAMPLES_PER_READ = 512


class Baselines(NamedTuple):
    """Losses in nats per target token, EOS and sentinels included.

    Attributes:
        uniform: of a model that gives every id of the vocabulary the same probability.
        unigram: of a model that gives every id its frequency among the targets of training.
    """

    uniform: float
    unigram: float


def target_baselines(
    train: StreamTask,
    validation: StreamTask,
    *,
    feature_lengths: Mapping[str, int],
    vocabulary_size: int,
    sentinels: Sentinels,
    seed: int,
    train_limit: int = 20_000,
    validation_limit: int | None = None,
) -> Baselines:
    """Return the baselines of a task on what `evaluation_batches` yields for its validation split.

    With c_i and t_i the counts of id i in training and validation, of V ids, one being added to
    every count (Laplace smoothing):

        unigram = -sum_i t_i ln((c_i + 1) / (sum(c) + V)) / sum(t)

    Args:
        train: the task with its training store.
        validation: the task with its validation store.
        feature_lengths: the lengths of inputs and targets, in tokens, EOS included.
        vocabulary_size: V.
        sentinels: the sentinel ids of the vocabulary.
        seed: of the run.
        train_limit: how many examples of the first epoch are counted, at most. 20,000 estimate the
            frequencies of common tokens well enough for a baseline.
        validation_limit: how many validation examples are counted, at most; None: all.

    Raises:
        ConfigError: for a store with ids beyond the vocabulary.
    """
    train_examples, examples = (
        open_examples(
            task.name,
            task.store,
            objective=task.objective,
            trimming=task.trimming,
            feature_lengths=feature_lengths,
            sentinels=sentinels,
            seed=seed,
        )
        for task in (train, validation)
    )
    if isinstance(train_examples, UnsizedExamples):
        # A shuffled epoch needs the size, which is known after minutes or hours: take the first.
        train_indices = np.arange(min(train_limit, train_examples.wait_for_examples(train_limit)))
    else:
        size = train_examples.size
        _, train_indices = shuffle.shuffled_examples(
            np.arange(min(train_limit, size)), size, seed=seed, stream=random_stream(train.name)
        )
    train_v = _count_targets(train_examples, train_indices, vocabulary_size)

    indices = np.arange(examples.size)[:validation_limit]
    validation_v = _count_targets(examples, indices, vocabulary_size)

    nats_v = -np.log((train_v + 1) / (train_v.sum() + vocabulary_size))
    unigram = float(validation_v @ nats_v / validation_v.sum())
    return Baselines(math.log(vocabulary_size), unigram)


def _count_targets(
    examples: Examples, indices_n: NDArray[np.int64], vocabulary_size: int
) -> NDArray[np.int64]:
    """Return how often each id is a target in the first epoch of some examples: [vocabulary]."""
    counts_v = np.zeros(vocabulary_size, np.int64)
    for first in range(0, len(indices_n), _EXAMPLES_PER_READ):
        part_n = indices_n[first : first + _EXAMPLES_PER_READ]
        features = examples.features(np.zeros_like(part_n), part_n)
        rows = features["targets"]
        used_nl = np.arange(rows.tokens.shape[1]) < rows.lengths[:, None]
        if "weights" in features:
            # An encoder predicts at the positions of its inputs, and only those with a weight.
            # The configured targets length does not apply to it.
            width = features["weights"].tokens.shape[1]
            used_nl = used_nl[:, :width] & (features["weights"].tokens > 0)
            rows = rows._replace(tokens=rows.tokens[:, :width])
        part_counts_v = np.bincount(rows.tokens[used_nl], minlength=vocabulary_size)
        if len(part_counts_v) > vocabulary_size:
            raise ConfigError(
                f"a token store holds the id {len(part_counts_v) - 1}, the vocabulary has "
                f"{vocabulary_size}",
                "DATA_DIR",
            )
        counts_v += part_counts_v
    return counts_v
