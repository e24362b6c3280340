"""seqio preprocessors of text tasks and pair tasks, and which of them the fast data path knows.

A task's preprocessors up to its `seqio.CacheDatasetPlaceholder` run once, when its token store is
built. What follows is done for each batch, by the data stream itself if it knows the step (EOS,
`Denoise`, `TrimPairs`), otherwise by seqio's own pipeline.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.code_identity import NOT_IDENTITY, versioned
from t5x_lite.data.stream.pair_trimming import PairTrimming, find_answer, single_row, window_start
from t5x_lite.data.stream.trim_and_eos import EOS_ID, FEATURES, feature_widths, finish_features
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.objective import (
    Objective,
    PairObjective,
    RandomLengthObjective,
    TokenLevelObjective,
)
from t5x_lite.objectives.sentinels import check_sentinels
from t5x_lite.objectives.span_corruption import SpanCorruption
from t5x_lite.tokenizers.vocabularies import AnyVocabulary, ByteVocabulary, Vocabulary

if TYPE_CHECKING:
    import seqio
    import tensorflow as tf

Document = Mapping[str, str]
Pair = tuple[str, str]

_DOCUMENTS_PER_READ = 256
# A user's tasks may contain seqio's own functions, which cannot declare anything.
_SEQIO_REKEY, _SEQIO_TOKENIZE = "seqio.preprocessors.rekey", "seqio.preprocessors.tokenize"


@versioned("rename_fields", 1)
@dataclass(frozen=True)
class RenameFields:
    """Rename the fields of examples, like `seqio.preprocessors.rekey`.

        key_map {"inputs": None, "targets": "text"}
        {"text": "One.", "url": "a"}   ->   {"inputs": "", "targets": "One."}

    Attributes:
        key_map: the field that each feature is taken from; None: the feature is empty text.
    """

    key_map: Mapping[str, str | None]

    def __call__(self, dataset: "tf.data.Dataset") -> "tf.data.Dataset":
        """Return the dataset with the new fields only."""
        import seqio

        rekey: Any = seqio.preprocessors.rekey
        return rekey(dataset, key_map=dict(self.key_map))


@versioned("tokenize", 1)
@dataclass(frozen=True)
class Tokenize:
    """Tokenize every feature with its vocabulary, without EOS: `seqio.preprocessors.tokenize`.

    Attributes:
        output_features: the features of the task; seqio sets them when the task runs.
    """

    output_features: Mapping[str, Any] | None = field(default=None, metadata=NOT_IDENTITY)

    def __call__(self, dataset: "tf.data.Dataset") -> "tf.data.Dataset":
        """Return the dataset with token ids instead of the features' text."""
        import seqio

        return seqio.preprocessors.tokenize(dataset, dict(self.output_features or {}))


def renamed_fields(step: Any) -> Mapping[str, str | None] | None:
    """Return what a step that only renames fields declares as its `key_map`.

    Args:
        step: a preprocessor: `RenameFields`, or seqio's own `rekey` with a bound `key_map`.

    Returns:
        The field by feature; None if the step is or does anything else.
    """
    if isinstance(step, RenameFields):
        return step.key_map
    if isinstance(step, functools.partial) and _qualified_name(step.func) == _SEQIO_REKEY:
        return step.keywords.get("key_map", {})
    return None


def is_tokenize(step: Any) -> bool:
    """Return whether a step only tokenizes: `Tokenize`, or seqio's own with its defaults."""
    return isinstance(step, Tokenize) or _qualified_name(step) == _SEQIO_TOKENIZE


def _qualified_name(function: Any) -> str:
    """Return "module.name" of a function, as it is written in the source."""
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"


def text_steps(objective: Objective | None = None, *, field: str = "text") -> list[Callable]:
    """Return the preprocessors of a text task: documents to tokens, cache point, objective.

    Args:
        objective: of the task; None: that of the run (`Data.objective`).
        field: the field of a record that contains the text.
    """
    import seqio

    return [
        RenameFields({"inputs": None, "targets": field}),
        Tokenize(),
        seqio.CacheDatasetPlaceholder(),
        Denoise(objective),
    ]


