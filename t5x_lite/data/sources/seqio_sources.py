"""Sources of seqio tasks: files of lines, and TensorFlow Datasets (TFDS)."""

import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from t5x_lite.data.code_identity import versioned
from t5x_lite.data.sources.jsonl_and_tsv import STRICT, LineStats, MalformedLines, read_records
from t5x_lite.errors import ConfigError
from t5x_lite.io import files

if TYPE_CHECKING:
    import seqio
    import tensorflow as tf

C4_FILES = {"train": "c4-train.*.json*", "validation": "c4-validation.*.json*"}
_RECORDS_PER_READ = 256


class Source(Protocol):
    """Where the examples of a task come from."""

    def to_seqio(self) -> "seqio.DataSource":
        """Return the source for seqio."""
        ...


@versioned("json_lines_source", 1)
@dataclass(frozen=True)
class JsonLinesSource:
    """Files of lines as the source of a seqio task; see `jsonl_and_tsv.read_records`.

    Args:
        directory: A path or a URL.
        patterns: The names of the files of each split; None: as in C4.
        fields: The fields of text that every line must have.
        optional: Further fields, which are empty text where a line lacks them.
        bad_lines: The tolerance for malformed lines.
    """

    directory: str
    patterns: Mapping[str, str] | None = None
    fields: Sequence[str] = ("text",)
    optional: Sequence[str] = ("url",)
    bad_lines: MalformedLines = STRICT

    def to_seqio(self) -> "seqio.FileDataSource":
        """Return the source.

        It gets two attributes beyond seqio's: `line_stats` counts the lines of each file that was
        read, and `json_lines` is this value, by which the fast data path recognizes the source.

        Raises:
            ConfigError: If a pattern matches no file. With C4's patterns, the validation files may
                be missing; the task then has no such split.
        """
        import seqio
        import tensorflow as tf

        patterns = {
            split: os.path.join(self.directory, pattern)
            for split, pattern in (self.patterns or C4_FILES).items()
        }
        existing = {
            split: pattern for split, pattern in patterns.items() if files.matching(pattern)
        }
        required = ["train"] if self.patterns is None else list(patterns)
        if missing := [patterns[split] for split in required if split not in existing]:
            raise ConfigError(f"no file matches {missing[0]}", "DATA_DIR")
        line_stats: dict[str, LineStats] = {}
        read = functools.partial(_read_file, source=self, line_stats=line_stats)
        source = seqio.FileDataSource(
            tf.autograph.experimental.do_not_convert(lambda path: read(path)),
            existing,
            cycle_length=1,
        )
        for name, value in (("line_stats", line_stats), ("json_lines", self)):
            setattr(source, name, value)
        return source


@dataclass(frozen=True)
class TfdsSource:
    """A dataset of TFDS, prepared before, as the source of a seqio task.

    Args:
        name: With its version, such as "glue/cola:1.0.0".
        splits: The TFDS split of each split of the task.
        data_dir: Where TFDS has its datasets; None: its default.
    """

    name: str
    splits: Mapping[str, str]
    data_dir: str | None = None

    def to_seqio(self) -> "seqio.TfdsDataSource":
        """Return the source, which looks for its files when it is read."""
        import seqio

        return seqio.TfdsDataSource(
            self.name, tfds_data_dir=self.data_dir, splits=dict(self.splits), read_only=True
        )


def _read_file(
    path: "tf.Tensor", source: JsonLinesSource, line_stats: dict[str, LineStats]
) -> "tf.data.Dataset":
    """Return the records of a file as a dataset of strings by field, "" for a missing field."""
    import tensorflow as tf

    names = tuple(dict.fromkeys((*source.fields, *source.optional)))

    def batches(path: bytes) -> Iterator[dict[str, list[str]]]:
        name = path.decode()
        line_stats[name] = LineStats()
        records = read_records(name, source.fields, source.bad_lines, line_stats[name])
        while batch := list(itertools.islice(records, _RECORDS_PER_READ)):
            yield {field: [str(record.get(field, "")) for record in batch] for field in names}

    signature = {name: tf.TensorSpec([None], tf.string) for name in names}
    return tf.data.Dataset.from_generator(
        batches, args=(path,), output_signature=signature
    ).unbatch()
