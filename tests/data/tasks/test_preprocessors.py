"""seqio's own pipeline and the stream say the same: held against one another, token by token."""

from pathlib import Path

import numpy as np
import pytest

from t5x_lite.data.stream.open_examples import open_examples
from t5x_lite.data.stream.pair_trimming import PairTrimming
from t5x_lite.data.stream.trim_and_eos import FEATURES
from t5x_lite.data.tasks import preprocessors, task_providers
from t5x_lite.data.tasks.preprocessors import Denoise, TrimPairs
from t5x_lite.errors import ConfigError
from t5x_lite.objectives import random_chunks
from t5x_lite.objectives.span_corruption import SpanCorruption
from t5x_lite.tokenizers.vocabularies import ByteVocabulary

pytestmark = pytest.mark.filterwarnings("default")  # those of seqio's and TensorFlow's imports

GIN_CONFIGS = Path(__file__).resolve().parents[3] / "gin_configs"
NAMED = sorted(
    str(path.relative_to(GIN_CONFIGS)) for path in GIN_CONFIGS.glob("objectives/**/*.gin")
)
OF_ENCODERS = {f"objectives/{name}.gin" for name in ("bert", "bert_mlm", "spanbert", "electra")}
GRID = [  # of the T5 study: corruption rates and lengths of spans
    *(
        f"objectives/replace_spans.gin --gin.ReplaceSpans.noise_density={r}"
        for r in (0.1, 0.25, 0.5)
    ),
    *(
        f"objectives/span_corruption.gin --gin.SpanCorruption.mean_noise_span_length={length}"
        for length in (2.0, 5.0, 10.0)
    ),
]
LENGTHS = {"inputs": 64, "targets": 128}
SEED = 41


@pytest.fixture(scope="module")
def seqio():
    import seqio

    return seqio


@pytest.fixture(scope="module")
def vocabulary():
    return ByteVocabulary(extra_ids=100)


@pytest.fixture(scope="module")
def documents():
    """Documents of many lengths, empty ones among them; full stops are byte 46, id 49."""
    rng = np.random.default_rng(3)
    return [rng.integers(40, 200, length).tolist() for length in (150, 0, 7, 61, 1, 0, 300, 20)]


@pytest.fixture(scope="module")
def objective_of():
    """objective_of("objectives/ul2.gin", *flags) -> the objective that the file describes."""
    import gin

    from t5x_lite.cli import gin_config

    def read(name, *flags):
        gin.clear_config()
        try:
            flags = [*flags, f"--gin.TASK_FEATURE_LENGTHS={LENGTHS}"]
            flags += ["--gin.FULL_STOPS=(49,)"] * ("FULL_STOPS" in (GIN_CONFIGS / name).read_text())
            gin_config.parse([name, "tasks/embedded.gin"], flags, ["", str(GIN_CONFIGS)])
            return gin.get_configurable("Data")().objective
        finally:
            gin.clear_config()

    return read


@pytest.fixture(scope="module")
def through_seqio(seqio, vocabulary):
    """through_seqio(step, documents) -> examples as lists; seqio gives its seeds from SEED on."""
    import tensorflow as tf

    def run(step, lengths=LENGTHS, **columns):
        signature = {name: tf.TensorSpec([None], tf.int32) for name in columns}
        rows = [
            {name: np.array(column[n], np.int32) for name, column in columns.items()}
            for n in range(len(next(iter(columns.values()))))
        ]
        task = seqio.Task(
            "steps_task",
            seqio.FunctionDataSource(
                lambda split, shuffle_files, seed=None: tf.data.Dataset.from_generator(
                    lambda: iter(rows), output_signature=signature
                ),
                splits=["train"],
            ),
            {name: seqio.Feature(vocabulary.to_seqio()) for name in FEATURES},
            preprocessors=[step],
        )
        dataset = task.get_dataset(lengths, "train", shuffle=False, seed=SEED)
        return [
            {name: example[name].tolist() for name in FEATURES}
            for example in dataset.as_numpy_iterator()
        ]

    return run


def seqio_seeds(first, count):
    """The seeds that seqio hands to the first elements of its `first`-th seeded map."""
    import tensorflow as tf

    streams = [tf.data.Dataset.random(SEED + 2 * first + word).take(count) for word in (0, 1)]
    return np.stack(
        [np.array(list(stream.as_numpy_iterator())) for stream in streams], axis=1
    ).astype(np.uint32)


def through_stream(monkeypatch, store, objective, vocabulary, *, seeds):
    """The stream's examples, with seqio's seeds instead of its own keys."""
    monkeypatch.setattr(
        "t5x_lite.data.stream.examples.example_keys", lambda *drawn_from: seeds[drawn_from[-1]]
    )
    opened = open_examples(
        "task",
        store,
        objective=objective,
        feature_lengths=LENGTHS,
        sentinels=vocabulary.sentinels,
        seed=0,
    )
    indices = np.arange(opened.size)
    made = opened.features(np.zeros_like(indices), indices)
    planned = opened.lengths(np.zeros_like(indices), indices)
    for column, name in enumerate(FEATURES):
        np.testing.assert_array_equal(planned[:, column], made[name].lengths)
    return [
        {name: made[name].tokens[n, : made[name].lengths[n]].tolist() for name in FEATURES}
        for n in indices
    ]


