"""seqio tasks over C4-layout shards, and the tasks of the embedded corpus.

A declaration is a frozen value that registers tasks with seqio when it is asked to. seqio and
TensorFlow are imported then, not before: a run that finds its token stores ready never does.
"""

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data import corpora
from t5x_lite.data.mixtures import examples_proportional_rates
from t5x_lite.data.records import STRICT, BadLines
from t5x_lite.data.sources import JsonLinesSource, Source
from t5x_lite.data.vocabularies import AnyVocabulary, ByteVocabulary, Vocabulary, train_vocabulary
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.denoising import Objective, SpanCorruption
from t5x_lite.objectives.spans import Rows

if TYPE_CHECKING:
    import seqio
    import tensorflow as tf

Document = Mapping[str, str]
Pair = tuple[str, str]
Report = Callable[[str], None]

_DOCUMENTS_PER_READ = 256
_FEATURES = ("inputs", "targets")
_MIN_HEADLINE_WORDS = 3
_MIN_BODY_CHARACTERS = 80


class Declaration(Protocol):
    """What a user lists in `Data.declarations`: tasks and mixtures that can be registered."""

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks and mixtures that come into being."""
        ...

    def register(self, data_dir: str, report: Report) -> None:
        """Make what is missing under `data_dir` and register with seqio, again if need be."""
        ...


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
    bad_lines: BadLines = STRICT

    @property
    def names(self) -> tuple[str, ...]:
        """The name of the one task."""
        return (self.name,)

    def register(self, data_dir: str, report: Report) -> None:
        """Register the task."""
        source = JsonLinesSource(
            self.directory, self.patterns, fields=(self.text_field,), bad_lines=self.bad_lines
        )
        add_task(self.name, source, text_steps(field=self.text_field), self.vocabulary)


@dataclass(frozen=True)
class EmbeddedCorpus:
    """The declaration of three tasks and a mixture over the embedded corpus.

    embedded_text takes the documents as they are; embedded_summarize asks for a docstring's first
    line from the rest; embedded_name asks for the name of what a first line describes. The mixture
    embedded_mix has rates proportional to their numbers of examples (`limit` at most, drawn
    together by `temperature`), where text counts one example per `characters_per_example`.
    """

    vocab_size: int = 8000
    limit: int = 2**14
    temperature: float = 2.0
    characters_per_example: int = 512
    packages: Sequence[str] = corpora.PACKAGES

    def __post_init__(self):
        """Refuse a limit or a temperature that gives no rates, before the corpus is made."""
        examples_proportional_rates({}, limit=self.limit, temperature=self.temperature)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tasks and of the mixture."""
        return ("embedded_text", "embedded_summarize", "embedded_name", "embedded_mix")

    def register(self, data_dir: str, report: Report) -> None:
        """Write the corpus, train the vocabulary, count examples and register with seqio."""
        directory = os.path.join(data_dir, "embedded", "corpus")
        if not os.path.exists(directory):
            report("collecting the embedded corpus from installed packages ...")
        summary = corpora.write_embedded_corpus(directory, self.packages)
        model = os.path.join(data_dir, "embedded", f"unigram.{self.vocab_size}.model")
        if not os.path.exists(model):
            report(f"training a vocabulary of {self.vocab_size:,} pieces ...")
            texts = (document["text"] for document in corpora.read_documents(directory, "train"))
            train_vocabulary(texts, model, vocab_size=self.vocab_size)
        self._add_tasks(JsonLinesSource(directory), Vocabulary(model), summary)

    def _add_tasks(
        self,
        source: "JsonLinesSource",
        vocabulary: Vocabulary,
        summary: corpora.CorpusSummary,
    ) -> None:
        import seqio

        text, summarize, name, mix = self.names
        add_task(text, source, text_steps(), vocabulary)
        add_task(summarize, source, pair_steps(summary_pair), vocabulary)
        add_task(name, source, pair_steps(name_pair), vocabulary)
        documents = list(corpora.read_documents(source.directory, "train"))
        counts = {
            text: summary.characters // self.characters_per_example,
            summarize: sum(summary_pair(document) is not None for document in documents),
            name: sum(name_pair(document) is not None for document in documents),
        }
        rates = examples_proportional_rates(counts, limit=self.limit, temperature=self.temperature)
        seqio.MixtureRegistry.remove(mix)
        seqio.MixtureRegistry.add(mix, list(rates.items()))


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


def text_steps(objective: Objective | None = None, *, field: str = "text") -> list[Callable]:
    """Return the preprocessors of a text task: documents to tokens, cache point, objective, EOS."""
    import seqio

    return [
        functools.partial(seqio.preprocessors.rekey, key_map={"inputs": None, "targets": field}),
        seqio.preprocessors.tokenize,
        seqio.CacheDatasetPlaceholder(),
        Denoise(objective or SpanCorruption()),
        seqio.preprocessors.append_eos_after_trim,
    ]


def pair_steps(make_pair: Callable[[Document], Pair | None]) -> list[Callable]:
    """Return the preprocessors of a task whose inputs and targets are both made from a document."""
    import seqio

    return [
        functools.partial(documents_to_pairs, make_pair=make_pair),
        seqio.preprocessors.tokenize,
        seqio.CacheDatasetPlaceholder(),
        seqio.preprocessors.append_eos_after_trim,
    ]


