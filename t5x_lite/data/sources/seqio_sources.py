"""Where the examples of seqio tasks come from: files of lines, and data sets of TFDS."""

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
    """Files of lines as the source of seqio tasks (`records.read_records` tells what they may be).

    directory: a path or an address. patterns: what the files of each split are called; None is as
    in C4. fields: the text that every line must have; what a line has of `optional` is passed on.
    """

    directory: str
    patterns: Mapping[str, str] | None = None
    fields: Sequence[str] = ("text",)
    optional: Sequence[str] = ("url",)
    bad_lines: MalformedLines = STRICT

    def to_seqio(self) -> "seqio.FileDataSource":
        """Return the source; raises ConfigError where a pattern matches no file.

        Only C4's validation files may be missing, which leaves the task without that split.

        Its attribute `line_stats` counts, file by file, what was read; `json_lines` is this value.
        """
        import seqio
        import tensorflow as tf

        patterns = {
            split: os.path.join(self.directory, pattern)
            for split, pattern in (self.patterns or C4_FILES).items()
        }
        found = {split: pattern for split, pattern in patterns.items() if files.matching(pattern)}
        wanted = ["train"] if self.patterns is None else list(patterns)
        if missing := [patterns[split] for split in wanted if split not in found]:
            raise ConfigError(f"no file matches {missing[0]}", "DATA_DIR")
        line_stats: dict[str, LineStats] = {}
        read = functools.partial(_read_file, source=self, line_stats=line_stats)
        source = seqio.FileDataSource(
            tf.autograph.experimental.do_not_convert(lambda path: read(path)), found, cycle_length=1
        )
        for name, value in (("line_stats", line_stats), ("json_lines", self)):
            setattr(source, name, value)  # beside what seqio declares
        return source


@dataclass(frozen=True)
class TfdsSource:
    """A data set of TFDS that was prepared before, as the source of seqio tasks.

    name: with its version, as in "glue/cola:1.0.0". splits: by the names of tasks, what they are
    in TFDS. data_dir: where TFDS keeps its data sets; None is its own default.
    """

    name: str
    splits: Mapping[str, str]
    data_dir: str | None = None

    def to_seqio(self) -> "seqio.TfdsDataSource":
        """Return the source, which looks for its files when it is first read."""
        import seqio

        return seqio.TfdsDataSource(
            self.name, tfds_data_dir=self.data_dir, splits=dict(self.splits), read_only=True
        )


def _read_file(
    path: "tf.Tensor", source: JsonLinesSource, line_stats: dict[str, LineStats]
) -> "tf.data.Dataset":
    """Return the records of a file as a dataset of strings by field, "" where one is absent."""
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
