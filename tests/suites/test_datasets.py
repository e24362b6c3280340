"""Data sets on disk in TFDS's format, through seqio and into token stores."""

import pytest

from t5x_lite.data.data_config import Data
from t5x_lite.data.prepare import prepare
from t5x_lite.errors import ConfigError
from t5x_lite.suites.mt5 import Multilingual
from t5x_lite.suites.t5 import Study
from t5x_lite.tokenizers.vocabularies import ByteVocabulary

seqio = pytest.importorskip("seqio")

BYTES = ByteVocabulary()
LENGTHS = {"inputs": 400, "targets": 100}


@pytest.fixture(scope="module", autouse=True)
def _registered(tfds_data_dir):
    Study(vocabulary=BYTES, tfds_data_dir=tfds_data_dir).register("")
    Multilingual(vocabulary=BYTES, tfds_data_dir=tfds_data_dir).register("")


def read(name, split="train"):
    task = seqio.TaskRegistry.get(name)
    return list(task.get_dataset(LENGTHS, split, shuffle=False).as_numpy_iterator())


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        (
            "glue_cola_v002",
            [
                ("cola sentence: Our friends won't buy this analysis.", "acceptable"),
                ("cola sentence: They drank the pub.", "unacceptable"),
            ],
        ),
        ("glue_stsb_v002", [("stsb sentence1: Ann ran. sentence2: Bob ran.", "3.2")]),
        (
            "super_glue_multirc_v102",
            [("multirc question: Who ran? answer: Ann paragraph: Sent 1: Ann ran. ", "True")],
        ),
        (
            "super_glue_record_v102",
            [
                *(
                    (
                        "record query: @placeholder ran. entities: Ann, Bob passage: Ann ran. "
                        "Bob sat",
                        name,
                    )
                    for name in ("Ann", "Annie")
                ),
                ("record query: @placeholder sat. entities: Eve passage: Eve sat.", "<unk>"),
            ],
        ),
        (
            "super_glue_wsc_v102_simple_train",
            [("wsc: Mitchell asked Tom if *he* could lend some money.", "Tom")],
        ),
        ("dpr_v001_simple", [("wsc: The bee hit the window because *it* was open.", "the window")]),
        (
            "squad_v010_allanswers",
            [("question: Who ran ? context: In the U . S . , Ann ran . ", "Ann")],
        ),
        ("squad_v010_context_free", [("squad trivia question: Who ran ? ", "Ann")]),
        (
            "trivia_qa_v010",
            [
                ("question: Who wrote Nana ? context: Emile Zola wrote . ", "zola"),
                ("question: Who wrote Nana ? context: Emile Zola wrote . ", "emile zola"),
                ("question: Who wrote Nana ? context: ZOLA ! ", "zola"),
            ],
        ),
        ("cnn_dailymail_v002", [("summarize: Ann ran.", "Ann ran .\nBob sat .")]),
        ("wmt16_enro_v003", [("translate English to Romanian: That is good.", "Este bine.")]),
        ("mt5_ner_train.en", [("tag: Ada saw London", "PER: Ada $$ LOC: London")]),
    ],
)
def test_rows_of_a_data_set_are_read_as_text(name, pairs):
    examples = read(name)
    assert [
        (e["inputs_pretokenized"].decode(), e["targets_pretokenized"].decode()) for e in examples
    ] == pairs
    for example, (inputs, targets) in zip(examples, pairs, strict=True):
        assert example["inputs"].tolist() == [*BYTES.encode(inputs), 1]
        assert example["targets"].tolist() == [*BYTES.encode(targets), 1]


def test_a_language_of_xnli_is_found_among_the_others():
    [example] = read("mt5_xnli_dev_test.fr", "validation")
    assert example["inputs_pretokenized"].decode() == (
        "xnli: premise: Il pleut. hypothesis: C'est mouillé."
    )


