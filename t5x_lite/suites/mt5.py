"""mC4 and the tasks of the mT5 paper (Xue et al. 2021), as one task provider.

Names, data sets, languages and mixtures are those of google-research/multilingual-t5 (tasks.py of
2022). Its evaluations over all languages at once (".all_langs") and its older PAWS-X translations
("_original") are omitted. For its versions of GLUE, SuperGLUE, CNN/DailyMail and Wikipedia, use
`t5.Study` with mT5's vocabulary.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t5x_lite.data.code_identity import versioned
from t5x_lite.data.formats import multilingual as formats
from t5x_lite.data.tasks.mixing_rates import ExamplesProportionalRate
from t5x_lite.metrics import metric_functions, postprocessors, qa
from t5x_lite.metrics.task_metrics import TaskMetrics
from t5x_lite.suites.languages import (
    MC4_LANGUAGES,
    MLQA_LANGUAGES,
    PAWS_LANGUAGES,
    TYDI_LANGUAGES,
    WIKIANN_LANGUAGES,
    XNLI_LANGUAGES,
    XQUAD_LANGUAGES,
)
from t5x_lite.suites.task_specs import (
    TEST,
    TRAIN,
    TRAIN_AND_VALIDATION,
    VALIDATION_AND_TEST,
    Splits,
    SupervisedTask,
    TextTask,
    add_mixtures,
    evaluations,
)
from t5x_lite.suites.text_generation import QUESTION_EXTRAS
from t5x_lite.tokenizers.vocabularies import AnyVocabulary, Vocabulary

MT5_VOCABULARY = "gs://t5-data/vocabs/mc4.250000.100extra/sentencepiece.model"

_ACCURACY = (metric_functions.accuracy,)
_DIGITS = functools.partial(postprocessors.label, labels=("0", "1", "2"))


def _xnli(name: str, tfds: str, language: str, splits: Splits) -> SupervisedTask:
    return SupervisedTask(
        name,
        tfds,
        splits,
        functools.partial(formats.entailment_in_one, language=language),
        fields=(f"premise/{language}", "hypothesis/language", "hypothesis/translation", "label"),
        postprocess=_DIGITS,
        metrics=_ACCURACY,
    )


def _paws(name: str, tfds: str, splits: Splits) -> SupervisedTask:
    return SupervisedTask(
        name,
        tfds,
        splits,
        formats.paraphrase,
        fields=("sentence1", "sentence2", "label"),
        postprocess=functools.partial(postprocessors.label, labels=formats.PAWS_LABELS),
        metrics=_ACCURACY,
    )


def _questions(
    name: str,
    tfds: str,
    splits: Splits,
    *,
    metric: metric_functions.Metric = qa.squad,
    make: Callable[..., Any] = formats.question,
) -> SupervisedTask:
    return SupervisedTask(
        name,
        tfds,
        splits,
        make,
        fields=("id", "question", "context", "answers/text"),
        extras=QUESTION_EXTRAS,
        postprocess=postprocessors.answers,
        metrics=(metric,),
    )


def _names(language: str, kind: str, splits: Splits) -> SupervisedTask:
    return SupervisedTask(
        f"mt5_ner_{kind}.{language}",
        f"wikiann/{language}:1.0.0",
        splits,
        formats.entities,
        fields=("tokens", "spans"),
        metrics=(metric_functions.span_f1,),
    )


MC4: Mapping[str, TextTask] = {
    language: TextTask(
        f"mc4.{language.replace('-', '_')}",
        "c4/multilingual:3.0.1",
        {"train": language, "validation": f"{language}-validation"},
    )
    for language in MC4_LANGUAGES
}
_XNLI_TRAIN = SupervisedTask(
    "mt5_xnli_train",
    "multi_nli:1.1.0",
    TRAIN,
    formats.entailment,
    fields=("premise", "hypothesis", "label"),
    postprocess=_DIGITS,
    metrics=_ACCURACY,
)
_XNLI = [
    _xnli(f"mt5_xnli_dev_test.{lang}", "xnli:1.1.0", lang, VALIDATION_AND_TEST)
    for lang in XNLI_LANGUAGES
]
_XNLI_TRANSLATED = [
    _xnli(f"mt5_xnli_translate_train.{lang}", "xtreme_xnli:1.1.0", lang, TRAIN)
    for lang in XNLI_LANGUAGES
    if lang != "en"
]
_PAWS_TRAIN = _paws("mt5_paws", "paws_x_wiki/en:1.0.0", TRAIN)
_PAWS = [
    _paws(f"mt5_pawsx_dev_test.{lang}", f"paws_x_wiki/{lang}:1.0.0", VALIDATION_AND_TEST)
    for lang in PAWS_LANGUAGES
]
_PAWS_TRANSLATED = [
    _paws(f"mt5_pawsx_translate_train.{lang}", f"xtreme_pawsx/{lang}:1.0.0", TRAIN)
    for lang in PAWS_LANGUAGES
    if lang != "en"
]
_SQUAD = _questions("mt5_squad_train_dev", "squad/v1.1:3.0.0", TRAIN_AND_VALIDATION)
_XQUAD = [
    _questions(f"mt5_xquad_test.{lang}", f"xquad/{lang}:3.0.0", TEST) for lang in XQUAD_LANGUAGES
]
_XQUAD_TRANSLATED = [
    _questions(
        f"mt5_xquad_translate_train_dev.{lang}",
        f"xquad/{lang}:3.0.0",
        {"train": "translate-train", "validation": "translate-dev"},
    )
    for lang in XQUAD_LANGUAGES
    if lang != "en"
]
_MLQA = [
    _questions(
        f"mt5_mlqa_dev_test.{lang}",
        f"mlqa/{lang}:1.0.0",
        VALIDATION_AND_TEST,
        metric=functools.partial(qa.mlqa, language=lang),
    )
    for lang in MLQA_LANGUAGES
]
_MLQA_TRANSLATED = [task for task in _XQUAD_TRANSLATED if task.name[-2:] in MLQA_LANGUAGES]
_TYDI_TRAIN = _questions("mt5_tydiqa_train_dev", "tydi_qa/goldp:2.1.0", TRAIN_AND_VALIDATION)
_TYDI_TRAIN_ENGLISH = _questions(
    "mt5_tydiqa_train.en",
    "tydi_qa/goldp:2.1.0",
    TRAIN,
    make=functools.partial(formats.question_in_one, language="english"),
)
_TYDI = [
    _questions(
        f"mt5_tydiqa_dev.{lang}", "tydi_qa/goldp:2.1.0", {"validation": f"validation-{lang}"}
    )
    for lang in TYDI_LANGUAGES
]
_TYDI_TRANSLATED = [
    _questions(
        f"mt5_tydiqa_translate_train.{lang}",
        "tydi_qa/goldp:2.1.0",
        {"train": f"translate-train-{lang}"},
    )
    for lang in TYDI_LANGUAGES
    if lang != "en"
]
_NER_TRAIN = [_names(lang, "train", TRAIN) for lang in WIKIANN_LANGUAGES]
_NER_TRAIN_ENGLISH = [task for task in _NER_TRAIN if task.name.endswith(".en")]
_NER = [_names(lang, "eval", VALIDATION_AND_TEST) for lang in WIKIANN_LANGUAGES]

# The training tasks of a fine-tuning mixture have equal rates. Tasks without a training split are
# evaluated only.
MIXTURES: Mapping[str, Sequence[SupervisedTask]] = {
    "mt5_xnli_zeroshot": [_XNLI_TRAIN, *_XNLI],
    "mt5_xnli_translate_train": [_XNLI_TRAIN, *_XNLI_TRANSLATED, *_XNLI],
    "mt5_pawsx_zeroshot": [_PAWS_TRAIN, *_PAWS],
    "mt5_pawsx_translate_train": [_PAWS_TRAIN, *_PAWS_TRANSLATED, *_PAWS],
    "mt5_xquad_zeroshot": [_SQUAD, *_XQUAD],
    "mt5_xquad_translate_train": [_SQUAD, *_XQUAD_TRANSLATED, *_XQUAD],
    "mt5_mlqa_zeroshot": [_SQUAD, *_MLQA],
    "mt5_mlqa_translate_train": [_SQUAD, *_MLQA_TRANSLATED, *_MLQA],
    "mt5_tydiqa": [_TYDI_TRAIN, *_TYDI],
    "mt5_tydiqa_zeroshot": [_TYDI_TRAIN_ENGLISH, *_TYDI],
    "mt5_tydiqa_translate_train": [_TYDI_TRAIN_ENGLISH, *_TYDI_TRANSLATED, *_TYDI],
    "mt5_ner_zeroshot": [*_NER_TRAIN_ENGLISH, *_NER],
    "mt5_ner_multilingual": [*_NER_TRAIN, *_NER],
}


@versioned("mt5_tasks", 1)
@dataclass(frozen=True)
class Multilingual:
    """Task provider of mC4, by language, and of mT5's fine-tuning tasks and mixtures.

    Args:
        vocabulary: Vocabulary of all tasks. The default is mT5's, on Google Cloud Storage.
        languages: Languages of the mixture "mc4".
        alpha: A language is drawn in proportion to its number of pages to this power, which gives
            small languages more weight. The default is mT5's.
        rates: Rates of the languages, instead of `alpha`; `mixing_rates.unimax_rates` computes
            those of umT5.
        tfds_data_dir: Directory of TFDS data sets; None is TFDS's default.
    """

    vocabulary: AnyVocabulary = Vocabulary(MT5_VOCABULARY, 0)  # noqa: RUF009  # reads nothing
    languages: Sequence[str] = MC4_LANGUAGES
    alpha: float = 0.3
    rates: Mapping[str, float] | None = None
    tfds_data_dir: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tasks and mixtures."""
        return (*(task.name for task in self._tasks()), "mc4", *MIXTURES)

    @property
    def evaluations(self) -> Mapping[str, TaskMetrics]:
        """Postprocessor and metrics by task."""
        return evaluations(self._tasks())

    @property
    def contents(self) -> Any:
        """The tables of tasks and mixtures, which are part of the identity of the plan."""
        return self._tasks(), self.mixtures()

    def register(self, data_dir: str) -> None:
        """Register all tasks and mixtures with seqio; no data set is opened."""
        for task in self._tasks():
            task.register(self.vocabulary, self.tfds_data_dir)
        add_mixtures(self.mixtures())

    def mixtures(self) -> dict[str, list[tuple[str, Any]]]:
        """Return the rates of every mixture: numbers, or functions of a task."""
        rate = ExamplesProportionalRate(temperature=1 / self.alpha)
        rates = dict.fromkeys(self.languages, rate) if self.rates is None else self.rates
        mixtures: dict[str, list[tuple[str, Any]]] = {
            "mc4": [(MC4[language].name, rates[language]) for language in self.languages]
        }
        for name, tasks in MIXTURES.items():
            mixtures[name] = [(task.name, float("train" in task.splits)) for task in tasks]
        return mixtures

    def _tasks(self) -> list[SupervisedTask | TextTask]:
        supervised = {task.name: task for tasks in MIXTURES.values() for task in tasks}
        return [*(MC4[language] for language in self.languages), *supervised.values()]
