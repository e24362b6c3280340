"""Tasks that only seqio's own pipeline can serve, drawn from beside those with stores."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.data.stream import seqio_pipeline
from t5x_lite.data.stream.open_examples import open_examples
from t5x_lite.data.stream.seqio_pipeline import SeqioPipeline, SeqioPipelineExamples
from t5x_lite.data.stream.stream import Stream, StreamTask, evaluation_batches
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.sentinels import Sentinels

seqio = pytest.importorskip("seqio")
tf = pytest.importorskip("tensorflow")

pytestmark = pytest.mark.filterwarnings("default")  # those of TensorFlow's checkpoints
LENGTHS = {"inputs": 12, "targets": 6}
SENTINELS = Sentinels(258, 10)
COUNT = 50


def random_ending(dataset):
    """A step that nobody knows: the number of the example, and something random after it."""

    @seqio.map_over_dataset(num_seeds=1)
    def end(example, seed):
        noise = tf.random.stateless_uniform([3], seed, 3, 200, tf.int32)
        return {
            "inputs": tf.concat([[example["number"]], noise], 0),
            "targets": tf.concat([[example["number"]], [1]], 0),
        }

    return end(dataset)


def numbers(split, shuffle_files=False, seed=None):
    del shuffle_files, seed
    count = COUNT if split == "train" else 20
    return tf.data.Dataset.from_tensor_slices({"number": tf.range(3, 3 + count)})


def generated(split, shuffle_files=False, seed=None):
    """The same from a generator, of which TensorFlow takes no checkpoint."""
    del split, shuffle_files, seed
    return tf.data.Dataset.from_generator(
        lambda: ({"number": number} for number in range(3, 3 + COUNT)),
        output_signature={"number": tf.TensorSpec([], tf.int32)},
    )


def task_of(function=numbers, name="live_numbers", steps=(random_ending,)):
    feature = seqio.Feature(seqio.ByteVocabulary(), add_eos=False)
    source = seqio.FunctionDataSource(function, splits=["train", "validation"])
    return seqio.Task(
        name,
        source,
        {"inputs": feature, "targets": feature},
        preprocessors=list(steps),
        shuffle_buffer_size=16,
    )


@pytest.fixture(autouse=True, scope="module")
def often():
    """Markers that come often, few examples at hand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seqio_pipeline, "_CHECKPOINT_EVERY", 16)
        patch.setattr(seqio_pipeline, "_EXAMPLES_KEPT", 64)
        yield


def stream_of(memory_store, function=numbers, **changed):
    pairs = memory_store(inputs=[[100 + n] * 3 for n in range(40)], targets=[[100]] * 40)
    tasks = [
        StreamTask("live_numbers", SeqioPipeline(task_of(function), "train", 259), 2.0, None),
        StreamTask("pairs", pairs, 1.0, None),
    ]
    settings = {"feature_lengths": LENGTHS, "batch_size": 8, "seed": 3, "pack": True}
    settings |= {"sentinels": SENTINELS, "window_examples": 32}
    return Stream(tasks, **(settings | changed))


def assert_same(found, expected):
    for (batch, after), (wanted, wanted_after) in zip(found, expected, strict=True):
        assert after["drawn"] == wanted_after["drawn"]
        for name, array in wanted.items():
            np.testing.assert_array_equal(batch[name], array)


@pytest.fixture(scope="module")
def undisturbed(memory_store):
    """The first 40 batches, of several epochs, from both kinds of source."""
    found = {}
    for function in (numbers, generated):
        stream = stream_of(memory_store, function)
        found[function] = list(itertools.islice(stream.batches(stream.start()), 40))
    return found


@settings(max_examples=4)
@given(stop=st.integers(1, 36), hosts=st.sampled_from([1, 2, 4]))
@pytest.mark.parametrize("function", [numbers, generated])
def test_a_live_task_continues_from_every_position_on_any_number_of_hosts(
    memory_store, undisturbed, function, stop, hosts
):
    expected = undisturbed[function]
    position = json.loads(json.dumps(expected[stop - 1][1]))
    share = 8 // hosts
    for host in range(hosts):
        rows = slice(host * share, (host + 1) * share)
        restarted = stream_of(memory_store, function)
        wanted = [
            ({name: array[rows] for name, array in batch.items()}, after)
            for batch, after in expected[stop : stop + 4]
        ]
        assert_same(itertools.islice(restarted.batches(position, rows), 4), wanted)


def test_a_position_holds_a_checkpoint_near_by(undisturbed):
    *_, (_, position) = undisturbed[numbers]
    marker = position["markers"]["live_numbers"]
    assert marker["state"]
    assert 0 <= position["drawn"]["live_numbers"] - marker["drawn"] < 32
    *_, (_, position) = undisturbed[generated]
    marker = position["markers"]["live_numbers"]
    assert marker["state"] is None
    assert marker["drawn"] % COUNT == 0


