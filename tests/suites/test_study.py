"""The registered names and rates are those of the paper, and registering them costs nothing."""

import subprocess
import sys

import pytest

from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import ConfigError
from t5x_lite.suites import study
from t5x_lite.suites.multilingual import MC4, MIXTURES, Multilingual
from t5x_lite.suites.study import GLUE_EXAMPLES, SUPER_GLUE_EXAMPLES, Study

GLUE_NAMES = [
    "glue_cola_v002",
    "glue_sst2_v002",
    "glue_mrpc_v002",
    "glue_qqp_v002",
    "glue_stsb_v002",
    "glue_mnli_v002",
    "glue_mnli_matched_v002",
    "glue_mnli_mismatched_v002",
    "glue_qnli_v002",
    "glue_rte_v002",
    "glue_wnli_v002",
    "glue_wnli_v002_simple_eval",
    "glue_ax_v002",
]
SUPER_GLUE_NAMES = [
    "super_glue_boolq_v102",
    "super_glue_cb_v102",
    "super_glue_copa_v102",
    "super_glue_multirc_v102",
    "super_glue_record_v102",
    "super_glue_rte_v102",
    "super_glue_wic_v102",
    "super_glue_axb_v102",
    "super_glue_axg_v102",
    "super_glue_wsc_v102_simple_train",
    "super_glue_wsc_v102_simple_eval",
    "dpr_v001_simple",
]
OTHER_NAMES = [
    "squad_v010_allanswers",
    "squad_v010_context_free",
    "squad_v010_allanswers_span",
    "squad_v010",
    "trivia_qa_v010",
    "cnn_dailymail_v002",
    "wmt_t2t_ende_v003",
    "wmt15_enfr_v003",
    "wmt14_ende_v003",
    "wmt14_enfr_v003",
    "wmt16_enro_v003",
    "wmt19_ende_v003",
    "c4_v220_span_corruption",
    "c4_v020_unsupervised",
    "c4_noclean_v020_unsupervised",
    "c4_realnewslike_v020_unsupervised",
    "c4_webtextlike_v020_unsupervised",
    "wikipedia_20190301.en_v003_unsupervised",
]
MIXTURE_NAMES = [
    "glue_v002_proportional",
    "super_glue_v102_proportional",
    "super_glue_v102_proportional_sentinel",
    "glue_mnli_and_dev_v002",
    "en_mix",
    "all_equal",
    "all_proportional",
    "all_mix",
    "large_supervised_equal",
    "large_supervised_proportional",
    "large_translation_equal",
    "squad_trivia_qa_equal",
    "wsc_dpr_simple_proportional",
]
LEFT_OUT = [
    "glue_v002_proportional",
    "super_glue_v102_proportional",
    "cnn_dailymail_v002",
    "squad_v010_allanswers",
    "wmt_t2t_ende_v003",
    "wmt15_enfr_v003",
    "wmt16_enro_v003",
]


TASKS_OF_TEXT = [
    *(task for task in study.TASKS if hasattr(task, "make")),
    *(task for tasks in MIXTURES.values() for task in tasks),
]


def test_registered_names_are_those_of_the_papers_code():
    names = Study().names
    with_sentinel = {name for name in names if "_1_sentinel" in name}
    assert len(set(names)) == len(names)
    assert {name.replace("_1_sentinel", "") for name in with_sentinel} == set(SUPER_GLUE_NAMES)
    assert "super_glue_wsc_v102_simple_1_sentinel_train" in with_sentinel
    mixtures = [*MIXTURE_NAMES, *(f"leave_one_out_{name}" for name in LEFT_OUT)]
    assert set(names) - with_sentinel == {
        *GLUE_NAMES,
        *SUPER_GLUE_NAMES,
        *OTHER_NAMES,
        *mixtures,
    }


def test_the_examples_of_the_benchmarks_add_up_to_the_published_totals():
    assert sum(GLUE_EXAMPLES.values()) == 949_101
    assert sum(SUPER_GLUE_EXAMPLES.values()) == 185_673


