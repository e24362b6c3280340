"""seqio tasks over C4-layout shards, and the tasks of the embedded corpus.

A declaration is a frozen value that registers tasks with seqio when it is asked to. seqio and
TensorFlow are imported then, not before: a run that finds its token stores ready never does.
"""

import functools
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from t5x_lite.data.code_identity import versioned
from t5x_lite.data.sources import embedded_corpus
from t5x_lite.data.sources.jsonl_and_tsv import STRICT, MalformedLines
from t5x_lite.data.sources.seqio_sources import JsonLinesSource, Source
from t5x_lite.data.tasks.mixing_rates import examples_proportional_rates
from t5x_lite.data.tasks.preprocessors import Document, Pair, pair_steps, text_steps
from t5x_lite.metrics import metrics
from t5x_lite.metrics.task_metrics import TaskMetrics
from t5x_lite.objectives.span_corruption import Objective
from t5x_lite.tokenizers.vocabularies import AnyVocabulary, Vocabulary, train_vocabulary

_LOG = logging.getLogger(__name__)

_EMBEDDED_TASKS = ("embedded_text", "embedded_summarize", "embedded_name")
_MIN_HEADLINE_WORDS = 3
_MIN_BODY_CHARACTERS = 80


@runtime_checkable
class TaskProvider(Protocol):
    """What a user lists in `Data.task_providers`: tasks and mixtures that can be registered.

    A plan of a run's data is made again when a provider changes: its class (by version or code, see
    `data.code_identity`), its fields, or, if it has a property `contents`, what that returns, such
    as tables that `register` reads.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks and mixtures that `register` adds."""
        ...

    def register(self, data_dir: str) -> None:
        """Register the tasks and mixtures with seqio, in place of any of the same names.

        What takes long is logged before it begins.

        Args:
            data_dir: Directory in which the provider creates the files it needs.
        """
        ...


@versioned("json_lines_text", 1)
@dataclass(frozen=True)
class JsonLinesText:
    """A declaration of one text task over the shards of a directory in C4's layout.

    directory: a path or an address such as "gs://bucket/en". patterns: what the files of each split
    are called, where that is not as in C4. text_field: what holds the text of a line.
    """

    name: str
    directory: str
    vocabulary: AnyVocabulary
    patterns: Mapping[str, str] | None = None
    text_field: str = "text"
    bad_lines: MalformedLines = STRICT
    objective: Objective | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The name of the one task."""
        return (self.name,)

    @property
    def objectives(self) -> Mapping[str, Objective]:
        """The task's own objective, if it has one."""
        return {} if self.objective is None else {self.name: self.objective}

    def register(self, data_dir: str) -> None:
        """Register the task."""
        source = JsonLinesSource(
            self.directory, self.patterns, fields=(self.text_field,), bad_lines=self.bad_lines
        )
        steps = text_steps(self.objective, field=self.text_field)
        add_task(self.name, source, steps, self.vocabulary)


