import itertools
import subprocess
import sys

import numpy as np
import pytest

from t5x_lite.data.sources import embedded_corpus
from t5x_lite.data.tasks import task_providers
from t5x_lite.data.tasks.task_providers import EmbeddedCorpus, JsonLinesSource, JsonLinesText
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.span_corruption import SpanCorruption
from t5x_lite.tokenizers.vocabularies import Vocabulary

seqio = pytest.importorskip("seqio")

BODY = "The start value is added to it. When the iterable is empty, return the start value alone."
LENGTHS = {"inputs": 64, "targets": 20}


def document(text, name="math.fsum"):
    return {"text": text, "url": f"https://docs.invalid/{name}", "timestamp": ""}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def vocabulary(data_dir):
    """The vocabulary of a small embedded corpus, whose tasks are registered."""
    declared = EmbeddedCorpus(vocab_size=500, limit=100, packages=("optax",))
    declared.register(data_dir)
    return Vocabulary(f"{data_dir}/embedded/unigram.500.model")


def test_a_docstring_becomes_a_summarisation_pair():
    pair = task_providers.summary_pair(document(f"Return the sum of numbers.\n\n{BODY}"))
    assert pair == (f"summarize: {BODY}", "Return the sum of numbers.")


@pytest.mark.parametrize(
    "text",
    [
        "Return the sum of numbers.",
        "Return the sum of numbers.\n\nA short remark.",
        f"Return the sum\nof some numbers.\n\n{BODY}",
        f"Parameters\n\n{BODY}",
    ],
)
def test_texts_without_headline_or_body_are_not_summarized(text):
    assert task_providers.summary_pair(document(text)) is None


def test_a_docstring_becomes_a_naming_pair():
    pair = task_providers.name_pair(document(f"Return the sum of numbers.\n\n{BODY}"))
    assert pair == ("name: Return the sum of numbers.", "fsum")


@pytest.mark.parametrize("name", ["math.__init__", "math._fsum", "math.fs", "fsum-2"])
def test_names_that_tell_nothing_are_not_asked_for(name):
    assert task_providers.name_pair(document("Return the sum of numbers.", name)) is None


