"""What a table of tasks has in its rows, and how a row becomes a seqio task."""

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
from t5x_lite.metrics.metrics import Metric
from t5x_lite.metrics.task_metrics import TaskMetrics
from t5x_lite.objectives.span_corruption import Objective
from t5x_lite.tokenizers.vocabularies import AnyVocabulary

Splits = Mapping[str, str]
ALL: Splits = {"train": "train", "validation": "validation", "test": "test"}
TRAIN: Splits = {"train": "train"}
TRAIN_AND_VALIDATION: Splits = {"train": "train", "validation": "validation"}
VALIDATION_AND_TEST: Splits = {"validation": "validation", "test": "test"}
TEST: Splits = {"test": "test"}


@versioned("supervised_task", 1)
@dataclass(frozen=True)
class SupervisedTask:
    """A task made of a TFDS data set by a text format.

    tfds: the data set with its version. fields: what the format reads. extras: what it gives for
    evaluation. sentinels: how many are appended to inputs and put before targets, which helps
    models that have only ever filled gaps. trimming: of pairs that are not simply cut.
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
        """Add the task to seqio's registry, in the place of one of that name."""
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
        """Return the task's variant with one sentinel, under T5's name for it."""
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
    """A task of text, made of a TFDS data set with a feature `text`.

    objective: None is the run's, which all tasks without one of their own share.
    """

    name: str
    tfds: str
    splits: Splits = field(default_factory=lambda: TRAIN_AND_VALIDATION)
    objective: Objective | None = None

    def register(self, vocabulary: AnyVocabulary, tfds_data_dir: str | None) -> None:
        """Add the task to seqio's registry, in the place of one of that name."""
        source = TfdsSource(self.tfds, self.splits, tfds_data_dir)
        add_task(self.name, source, text_steps(self.objective), vocabulary)


TaskTable = Sequence[SupervisedTask | TextTask]


def own_objectives(table: TaskTable) -> dict[str, Objective]:
    """Return the objectives of those tasks that do not take the run's."""
    texts = [task for task in table if isinstance(task, TextTask)]
    return {task.name: task.objective for task in texts if task.objective is not None}


def evaluations(table: TaskTable) -> dict[str, TaskMetrics]:
    """Return how the supervised tasks are judged."""
    return {
        task.name: TaskMetrics(task.postprocess, task.metrics)
        for task in table
        if isinstance(task, SupervisedTask)
    }


def add_mixtures(mixtures: Mapping[str, Iterable[tuple[str, Any]]]) -> None:
    """Add mixtures to seqio's registry, each in the place of one of that name."""
    import seqio

    for name, rates in mixtures.items():
        seqio.MixtureRegistry.remove(name)
        seqio.MixtureRegistry.add(name, list(rates))


@versioned("add_sentinels", 1)
def add_sentinels(dataset: Any, output_features: Mapping[str, Any], count: int) -> Any:
    """Append the first sentinels to inputs and put them before targets.

    inputs     What is the capital of Illinois? <extra_id_0>
    targets    <extra_id_0> Springfield
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
