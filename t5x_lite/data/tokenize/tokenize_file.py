"""The deterministic part of a task, one file of its source at a time: documents in, tokens out.

seqio runs any task. The commonest kind, records of text whose fields are renamed and tokenized, can
also run without TensorFlow, several times faster. It is a choice, and stands in the manifest, since
SentencePiece's own library and the one inside TensorFlow differ where two ways to cut a word score
the same (some 0.4 % of documents).
"""

import functools
import itertools
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from t5x_lite.data.sources.jsonl_and_tsv import LineStats, read_records
from t5x_lite.data.sources.seqio_sources import JsonLinesSource
from t5x_lite.data.tasks.preprocessors import to_vocabulary
from t5x_lite.errors import ConfigError
from t5x_lite.tokenizers.vocabularies import AnyVocabulary

if TYPE_CHECKING:
    import seqio
from t5x_lite.data.data_config import Tokenizer

Group = dict[str, tuple[NDArray, NDArray]]  # by feature, tokens end to end and each row's length

_EXAMPLES_PER_READ = 512


@dataclass(frozen=True)
class TokenizeRecords:
    """A task that renames the fields of records and tokenizes them, and does nothing else."""

    source: JsonLinesSource
    fields: Mapping[str, str | None]  # by feature; None is empty text
    vocabularies: Mapping[str, AnyVocabulary]

    def read(self, shard: str, line_stats: LineStats) -> Iterator[Group]:
        """Yield some hundred examples of a file at a time."""
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
    """Return what a task does before its cache placeholder if it is of the commonest kind."""
    import seqio

    source = getattr(task.source, "json_lines", None)
    steps = list(task.preprocessors)
    if len(steps) < 3 or not isinstance(steps[2], seqio.CacheDatasetPlaceholder) or not source:
        return None
    rekey: Any = steps[0]
    tokenize = steps[1]
    if not isinstance(rekey, functools.partial) or rekey.func is not seqio.preprocessors.rekey:
        return None
    fields = rekey.keywords.get("key_map", {})
    if tokenize is not seqio.preprocessors.tokenize or set(fields) != set(task.output_features):
        return None
    vocabularies = {
        name: to_vocabulary(feature.vocabulary) for name, feature in task.output_features.items()
    }
    return TokenizeRecords(source, fields, vocabularies)


def read_groups(
    task: "seqio.Task", split: str, number: int, names: Container[str], *, tokenizer: Tokenizer
) -> Iterator[Group]:
    """Yield the examples of one file of a task's source, some hundred at a time.

    Raises ConfigError, which says what is wrong with the file, where it cannot be read.
    """
    import tensorflow as tf

    shard = task.source.list_shards(split)[number]
    try:
        if tokenizer == "sentencepiece" and (plain := records_to_tokenize(task)) is not None:
            line_stats = getattr(task.source, "line_stats")[shard] = LineStats()  # noqa: B009
            yield from plain.read(shard, line_stats)
        else:
            yield from _seqio_groups(task, split, number, names)
    except (tf.errors.OpError, OSError, AssertionError) as error:
        raise ConfigError(
            f"task {task.name!r}, split {split!r}: {first_line(error)}", "DATA_DIR"
        ) from error


def first_line(error: Exception) -> str:
    """Return what an error says, without TensorFlow's graph node and the Python class before it."""
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
    """Return the tokens of a batch end to end and each row's length.

    TensorFlow makes a plain tensor of a batch whose rows are known to have one length.
    """
    if hasattr(rows, "row_lengths"):
        return rows.flat_values.numpy(), rows.row_lengths().numpy()
    return rows.numpy().reshape(-1), np.full(rows.shape[0], rows.shape[1])