@versioned("embedded_corpus", 1)
@dataclass(frozen=True)
class EmbeddedCorpus:
    """The declaration of three tasks and their mixtures over the embedded corpus.

    embedded_text takes the documents as they are; embedded_summarize asks for a docstring's first
    line from the rest; embedded_name asks for the name of what a first line describes. The mixture
    embedded_mix has rates proportional to their numbers of examples (`limit` at most, drawn
    together by `temperature`), where text counts one example per `characters_per_example`.
    embedded_equal draws all alike, embedded_supervised only pairs, and leave_one_out_TASK, by the
    rates of embedded_mix, all but a task of pairs.
    """

    vocab_size: int = 8000
    limit: int = 2**14
    temperature: float = 2.0
    characters_per_example: int = 512
    packages: Sequence[str] = embedded_corpus.PACKAGES

    def __post_init__(self):
        """Refuse a limit or a temperature that gives no rates, before the corpus is made."""
        examples_proportional_rates({}, limit=self.limit, temperature=self.temperature)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tasks and of the mixtures."""
        return (*_EMBEDDED_TASKS, *_embedded_mixtures(dict.fromkeys(_EMBEDDED_TASKS, 1.0)))

    @property
    def evaluations(self) -> Mapping[str, TaskMetrics]:
        """How the tasks of pairs are judged."""
        return {
            "embedded_summarize": TaskMetrics(
                None, (functools.partial(metrics.rouge, bootstrap=False),)
            ),
            "embedded_name": TaskMetrics(None, (metrics.sequence_accuracy,)),
        }

    def register(self, data_dir: str) -> None:
        """Write the corpus, train the vocabulary, count examples and register with seqio."""
        directory = os.path.join(data_dir, "embedded", "corpus")
        if not os.path.exists(directory):
            _LOG.info("collecting the embedded corpus from installed packages ...")
        summary = embedded_corpus.write_embedded_corpus(directory, self.packages)
        model = os.path.join(data_dir, "embedded", f"unigram.{self.vocab_size}.model")
        if not os.path.exists(model):
            _LOG.info(f"training a vocabulary of {self.vocab_size:,} pieces ...")
            texts = (
                document["text"] for document in embedded_corpus.read_documents(directory, "train")
            )
            train_vocabulary(texts, model, vocab_size=self.vocab_size)
        self._add_tasks(JsonLinesSource(directory), Vocabulary(model), summary)

    def _add_tasks(
        self,
        source: "JsonLinesSource",
        vocabulary: Vocabulary,
        summary: embedded_corpus.CorpusSummary,
    ) -> None:
        import seqio

        text, summarize, name = _EMBEDDED_TASKS
        add_task(text, source, text_steps(), vocabulary)
        for task, make_pair in ((summarize, summary_pair), (name, name_pair)):
            scores = self.evaluations[task].metrics
            add_task(task, source, pair_steps(make_pair), vocabulary, metrics=scores)
        documents = list(embedded_corpus.read_documents(source.directory, "train"))
        counts = {
            text: summary.characters // self.characters_per_example,
            summarize: sum(summary_pair(document) is not None for document in documents),
            name: sum(name_pair(document) is not None for document in documents),
        }
        rates = examples_proportional_rates(counts, limit=self.limit, temperature=self.temperature)
        for mixture, parts in _embedded_mixtures(rates).items():
            seqio.MixtureRegistry.remove(mixture)
            seqio.MixtureRegistry.add(mixture, list(parts.items()))


def _embedded_mixtures(rates: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The mixtures of the embedded tasks, given their rates in embedded_mix."""
    pairs = _EMBEDDED_TASKS[1:]
    return {
        "embedded_mix": dict(rates),
        "embedded_equal": dict.fromkeys(rates, 1.0),
        "embedded_supervised": {name: rates[name] for name in pairs},
        **{
            f"leave_one_out_{left_out}": {n: rate for n, rate in rates.items() if n != left_out}
            for left_out in pairs
        },
    }


def add_task(
    name: str,
    source: Source,
    steps: Sequence[Callable],
    vocabulary: AnyVocabulary,
    *,
    postprocess: Callable | None = None,
    metrics: Sequence[Callable] = (),
) -> None:
    """Register a task with features "inputs" and "targets", in the place of one of that name."""
    import seqio

    pieces = vocabulary.to_seqio()
    features = {
        "inputs": seqio.Feature(pieces, add_eos=True, required=False),
        "targets": seqio.Feature(pieces, add_eos=True),
    }
    task = seqio.Task(
        name,
        source.to_seqio(),
        features,
        preprocessors=steps,
        postprocess_fn=postprocess,
        metric_fns=list(metrics),
    )
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add_provider(name, task)


@versioned("embedded_corpus.summary_pair", 1)
def summary_pair(document: Document) -> Pair | None:
    """Make a summarization pair of a docstring: its other paragraphs to its first line.

        text       Return the sum of the numbers. | The start value is added to it. When the ...
        inputs     summarize: The start value is added to it. When the ...
        targets    Return the sum of the numbers.

    None where the first paragraph is no single line of some words or little follows it.
    """
    headline, body = _headline(document["text"])
    if headline is None or len(body) < _MIN_BODY_CHARACTERS:
        return None
    return f"summarize: {body}", headline


@versioned("embedded_corpus.name_pair", 1)
def name_pair(document: Document) -> Pair | None:
    """Make a naming pair of a docstring: its first line to the last part of the object's name.

        url        https://docs.invalid/math.fsum
        inputs     name: Return an accurate sum of the numbers.
        targets    fsum

    None for names that tell nothing (private, special or of two letters at most) and where the
    first paragraph is no single line of some words.
    """
    headline, _ = _headline(document["text"])
    name = embedded_corpus.document_name(document).rsplit(".", 1)[-1]
    if headline is None or not re.fullmatch(r"[A-Za-z]\w{2,}", name):
        return None
    return f"name: {headline}", name


def _headline(text: str) -> tuple[str | None, str]:
    """Split a text into its first line and the rest; None if it does not begin with a sentence."""
    first, _, body = text.partition("\n\n")
    is_headline = "\n" not in first and len(first.split()) >= _MIN_HEADLINE_WORDS
    return (first if is_headline else None), body