def documents_to_pairs(
    dataset: "tf.data.Dataset", make_pair: Callable[[Document], Pair | None]
) -> "tf.data.Dataset":
    """Turn documents into "inputs" and "targets", leaving out those of which no pair is made."""
    import tensorflow as tf

    def pairs(texts: NDArray, urls: NDArray) -> tuple[NDArray, NDArray]:
        documents = [
            {"text": text.decode(), "url": url.decode()}
            for text, url in zip(texts, urls, strict=True)
        ]
        made = [pair for document in documents if (pair := make_pair(document)) is not None]
        columns = zip(*made, strict=True) if made else ((), ())
        inputs, targets = (np.array([cell.encode() for cell in cells], object) for cells in columns)
        return inputs, targets

    def features(documents: Mapping[str, "tf.Tensor"]) -> dict[str, "tf.Tensor"]:
        columns = tf.numpy_function(
            pairs, (documents["text"], documents["url"]), (tf.string, tf.string)
        )
        return {
            name: tf.ensure_shape(column, [None])
            for name, column in zip(("inputs", "targets"), columns, strict=True)
        }

    return dataset.batch(_DOCUMENTS_PER_READ).map(features).unbatch()


def summary_pair(document: Document) -> Pair | None:
    """Make a summarisation pair of a docstring: its other paragraphs to its first line.

        text       Return the sum of the numbers. | The start value is added to it. When the ...
        inputs     summarize: The start value is added to it. When the ...
        targets    Return the sum of the numbers.

    None where the first paragraph is no single line of some words or little follows it.
    """
    headline, body = _headline(document["text"])
    if headline is None or len(body) < _MIN_BODY_CHARACTERS:
        return None
    return f"summarize: {body}", headline


def name_pair(document: Document) -> Pair | None:
    """Make a naming pair of a docstring: its first line to the last part of the object's name.

        url        https://docs.invalid/math.fsum
        inputs     name: Return an accurate sum of the numbers.
        targets    fsum

    None for names that tell nothing (private, special or of two letters at most) and where the
    first paragraph is no single line of some words.
    """
    headline, _ = _headline(document["text"])
    name = corpora.document_name(document).rsplit(".", 1)[-1]
    if headline is None or not re.fullmatch(r"[A-Za-z]\w{2,}", name):
        return None
    return f"name: {headline}", name


@dataclass(frozen=True)
class Denoise:
    """An objective as a seqio preprocessor.

    The token stores' stream recognises it and calls the objective itself, for whole batches; seqio
    runs the same function example by example, with its own seeds.
    """

    objective: Objective
    sequence_length: Mapping[str, int] | None = None  # seqio sets this and the next at run time
    output_features: Mapping[str, Any] | None = None

    def __call__(self, dataset: "tf.data.Dataset") -> "tf.data.Dataset":
        """Join documents in groups, cut them into pieces and make inputs and targets of each."""
        import seqio
        import tensorflow as tf

        raw_length = self.objective.raw_length(self.sequence_length or {})
        sentinels = to_vocabulary((self.output_features or {})["targets"].vocabulary).sentinels

        def features(tokens: NDArray, seed: NDArray) -> list[NDArray]:
            rows = Rows(tokens[None].astype(np.int32), np.array([len(tokens)], np.int32))
            made = self.objective(rows, seed[None].astype(np.uint32), sentinels)
            return [made[name].tokens[0, : made[name].lengths[0]] for name in _FEATURES]

        def denoise(piece: Any, seed: Any) -> dict[str, Any]:
            made = tf.numpy_function(features, (piece, tf.stack(seed)), (tf.int32, tf.int32))
            return {
                name: tf.ensure_shape(tokens, [None])
                for name, tokens in zip(_FEATURES, made, strict=True)
            }

        def pieces(group: Any) -> Any:
            starts = tf.range(0, tf.size(group.flat_values), raw_length)
            cuts = tf.data.Dataset.from_tensor_slices(starts)
            return cuts.map(lambda start: group.flat_values[start : start + raw_length])

        documents = dataset.map(lambda document: document["targets"])
        groups = documents.filter(lambda tokens: tf.size(tokens) > 0).ragged_batch(
            self.objective.documents_per_group
        )
        denoise_all: Any = seqio.map_over_dataset(denoise, num_seeds=1)
        return denoise_all(groups.flat_map(pieces))


def to_vocabulary(vocabulary: "seqio.Vocabulary") -> AnyVocabulary:
    """Return our form of a seqio vocabulary; raises ConfigError for one of neither form."""
    import seqio

    if isinstance(vocabulary, seqio.ByteVocabulary):
        return ByteVocabulary(extra_ids=vocabulary.extra_ids)
    model_file = getattr(vocabulary, "sentencepiece_model_file", None)
    if model_file is None:
        raise ConfigError(
            f"{type(vocabulary).__name__} is neither a SentencePiece nor a byte vocabulary",
            "MIXTURE_OR_TASK_NAME",
        )
    return Vocabulary(model_file, vocabulary.extra_ids)


def _headline(text: str) -> tuple[str | None, str]:
    """Split a text into its first line and the rest; None if it does not begin with a sentence."""
    first, _, body = text.partition("\n\n")
    is_headline = "\n" not in first and len(first.split()) >= _MIN_HEADLINE_WORDS
    return (first if is_headline else None), body
