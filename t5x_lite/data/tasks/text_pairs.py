"""Turn a user's own files of inputs and targets into a task, with a few gin lines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from t5x_lite.data.code_identity import NOT_IDENTITY, versioned
from t5x_lite.data.sources.jsonl_and_tsv import STRICT, MalformedLines
from t5x_lite.data.sources.seqio_sources import JsonLinesSource
from t5x_lite.data.tasks.preprocessors import RenameFields, Tokenize
from t5x_lite.data.tasks.task_providers import add_task
from t5x_lite.metrics.task_metrics import TaskMetrics
from t5x_lite.tokenizers.vocabularies import AnyVocabulary


@versioned("text_pairs", 1)
@dataclass(frozen=True)
class TextPairs:
    """A task provider for files with inputs and targets in two columns.

    For files of running text there is `task_providers.JsonLinesText`.

    Args:
        name: Name of the task.
        train: A pattern of the training files, such as "data/train.*.jsonl" or
            "gs://bucket/train.tsv": JSON lines, or tab-separated columns (".tsv") under a line with
            their names; each may be gzipped (".gz").
        vocabulary: Of inputs and targets.
        validation: A pattern of the validation files; None: the task has no such split.
        inputs: The column of the inputs.
        targets: The column of the targets.
        metrics: Functions (targets, predictions) -> scores by name, as in seqio.
        postprocess: Applied to targets and predictions before the metrics, as in seqio.
        bad_lines: Tolerance for malformed lines.
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
        """The metrics of the task, by its name."""
        return {self.name: TaskMetrics(self.postprocess, self.metrics)}

    def register(self, data_dir: str) -> None:
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