def test_declaring_needs_neither_seqio_nor_tensorflow():
    program = (
        "import sys; from t5x_lite.data.tasks.task_providers import EmbeddedCorpus;"
        "print(EmbeddedCorpus().names);"
        "assert not {'seqio', 'tensorflow', 'jax'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pair_tasks_hold_the_pairs_of_the_documents_in_their_order(vocabulary, data_dir):
    documents = embedded_corpus.read_documents(f"{data_dir}/embedded/corpus", "train")
    expected = [pair for d in documents if (pair := task_providers.summary_pair(d))]
    dataset = seqio.get_mixture_or_task("embedded_summarize").get_dataset(
        {"inputs": 999, "targets": 999}, "train", shuffle=False
    )
    examples = list(dataset.as_numpy_iterator())
    assert len(examples) == len(expected) > 100
    for example, (inputs, targets) in zip(examples, expected, strict=True):
        assert example["inputs_pretokenized"].decode() == inputs
        assert example["targets_pretokenized"].decode() == targets
        if len(example["targets"]) < 999:
            assert example["targets"].tolist() == [*vocabulary.encode(targets), 1]


@pytest.fixture(scope="module")
def grouped(vocabulary, data_dir):
    """A text task over few documents, joined by twos."""
    steps = task_providers.text_steps(SpanCorruption(documents_per_group=2))
    source = JsonLinesSource(f"{data_dir}/embedded/corpus")
    task_providers.add_task("tasks_grouped", source, steps, vocabulary)
    return seqio.TaskRegistry.get("tasks_grouped")


def read_text(task, seed):
    dataset = task.get_dataset(LENGTHS, "validation", shuffle=False, seed=seed)
    return list(dataset.as_numpy_iterator())


def merge(inputs, targets, first_sentinel):
    """Put the spans of the targets back where their sentinels stand in the inputs."""
    spans, current = {}, []
    for token in targets:
        if token > first_sentinel - 100:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return list(itertools.chain(*(spans.get(t, [t]) for t in inputs)))


def test_seqio_runs_the_objective_on_pieces_of_joined_documents(vocabulary, grouped):
    raw_length = SpanCorruption().raw_length(LENGTHS)
    documents = grouped.preprocess_precache(grouped.source.get_dataset("validation", shuffle=False))
    tokens = [d["targets"].tolist() for d in documents.as_numpy_iterator()]
    groups = [list(itertools.chain(*tokens[i : i + 2])) for i in range(0, len(tokens), 2)]
    pieces = [g[i : i + raw_length] for g in groups for i in range(0, len(g), raw_length)]
    examples = read_text(grouped, seed=3)
    assert len(groups) > 1
    assert len(examples) == len(pieces)
    for example, piece in zip(examples, pieces, strict=True):
        inputs, targets = example["inputs"].tolist(), example["targets"].tolist()
        assert inputs.pop() == targets.pop() == 1
        assert merge(inputs, targets, vocabulary.sentinels.first) == piece


def test_seqios_seed_decides_the_noise(grouped):
    one, again, other = (read_text(grouped, seed) for seed in (1, 1, 2))
    for feature in LENGTHS:
        flat = [np.concatenate([e[feature] for e in examples]) for examples in (one, again, other)]
        np.testing.assert_array_equal(flat[0], flat[1])
        assert not np.array_equal(flat[0], flat[2])


def test_the_mixture_has_examples_proportional_rates(vocabulary, data_dir):
    mixture = seqio.get_mixture_or_task("embedded_mix")
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    counts = {
        task.name: len(list(task.get_dataset(LENGTHS, "train", shuffle=False)))
        for task in mixture.tasks
        if task.name != "embedded_text"
    }
    assert counts["embedded_summarize"] > 100
    assert rates == dict.fromkeys(rates, 10.0)  # all above the limit of 100
    EmbeddedCorpus(vocab_size=500, temperature=1.0, packages=("optax",)).register(data_dir)
    mixture = seqio.get_mixture_or_task("embedded_mix")
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    text_characters = sum(
        len(d["text"])
        for split in ("train", "validation")
        for d in embedded_corpus.read_documents(f"{data_dir}/embedded/corpus", split)
    )
    assert rates == counts | {"embedded_text": text_characters // 512}


def test_other_mixtures_leave_out_a_task_or_draw_all_alike(vocabulary, data_dir):
    declared = EmbeddedCorpus(vocab_size=500, temperature=1.0, packages=("optax",))
    declared.register(data_dir)
    rates = {}
    for name in declared.names[3:]:
        mixture = seqio.get_mixture_or_task(name)
        rates[name] = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    text, *pairs = declared.names[:3]
    assert rates["embedded_equal"] == {text: 1.0, **dict.fromkeys(pairs, 1.0)}
    of_all = rates["embedded_mix"]
    assert rates["embedded_supervised"] == {name: of_all[name] for name in pairs}
    for left_out in pairs:
        kept = {name: rate for name, rate in of_all.items() if name != left_out}
        assert rates[f"leave_one_out_{left_out}"] == kept


def test_mixing_that_cannot_work_is_refused_when_it_is_declared():
    with pytest.raises(ConfigError, match="limit is 0") as caught:
        EmbeddedCorpus(limit=0)
    assert caught.value.names[0] == "EmbeddedCorpus.limit"


def test_registering_again_takes_the_place_of_the_first(vocabulary, data_dir, capsys, log_lines):
    before = seqio.TaskRegistry.get("embedded_text")
    EmbeddedCorpus(vocab_size=500, packages=("optax",)).register(data_dir)
    assert seqio.TaskRegistry.get("embedded_text") is not before
    assert log_lines == []  # nothing had to be made
    assert capsys.readouterr().out == ""


def test_what_is_made_is_logged(tmp_path, log_lines):
    EmbeddedCorpus(vocab_size=300, packages=("gin",)).register(str(tmp_path))
    assert log_lines == [
        "collecting the embedded corpus from installed packages ...",
        "training a vocabulary of 300 pieces ...",
    ]


def test_a_source_without_shards_is_named_by_its_pattern(tmp_path):
    with pytest.raises(ConfigError) as caught:
        JsonLinesSource(str(tmp_path)).to_seqio()
    assert str(caught.value) == f"no file matches {tmp_path}/c4-train.*.json*"
    assert caught.value.names == ("DATA_DIR",)


def test_a_corpus_without_validation_shards_has_one_split(vocabulary, tmp_path):
    (tmp_path / "c4-train.00000-of-00001.json").write_text('{"text": "Trees grow slowly."}\n')
    JsonLinesText("tasks_plain", str(tmp_path), vocabulary).register("")
    task = seqio.TaskRegistry.get("tasks_plain")
    assert list(task.splits) == ["train"]
    [example] = task.get_dataset(LENGTHS, "train", shuffle=False).as_numpy_iterator()
    merged = merge(example["inputs"][:-1], example["targets"][:-1], vocabulary.sentinels.first)
    assert vocabulary.decode(merged) == "Trees grow slowly."
