"""Tokenize one file of a task's source: examples in, token ids out, a few hundred at a time.

seqio can tokenize any task. Tasks that only rename and tokenize the fields of records, which most
text tasks do, can also be tokenized without TensorFlow, several times faster ("sentencepiece").
Because SentencePiece's own library and the one in TensorFlow differ where two segmentations have
the same score (about 0.4 % of documents), this is a setting, and stores record it.
"""

import itertools
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.data_config import Tokenizer
from t5x_lite.data.sources.jsonl_and_tsv import LineStats, read_records
from t5x_lite.data.sources.seqio_sources import JsonLinesSource
from t5x_lite.data.tasks.preprocessors import is_tokenize, renamed_fields, to_vocabulary
from t5x_lite.errors import ConfigError
from t5x_lite.tokenizers.vocabularies import AnyVocabulary

if TYPE_CHECKING:
    import seqio

Group = dict[
    str, tuple[NDArray, NDArray]
]  # by feature: the tokens of all examples, and their lengths

_EXAMPLES_PER_READ = 512


@dataclass(frozen=True)
class TokenizeRecords:
    """A task that renames the fields of records and tokenizes them, and does nothing else.

    Attributes:
        source: reads the records.
        fields: the field of each feature; None: the feature is empty.
        vocabularies: the vocabulary of each feature.
    """

    source: JsonLinesSource
    fields: Mapping[str, str | None]
    vocabularies: Mapping[str, AnyVocabulary]

    def read(self, shard: str, line_stats: LineStats) -> Iterator[Group]:
        """Yield the examples of a file, a few hundred at a time.

        Args:
            shard: the path of the file.
            line_stats: counts lines and malformed lines.
        """
        records = read_records(shard, self.source.fields, self.source.bad_lines, line_stats)
        while part := list(itertools.islice(records, _EXAMPLES_PER_READ)):
            yield {
                feature: self._encode(
                    feature, [str(record.get(field, "")) if field else "" for record in part]
                )
                for feature, field in self.fields.items()
            }

    def _encode(self, feature: str, texts: list[str]) -> tuple[NDArray, NDArray]:
        rows = self.vocabularies[feature].encode_all(texts)
        lengths_b = np.fromiter(map(len, rows), np.int64, len(rows))
        tokens = np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths_b.sum()))
        return tokens, lengths_b


def records_to_tokenize(task: "seqio.Task") -> TokenizeRecords | None:
    """Return how to tokenize a task without TensorFlow, None if it takes seqio.

    The steps before the cache placeholder must be two: one that only renames fields, and one that
    only tokenizes, as `data.tasks.preprocessors` declares (`renamed_fields`, `is_tokenize`). The
    source must be our own reader of lines, which declares itself as `json_lines`.
    """
    import seqio

    source = getattr(task.source, "json_lines", None)
    steps = list(task.preprocessors)
    if len(steps) < 3 or not isinstance(steps[2], seqio.CacheDatasetPlaceholder) or not source:
        return None
    fields = renamed_fields(steps[0])
    if fields is None or not is_tokenize(steps[1]) or set(fields) != set(task.output_features):
        return None
    vocabularies = {
        name: to_vocabulary(feature.vocabulary) for name, feature in task.output_features.items()
    }
    return TokenizeRecords(source, fields, vocabularies)


def read_groups(
    task: "seqio.Task", split: str, number: int, names: Container[str], *, tokenizer: Tokenizer
) -> Iterator[Group]:
    """Yield the examples of one file of a task's source, a few hundred at a time.

    Args:
        task: the task.
        split: the split that the file belongs to.
        number: which file of the split, from 0.
        names: the features to yield.
        tokenizer: "sentencepiece" is used if the task permits it (`records_to_tokenize`).

    Raises:
        ConfigError: if the file cannot be read.
    """
    import tensorflow as tf

    shard = task.source.list_shards(split)[number]
    try:
        if tokenizer == "sentencepiece" and (records := records_to_tokenize(task)) is not None:
            line_stats = getattr(task.source, "line_stats")[shard] = LineStats()  # noqa: B009
            yield from records.read(shard, line_stats)
        else:
            yield from _seqio_groups(task, split, number, names)
    except (tf.errors.OpError, OSError, AssertionError) as error:
        raise ConfigError(
            f"task {task.name!r}, split {split!r}: {first_line(error)}", "DATA_DIR"
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of an error, without TensorFlow's graph node and class name."""
    message = getattr(error, "message", None) or str(error)
    return re.sub(r"^(\{\{.*?\}\} )?(\w+Error: )?", "", message).split("\n", 1)[0]


def _seqio_groups(
    task: "seqio.Task", split: str, number: int, names: Container[str]
) -> Iterator[Group]:
    import seqio

    shards = len(task.source.list_shards(split))
    info = seqio.ShardInfo(number, shards) if shards > 1 else None
    documents = task.source.get_dataset(split=split, shuffle=False, shard_info=info)
    examples = task.preprocess_precache(documents, seed=0)
    examples = examples.map(lambda example: {k: v for k, v in example.items() if k in names})
    for group in examples.ragged_batch(_EXAMPLES_PER_READ):
        yield {name: _flatten(rows) for name, rows in group.items()}


def _flatten(rows: Any) -> tuple[NDArray, NDArray]:
    """Return the tokens of all rows of a batch, and the length of each row.

    TensorFlow returns a plain tensor if all rows are known to have the same length.
    """
    if hasattr(rows, "row_lengths"):
        return rows.flat_values.numpy(), rows.row_lengths().numpy()
    return rows.numpy().reshape(-1), np.full(rows.shape[0], rows.shape[1])