def test_a_restart_takes_up_the_checkpoint(memory_store, undisturbed, monkeypatch):
    taken, restore = [], SeqioPipelineExamples._restore_iterator
    monkeypatch.setattr(
        SeqioPipelineExamples,
        "_restore_iterator",
        lambda self, state: taken.append(restore(self, state)) or taken[-1],
    )
    _, position = undisturbed[numbers][29]
    next(stream_of(memory_store).batches(position))
    assert taken == [True]


def test_a_checkpoint_that_tensorflow_cannot_read_costs_time_alone(
    memory_store, undisturbed, monkeypatch
):
    expected = undisturbed[numbers]
    position = json.loads(json.dumps(expected[29][1]))
    assert position["markers"]["live_numbers"]["state"]

    def fail(self, path):
        raise tf.errors.NotFoundError(None, None, "of another version")

    monkeypatch.setattr(tf.train.Checkpoint, "read", fail)
    restarted = stream_of(memory_store)
    assert_same(itertools.islice(restarted.batches(position), 4), expected[30:34])


def test_every_epoch_has_each_example_once_in_an_order_and_with_noise_of_its_own():
    examples = open(task_of())
    draws = np.arange(3 * COUNT)
    _, indices = examples.epochs_and_indices(draws[:1])
    inputs = []
    for first in range(0, 3 * COUNT, 10):
        part = draws[first : first + 10]
        _, indices = examples.epochs_and_indices(part)
        inputs.append(examples.features(np.zeros_like(part), indices)["inputs"].tokens)
    by_epoch = np.concatenate(inputs).reshape(3, COUNT, -1)
    assert examples.size_if_known == COUNT
    for one in by_epoch:
        assert sorted(one[:, 0]) == list(range(3, 3 + COUNT))
    for one, other in itertools.combinations(by_epoch, 2):
        assert (one[:, 0] == other[:, 0]).mean() < 0.2
        sorted_one, sorted_other = (each[np.argsort(each[:, 0])] for each in (one, other))
        assert (sorted_one[:, 1] == sorted_other[:, 1]).mean() < 0.2


def open(task, split="train"):
    return SeqioPipelineExamples(SeqioPipeline(task, split, 259), LENGTHS, seed=3)


def test_two_tasks_do_not_share_noise():
    first, other = open(task_of()), open(task_of(name="live_others"))
    tokens = [
        each.features(*each.epochs_and_indices(np.arange(COUNT)))["inputs"].tokens
        for each in (first, other)
    ]
    sorted_one, sorted_other = (each[np.argsort(each[:, 0])] for each in tokens)
    assert (sorted_one[:, 1] == sorted_other[:, 1]).mean() < 0.2


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_mixture_that_renormalizes_sees_each_live_example_so_often(memory_store, epochs):
    stream = stream_of(memory_store, on_task_exhausted="renormalize", num_epochs=epochs)
    seen = []
    for batch, _ in stream.batches(stream.start()):
        starts = (batch["encoder_positions"] == 0) & (batch["encoder_segment_ids"] > 0)
        seen += batch["encoder_input_tokens"][starts].tolist()
    expected = [*range(3, 3 + COUNT), *range(100, 140)] * epochs
    assert sorted(seen) == sorted(expected)


def test_evaluation_takes_the_validation_split_in_order():
    task = StreamTask("live_numbers", SeqioPipeline(task_of(), "validation", 259), 1.0, None)
    settings = {"feature_lengths": LENGTHS, "batch_size": 8, "seed": 3, "sentinels": SENTINELS}
    for _ in range(2):
        batches = list(evaluation_batches(task, **settings, limit=None))
        firsts = [batch["encoder_input_tokens"][:count, 0] for batch, count in batches]
        assert np.concatenate(firsts).tolist() == list(range(3, 23))
    assert sum(count for _, count in evaluation_batches(task, **settings, limit=10)) == 10


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        ([random_ending, lambda ds: ds.map(lambda e: {**e, "inputs": e["inputs"] + 300})], "ids"),
        ([random_ending, lambda ds: ds.take(0)], "holds no example"),
    ],
)
def test_what_such_a_task_yields_is_checked(steps, complaint):
    with pytest.raises(ConfigError, match=f"'live_numbers'.* {complaint}"):
        open_examples(
            "live_numbers",
            SeqioPipeline(task_of(steps=steps), "train", 259),
            objective=None,
            feature_lengths=LENGTHS,
            sentinels=SENTINELS,
            seed=0,
        )
