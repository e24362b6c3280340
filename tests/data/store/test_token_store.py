import functools
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from t5x_lite.data.sources import embedded_corpus
from t5x_lite.data.store.token_store import TokenStore
from t5x_lite.data.tasks import task_providers
from t5x_lite.data.tokenize.build_store import build_token_store
from t5x_lite.data.tokenize.store_identity import describe_store
from t5x_lite.errors import ConfigError
from t5x_lite.tokenizers.vocabularies import ByteVocabulary, Vocabulary, train_vocabulary

seqio = pytest.importorskip("seqio")
tf = pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    embedded_corpus.write_embedded_corpus(directory / "shards", ["optax"])
    texts = [d["text"] for d in embedded_corpus.read_documents(directory / "shards", "train")]
    train_vocabulary(texts, directory / "unigram.model", vocab_size=500)
    return directory


@pytest.fixture(scope="module")
def register(corpus):
    """Register a task over the corpus under a name and return it."""

    def add(name, steps):
        source = task_providers.JsonLinesSource(str(corpus / "shards"))
        task_providers.add_task(name, source, steps, Vocabulary(str(corpus / "unigram.model")))
        return seqio.TaskRegistry.get(name)

    return add


@pytest.fixture(scope="module")
def task(register):
    return register("store_pairs", task_providers.pair_steps(task_providers.summary_pair))


@pytest.fixture(scope="module")
def store(task, tmp_path_factory):
    directory = tmp_path_factory.mktemp("stores") / "train"
    build_token_store(task, "train", directory)
    return TokenStore.open(directory)


def number_task(name, numbers, *, size, length=None, steps=()):
    """A task whose targets are lists of numbers, of one known length if `length` is given."""

    def dataset(split, shuffle_files):
        return tf.data.Dataset.from_generator(
            lambda: ({"targets": np.array(each, np.int32)} for each in numbers),
            output_signature={"targets": tf.TensorSpec([length], tf.int32)},
        )

    return seqio.Task(
        name,
        seqio.FunctionDataSource(tf.autograph.experimental.do_not_convert(dataset), ["train"]),
        {"targets": seqio.Feature(seqio.PassThroughVocabulary(size), add_eos=False)},
        preprocessors=[*steps, seqio.CacheDatasetPlaceholder()],
    )


def examples_of(store, feature):
    tokens, offsets = store.tokens(feature), store.offsets(feature)
    return [tokens[first:last].tolist() for first, last in itertools.pairwise(offsets)]


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("kind", ["text", "pairs"])
def test_a_store_holds_what_seqio_yields_before_its_cache(register, tmp_path, kind, split):
    steps = (
        task_providers.text_steps()
        if kind == "text"
        else task_providers.pair_steps(task_providers.name_pair)
    )
    task = register(f"store_{kind}", steps)
    build_token_store(task, split, tmp_path / "store")
    store = TokenStore.open(tmp_path / "store")
    documents = task.source.get_dataset(split=split, shuffle=False)
    expected = list(task.preprocess_precache(documents).as_numpy_iterator())
    assert store.num_examples == len(expected) > 0
    assert set(store.features) == {"inputs", "targets"}
    for feature in store.features:
        assert examples_of(store, feature) == [e[feature].tolist() for e in expected]
        assert store.tokens(feature).dtype == np.dtype("<u2")


def test_the_manifest_says_what_the_store_was_made_from(store, task, corpus):
    manifest = store.manifest
    assert manifest["task"] == "store_pairs"
    assert manifest["split"] == "train"
    assert manifest["num_examples"] == store.num_examples
    assert manifest["features"]["targets"]["tokens"] == len(store.tokens("targets"))
    assert manifest["vocabularies"]["targets"] == {
        "size": 600,
        "extra_ids": 100,
        "fingerprint": Vocabulary(str(corpus / "unigram.model")).fingerprint,
    }
    make_pair = "embedded_corpus.summary_pair (version 1)"
    assert manifest["preprocessors"] == [
        {"call": "documents_to_pairs (version 1)", "arguments": {"make_pair": make_pair}},
        f"seqio.preprocessors.tokenize (seqio {manifest['versions']['seqio']})",
    ]
    assert manifest["source"]["class"] == "json_lines_source (version 1)"
    assert list(manifest["source"]["sizes"].values()) == [
        path.stat().st_size for path in sorted((corpus / "shards").glob("c4-train*"))
    ]
    assert set(manifest["versions"]) == {"seqio", "sentencepiece", "tensorflow-text"}


def test_a_description_is_the_same_in_every_process(store, task):
    assert "0x" not in json.dumps(describe_store(task, "train"))
    TokenStore.open(store.directory, describe_store(task, "train"))


def test_vocabularies_without_a_file_are_described_alike_by_every_process(corpus):
    source = task_providers.JsonLinesSource(str(corpus / "shards"))
    described = []
    for _ in range(2):
        task_providers.add_task(
            "store_bytes", source, task_providers.text_steps(), ByteVocabulary()
        )
        described.append(describe_store(seqio.TaskRegistry.get("store_bytes"), "train"))
    assert described[0] == described[1]


def test_a_store_made_from_something_else_is_refused_by_what_differs(store, register):
    other = register("store_pairs", task_providers.pair_steps(task_providers.name_pair))
    expected = describe_store(other, "train")
    expected["vocabularies"]["inputs"]["size"] = 32_100
    with pytest.raises(ConfigError, match="was made from other data") as caught:
        TokenStore.open(store.directory, expected)
    assert "vocabularies.inputs.size is 600, expected 32100" in str(caught.value)
    assert "summary_pair" in str(caught.value)
    assert "name_pair" in str(caught.value)
    assert "versions" not in str(caught.value)