def test_what_evaluation_needs_comes_along():
    task = seqio.TaskRegistry.get("super_glue_record_v102")
    examples = read(task.name, "validation")
    targets = [task.postprocess_fn("", example=e, is_target=True) for e in examples]
    assert targets[0] == targets[1] == {"value": ["Ann", "Annie"], "group": (0, 1)}
    [example] = read("squad_v010_allanswers", "validation")
    task = seqio.TaskRegistry.get("squad_v010_allanswers")
    answers = task.postprocess_fn("", example=example, is_target=True)
    assert answers == ["Ann", "She"]
    [metric] = task.metric_fns
    assert metric([answers], ["she"]) == {"em": 100.0, "f1": 100.0}


def test_a_candidate_that_is_wrong_is_evaluated_by_its_label():
    task = seqio.TaskRegistry.get("super_glue_wsc_v102_simple_eval")
    examples = read(task.name, "validation")
    targets = [task.postprocess_fn("", example=e, is_target=True) for e in examples]
    found = [task.postprocess_fn("Tom", example=e, is_target=False) for e in examples]
    assert (targets, found) == ([0, 1], [0, 1])


def test_a_sentinel_ends_the_inputs_and_begins_the_targets():
    [example] = read("dpr_v001_simple_1_sentinel")
    first = BYTES.sentinels.first
    assert example["inputs"].tolist()[-2:] == [first, 1]
    assert example["targets"].tolist() == [first, *BYTES.encode("the window"), 1]


def test_a_mixture_becomes_token_stores(tfds_data_dir, tmp_path):
    declared = Study(vocabulary=BYTES, tfds_data_dir=tfds_data_dir)
    data = Data("squad_trivia_qa_equal", LENGTHS, str(tmp_path), task_providers=(declared,))
    plan = prepare(data)
    assert plan.vocabulary() == BYTES
    sizes = {task.name: task.store.num_examples for task in plan.train_tasks()}
    assert sizes == {"squad_v010_allanswers": 1, "trivia_qa_v010": 3}
    squad = plan.train_tasks()[0].store
    assert BYTES.decode(squad.tokens("targets").tolist()) == "Ann"
    assert [task.name for task in plan.validation_tasks()] == list(sizes)
    assert prepare(data) == plan


def test_text_is_stored_for_the_objective(tfds_data_dir, tmp_path):
    declared = Study(vocabulary=BYTES, tfds_data_dir=tfds_data_dir)
    data = Data("c4_v020_unsupervised", {"inputs": 64, "targets": 40}, str(tmp_path))
    data = Data(**{**vars(data), "task_providers": (declared,)})
    [task] = prepare(data).train_tasks()
    assert task.objective is not None
    assert task.store.num_examples == 40


def test_rates_by_examples_count_what_tfds_holds(tfds_data_dir):
    Study(vocabulary=BYTES, tfds_data_dir=tfds_data_dir, limit=3, temperature=2.0).register("")
    mixture = seqio.MixtureRegistry.get("en_mix")
    rates = {
        name: mixture.get_rate(seqio.TaskRegistry.get(name))
        for name in ("c4_v020_unsupervised", "squad_v010_allanswers", "glue_cola_v002")
    }
    assert rates == pytest.approx(
        {"c4_v020_unsupervised": 2_620_000, "squad_v010_allanswers": 1, "glue_cola_v002": 2**0.5}
    )


def test_a_data_set_that_was_never_prepared_is_named(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds.core.utils.gcs_utils, "_is_gcs_disabled", True)
    declared = Study(vocabulary=BYTES, tfds_data_dir=str(tmp_path / "nothing"))
    data = Data("glue_cola_v002", LENGTHS, str(tmp_path), task_providers=(declared,))
    with pytest.raises(ConfigError, match=r"glue/cola:1\.0\.0.*tfds build") as caught:
        prepare(data)
    assert "Study.tfds_data_dir" in caught.value.names
