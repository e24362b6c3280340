"""Tasks of GLUE, SuperGLUE, and the Winograd schema data sets WNLI, WSC and DPR."""

import functools
from collections.abc import Mapping, Sequence

from t5x_lite.data.formats import coreference, glue
from t5x_lite.metrics import metric_functions, postprocessors, qa
from t5x_lite.suites.task_specs import ALL, TEST, TRAIN, VALIDATION_AND_TEST, SupervisedTask

_ENTAILED = ("entailment", "not_entailment")
_THREE_WAYS = ("entailment", "neutral", "contradiction")
_FALSE_TRUE = ("False", "True")
_ACCURACY = (metric_functions.accuracy,)
_F1_AND_ACCURACY = (metric_functions.f1_with_invalid, metric_functions.accuracy)
MULTIRC_PLACE = ("idx/paragraph", "idx/question", "idx/answer")
_PREMISE = ("hypothesis", "premise")
_SENTENCES = ("sentence1", "sentence2")


def _classification(
    name: str,
    tfds: str,
    fields: Sequence[str] | Mapping[str, str],
    labels: Sequence[str],
    *,
    benchmark: str,
    splits: Mapping[str, str] = ALL,
    scores: Sequence[metric_functions.Metric] = _ACCURACY,
) -> SupervisedTask:
    """Return a classification task.

    Args:
        name: The task.
        tfds: The data set with its version.
        fields: Fields of an example in the order of T5's format; or fields by the name that the
            format writes before each.
        labels: Texts of the labels, by their numbers.
        benchmark: The name that begins the inputs, such as "cola".
        splits: Splits of the data set by the splits of the task.
        scores: The metrics.
    """
    fields = fields if isinstance(fields, Mapping) else {field: field for field in fields}
    make = functools.partial(
        glue.classification, benchmark=benchmark, fields=fields, labels=tuple(labels)
    )
    return SupervisedTask(
        name,
        tfds,
        splits,
        make,
        fields=(*fields.values(), "label", "idx"),
        extras={"idx": "number"},
        postprocess=functools.partial(postprocessors.label, labels=tuple(labels)),
        metrics=scores,
    )


def _glue(
    config: str, fields: Sequence[str], labels: Sequence[str], benchmark: str = "", **more
) -> SupervisedTask:
    name, tfds = f"glue_{config}_v002", f"glue/{config}:1.0.0"
    return _classification(name, tfds, fields, labels, benchmark=benchmark or config, **more)


def _super_glue(
    config: str,
    fields: Sequence[str] | Mapping[str, str],
    labels: Sequence[str],
    benchmark: str = "",
    **more,
) -> SupervisedTask:
    name, tfds = f"super_glue_{config}_v102", f"super_glue/{config}:1.0.2"
    return _classification(name, tfds, fields, labels, benchmark=benchmark or config, **more)


def _wsc(name: str, tfds: str, splits: Mapping[str, str], *, right_only: bool) -> SupervisedTask:
    return SupervisedTask(
        name,
        tfds,
        splits,
        functools.partial(coreference.wsc, right_only=right_only),
        fields=("text", "span1_text", "span2_text", "span2_index", "label", "idx"),
        extras={"label": "number", "idx": "number"},
        postprocess=None if right_only else postprocessors.wsc,
        metrics=() if right_only else _ACCURACY,
    )