def test_reading_a_store_needs_neither_seqio_nor_tensorflow(store):
    program = (
        "import sys; from t5x_lite.data.store.token_store import TokenStore;"
        f"print(len(TokenStore.open({str(store.directory)!r}).tokens('inputs')));"
        "assert not {'seqio', 'tensorflow', 'jax', 'flax'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(store.tokens("inputs"))


def test_big_vocabularies_take_four_bytes(tmp_path):
    numbers = [[5, 69_999], [], [65_536]]
    build_token_store(number_task("numbers", numbers, size=70_000), "train", tmp_path / "store")
    store = TokenStore.open(tmp_path / "store")
    assert store.tokens("targets").dtype == np.dtype("<u4")
    assert examples_of(store, "targets") == numbers


def test_examples_of_one_known_length_are_stored_like_others(tmp_path):
    numbers = [[5, 6], [7, 8], [9, 9]]
    task = number_task("numbers", numbers, size=10, length=2)
    build_token_store(task, "train", tmp_path / "store")
    assert examples_of(TokenStore.open(tmp_path / "store"), "targets") == numbers


def test_ids_outside_the_vocabulary_are_refused(tmp_path):
    task = number_task("numbers", [[5, 6], [99]], size=50)
    with pytest.raises(ConfigError, match=r"'targets' holds ids from 5 to 99.* has 50"):
        build_token_store(task, "train", tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_a_source_without_examples_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"'train' of .* holds no example") as caught:
        build_token_store(number_task("numbers", [], size=50), "train", tmp_path / "store")
    assert caught.value.names == ("DATA_DIR",)


def test_a_broken_shard_is_named_by_file_and_line(corpus, tmp_path):
    (tmp_path / "c4-train.00000-of-00001.json").write_text('{"text": "good"}\n{"text": 3}\n')
    vocabulary = Vocabulary(str(corpus / "unigram.model"))
    task_providers.JsonLinesText("store_broken", str(tmp_path), vocabulary).register("")
    task = seqio.TaskRegistry.get("store_broken")
    with pytest.raises(ConfigError) as caught:
        build_token_store(task, "train", tmp_path / "stores" / "train")
    assert str(caught.value) == (
        f"task 'store_broken', split 'train': {tmp_path}/c4-train.00000-of-00001.json, line 2: "
        "no text field (not a JSON object with a string 'text')"
    )
    assert list((tmp_path / "stores").iterdir()) == []


def test_a_task_without_a_cache_placeholder_is_refused(corpus, register):
    steps = [
        step
        for step in task_providers.text_steps()
        if not isinstance(step, seqio.CacheDatasetPlaceholder)
    ]
    with pytest.raises(ConfigError, match=r"no seqio\.CacheDatasetPlaceholder"):
        describe_store(register("store_no_cache", steps), "train")


def test_a_split_that_is_not_there_is_named(task):
    with pytest.raises(ConfigError, match="no split 'test': it has train, validation"):
        describe_store(task, "test")


def test_a_store_cut_short_is_never_picked_up(tmp_path):
    def fail_late(dataset):
        def check(number):
            if number > 3000:
                raise RuntimeError("power cut")
            return number

        def step(example):
            first = tf.numpy_function(check, [example["targets"][0]], tf.int32)
            return {"targets": tf.ensure_shape(first, [])[None]}

        return dataset.map(step)

    numbers = [[number] for number in range(4000)]
    failing = number_task("numbers", numbers, size=5000, steps=[fail_late])
    with pytest.raises(ConfigError, match="power cut"):
        build_token_store(failing, "train", tmp_path / "store")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="there is no token store in"):
        TokenStore.open(tmp_path / "store")


def test_of_two_builders_the_first_one_wins(tmp_path):
    first = number_task("numbers", [[1]], size=50)
    second = number_task("numbers", [[2]], size=50)
    build_token_store(first, "train", tmp_path / "store")
    build_token_store(second, "train", tmp_path / "store")
    assert examples_of(TokenStore.open(tmp_path / "store"), "targets") == [[1]]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy", "groups.npy"])
@pytest.mark.parametrize("kept", [None, 0, -2])
def test_files_that_are_gone_or_cut_short_are_refused(tmp_path, name, kept):
    build_token_store(number_task("numbers", [[1, 2], [3]], size=50), "train", tmp_path / "store")
    path = tmp_path / "store" / f"targets.{name}"
    path.unlink() if kept is None else path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ConfigError, match="is corrupt"):
        TokenStore.open(tmp_path / "store")


def test_bound_arguments_are_part_of_a_description(register):
    def described(key_map):
        steps = task_providers.text_steps()
        steps[0] = functools.partial(seqio.preprocessors.rekey, key_map=key_map)
        return describe_store(register("store_rekeyed", steps), "train")["preprocessors"]

    assert described({"targets": "text"}) == described({"targets": "text"})
    assert described({"targets": "text"}) != described({"targets": "url"})


def test_how_a_source_reads_is_part_of_a_description():
    def described(dataset):
        source = seqio.FunctionDataSource(dataset, ["train"])
        feature = seqio.Feature(seqio.PassThroughVocabulary(9), add_eos=False)
        steps = [seqio.CacheDatasetPlaceholder()]
        task = seqio.Task("numbers", source, {"targets": feature}, preprocessors=steps)
        return describe_store(task, "train")["source"]["class"]

    def ones(split, shuffle_files):
        return tf.data.Dataset.from_tensors({"targets": [1]})

    def twos(split, shuffle_files):
        return tf.data.Dataset.from_tensors({"targets": [2]})

    assert described(ones) == described(ones) != described(twos)
