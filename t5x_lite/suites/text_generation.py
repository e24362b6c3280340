"""Tasks of question answering, summarization, translation, and text of C4 and Wikipedia."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t5x_lite.data.formats import questions as formats
from t5x_lite.data.formats import translate_summarize
from t5x_lite.data.stream.pair_trimming import PairTrimming
from t5x_lite.data.tasks.text_formats import Kind
from t5x_lite.metrics import metric_functions, postprocessors, qa
from t5x_lite.objectives.language_models import FullLM, LMAdaptation
from t5x_lite.objectives.span_corruption import SpanCorruption
from t5x_lite.objectives.t5_study import PrefixLM, ReplaceSpans
from t5x_lite.suites.task_specs import ALL, TRAIN, TRAIN_AND_VALIDATION, SupervisedTask, TextTask

_C4 = "c4/en:2.2.0"
_TRIVIA_TEXTS = ("entity_pages/wiki_context", "search_results/search_context")
_SQUAD_FIELDS = ("id", "question", "context", "answers/text")
QUESTION_EXTRAS: Mapping[str, Kind] = {
    "id": "text",
    "context": "text",
    "question": "text",
    "answers": "texts",
}


def _squad(
    name: str,
    make: Callable[..., Any],
    postprocess: Callable[..., Any] | None = postprocessors.answers,
    metric: metric_functions.Metric = qa.squad,
) -> SupervisedTask:
    return SupervisedTask(
        name,
        "squad/v1.1:3.0.0",
        TRAIN_AND_VALIDATION,
        make,
        fields=_SQUAD_FIELDS,
        extras=QUESTION_EXTRAS,
        postprocess=postprocess,
        metrics=(metric,),
    )


def _translation(
    name: str, tfds: str, target: str, splits: Mapping[str, str] = ALL
) -> SupervisedTask:
    return SupervisedTask(
        name,
        f"{tfds}:1.0.0",
        splits,
        functools.partial(translate_summarize.translation, source="en", target=target),
        fields=("en", target),
        metrics=(metric_functions.bleu,),
    )


QUESTIONS: Sequence[SupervisedTask] = (
    _squad("squad_v010_allanswers", formats.squad),
    _squad("squad_v010_context_free", functools.partial(formats.squad, closed_book=True)),
    _squad(
        "squad_v010_allanswers_span",
        formats.squad_span,
        postprocessors.span_answers,
        qa.span_squad,
    ),
    _squad("squad_v010", formats.squad, None),
    SupervisedTask(
        "trivia_qa_v010",
        "trivia_qa/rc:1.1.0",
        ALL,
        formats.trivia_qa,
        fields=("question", "answer/normalized_aliases", *_TRIVIA_TEXTS),
        trimming=PairTrimming(window_around_answer=True),
    ),
)

SUMMARIES: Sequence[SupervisedTask] = (
    SupervisedTask(
        "cnn_dailymail_v002",
        "cnn_dailymail:3.4.0",
        ALL,
        translate_summarize.summary,
        fields=("article", "highlights"),
        metrics=(metric_functions.rouge,),
    ),
)

TRANSLATIONS: Sequence[SupervisedTask] = (
    _translation("wmt14_ende_v003", "wmt14_translate/de-en", "de"),
    _translation("wmt14_enfr_v003", "wmt14_translate/fr-en", "fr"),
    _translation("wmt15_enfr_v003", "wmt15_translate/fr-en", "fr"),
    _translation("wmt16_enro_v003", "wmt16_translate/ro-en", "ro"),
    _translation("wmt19_ende_v003", "wmt19_translate/de-en", "de", TRAIN_AND_VALIDATION),
    _translation("wmt_t2t_ende_v003", "wmt_t2t_translate/de-en", "de"),
)

C4: Sequence[TextTask] = (
    TextTask("c4_v220_span_corruption", _C4, objective=SpanCorruption()),
    TextTask("c4_v220_iid_denoising", _C4, objective=ReplaceSpans()),
    TextTask("c4_v220_prefix_lm", _C4, objective=PrefixLM()),
    TextTask("c4_v220_full_lm", _C4, objective=FullLM()),
    # T5's tasks fill a row with two parts of a text whose prefixes add up to it. Here packing fills
    # the rows.
    TextTask("c4_prefix_lm_objective_encoder_decoder_architecture", _C4, objective=LMAdaptation()),
    TextTask("c4_prefix_lm_objective_decoder_architecture", _C4, objective=LMAdaptation()),
    TextTask("c4_v020_unsupervised", _C4),
    TextTask("c4_noclean_v020_unsupervised", "c4/en.noclean:2.2.0"),
    TextTask("c4_realnewslike_v020_unsupervised", "c4/realnewslike:2.2.0"),
    TextTask("c4_webtextlike_v020_unsupervised", "c4/webtextlike:2.2.0"),
)

WIKIPEDIA: Sequence[TextTask] = (
    TextTask("wikipedia_20190301.en_v003_unsupervised", "wikipedia/20190301.en:1.0.0", TRAIN),
)
