"""seqio preprocessors of text and pair tasks; those after the cache the stream knows as well."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.stream.pair_trimming import PairTrimming, find_answer, single_row, window_start
from t5x_lite.data.stream.trim_and_eos import EOS_ID, FEATURES, feature_widths, finish_features
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.sentinels import check_sentinels
from t5x_lite.objectives.span_corruption import (
    Objective,
    PairObjective,
    RandomLengthObjective,
    SpanCorruption,
    TokenLevelObjective,
)
from t5x_lite.tokenizers.vocabularies import AnyVocabulary, ByteVocabulary, Vocabulary

if TYPE_CHECKING:
    import seqio
    import tensorflow as tf

Document = Mapping[str, str]
Pair = tuple[str, str]

_DOCUMENTS_PER_READ = 256


def text_steps(objective: Objective | None = None, *, field: str = "text") -> list[Callable]:
    """Return the preprocessors of a text task: documents to tokens, cache point, objective.

    Without an objective of its own, a task takes that of the run (`plan.Data.objective`).
    """
    import seqio

    return [
        functools.partial(seqio.preprocessors.rekey, key_map={"inputs": None, "targets": field}),
        seqio.preprocessors.tokenize,
        seqio.CacheDatasetPlaceholder(),
        Denoise(objective),
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
        return _shaped(columns)

    return dataset.batch(_DOCUMENTS_PER_READ).map(features).unbatch()


@dataclass(frozen=True)
class Denoise:
    """An objective as a seqio preprocessor, the last of a task of text: EOS is its work too.

    objective: None is the run's; seqio, which knows no run, then takes span corruption.

    The token stores' stream recognizes it and calls the objective itself, for whole batches; seqio
    runs the same functions example by example, with its own seeds. Raises ConfigError for
    objectives that are more than inputs and targets of one piece: those are the stream's alone.
    """

    objective: Objective | None = None
    sequence_length: Mapping[str, int] | None = None  # seqio sets this and the next at run time
    output_features: Mapping[str, Any] | None = None

    def __call__(self, dataset: "tf.data.Dataset") -> "tf.data.Dataset":
        """Join documents in groups, cut them into pieces and make inputs and targets of each."""
        import seqio
        import tensorflow as tf

        objective, lengths = self.objective or SpanCorruption(), self.sequence_length or {}
        _check_seqio_carries(objective)
        raw_length, widths = objective.raw_length(lengths), feature_widths(objective, lengths)
        sentinels = to_vocabulary((self.output_features or {})["targets"].vocabulary).sentinels
        check_sentinels(objective.sentinels_needed(lengths), sentinels)
        random_pieces = objective if isinstance(objective, RandomLengthObjective) else None

        def features(tokens: NDArray, seed: NDArray) -> list[NDArray]:
            made = objective(single_row(tokens.astype(np.int32)), _key(seed), sentinels)
            made = finish_features(made, objective, widths)
            return [made[name].tokens[0, : made[name].lengths[0]] for name in FEATURES]

        def denoise(piece: Any, seed: Any) -> dict[str, Any]:
            return _shaped(tf.numpy_function(features, (piece, tf.stack(seed)), (tf.int32,) * 2))

        def pieces(group: Any, length: Any) -> Any:
            cuts = tf.data.Dataset.range(0, tf.size(group, tf.int64), length)
            return cuts.map(lambda start: group[start : start + length])

        def of_random_length(group: Any, seed: Any) -> Any:
            def draw(seed: NDArray) -> NDArray:
                assert random_pieces is not None
                return random_pieces.chunk_lengths(raw_length, _key(seed))[0]

            length = tf.numpy_function(draw, (tf.stack(seed),), tf.int64)
            return group, tf.ensure_shape(length, [])

        documents = dataset.map(lambda document: document["targets"])
        documents = documents.filter(lambda tokens: tf.size(tokens) > 0)
        if objective.eos_after == "documents":
            documents = documents.map(lambda tokens: tf.concat([tokens, [EOS_ID]], 0))
        groups: Any = documents.ragged_batch(objective.documents_per_group)
        groups = groups.map(lambda group: group.flat_values)
        if random_pieces is None:
            groups = groups.map(lambda group: (group, np.int64(raw_length)))
        else:
            draw_all: Any = seqio.map_over_dataset(of_random_length, num_seeds=1)
            groups = draw_all(groups)
        denoise_all: Any = seqio.map_over_dataset(denoise, num_seeds=1)
        return denoise_all(groups.flat_map(pieces))


@dataclass(frozen=True)
class TrimPairs:
    """A pair trimming as a seqio preprocessor, the last of a task of pairs; see `PairTrimming`."""

    trimming: PairTrimming
    sequence_length: Mapping[str, int] | None = None  # seqio sets this at run time

    def __call__(self, dataset: "tf.data.Dataset") -> "tf.data.Dataset":
        """Cut inputs and targets, append EOS, omit the pairs without their answer."""
        import seqio
        import tensorflow as tf

        lengths = self.sequence_length or {}

        def cut(inputs: NDArray, targets: NDArray, seed: NDArray) -> list[NDArray]:
            tokens = {"inputs": inputs, "targets": targets}
            room = lengths.get("inputs", len(inputs))
            if self.trimming.window_around_answer and len(inputs) > room:
                if (place := find_answer(inputs, targets)) < 0:
                    return [inputs[:0], targets[:0]]
                first = window_start(place, len(targets), len(inputs), room=room, key_12=_key(seed))
                tokens["inputs"] = inputs[first : first + room]
            kept = [
                self.trimming.cut(part, lengths.get(name, len(part) + 1))
                for name, part in tokens.items()
            ]
            return [np.append(part, part.dtype.type(EOS_ID)) for part in kept]

        def end(example: dict[str, Any], seed: Any) -> dict[str, Any]:
            parts = [example[name] for name in FEATURES]
            types = [part.dtype for part in parts]
            return example | _shaped(tf.numpy_function(cut, (*parts, tf.stack(seed)), types))

        end_all: Any = seqio.map_over_dataset(end, num_seeds=1)
        return end_all(dataset).filter(lambda example: tf.size(example["inputs"]) > 0)


class NotStorableError(Exception):
    """Why no token store can serve a task: it needs seqio's own pipeline."""


