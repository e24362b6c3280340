"""Rank classification: every label is scored as a target; the most likely one is the prediction."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from t5x_lite.data.code_identity import versioned
from t5x_lite.data.formats import coreference, glue
from t5x_lite.data.tasks.text_formats import MakeExamples
from t5x_lite.metrics import metric_functions, postprocessors
from t5x_lite.metrics.task_metrics import TaskMetrics
from t5x_lite.suites import glue_superglue
from t5x_lite.suites.t5 import GLUE_EXAMPLES, SUPER_GLUE_EXAMPLES, T5_VOCABULARY
from t5x_lite.suites.task_specs import SupervisedTask, add_mixtures, evaluations
from t5x_lite.tokenizers.vocabularies import AnyVocabulary, Vocabulary

_NUMBERING = ("idx/question", "idx/option")
_LABELS = ("False", "True")


def with_options(task: SupervisedTask, *, normalize_by_length: bool) -> SupervisedTask | None:
    """Return a task's variant of one example per label, for evaluation; None if it has no labels.

    "super_glue_copa_v102" becomes "super_glue_copa_v102_options". MultiRC has its own metrics. The
    options of DPR are its candidates; its only evaluation split is "test". An example of WSC has
    one candidate, so its options are T5's answers False and True.

    Args:
        task: A classification task.
        normalize_by_length: Whether a label's log-likelihood is divided by its number of tokens.
    """
    labels: Sequence[str] | None = getattr(task.make, "keywords", {}).get("labels")
    splits = {name: split for name, split in task.splits.items() if name != "train"}
    special = _SPECIAL.get(task.name)
    if special is None and (labels is None or not task.metrics):
        return None
    make, fields, numbering, metric = special or (
        functools.partial(glue.options, make=task.make, labels=tuple(labels or ())),
        task.fields,
        _NUMBERING,
        metric_functions.rank_classification,
    )
    if not splits:
        return None
    return replace(
        task,
        name=f"{task.name.removesuffix('_simple_eval').removesuffix('_simple')}_options",
        splits=splits,
        make=make,
        fields=fields,
        extras=dict.fromkeys(("is_correct", *numbering), "number"),
        postprocess=postprocessors.ranked,
        metrics=(functools.partial(metric, normalize_by_length=normalize_by_length),),
    )


# Tasks without fixed labels: the function that makes the options, the fields it reads, the fields
# that number questions and options, and the metric.
_SPECIAL: Mapping[str, tuple[MakeExamples, Sequence[str], Sequence[str], Callable[..., Any]]] = {
    "super_glue_multirc_v102": (
        functools.partial(glue.options, make=glue.multirc, labels=_LABELS),
        ("question", "answer", "paragraph", "label", *glue_superglue.MULTIRC_PLACE),
        (*glue_superglue.MULTIRC_PLACE, "idx/option"),
        metric_functions.rank_multirc,
    ),
    "super_glue_wsc_v102_simple_eval": (
        functools.partial(glue.options, make=coreference.wsc_marked, labels=_LABELS),
        ("text", "span1_text", "span1_index", "span2_text", "span2_index", "label", "idx"),
        _NUMBERING,
        metric_functions.rank_classification,
    ),
    "dpr_v001_simple": (
        coreference.definite_pronoun_options,
        ("sentence", "pronoun", "candidates", "label"),
        _NUMBERING,
        metric_functions.rank_classification,
    ),
}


@versioned("rank_classification_tasks", 1)
@dataclass(frozen=True)
class StudyOptions:
    """Task provider of GLUE's and SuperGLUE's classification tasks as rank classification.

    Its mixtures "glue_options" and "super_glue_options" are for `t5x_lite evaluate`. They have no
    training split.

    Args:
        vocabulary: Vocabulary of all tasks. The default is T5's, on Google Cloud Storage.
        normalize_by_length: Whether a label's log-likelihood is divided by its number of tokens.
        tfds_data_dir: Directory of TFDS data sets; None is TFDS's default.
    """

    vocabulary: AnyVocabulary = Vocabulary(T5_VOCABULARY)  # noqa: RUF009  # reads nothing
    normalize_by_length: bool = False
    tfds_data_dir: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tasks and mixtures."""
        mixtures = self._mixtures()
        return (*(task.name for tasks in mixtures.values() for task in tasks), *mixtures)

    @property
    def evaluations(self) -> Mapping[str, TaskMetrics]:
        """Postprocessor and metrics by task."""
        return evaluations([task for tasks in self._mixtures().values() for task in tasks])

    @property
    def contents(self) -> Any:
        """The tables of tasks, which are part of the identity of the plan."""
        return self._mixtures()

    def register(self, data_dir: str) -> None:
        """Register all tasks and mixtures with seqio; no data set is opened."""
        for name, tasks in self._mixtures().items():
            for task in tasks:
                task.register(self.vocabulary, self.tfds_data_dir)
            add_mixtures({name: [(task.name, 0.0) for task in tasks]})

    def _mixtures(self) -> dict[str, list[SupervisedTask]]:
        tables = {
            "glue_options": [task for task in glue_superglue.GLUE if task.name in GLUE_EXAMPLES],
            "super_glue_options": [
                task for task in glue_superglue.SUPER_GLUE if task.name in SUPER_GLUE_EXAMPLES
            ],
        }
        return {
            name: [
                variant
                for task in table
                if (variant := with_options(task, normalize_by_length=self.normalize_by_length))
            ]
            for name, table in tables.items()
        }
