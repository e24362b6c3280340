import math

import numpy as np
import pytest

from t5x_lite.data.stream.stream import StreamTask, evaluation_batches
from t5x_lite.data.stream.unigram_baseline import target_baselines
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.bert import MaskedLM
from t5x_lite.objectives.sentinels import Sentinels
from t5x_lite.objectives.span_corruption import SpanCorruption

SETTINGS = {
    "feature_lengths": {"inputs": 40, "targets": 16},
    "sentinels": Sentinels(99, 10),
    "seed": 5,
}


def _task(store, objective=None):
    return StreamTask("task", store, 1.0, objective)


def test_the_baselines_are_those_counted_by_hand(memory_store):
    train = memory_store(inputs=[[]] * 2, targets=[[3, 3, 4], [3]])
    validation = memory_store(inputs=[[]], targets=[[3, 5]])
    found = target_baselines(_task(train), _task(validation), vocabulary_size=10, **SETTINGS)
    # Trained on 3 3 4 1 3 1, one added to each of 10 counts; held out: 3 5 1.
    assert found.uniform == pytest.approx(math.log(10))
    assert found.unigram == pytest.approx(-(math.log(4 / 16 * 1 / 16 * 3 / 16)) / 3)


def test_only_what_an_encoder_is_to_predict_counts(memory_store):
    store = memory_store(targets=[[3] * 30])
    settings = SETTINGS | {"feature_lengths": {"inputs": 40, "targets": 44}}
    task = _task(store, MaskedLM())
    found = target_baselines(task, task, vocabulary_size=10, **settings)
    assert found.unigram == pytest.approx(-math.log((4 + 1) / (4 + 10)))  # 4 of 30 tokens, no EOS


def test_the_unigram_baseline_is_measured_on_the_targets_of_evaluation(memory_store):
    random = np.random.default_rng(0)
    train, validation = (
        _task(memory_store(targets=random.zipf(1.5, (60, 30)) % 80 + 2), SpanCorruption())
        for _ in range(2)
    )
    found = target_baselines(
        train, validation, vocabulary_size=100, validation_limit=20, **SETTINGS
    )
    counts = np.zeros((2, 100))
    for split, (task, limit) in enumerate([(train, None), (validation, 20)]):
        for batch, _ in evaluation_batches(task, batch_size=8, limit=limit, **SETTINGS):
            np.add.at(counts[split], batch["decoder_target_tokens"], batch["decoder_loss_weights"])
    shares = (counts[0] + 1) / (counts[0].sum() + 100)
    expected = -(counts[1] * np.log(shares)).sum() / counts[1].sum()
    assert found.unigram == pytest.approx(expected)
    assert found.unigram < found.uniform


def test_the_counts_of_training_are_bounded(memory_store):
    train = memory_store(inputs=[[]] * 50, targets=[[i + 2] * 3 for i in range(50)])
    validation = memory_store(inputs=[[]], targets=[[]])
    found = target_baselines(
        _task(train), _task(validation), vocabulary_size=60, train_limit=10, **SETTINGS
    )
    assert found.unigram == pytest.approx(-math.log(11 / (10 * 4 + 60)))  # EOS alone, 10 times


def test_an_id_beyond_the_vocabulary_is_refused(memory_store):
    task = _task(memory_store(inputs=[[]], targets=[[70]]))
    with pytest.raises(ConfigError, match="holds the id 70, the vocabulary has 60") as error:
        target_baselines(task, task, vocabulary_size=60, **SETTINGS)
    assert error.value.names == ("DATA_DIR",)