def postcache_step(task: "seqio.Task") -> Denoise | TrimPairs | None:
    """Return what a task does after the cache placeholder, None for EOS alone.

    Raises NotStorableError for all others.
    `append_eos` counts as `append_eos_after_trim`: an example too long for its row keeps its EOS.
    """
    import seqio

    steps = list(task.preprocessors)
    places = [i for i, s in enumerate(steps) if isinstance(s, seqio.CacheDatasetPlaceholder)]
    if not places:
        raise NotStorableError(f"task {task.name!r} has no seqio.CacheDatasetPlaceholder")
    steps = steps[places[0] + 1 :]
    endings = seqio.preprocessors.append_eos_after_trim, seqio.preprocessors.append_eos
    if len(steps) == 1 and isinstance(steps[0], Denoise | TrimPairs):
        return steps[0]
    if len(steps) != 1 or steps[0] not in endings:
        names = [getattr(step, "__name__", None) or repr(step) for step in steps]
        raise NotStorableError(
            f"task {task.name!r} has {', '.join(names) or 'nothing'} after its "
            "seqio.CacheDatasetPlaceholder, and not append_eos_after_trim or "
            "t5x_lite.data.tasks.preprocessors.Denoise alone"
        )
    return None


def postcache_steps(
    tasks: Iterable["seqio.Task"],
) -> tuple[dict[str, Denoise | TrimPairs | None], dict[str, str]]:
    """Return what tasks do with what is stored, and why no store can serve the others."""
    steps, reasons = {}, {}
    for task in tasks:
        try:
            steps[task.name] = postcache_step(task)
        except NotStorableError as error:
            reasons[task.name] = str(error)
    return steps, reasons


def with_objective(task: "seqio.Task", objective: Objective) -> "seqio.Task":
    """Return a task for seqio's own pipeline whose text, if it is any, is for an objective."""
    steps = [
        Denoise(step.objective or objective) if isinstance(step, Denoise) else step
        for step in task.preprocessors
    ]
    return task.replace(preprocessors=steps)


def to_vocabulary(vocabulary: "seqio.Vocabulary") -> AnyVocabulary:
    """Return our form of a seqio vocabulary; raises ConfigError for one of neither form."""
    import seqio

    if isinstance(vocabulary, seqio.ByteVocabulary):
        return ByteVocabulary(extra_ids=vocabulary.extra_ids)
    model_file = getattr(vocabulary, "sentencepiece_model_file", None)
    if model_file is None:
        raise ConfigError(
            f"{type(vocabulary).__name__} is neither a SentencePiece nor a byte vocabulary; "
            f"wanted one of these, which Data.vocabulary can give to every task of the mixture",
            "MIXTURE_OR_TASK_NAME",
            "Data.vocabulary",
        )
    return Vocabulary(model_file, vocabulary.extra_ids)


def _check_seqio_carries(objective: Objective) -> None:
    """Raise ConfigError for an objective that only the token stores' stream can serve."""
    if isinstance(objective, PairObjective | TokenLevelObjective):
        raise ConfigError(
            f"seqio's own pipeline carries inputs and targets made of one piece each; "
            f"{type(objective).__name__} gives more: train it from token stores, as "
            "`t5x_lite train` does",
            "OBJECTIVE",
        )


def _key(seed: NDArray) -> NDArray[np.uint32]:
    """Return a seed of seqio's as the key of one example."""
    return seed[None].astype(np.uint32)


def _shaped(columns: Sequence[Any]) -> dict[str, Any]:
    """Return inputs and targets as TensorFlow's vectors of unknown length."""
    import tensorflow as tf

    named = zip(FEATURES, columns, strict=True)
    return {name: tf.ensure_shape(column, [None]) for name, column in named}
