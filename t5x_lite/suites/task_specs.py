"""Rows of the tables of tasks, and their registration as seqio tasks."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from t5x_lite.data.code_identity import NOT_IDENTITY, versioned
from t5x_lite.data.sources.seqio_sources import TfdsSource
from t5x_lite.data.stream.pair_trimming import PairTrimming
from t5x_lite.data.tasks.preprocessors import TrimPairs, text_steps, to_vocabulary
from t5x_lite.data.tasks.task_providers import add_task
from t5x_lite.data.tasks.text_formats import Kind, MakeExamples, format_examples
from t5x_lite.metrics import postprocessors
from t5x_lite.metrics.metric_functions import Metric
from t5x_lite.metrics.task_metrics import TaskMetrics
from t5x_lite.objectives.objective import Objective
from t5x_lite.tokenizers.vocabularies import AnyVocabulary

Splits = Mapping[str, str]  # splits of the data set by the splits of the task
ALL: Splits = {"train": "train", "validation": "validation", "test": "test"}
TRAIN: Splits = {"train": "train"}
TRAIN_AND_VALIDATION: Splits = {"train": "train", "validation": "validation"}
VALIDATION_AND_TEST: Splits = {"validation": "validation", "test": "test"}
TEST: Splits = {"test": "test"}


@versioned("supervised_task", 1)
@dataclass(frozen=True)
class SupervisedTask:
    """A task that formats the examples of a TFDS data set as text.

    Attributes:
        name: Name of the task.
        tfds: The data set with its version.
        splits: Splits of the data set by the splits of the task.
        make: The text format: makes inputs and targets from the fields of an example.
        fields: The fields that the format reads.
        extras: Features that the format adds for evaluation, by name and type.
        postprocess: Converts texts to what the metrics compare.
        metrics: The metrics.
        sentinels: Number of sentinels that are appended to inputs and prepended to targets, which
            helps models that were only trained on span corruption.
        trimming: How pairs are truncated; None cuts their ends.
    """

    name: str
    tfds: str
    splits: Splits
    make: MakeExamples
    fields: Sequence[str]
    extras: Mapping[str, Kind] = field(default_factory=dict)
    postprocess: Callable[..., Any] | None = field(default=None, metadata=NOT_IDENTITY)
    metrics: Sequence[Metric] = field(default=(), metadata=NOT_IDENTITY)
    sentinels: int = 0
    trimming: PairTrimming | None = None

    def register(self, vocabulary: AnyVocabulary, tfds_data_dir: str | None) -> None:
        """Add the task to seqio's registry; it replaces one with the same name.

        Args:
            vocabulary: Vocabulary of inputs and targets.
            tfds_data_dir: Directory of TFDS data sets; None is TFDS's default.
        """
        import seqio

        steps = [
            functools.partial(
                format_examples, make=self.make, fields=tuple(self.fields), extras=self.extras
            ),
            seqio.preprocessors.tokenize,
            *([functools.partial(add_sentinels, count=self.sentinels)] if self.sentinels else []),
            seqio.CacheDatasetPlaceholder(),
            TrimPairs(self.trimming)
            if self.trimming
            else seqio.preprocessors.append_eos_after_trim,
        ]
        source = TfdsSource(self.tfds, self.splits, tfds_data_dir)
        add_task(
            self.name,
            source,
            steps,
            vocabulary,
            postprocess=self.postprocess,
            metrics=self.metrics,
        )

    def with_sentinel(self) -> "SupervisedTask":
        """Return the task's variant with one sentinel, under its name in T5."""
        stem, ending = self.name, ""
        for suffix in ("_train", "_eval"):
            if self.name.endswith(suffix):
                stem, ending = self.name.removesuffix(suffix), suffix
        postprocess = functools.partial(
            postprocessors.after_sentinels, count=1, postprocess=self.postprocess
        )
        return replace(
            self,
            name=f"{stem}_1_sentinel{ending}",
            sentinels=1,
            trimming=PairTrimming(keep_last_tokens=1),
            postprocess=postprocess,
        )


@versioned("text_task", 1)
@dataclass(frozen=True)
class TextTask:
    """A task of plain text, from the feature "text" of a TFDS data set.

    Attributes:
        name: Name of the task.
        tfds: The data set with its version.
        splits: Splits of the data set by the splits of the task.
        objective: The task's own objective; None is that of the run.
    """

    name: str
    tfds: str
    splits: Splits = field(default_factory=lambda: TRAIN_AND_VALIDATION)
    objective: Objective | None = None

    def register(self, vocabulary: AnyVocabulary, tfds_data_dir: str | None) -> None:
        """Add the task to seqio's registry; it replaces one with the same name.

        Args:
            vocabulary: Vocabulary of inputs and targets.
            tfds_data_dir: Directory of TFDS data sets; None is TFDS's default.
        """
        source = TfdsSource(self.tfds, self.splits, tfds_data_dir)
        add_task(self.name, source, text_steps(self.objective), vocabulary)


TaskTable = Sequence[SupervisedTask | TextTask]


def own_objectives(table: TaskTable) -> dict[str, Objective]:
    """Return the objectives of the tasks that have their own, by task."""
    texts = [task for task in table if isinstance(task, TextTask)]
    return {task.name: task.objective for task in texts if task.objective is not None}


def evaluations(table: TaskTable) -> dict[str, TaskMetrics]:
    """Return postprocessor and metrics of the supervised tasks, by task."""
    return {
        task.name: TaskMetrics(task.postprocess, task.metrics)
        for task in table
        if isinstance(task, SupervisedTask)
    }


def add_mixtures(mixtures: Mapping[str, Iterable[tuple[str, Any]]]) -> None:
    """Add mixtures to seqio's registry; each replaces one with the same name.

    Args:
        mixtures: (task, rate) of the tasks of each mixture, by its name.
    """
    import seqio

    for name, rates in mixtures.items():
        seqio.MixtureRegistry.remove(name)
        seqio.MixtureRegistry.add(name, list(rates))


@versioned("add_sentinels", 1)
def add_sentinels(dataset: Any, output_features: Mapping[str, Any], count: int) -> Any:
    """Append the first sentinels to inputs and prepend them to targets.

        inputs     What is the capital of Illinois? <extra_id_0>
        targets    <extra_id_0> Springfield

    Args:
        dataset: A tf.data data set of tokenized examples.
        output_features: seqio's features, whose vocabularies have the sentinels.
        count: Number of sentinels.
    """
    import tensorflow as tf

    def ids(name: str) -> Any:
        first = to_vocabulary(output_features[name].vocabulary).sentinels.first
        return tf.constant([first - number for number in range(count)], tf.int32)

    def add(example: dict[str, Any]) -> dict[str, Any]:
        return example | {
            "inputs": tf.concat([example["inputs"], ids("inputs")], 0),
            "targets": tf.concat([ids("targets"), example["targets"]], 0),
        }

    return dataset.map(add)