def pair_steps(make_pair: Callable[[Document], Pair | None]) -> list[Callable]:
    """Return the preprocessors of a task whose inputs and targets come from one document.

    Args:
        make_pair: returns the inputs and targets of a document, or None to skip it.
    """
    import seqio

    return [
        functools.partial(documents_to_pairs, make_pair=make_pair),
        seqio.preprocessors.tokenize,
        seqio.CacheDatasetPlaceholder(),
        seqio.preprocessors.append_eos_after_trim,
    ]


@versioned("documents_to_pairs", 1)
def documents_to_pairs(
    dataset: "tf.data.Dataset", make_pair: Callable[[Document], Pair | None]
) -> "tf.data.Dataset":
    """Turn documents into "inputs" and "targets" by a Python function.

    Args:
        dataset: documents with "text" and "url".
        make_pair: returns the inputs and targets of a document, or None to skip it.

    Returns:
        A dataset of text pairs.
    """
    import tensorflow as tf

    def convert(texts: NDArray, urls: NDArray) -> tuple[NDArray, NDArray]:
        documents = [
            {"text": text.decode(), "url": url.decode()}
            for text, url in zip(texts, urls, strict=True)
        ]
        pairs = [pair for document in documents if (pair := make_pair(document)) is not None]
        columns = zip(*pairs, strict=True) if pairs else ((), ())
        inputs, targets = (np.array([text.encode() for text in texts], object) for texts in columns)
        return inputs, targets

    def features(documents: Mapping[str, "tf.Tensor"]) -> dict[str, "tf.Tensor"]:
        columns = tf.numpy_function(
            convert, (documents["text"], documents["url"]), (tf.string, tf.string)
        )
        return _shaped(columns)

    # In batches: a call of Python costs more than a document.
    return dataset.batch(_DOCUMENTS_PER_READ).map(features).unbatch()


@dataclass(frozen=True)
class Denoise:
    """An objective as a seqio preprocessor: the last step of a text task, which also appends EOS.

    The data stream recognizes this step and calls the objective itself, for whole batches. seqio
    runs the same functions example by example, with its own seeds, for tasks without a token store.

    Attributes:
        objective: of the task; None: that of the run, or span corruption if seqio runs the task on
            its own.
        sequence_length: the lengths of the features; seqio sets them when the task runs.
        output_features: the features of the task; seqio sets them when the task runs.
    """

    objective: Objective | None = None
    sequence_length: Mapping[str, int] | None = None
    output_features: Mapping[str, Any] | None = None

    def __call__(self, dataset: "tf.data.Dataset") -> "tf.data.Dataset":
        """Join documents in groups, cut these into chunks and apply the objective to each chunk.

        Args:
            dataset: documents, tokenized as "targets".

        Raises:
            ConfigError: for an objective that makes more than inputs and targets, or takes more
                than one chunk. Only the data stream can run it.
        """
        import seqio
        import tensorflow as tf

        objective, lengths = self.objective or SpanCorruption(), self.sequence_length or {}
        _check_runs_in_seqio(objective)
        raw_length, widths = objective.raw_length(lengths), feature_widths(objective, lengths)
        sentinels = to_vocabulary((self.output_features or {})["targets"].vocabulary).sentinels
        check_sentinels(objective.sentinels_needed(lengths), sentinels)

        def features(tokens: NDArray, seed: NDArray) -> list[NDArray]:
            rows = objective(single_row(tokens.astype(np.int32)), _key(seed), sentinels)
            rows = finish_features(rows, objective, widths)
            return [rows[name].tokens[0, : rows[name].lengths[0]] for name in FEATURES]

        def denoise(chunk: Any, seed: Any) -> dict[str, Any]:
            return _shaped(tf.numpy_function(features, (chunk, tf.stack(seed)), (tf.int32,) * 2))

        chunks = _cut_groups(_joined_groups(dataset, objective), objective, raw_length)
        denoise_all: Any = seqio.map_over_dataset(denoise, num_seeds=1)
        return denoise_all(chunks)