GLUE = (
    _glue(
        "cola", ("sentence",), ("unacceptable", "acceptable"), scores=(metric_functions.matthews,)
    ),
    _glue("sst2", ("sentence",), ("negative", "positive")),
    _glue("mrpc", _SENTENCES, ("not_equivalent", "equivalent"), scores=_F1_AND_ACCURACY),
    _glue(
        "qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), scores=_F1_AND_ACCURACY
    ),
    SupervisedTask(
        "glue_stsb_v002",
        "glue/stsb:1.0.0",
        ALL,
        glue.similarity,
        fields=("sentence1", "sentence2", "label", "idx"),
        extras={"idx": "number"},
        postprocess=postprocessors.number,
        metrics=(metric_functions.pearson, metric_functions.spearman),
    ),
    _glue("mnli", _PREMISE, _THREE_WAYS, splits=TRAIN),
    _glue("mnli_mismatched", _PREMISE, _THREE_WAYS, "mnli", splits=VALIDATION_AND_TEST),
    _glue("mnli_matched", _PREMISE, _THREE_WAYS, "mnli", splits=VALIDATION_AND_TEST),
    _glue("qnli", ("question", "sentence"), _ENTAILED),
    _glue("rte", _SENTENCES, _ENTAILED),
    _glue("wnli", _SENTENCES, ("not_entailment", "entailment")),
    _glue("ax", _PREMISE, _THREE_WAYS, "mnli", splits=TEST, scores=()),
    SupervisedTask(
        "glue_wnli_v002_simple_eval",
        "glue/wnli:1.0.0",
        VALIDATION_AND_TEST,
        coreference.wnli,
        fields=("sentence1", "sentence2", "label", "idx"),
        extras={"premise": "text", "hypothesis": "text", "label": "number", "idx": "number"},
        postprocess=postprocessors.wsc,
        metrics=_ACCURACY,
    ),
)

SUPER_GLUE = (
    _super_glue("boolq", ("passage", "question"), _FALSE_TRUE),
    _super_glue(
        "cb",
        _PREMISE,
        ("entailment", "contradiction", "neutral"),
        scores=(
            functools.partial(metric_functions.mean_multiclass_f1, num_classes=3),
            metric_functions.accuracy,
        ),
    ),
    _super_glue("copa", ("choice1", "choice2", "premise", "question"), ("choice1", "choice2")),
    SupervisedTask(
        "super_glue_multirc_v102",
        "super_glue/multirc:1.0.2",
        ALL,
        glue.multirc,
        fields=("question", "answer", "paragraph", "label", *MULTIRC_PLACE),
        extras=dict.fromkeys(MULTIRC_PLACE, "number"),
        postprocess=postprocessors.multirc,
        metrics=(metric_functions.multirc_f1, metric_functions.multirc_exact_match),
    ),
    SupervisedTask(
        "super_glue_record_v102",
        "super_glue/record:1.0.2",
        ALL,
        glue.record,
        fields=("passage", "query", "entities", "answers", "idx/passage", "idx/query"),
        extras={"answers": "texts", "idx/passage": "number", "idx/query": "number"},
        postprocess=postprocessors.record,
        metrics=(functools.partial(metric_functions.once_per_group, metric=qa.squad),),
    ),
    _super_glue("rte", _PREMISE, _ENTAILED),
    _super_glue("wic", ("sentence1", "sentence2", "word"), _FALSE_TRUE),
    _super_glue(
        "axb",
        {"hypothesis": "sentence2", "premise": "sentence1"},
        _ENTAILED,
        "rte",
        splits=TEST,
        scores=(),
    ),
    _super_glue("axg", _PREMISE, _ENTAILED, "rte", splits=TEST, scores=()),
    _wsc("super_glue_wsc_v102_simple_train", "super_glue/wsc.fixed:1.0.2", TRAIN, right_only=True),
    _wsc(
        "super_glue_wsc_v102_simple_eval",
        "super_glue/wsc.fixed:1.0.2",
        VALIDATION_AND_TEST,
        right_only=False,
    ),
    SupervisedTask(
        "dpr_v001_simple",
        "definite_pronoun_resolution:1.1.0",
        {"train": "train", "test": "test"},
        coreference.definite_pronoun,
        fields=("sentence", "pronoun", "candidates", "label"),
        metrics=_ACCURACY,
    ),
)

SUPER_GLUE_WITH_SENTINEL = tuple(task.with_sentinel() for task in SUPER_GLUE)