def test_multi_task_pretraining_gives_c4_a_rate_by_the_size_of_the_model():
    assert study.C4_RATES == {
        "small": 710_000,
        "base": 2_620_000,
        "large": 8_660_000,
        "3b": 33_500_000,
        "11b": 133_000_000,
    }
    rates = dict(Study(c4_rate=study.C4_RATES["large"]).mixtures()["all_mix"])
    assert rates["c4_v020_unsupervised"] == 8_660_000


def test_rte_counts_half_where_both_benchmarks_have_it():
    mixtures = {name: dict(rates) for name, rates in Study().mixtures().items()}
    for name in ("all_mix", "all_proportional", "leave_one_out_squad_v010_allanswers"):
        assert mixtures[name]["glue_rte_v002"] == 1245
        assert mixtures[name]["super_glue_rte_v102"] == 1245
    left_out = mixtures["leave_one_out_glue_v002_proportional"]
    assert left_out["super_glue_rte_v102"] == 2490
    assert not set(GLUE_EXAMPLES) & set(left_out)
    assert "c4_v020_unsupervised" in left_out


def test_every_mixture_is_made_of_registered_tasks():
    tasks = {task.name for task in study.TASKS}
    for name, rates in Study().mixtures().items():
        parts = [part for part, _ in rates]
        assert len(parts) == len(set(parts)), name
        assert set(parts) <= tasks, name


def test_rates_that_cannot_be_are_refused_when_they_are_declared():
    with pytest.raises(ConfigError, match="limit is 0"):
        Study(limit=0)
    with pytest.raises(ConfigError, match="temperature is 0"):
        Study(temperature=0)


def test_every_module_that_makes_text_decides_whether_a_plan_is_kept():
    from importlib import import_module

    made_by = {getattr(task.make, "func", task.make).__module__ for task in TASKS_OF_TEXT}
    assert made_by <= set(Study().sources) == set(Multilingual().sources)
    assert all(import_module(name).__file__ for name in Study().sources)


def test_declaring_needs_neither_seqio_nor_the_metrics_libraries():
    program = (
        "import sys; from t5x_lite.suites.study import Study;"
        "from t5x_lite.suites.multilingual import Multilingual;"
        "Study().names, Multilingual().names;"
        "heavy = {'seqio', 'tensorflow', 'jax', 'sklearn', 'scipy', 'sacrebleu', 'rouge_score'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_registering_opens_no_connection_and_no_data_set(monkeypatch):
    seqio = pytest.importorskip("seqio")
    import socket

    def refuse(*_, **__):
        raise AssertionError("registering must not touch the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(seqio.utils.LazyTfdsLoader, "_get_builder", refuse)
    Study().register("", print)  # the vocabulary is that of T5, on gs://
    Multilingual().register("", print)
    assert {*Study().names, *Multilingual().names} <= {
        *seqio.TaskRegistry.names(),
        *seqio.MixtureRegistry.names(),
    }
    glue = seqio.MixtureRegistry.get("glue_v002_proportional")
    assert sum(glue.get_rate(task) for task in glue.tasks) == 949_101


def test_every_mt5_mixture_draws_its_training_tasks_at_one_rate():
    seqio = pytest.importorskip("seqio")
    Multilingual(vocabulary=ByteVocabulary()).register("", print)
    for name in MIXTURES:
        mixture = seqio.MixtureRegistry.get(name)
        rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
        drawn = {task.name for task in mixture.tasks if "train" in task.splits}
        assert drawn
        assert rates == {task: float(task in drawn) for task in rates}


def test_mc4_has_a_task_for_each_of_101_languages_six_scripts_and_the_rest():
    assert len(MC4) == 108
    assert MC4["pt"].splits == {"train": "pt", "validation": "pt-validation"}
    assert MC4["zh-Latn"].name == "mc4.zh_Latn"
    assert MC4["und"].tfds == "c4/multilingual:3.0.1"


def test_a_languages_rate_can_be_given():
    seqio = pytest.importorskip("seqio")
    rates = {"de": 3.0, "sw": 1.0}
    Multilingual(vocabulary=ByteVocabulary(), languages=("de", "sw"), rates=rates).register(
        "", print
    )
    mc4 = seqio.MixtureRegistry.get("mc4")
    assert {task.name: mc4.get_rate(task) for task in mc4.tasks} == {"mc4.de": 3.0, "mc4.sw": 1.0}
