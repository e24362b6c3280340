"""The tasks and mixtures of the T5 paper (Raffel et al. 2020), as one task provider."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from t5x_lite.data.code_identity import versioned
from t5x_lite.data.tasks.mixing_rates import ExamplesProportionalRate
from t5x_lite.metrics.task_metrics import TaskMetrics
from t5x_lite.objectives.objective import Objective
from t5x_lite.suites import glue_superglue, text_generation
from t5x_lite.suites.task_specs import (
    TaskTable,
    TextTask,
    add_mixtures,
    evaluations,
    own_objectives,
)
from t5x_lite.tokenizers.vocabularies import AnyVocabulary, Vocabulary

T5_VOCABULARY = "gs://t5-data/vocabs/cc_all.32000/sentencepiece.model"

# Number of training examples of each task, which is its rate. Tasks of rate 0 are evaluated only.
# The T5 paper omits WNLI, because its validation set contradicts its training set, and trains on
# WSC and DPR instead. Source: T5's code, glue_utils.
GLUE_EXAMPLES: Mapping[str, int] = {
    "glue_cola_v002": 8_551,
    "glue_sst2_v002": 67_349,
    "glue_mrpc_v002": 3_668,
    "glue_qqp_v002": 363_849,
    "glue_stsb_v002": 5_749,
    "glue_mnli_v002": 392_702,
    "glue_qnli_v002": 104_743,
    "glue_rte_v002": 2_490,
    "glue_mnli_mismatched_v002": 0,
    "glue_mnli_matched_v002": 0,
    "glue_ax_v002": 0,
}
SUPER_GLUE_EXAMPLES: Mapping[str, int] = {
    "dpr_v001_simple": 1_322,
    "super_glue_wsc_v102_simple_train": 259,
    "super_glue_wsc_v102_simple_eval": 0,
    "super_glue_boolq_v102": 9_427,
    "super_glue_cb_v102": 250,
    "super_glue_copa_v102": 400,
    "super_glue_multirc_v102": 27_243,
    "super_glue_record_v102": 138_854,
    "super_glue_rte_v102": 2_490,
    "super_glue_wic_v102": 5_428,
    "super_glue_axb_v102": 0,
    "super_glue_axg_v102": 0,
}
# Rate of C4 in the multi-task pretraining of the released models, by size.
C4_RATES: Mapping[str, float] = {
    "small": 710_000,
    "base": 2_620_000,
    "large": 8_660_000,
    "3b": 33_500_000,
    "11b": 133_000_000,
}

_C4 = "c4_v020_unsupervised"
_GLUE, _SUPER_GLUE = "glue_v002_proportional", "super_glue_v102_proportional"
_LARGE_TRANSLATIONS = ("wmt_t2t_ende_v003", "wmt15_enfr_v003")
_OTHERS = ("cnn_dailymail_v002", "squad_v010_allanswers", *_LARGE_TRANSLATIONS, "wmt16_enro_v003")
_SUPERVISED = (*GLUE_EXAMPLES, *SUPER_GLUE_EXAMPLES, *_OTHERS)
_LEAVE_ONE_OUT = (_GLUE, _SUPER_GLUE, *_OTHERS)

TASKS: TaskTable = (
    *text_generation.C4,
    *text_generation.WIKIPEDIA,
    *glue_superglue.GLUE,
    *glue_superglue.SUPER_GLUE,
    *glue_superglue.SUPER_GLUE_WITH_SENTINEL,
    *text_generation.QUESTIONS,
    *text_generation.SUMMARIES,
    *text_generation.TRANSLATIONS,
)


@versioned("t5_tasks", 1)
@dataclass(frozen=True)
class Study:
    """Task provider of the T5 paper's tasks and mixtures, over data sets that TFDS has prepared.

    Args:
        vocabulary: Vocabulary of all tasks. The default is T5's, on Google Cloud Storage.
        limit: The largest number of examples of a task that counts in examples-proportional rates
            (the paper's K); None is no limit. The default is the paper's 2**19.
        temperature: Temperature of these rates (the paper's T); 1 leaves them in proportion.
        c4_rate: Rate of C4 in "en_mix" and "all_mix". The default is that of the base model.
        tfds_data_dir: Directory of TFDS data sets; None is TFDS's default.
        c4_version: Version of C4 in TFDS; T5 used 2.2.0.

    Raises:
        ConfigError: `limit` or `temperature` is not positive.
    """

    vocabulary: AnyVocabulary = Vocabulary(T5_VOCABULARY)  # noqa: RUF009  # reads nothing
    limit: float | None = 2**19
    temperature: float = 1.0
    c4_rate: float = C4_RATES["base"]
    tfds_data_dir: str | None = None
    c4_version: str = "2.2.0"

    def __post_init__(self):
        ExamplesProportionalRate(self.limit, self.temperature)  # checks both

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tasks and mixtures."""
        return (*(task.name for task in TASKS), *self.mixtures())

    @property
    def objectives(self) -> Mapping[str, Objective]:
        """Objectives of the tasks that have their own."""
        return own_objectives(TASKS)

    @property
    def evaluations(self) -> Mapping[str, TaskMetrics]:
        """Postprocessor and metrics by task."""
        return evaluations(TASKS)

    @property
    def contents(self) -> Any:
        """The tables of tasks and mixtures, which are part of the identity of the plan."""
        return TASKS, self.mixtures()

    def register(self, data_dir: str) -> None:
        """Register all tasks and mixtures with seqio; no data set is opened."""
        for task in TASKS:
            if isinstance(task, TextTask) and task.tfds.startswith("c4/"):
                task = replace(task, tfds=f"{task.tfds.split(':')[0]}:{self.c4_version}")
            task.register(self.vocabulary, self.tfds_data_dir)
        add_mixtures(self.mixtures())

    def mixtures(self) -> dict[str, list[tuple[str, Any]]]:
        """Return the rates of every mixture: numbers, or functions of a task."""
        by_examples = ExamplesProportionalRate(self.limit, self.temperature)
        small = (*GLUE_EXAMPLES, *SUPER_GLUE_EXAMPLES, "squad_v010_allanswers")
        large = (*_LARGE_TRANSLATIONS, "cnn_dailymail_v002")
        wsc = [name for name in SUPER_GLUE_EXAMPLES if "wsc" in name or "dpr" in name]
        with_sentinel = zip(
            glue_superglue.SUPER_GLUE_WITH_SENTINEL, glue_superglue.SUPER_GLUE, strict=True
        )
        return {
            _GLUE: _numbers(GLUE_EXAMPLES),
            _SUPER_GLUE: _numbers(SUPER_GLUE_EXAMPLES),
            f"{_SUPER_GLUE}_sentinel": [
                (task.name, float(SUPER_GLUE_EXAMPLES[plain.name])) for task, plain in with_sentinel
            ],
            "glue_mnli_and_dev_v002": _all_at(1.0, [n for n in GLUE_EXAMPLES if "mnli" in n]),
            "en_mix": [(_C4, self.c4_rate), *_all_at(by_examples, small)],
            "all_equal": _all_at(1.0, (*_SUPERVISED, _C4)),
            "all_proportional": [*_shared_rte(_SUPERVISED, by_examples), (_C4, by_examples)],
            "all_mix": [(_C4, self.c4_rate), *_shared_rte(_SUPERVISED, by_examples)],
            **{f"leave_one_out_{name}": _without(name, by_examples) for name in _LEAVE_ONE_OUT},
            "large_supervised_equal": _all_at(1.0, large),
            "large_supervised_proportional": _all_at(by_examples, large),
            "large_translation_equal": _all_at(1.0, _LARGE_TRANSLATIONS),
            "squad_trivia_qa_equal": _all_at(1.0, ("squad_v010_allanswers", "trivia_qa_v010")),
            "wsc_dpr_simple_proportional": _numbers({n: SUPER_GLUE_EXAMPLES[n] for n in wsc}),
        }


def _numbers(examples: Mapping[str, int]) -> list[tuple[str, Any]]:
    return [(name, float(count)) for name, count in examples.items()]


def _all_at(rate: Any, names: Iterable[str]) -> list[tuple[str, Any]]:
    return [(name, rate) for name in names]


def _rates(names: Iterable[str], otherwise: Any) -> list[tuple[str, Any]]:
    """Return the numbers of examples of the benchmarks' tasks, and `otherwise` for others."""
    known = {**GLUE_EXAMPLES, **SUPER_GLUE_EXAMPLES}
    return [(name, float(known[name]) if name in known else otherwise) for name in names]


def _shared_rte(names: Iterable[str], otherwise: Any) -> list[tuple[str, Any]]:
    """Return `_rates`, but half the rate of RTE, which is in both benchmarks."""
    return [(name, rate / 2 if "rte" in name else rate) for name, rate in _rates(names, otherwise)]


def _without(omitted: str, by_examples: ExamplesProportionalRate) -> list[tuple[str, Any]]:
    """Return the rates of all tasks except one, or except those of one benchmark."""
    benchmark = {_GLUE: GLUE_EXAMPLES, _SUPER_GLUE: SUPER_GLUE_EXAMPLES}.get(omitted)
    removed = {omitted, *(benchmark or ())}
    names = [name for name in (*_SUPERVISED, _C4) if name not in removed]
    return (_rates if benchmark else _shared_rte)(names, by_examples)