def _joined_groups(dataset: "tf.data.Dataset", objective: Objective) -> Any:
    """Return the tokens of each group of non-empty documents, with their EOS if they get one."""
    import tensorflow as tf

    documents = dataset.map(lambda document: document["targets"])
    documents = documents.filter(lambda tokens: tf.size(tokens) > 0)
    if objective.eos_after == "documents":
        documents = documents.map(lambda tokens: tf.concat([tokens, [EOS_ID]], 0))
    groups: Any = documents.ragged_batch(objective.documents_per_group)
    return groups.map(lambda group: group.flat_values)


def _cut_groups(groups: Any, objective: Objective, raw_length: int) -> "tf.data.Dataset":
    """Return the chunks of groups, of `raw_length` or of a random length for each group."""
    import seqio
    import tensorflow as tf

    def with_random_length(group: Any, seed: Any) -> Any:
        def draw(seed: NDArray) -> NDArray:
            assert isinstance(objective, RandomLengthObjective)
            return objective.chunk_lengths(raw_length, _key(seed))[0]

        length = tf.numpy_function(draw, (tf.stack(seed),), tf.int64)
        return group, tf.ensure_shape(length, [])

    def chunks(group: Any, length: Any) -> Any:
        starts = tf.data.Dataset.range(0, tf.size(group, tf.int64), length)
        return starts.map(lambda start: group[start : start + length])

    if isinstance(objective, RandomLengthObjective):
        draw_all: Any = seqio.map_over_dataset(with_random_length, num_seeds=1)
        groups = draw_all(groups)
    else:
        groups = groups.map(lambda group: (group, np.int64(raw_length)))
    return groups.flat_map(chunks)


@dataclass(frozen=True)
class TrimPairs:
    """A `PairTrimming` as a seqio preprocessor: the last step of a pair task, which appends EOS.

    Attributes:
        trimming: how pairs that are too long are trimmed.
        sequence_length: the lengths of the features; seqio sets them when the task runs.
    """

    trimming: PairTrimming
    sequence_length: Mapping[str, int] | None = None

    def __call__(self, dataset: "tf.data.Dataset") -> "tf.data.Dataset":
        """Trim inputs and targets, append EOS, and omit pairs without their answer.

        Args:
            dataset: pairs, tokenized as "inputs" and "targets".
        """
        import seqio
        import tensorflow as tf

        lengths = self.sequence_length or {}

        def trim(inputs: NDArray, targets: NDArray, seed: NDArray) -> list[NDArray]:
            features = {"inputs": inputs, "targets": targets}
            width = lengths.get("inputs", len(inputs))
            if self.trimming.window_around_answer and len(inputs) > width:
                if (answer := find_answer(inputs, targets)) < 0:
                    return [inputs[:0], targets[:0]]  # filtered out below
                start = window_start(
                    answer, len(targets), len(inputs), width=width, key_12=_key(seed)
                )
                features["inputs"] = inputs[start : start + width]
            trimmed = [
                self.trimming.trim(tokens, lengths.get(name, len(tokens) + 1))
                for name, tokens in features.items()
            ]
            return [np.append(tokens, tokens.dtype.type(EOS_ID)) for tokens in trimmed]

        def trim_example(example: dict[str, Any], seed: Any) -> dict[str, Any]:
            columns = [example[name] for name in FEATURES]
            types = [column.dtype for column in columns]
            return example | _shaped(tf.numpy_function(trim, (*columns, tf.stack(seed)), types))

        trim_all: Any = seqio.map_over_dataset(trim_example, num_seeds=1)
        return trim_all(dataset).filter(lambda example: tf.size(example["inputs"]) > 0)


class NotStorableError(Exception):
    """A task cannot be read from a token store and needs seqio's own pipeline; says why."""


