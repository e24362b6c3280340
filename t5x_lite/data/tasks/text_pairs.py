"""A user's own files of inputs and targets as a task, by a few gin lines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from t5x_lite.data.code_identity import NOT_IDENTITY, versioned
from t5x_lite.data.sources.jsonl_and_tsv import STRICT, MalformedLines
from t5x_lite.data.sources.seqio_sources import JsonLinesSource
from t5x_lite.data.tasks.preprocessors import RenameFields, Tokenize
from t5x_lite.data.tasks.task_providers import Report, add_task
from t5x_lite.metrics.task_metrics import TaskMetrics
from t5x_lite.tokenizers.vocabularies import AnyVocabulary


@versioned("text_pairs", 1)
@dataclass(frozen=True)
class TextPairs:
    """The declaration of a task whose inputs and targets stand in two columns of files.

    train and validation: which files, such as "data/train.*.jsonl" or "gs://bucket/dev.tsv": lines
    of JSON, or ".tsv" under a line of column names; ".gz" too. inputs and targets: the columns.
    metrics: functions (targets, predictions) -> scores; postprocess: what is done to texts before,
    as in seqio. For files of plain text there is `tasks.JsonLinesText`.
    """

    name: str
    train: str
    vocabulary: AnyVocabulary
    validation: str | None = None
    inputs: str = "inputs"
    targets: str = "targets"
    metrics: Sequence[Callable] = field(default=(), metadata=NOT_IDENTITY)
    postprocess: Callable | None = field(default=None, metadata=NOT_IDENTITY)
    bad_lines: MalformedLines = STRICT

    @property
    def names(self) -> tuple[str, ...]:
        """The name of the one task."""
        return (self.name,)

    @property
    def evaluations(self) -> Mapping[str, TaskMetrics]:
        """How the task is judged."""
        return {self.name: TaskMetrics(self.postprocess, self.metrics)}

    def register(self, data_dir: str, report: Report) -> None:
        """Register the task; raises ConfigError where no file matches."""
        import seqio

        patterns = {"train": self.train}
        if self.validation is not None:
            patterns["validation"] = self.validation
        columns = {"inputs": self.inputs, "targets": self.targets}
        source = JsonLinesSource(
            "", patterns, fields=tuple(columns.values()), optional=(), bad_lines=self.bad_lines
        )
        steps = [
            RenameFields(columns),
            Tokenize(),
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos_after_trim,
        ]
        add_task(
            self.name,
            source,
            steps,
            self.vocabulary,
            postprocess=self.postprocess,
            metrics=self.metrics,
        )
