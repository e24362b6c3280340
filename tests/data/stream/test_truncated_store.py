"""The beginning of a text is trained on over and over, and nothing else of it."""

import dataclasses

import numpy as np
import pytest

from t5x_lite.data.data_config import Data
from t5x_lite.data.prepare import prepare
from t5x_lite.data.stream.open_examples import open_examples
from t5x_lite.data.stream.truncated_store import tokens_to_repeat, truncate_store
from t5x_lite.data.tasks.task_providers import EmbeddedCorpus
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.language_models import LM
from t5x_lite.objectives.sentinels import Sentinels

LENGTHS = {"inputs": 1, "targets": 9}


def opened(store):
    return open_examples(
        "text",
        store,
        objective=LM(),
        feature_lengths=LENGTHS,
        sentinels=Sentinels(511, 100),
        seed=0,
    )


def texts(examples):
    numbers = np.arange(examples.size)
    rows = examples.features(np.zeros_like(numbers), numbers)["targets"]
    return np.concatenate(
        [row[: length - 1] for row, length in zip(rows.tokens, rows.lengths, strict=True)]
    )


@pytest.fixture
def store(memory_store):
    """Some hundred documents of 0 to 20 tokens, with the table of their groups."""
    random = np.random.default_rng(0)
    documents = [random.integers(5, 90, random.integers(0, 20)) for _ in range(700)]

    class WithGroups(memory_store):
        def groups(self, feature):
            offsets = self.offsets(feature)
            firsts = np.flatnonzero(np.diff(offsets))[::128]
            return np.stack([firsts, offsets[firsts]], axis=1)

    return WithGroups(targets=documents)


@pytest.mark.parametrize("tokens", [30, 1000, 2500, 6000])
def test_examples_are_those_of_the_first_whole_documents(store, memory_store, tokens):
    part = truncate_store("text", store, tokens)
    offsets = store.offsets("targets")
    assert offsets[part.num_examples] <= tokens < offsets[part.num_examples + 1]
    documents = np.split(store.tokens("targets"), offsets[1:-1])[: part.num_examples]
    alone, examples = opened(memory_store(targets=documents)), opened(part)
    np.testing.assert_array_equal(texts(examples), np.concatenate(documents))
    assert examples.size == alone.size
    np.testing.assert_array_equal(texts(examples), texts(alone))
    assert part.features == ("targets",)


def test_a_limit_that_leaves_nothing_or_all_is_refused(memory_store):
    store = memory_store(targets=[[5, 6, 7], [8, 9]])
    for tokens in (2, 5, 100):
        with pytest.raises(ConfigError, match=r"has 5 tokens .* the first has 3") as caught:
            truncate_store("text", store, tokens)
        assert caught.value.names == ("Data.max_text_tokens",)
    assert truncate_store("text", store, 4).num_examples == 1


@pytest.mark.parametrize(
    ("times", "tokens"), [(64, 2**29), (256, 2**27), (1024, 2**25), (4096, 2**23)]
)
def test_the_studys_repeats_are_its_tokens(times, tokens):
    lengths = {"inputs": 512, "targets": 192}
    assert tokens_to_repeat(times, steps=2**19, batch_size=128, feature_lengths=lengths) == tokens


def test_repeats_that_cannot_be_are_refused():
    for times in (0, 129):
        with pytest.raises(ConfigError, match="it takes 1 to 128"):
            tokens_to_repeat(times, steps=2, batch_size=4, feature_lengths={"inputs": 16})


def test_a_plan_limits_text_for_training_and_nothing_else(tmp_path):
    corpus = EmbeddedCorpus(vocab_size=300, packages=("gin", "beartype"))
    whole = Data(
        "embedded_mix",
        {"inputs": 32, "targets": 16},
        str(tmp_path),
        task_providers=(corpus,),
    )
    limited = dataclasses.replace(whole, max_text_tokens=2000)
    sizes = {}
    for name, data in (("whole", whole), ("limited", limited), ("again", limited)):
        plan = prepare(data)
        sizes[name] = [
            {task.name: task.store.num_examples for task in tasks}
            for tasks in (plan.train_tasks(), plan.validation_tasks())
        ]
    (train, validation), (fewer, same) = sizes["whole"], sizes["limited"]
    assert sizes["limited"] == sizes["again"]
    assert same == validation
    assert 0 < fewer.pop("embedded_text") < train.pop("embedded_text")
    assert fewer == train


def test_a_store_that_is_being_made_cannot_be_limited(tmp_path):
    for changes in ({"tokenization": "while_training"}, {"max_text_tokens": 0}):
        with pytest.raises(ConfigError, match="before training"):
            Data("mine", LENGTHS, str(tmp_path), **{"max_text_tokens": 10, **changes})
