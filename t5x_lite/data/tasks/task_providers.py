"""Register tasks with seqio: text files in C4's layout, and the tasks of the embedded corpus.

A task provider is a frozen value whose `register` adds tasks and mixtures to seqio's registries.
seqio and TensorFlow are imported then, not before: a run with complete token stores never imports
them.
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
from t5x_lite.metrics import metric_functions
from t5x_lite.metrics.task_metrics import TaskMetrics
from t5x_lite.objectives.objective import Objective
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
    """A task provider for one text task over files of JSON lines, in C4's layout by default.

    Args:
        name: Name of the task.
        directory: A path or a URL such as "gs://bucket/en".
        vocabulary: The vocabulary of the text.
        patterns: The names of the files of each split; None: as in C4, such as
            "c4-train.*.json*".
        text_field: The field of a line that contains the text.
        bad_lines: Tolerance for malformed lines.
        objective: Of this task; None: that of the run (`Data.objective`).
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
        """The objective of the task by its name, if it has one of its own."""
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
    """A task provider for three tasks and their mixtures over the embedded corpus.

    Tasks:

        embedded_text          running text: the documents as they are
        embedded_summarize     a docstring without its first line -> the first line
        embedded_name          the first line of a docstring -> the name of the object

    Mixtures:

        embedded_mix           all, with examples-proportional rates
        embedded_equal         all, with equal rates
        embedded_supervised    the two tasks of pairs, with the rates of embedded_mix
        leave_one_out_TASK     embedded_mix without one task of pairs

    Args:
        vocab_size: Pieces of the vocabulary that is trained on the corpus. 8,000 suit the size of
            the corpus.
        limit: Caps the number of examples of a task in the rates (`examples_proportional_rates`).
        temperature: Makes the rates more equal (`examples_proportional_rates`).
        characters_per_example: How many characters of text count as one example in the rates.
        packages: The packages whose docstrings make the corpus.

    Raises:
        ConfigError: If the limit or the temperature is out of range.
    """

    vocab_size: int = 8000
    limit: int = 2**14
    temperature: float = 2.0
    characters_per_example: int = 512
    packages: Sequence[str] = embedded_corpus.PACKAGES

    def __post_init__(self):
        """Check the limit and the temperature before the corpus is made, which takes a while."""
        examples_proportional_rates({}, limit=self.limit, temperature=self.temperature)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tasks and of the mixtures."""
        return (*_EMBEDDED_TASKS, *_embedded_mixtures(dict.fromkeys(_EMBEDDED_TASKS, 1.0)))

    @property
    def evaluations(self) -> Mapping[str, TaskMetrics]:
        """The metrics of the tasks of pairs, by name."""
        return {
            "embedded_summarize": TaskMetrics(
                None, (functools.partial(metric_functions.rouge, bootstrap=False),)
            ),
            "embedded_name": TaskMetrics(None, (metric_functions.sequence_accuracy,)),
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
    """Return the rates of each mixture of the embedded tasks, given those of embedded_mix."""
    pairs = _EMBEDDED_TASKS[1:]
    return {
        "embedded_mix": dict(rates),
        "embedded_equal": dict.fromkeys(rates, 1.0),
        "embedded_supervised": {name: rates[name] for name in pairs},
        **{
            f"leave_one_out_{omitted}": {n: rate for n, rate in rates.items() if n != omitted}
            for omitted in pairs
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
    """Register a task with the features "inputs" and "targets", replacing one of the same name.

    Args:
        name: Name of the task.
        source: Where its examples come from.
        steps: Its preprocessors, with a `seqio.CacheDatasetPlaceholder` among them.
        vocabulary: The vocabulary of both features.
        postprocess: Applied to targets and predictions before the metrics, as in seqio.
        metrics: Functions (targets, predictions) -> scores by name, as in seqio.
    """
    import seqio

    seqio_vocabulary = vocabulary.to_seqio()
    features = {
        "inputs": seqio.Feature(seqio_vocabulary, add_eos=True, required=False),
        "targets": seqio.Feature(seqio_vocabulary, add_eos=True),
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
    """Return a summarization pair of a docstring: its other paragraphs to its first line.

        text       Return the sum of the numbers. | The start value is added to it. When the ...
        inputs     summarize: The start value is added to it. When the ...
        targets    Return the sum of the numbers.

    Args:
        document: A document of the embedded corpus, with "text".

    Returns:
        Inputs and targets; None if the first paragraph is not one line of at least three words, or
        fewer than 80 characters follow it.
    """
    headline, body = _headline(document["text"])
    if headline is None or len(body) < _MIN_BODY_CHARACTERS:
        return None
    return f"summarize: {body}", headline


@versioned("embedded_corpus.name_pair", 1)
def name_pair(document: Document) -> Pair | None:
    """Return a naming pair of a docstring: its first line to the last part of the object's name.

        url        https://docs.invalid/math.fsum
        inputs     name: Return an accurate sum of the numbers.
        targets    fsum

    Args:
        document: A document of the embedded corpus, with "text" and "url".

    Returns:
        Inputs and targets; None for names that describe nothing (private, special, or of at most
        two letters), and if the first paragraph is not one line of at least three words.
    """
    headline, _ = _headline(document["text"])
    name = embedded_corpus.document_name(document).rsplit(".", 1)[-1]
    if headline is None or not re.fullmatch(r"[A-Za-z]\w{2,}", name):
        return None
    return f"name: {headline}", name


def _headline(text: str) -> tuple[str | None, str]:
    """Split a text into its first line, None if that is not a sentence, and the rest."""
    first, _, body = text.partition("\n\n")
    is_headline = "\n" not in first and len(first.split()) >= _MIN_HEADLINE_WORDS
    return (first if is_headline else None), body
