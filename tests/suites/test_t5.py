"""The registered names and rates are those of the paper, and registering them costs nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from t5x_lite.data.code_identity import describe
from t5x_lite.data.tasks.mixing_rates import ExamplesProportionalRate
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.language_models import FullLM, LMAdaptation
from t5x_lite.objectives.span_corruption import SpanCorruption
from t5x_lite.objectives.t5_study import PrefixLM, ReplaceSpans
from t5x_lite.suites import t5
from t5x_lite.suites.mt5 import MC4, MIXTURES, Multilingual
from t5x_lite.suites.t5 import GLUE_EXAMPLES, SUPER_GLUE_EXAMPLES, Study
from t5x_lite.suites.task_specs import TextTask
from t5x_lite.tokenizers.vocabularies import ByteVocabulary

T5 = json.loads(Path(__file__).with_name("references").joinpath("t5_registry.json").read_text())
# What T5 calls these two is not their name in TFDS.
TFDS_NAMES = {
    "c4/en.realnewslike:2.2.0": "c4/realnewslike:2.2.0",
    "c4/en.webtextlike:2.2.0": "c4/webtextlike:2.2.0",
}
RATES = {
    "rate_num_examples": ExamplesProportionalRate(2**19),
    "rate_unsupervised": t5.C4_RATES["base"],
}


TASKS_OF_TEXT = [
    *(task for task in t5.TASKS if hasattr(task, "make")),
    *(task for tasks in MIXTURES.values() for task in tasks),
]


def test_tasks_are_those_that_t5_registers_over_the_same_data():
    tasks = {task.name: task for task in t5.TASKS}
    assert len(tasks) == len(t5.TASKS)
    assert {name: task.tfds for name, task in tasks.items()} == {
        name: TFDS_NAMES.get(task["tfds"], task["tfds"]) for name, task in T5["tasks"].items()
    }
    for name, task in tasks.items():
        if not isinstance(task, TextTask):
            assert len(task.metrics) == T5["tasks"][name]["metrics"], name
            assert (task.postprocess is not None) == T5["tasks"][name]["postprocess"], name


def test_mixtures_and_their_rates_are_those_that_t5_registers():
    ours = {name: dict(rates) for name, rates in Study().mixtures().items()}
    theirs = {
        name: {task: RATES.get(rate, rate) for task, rate in rates.items()}
        for name, rates in T5["mixtures"].items()
    }
    assert ours == theirs
    assert {*Study().names} == {*T5["tasks"], *T5["mixtures"]}


def test_tasks_that_name_an_objective_have_it():
    assert Study().objectives == {
        "c4_v220_span_corruption": SpanCorruption(0.15, 3.0),
        "c4_v220_iid_denoising": ReplaceSpans(noise_density=0.15),
        "c4_v220_prefix_lm": PrefixLM(noise_density=0.5),
        "c4_v220_full_lm": FullLM(),
        "c4_prefix_lm_objective_encoder_decoder_architecture": LMAdaptation(),
        "c4_prefix_lm_objective_decoder_architecture": LMAdaptation(),
    }


def test_the_examples_of_the_benchmarks_add_up_to_the_published_totals():
    assert sum(GLUE_EXAMPLES.values()) == 949_101
    assert sum(SUPER_GLUE_EXAMPLES.values()) == 185_673


def test_multi_task_pretraining_gives_c4_a_rate_by_the_size_of_the_model():
    assert t5.C4_RATES == {
        "small": 710_000,
        "base": 2_620_000,
        "large": 8_660_000,
        "3b": 33_500_000,
        "11b": 133_000_000,
    }
    rates = dict(Study(c4_rate=t5.C4_RATES["large"]).mixtures()["all_mix"])
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
    tasks = {task.name for task in t5.TASKS}
    for name, rates in Study().mixtures().items():
        parts = [part for part, _ in rates]
        assert len(parts) == len(set(parts)), name
        assert set(parts) <= tasks, name


def test_rates_that_cannot_be_are_refused_when_they_are_declared():
    with pytest.raises(ConfigError, match="limit is 0"):
        Study(limit=0)
    with pytest.raises(ConfigError, match="temperature is 0"):
        Study(temperature=0)


def test_every_function_that_makes_text_decides_whether_a_plan_is_kept():
    contents = json.dumps(describe([Study().contents, Multilingual().contents]))
    for task in TASKS_OF_TEXT:
        assert json.dumps(describe(task.make)) in contents


def test_declaring_needs_neither_seqio_nor_the_metrics_libraries():
    program = (
        "import sys; from t5x_lite.suites.t5 import Study;"
        "from t5x_lite.suites.mt5 import Multilingual;"
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
    Study().register("")  # the vocabulary is that of T5, on gs://
    Multilingual().register("")
    assert {*Study().names, *Multilingual().names} <= {
        *seqio.TaskRegistry.names(),
        *seqio.MixtureRegistry.names(),
    }
    glue = seqio.MixtureRegistry.get("glue_v002_proportional")
    assert sum(glue.get_rate(task) for task in glue.tasks) == 949_101


def test_every_mt5_mixture_draws_its_training_tasks_at_one_rate():
    seqio = pytest.importorskip("seqio")
    Multilingual(vocabulary=ByteVocabulary()).register("")
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
    Multilingual(vocabulary=ByteVocabulary(), languages=("de", "sw"), rates=rates).register("")
    mc4 = seqio.MixtureRegistry.get("mc4")
    assert {task.name: mc4.get_rate(task) for task in mc4.tasks} == {"mc4.de": 3.0, "mc4.sw": 1.0}