@pytest.mark.parametrize(
    "words",
    [
        # The study's grid is one objective at many rates, BART's five are parts of one.
        *(
            pytest.param(
                name, marks=[pytest.mark.slow] * (name.count("/") > 1 and "infill" not in name)
            )
            for name in NAMED
            if name not in OF_ENCODERS and name != "objectives/random_lengths.gin"
        ),
        *(pytest.param(words, marks=pytest.mark.slow) for words in GRID),
    ],
)
def test_seqio_and_the_stream_make_the_same_examples(
    words, objective_of, through_seqio, memory_store, documents, vocabulary, monkeypatch
):
    objective = objective_of(*words.split())
    expected = through_seqio(Denoise(objective), targets=documents)
    seeds = seqio_seeds(0, len(expected))
    store = memory_store(targets=documents)
    found = through_stream(monkeypatch, store, objective, vocabulary, seeds=seeds)
    assert len(found) > 3
    assert found == expected
    for example in found:
        for feature, tokens in example.items():
            assert 0 < len(tokens) <= LENGTHS[feature]
            assert tokens[-1] == 1 or objective.eos_after == "documents"


def test_pieces_of_random_lengths_are_those_of_their_groups(
    through_seqio, memory_store, documents, vocabulary, monkeypatch
):
    """Seqio draws the lengths in a seeded map of their own, which comes first."""
    objective = random_chunks.RandomLengths(SpanCorruption(documents_per_group=2), shortest=5)
    expected = through_seqio(Denoise(objective), targets=documents)
    seeds, fold_in = seqio_seeds(1, len(expected)), random_chunks.philox.fold_in
    monkeypatch.setattr(
        random_chunks.philox,
        "fold_in",
        lambda keys, data: seqio_seeds(0, len(keys)) if data == 0x504C454E else fold_in(keys, data),
    )
    store = memory_store(targets=documents)
    found = through_stream(
        monkeypatch, store, objective, vocabulary, seeds=np.resize(seeds, (999, 2))
    )
    assert found == expected


@pytest.mark.parametrize("name", sorted(OF_ENCODERS))
def test_what_is_more_than_inputs_and_targets_is_refused_by_seqios_pipeline(
    name, objective_of, through_seqio, documents
):
    with pytest.raises(ConfigError, match="seqio's own pipeline carries inputs and targets"):
        through_seqio(Denoise(objective_of(name)), targets=documents)


def test_too_few_sentinels_are_refused_by_both(through_seqio, documents):
    lengths = {"inputs": 512, "targets": 512}
    with pytest.raises(ConfigError, match=r"up to 128 sentinels per chunk .* has 100"):
        through_seqio(Denoise(SpanCorruption(0.5)), lengths, targets=documents)


def test_a_text_task_without_an_objective_of_its_own_takes_span_corruption_in_seqio(
    through_seqio, documents
):
    of_run = through_seqio(Denoise(), targets=documents)
    assert of_run == through_seqio(Denoise(SpanCorruption()), targets=documents)


PAIRS = {
    "inputs": [[9] * 20, list(range(10, 90)), [5, 6, 7], list(range(10, 90)), [8] * 70],
    "targets": [[5, 6], [50, 51, 52], [4] * 40, [51, 50], [8, 8]],
}
SHORT = {"inputs": 16, "targets": 8}


@pytest.mark.parametrize(
    "trimming",
    [
        PairTrimming(keep_last_tokens=1),
        PairTrimming(keep_last_tokens=2),
        PairTrimming(window_around_answer=True),
    ],
)
def test_seqio_and_the_stream_cut_pairs_alike(
    trimming, through_seqio, memory_store, vocabulary, monkeypatch
):
    expected = through_seqio(TrimPairs(trimming), SHORT, **PAIRS)
    seeds = seqio_seeds(0, len(PAIRS["inputs"]))
    if trimming.window_around_answer:
        seeds = np.delete(seeds, 3, axis=0)  # that of the pair whose answer is nowhere
    monkeypatch.setattr(
        "t5x_lite.data.stream.pair_trimming.philox.example_keys",
        lambda seed, stream, epoch, index: seeds[index],
    )
    opened = open_examples(
        "task",
        memory_store(**PAIRS),
        objective=None,
        trimming=trimming,
        feature_lengths=SHORT,
        sentinels=vocabulary.sentinels,
        seed=0,
    )
    indices = np.arange(opened.size)
    made, planned = (
        each(np.zeros_like(indices), indices) for each in (opened.features, opened.lengths)
    )
    found = [
        {name: made[name].tokens[n, : made[name].lengths[n]].tolist() for name in FEATURES}
        for n in indices
    ]
    assert found == expected
    assert planned.tolist() == [[len(e["inputs"]), len(e["targets"])] for e in found]


def test_a_vocabulary_of_another_form_is_refused(seqio):
    with pytest.raises(ConfigError, match="neither a SentencePiece nor a byte vocabulary"):
        preprocessors.to_vocabulary(seqio.PassThroughVocabulary(size=9))


def test_text_tasks_end_with_their_objective(seqio):
    *_, placeholder, last = task_providers.text_steps(SpanCorruption())
    assert isinstance(placeholder, seqio.CacheDatasetPlaceholder)
    assert last == Denoise(SpanCorruption())
