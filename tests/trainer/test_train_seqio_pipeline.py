"""A run over a mixture of a stored task and one that only seqio's own pipeline can serve."""

import importlib
import sys

import numpy as np
import pytest

from t5x_lite.data.tasks.mixing_rates import Mixture
from t5x_lite.data.tasks.task_providers import EmbeddedCorpus
from t5x_lite.tokenizers.vocabularies import ByteVocabulary

pytest.importorskip("seqio")
pytestmark = pytest.mark.filterwarnings("default")  # those of TensorFlow's checkpoints

MODULE = """
import seqio, tensorflow as tf

@seqio.map_over_dataset(num_seeds=1)
def with_noise(example, seed):
    noise = tf.random.stateless_uniform([5], seed, 3, 200, tf.int32)
    return {"inputs": tf.concat([[example["number"]], noise], 0), "targets": noise[:3]}

def source(split, shuffle_files=False, seed=None):
    return tf.data.Dataset.from_tensor_slices({"number": tf.range(3, 60)})

feature = seqio.Feature(seqio.ByteVocabulary(), add_eos=False)
seqio.TaskRegistry.remove("odd_numbers")
seqio.TaskRegistry.add(
    "odd_numbers",
    seqio.FunctionDataSource(source, splits=["train", "validation"]),
    preprocessors=[with_noise],
    output_features={"inputs": feature, "targets": feature},
)
"""


@pytest.fixture
def odd_tasks(tmp_path, monkeypatch):
    (tmp_path / "odd_tasks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield "odd_tasks"
    sys.modules.pop("odd_tasks", None)


@pytest.mark.slow  # as the tests of tests/data/test_live.py say the same of the stream alone
def test_a_stopped_run_over_a_live_task_continues_to_the_bit(
    odd_tasks, train_small, weights, tmp_path, log_lines
):
    corpus = EmbeddedCorpus(vocab_size=412, packages=("gin", "beartype"))
    mixture = Mixture("odd_mix", {"odd_numbers": 2.0, "embedded_name": 1.0})
    data = {
        "mixture_or_task_name": "odd_mix",
        "modules": (odd_tasks,),
        "task_providers": (corpus, mixture),
        "vocabulary": ByteVocabulary(100),
    }
    train_small(tmp_path / "undisturbed", steps=6, data=data)
    logged = "\n".join(log_lines)
    assert logged.count("it runs through seqio's own pipeline, on every host") == 1
    for steps in (3, 6):
        train_small(tmp_path / "stopped", steps=steps, data=data)
    first, second = weights(tmp_path / "undisturbed"), weights(tmp_path / "stopped")
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