def postcache_step(task: "seqio.Task") -> Denoise | TrimPairs | None:
    """Return what a task does after its cache placeholder, None if it only appends EOS.

    `append_eos` counts as `append_eos_after_trim`: an example too long for its row keeps its EOS.

    Raises:
        NotStorableError: if the task has no placeholder, or any other steps after it.
    """
    import seqio

    steps = list(task.preprocessors)
    is_placeholder = [isinstance(step, seqio.CacheDatasetPlaceholder) for step in steps]
    if not any(is_placeholder):
        raise NotStorableError(f"task {task.name!r} has no seqio.CacheDatasetPlaceholder")
    steps = steps[is_placeholder.index(True) + 1 :]
    appending = seqio.preprocessors.append_eos_after_trim, seqio.preprocessors.append_eos
    if len(steps) == 1 and isinstance(steps[0], Denoise | TrimPairs):
        return steps[0]
    if len(steps) != 1 or steps[0] not in appending:
        names = [getattr(step, "__name__", None) or repr(step) for step in steps]
        raise NotStorableError(
            f"task {task.name!r} has {', '.join(names) or 'nothing'} after its "
            "seqio.CacheDatasetPlaceholder, and not append_eos_after_trim or "
            f"{Denoise.__module__}.{Denoise.__qualname__} alone"
        )
    return None


def postcache_steps(
    tasks: Iterable["seqio.Task"],
) -> tuple[dict[str, Denoise | TrimPairs | None], dict[str, str]]:
    """Sort tasks into those that token stores can serve and those that need seqio's pipeline.

    Args:
        tasks: any seqio tasks.

    Returns:
        By task, what it does after its cache placeholder (`postcache_step`); and for all other
        tasks, why no store can serve them.
    """
    steps, reasons = {}, {}
    for task in tasks:
        try:
            steps[task.name] = postcache_step(task)
        except NotStorableError as error:
            reasons[task.name] = str(error)
    return steps, reasons


def with_objective(task: "seqio.Task", objective: Objective) -> "seqio.Task":
    """Return a task for seqio's own pipeline in which `Denoise` steps have an objective.

    Args:
        task: any seqio task.
        objective: for the steps that have none of their own.
    """
    steps = [
        Denoise(step.objective or objective) if isinstance(step, Denoise) else step
        for step in task.preprocessors
    ]
    return task.replace(preprocessors=steps)


def to_vocabulary(vocabulary: "seqio.Vocabulary") -> AnyVocabulary:
    """Return the vocabulary of this package for a seqio vocabulary.

    Raises:
        ConfigError: if it is neither a SentencePiece nor a byte vocabulary.
    """
    import seqio

    if isinstance(vocabulary, seqio.ByteVocabulary):
        return ByteVocabulary(extra_ids=vocabulary.extra_ids)
    model_file = getattr(vocabulary, "sentencepiece_model_file", None)
    if model_file is None:
        raise ConfigError(
            f"{type(vocabulary).__name__} is neither a SentencePiece nor a byte vocabulary; "
            f"expected one of these, which Data.vocabulary can give to every task of the mixture",
            "MIXTURE_OR_TASK_NAME",
            "Data.vocabulary",
        )
    return Vocabulary(model_file, vocabulary.extra_ids)


def _check_runs_in_seqio(objective: Objective) -> None:
    """Raise ConfigError for an objective that only the data stream can run."""
    if isinstance(objective, PairObjective | TokenLevelObjective):
        raise ConfigError(
            f"seqio's own pipeline carries inputs and targets made of one chunk each; "
            f"{type(objective).__name__} gives more: train it from token stores, as "
            "`t5x_lite train` does",
            "OBJECTIVE",
        )


def _key(seed: NDArray) -> NDArray[np.uint32]:
    """Return a seed of seqio as the random key of one example: [1, 2]."""
    return seed[None].astype(np.uint32)


def _shaped(columns: Sequence[Any]) -> dict[str, Any]:
    """Return inputs and targets as vectors of unknown length; numpy_function loses the shape."""
    import tensorflow as tf

    named = zip(FEATURES, columns, strict=True)
    return {name: tf.ensure_shape(column, [None]) for name, column in named}
