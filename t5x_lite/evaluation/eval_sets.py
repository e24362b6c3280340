"""The examples and metrics that each task of a mixture is evaluated with.

A metric may need features that no token store keeps, such as all answers to a question or the
number of a paragraph. The first evaluation of a split therefore reads its examples from seqio and
writes them to a file below `data_dir`. Later evaluations read that file. They import neither seqio
nor TensorFlow if the task providers define the metrics.
"""

import hashlib
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t5x_lite.data.data_config import Data
from t5x_lite.data.prepare import Plan, plan_path
from t5x_lite.data.registry import registered_tasks
from t5x_lite.data.tasks.lazy_seqio import import_seqio
from t5x_lite.errors import ConfigError
from t5x_lite.io.run_records import read_json_lines, write_json_lines
from t5x_lite.metrics.task_metrics import EvalExample, TaskMetrics, labels_are_hidden

if TYPE_CHECKING:
    import seqio

_LOG = logging.getLogger(__name__)
_FORMAT = 1
_REQUIRED_FEATURES = ("inputs", "targets")


@dataclass(frozen=True)
class EvaluationSet:
    """The examples of one split of a task, with the task's metrics.

    Attributes:
        name: The task.
        split: The split, such as "validation".
        task_metrics: Postprocessor and metrics.
        examples: All examples of the split, in the order of the dataset.
    """

    name: str
    split: str
    task_metrics: TaskMetrics
    examples: Sequence[EvalExample]

    @property
    def has_hidden_labels(self) -> bool:
        """Whether no example has a label, as in the test sets of benchmarks."""
        return labels_are_hidden(self.examples)


@dataclass(frozen=True)
class Splits:
    """The split that each task is evaluated on.

    Attributes:
        default: The split of all tasks that `named` does not contain.
        named: Splits by task.
    """

    default: str = "validation"
    named: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, split: str | Mapping[str, str]) -> "Splits":
        """Return the splits for a value of `evaluate.split`.

        "test" is the split of all tasks. {"dpr_v001_simple": "test"} is the split of one task; all
        others use "validation".
        """
        return cls(default=split) if isinstance(split, str) else cls(named=split)

    def __getitem__(self, task: str) -> str:
        return self.named.get(task, self.default)


def evaluation_sets(
    data: Data,
    plan: Plan,
    *,
    splits: Splits = Splits(),
    without_metrics: bool = False,
) -> list[EvaluationSet]:
    """Return the evaluation sets of a mixture: of each task that has its split and metrics.

    Args:
        data: Data of the run. Inputs and targets are truncated to `data.feature_lengths`, EOS
            included.
        plan: Plan of `data`.
        splits: The split of each task.
        without_metrics: Whether to include tasks that have a postprocessor and no metrics, for
            their predictions.

    Raises:
        ConfigError: A task has a metric with unknown arguments, or its examples lack inputs or
            targets.
    """
    reader = _Reader(data, plan, splits, without_metrics)
    sets = [reader.read(task.name) for task in plan.tasks]
    return [evaluation_set for evaluation_set in sets if evaluation_set is not None]


class _Reader:
    """Reads evaluation sets from their files or, if there is none yet, with seqio."""

    def __init__(
        self,
        data: Data,
        plan: Plan,
        splits: Splits,
        without_metrics: bool,
    ):
        self._data, self._splits = data, splits
        self._without_metrics = without_metrics
        self._plan = {task.name: task for task in plan.tasks}
        self._registered: dict[str, seqio.Task] | None = None
        self._known_metrics: dict[str, TaskMetrics] = {}
        for provider in data.task_providers:
            self._known_metrics |= getattr(provider, "evaluations", {})

    def read(self, name: str) -> EvaluationSet | None:
        """Return the evaluation set of a task; None for a task without metrics or its split."""
        split = self._splits[name]
        if self._lacks_split(name, split) or (task_metrics := self._task_metrics(name)) is None:
            return None
        # Raises ConfigError for a metric with unknown arguments before any example is read.
        for kind in ("predictions", "scores"):
            task_metrics.needs(kind)
        path = self._path(name, split)
        if path is None or not path.exists():
            task = self._registered_task(name)
            if split not in task.splits:
                return None
            _LOG.info(f"reading the evaluation examples of {name}/{split} ...")
            features = _read_examples(task, split, self._data)
            if path is None:
                return _evaluation_set(name, split, task_metrics, features)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json_lines(path, features)
        return _evaluation_set(name, split, task_metrics, read_json_lines(path, strict=True))

    def _lacks_split(self, name: str, split: str) -> bool:
        """Return whether the plan shows that a task has no such split.

        The plan knows the splits of `Data.splits`, and of tasks with rate 0 only "validation".
        """
        task = self._plan[name]
        return (
            split in self._data.splits
            and bool(task.rate or split == "validation")
            and split not in {**task.stores, **task.pipelines}
        )

    def _task_metrics(self, name: str) -> TaskMetrics | None:
        """Return the metrics of a task, from its provider or else from seqio's registry."""
        task_metrics = self._known_metrics.get(name)
        if task_metrics is None and self._data.module_names:
            task = self._registered_task(name)
            task_metrics = TaskMetrics(task.postprocess_fn, task.metric_fns)
        if task_metrics is None:
            return None
        predictions_only = self._without_metrics and task_metrics.postprocess
        return task_metrics if task_metrics.metrics or predictions_only else None

    def _registered_task(self, name: str) -> "seqio.Task":
        if self._registered is None:
            if "seqio" not in sys.modules:
                _LOG.info("importing seqio and TensorFlow ...")
            import_seqio()
            self._registered = {task.name: task for task, _ in registered_tasks(self._data)}
        return self._registered[name]

    def _path(self, name: str, split: str) -> Path | None:
        """Return the file of an evaluation set; None for a split without a token store.

        The name of the file contains a hash of all that determines its content. The name of the
        token store is part of it, because it changes with the source. Without a store, nothing
        shows that the source has changed, so the examples are read again each time.
        """
        store = self._plan[name].stores.get(split)
        if store is None:
            return None
        lengths = sorted(self._data.feature_lengths.items())
        parts = [_FORMAT, plan_path(self._data).stem, lengths, self._data.seed, store]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        folder = re.sub(r"[^\w.#]", "_", name)
        return Path(self._data.data_dir, "evaluation", folder, f"{split}-{digest}.jsonl")


def _evaluation_set(
    name: str, split: str, task_metrics: TaskMetrics, lines: Iterable[Mapping[str, Any]]
) -> EvaluationSet | None:
    """Return the evaluation set of examples in the form of `_to_json`; None without examples."""
    examples = [_eval_example(line) for line in lines]
    return EvaluationSet(name, split, task_metrics, examples) if examples else None


def _read_examples(task: "seqio.Task", split: str, data: Data) -> Iterator[dict[str, Any]]:
    """Yield the examples of a split in the order of the dataset, in the form of `_to_json`."""
    dataset = task.get_dataset(
        sequence_length=dict(data.feature_lengths),
        split=split,
        use_cached=False,
        shuffle=False,
        seed=data.seed,
        num_epochs=1,
    )
    for example in dataset.as_numpy_iterator():
        if missing := [name for name in _REQUIRED_FEATURES if name not in example]:
            raise ConfigError(
                f"task {task.name!r} has metrics, which need the feature {missing[0]!r}; its "
                f"features are {', '.join(sorted(example))}",
                "MIXTURE_OR_TASK_NAME",
            )
        yield {name: _to_json(value) for name, value in example.items()}


def _eval_example(line: Mapping[str, Any]) -> EvalExample:
    features = {name: _from_json(value) for name, value in line.items()}
    return EvalExample(features["inputs"].tolist(), features["targets"].tolist(), features)


def _to_json(value: Any) -> Any:
    """Convert a value of a dataset to JSON that `_from_json` converts back without loss.

    Objects distinguish strings from numbers, and arrays from lists.

    >>> _to_json(b"Zola"), _to_json(np.array([2, 3], np.int32)), _to_json(np.float32(0.5))
    ({'text': 'Zola'}, {'array': [2, 3], 'dtype': 'int32'}, 0.5)
    """
    if isinstance(value, bytes):
        return {"text": value.decode("utf-8", "surrogateescape")}
    if isinstance(value, np.generic):
        return _to_json(value.item())
    if isinstance(value, np.ndarray) and value.dtype != object:
        return {"array": value.tolist(), "dtype": value.dtype.name}
    if isinstance(value, np.ndarray):
        return [_to_json(item) for item in value.tolist()]
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if hasattr(value, "to_list"):  # a ragged tensor
        return _to_json(value.to_list())
    return value


def _from_json(value: Any) -> Any:
    """Convert a value of `_to_json` back."""
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if isinstance(value, dict) and "text" in value:
        return value["text"].encode("utf-8", "surrogateescape")
    if isinstance(value, dict):
        return np.array(value["array"], value["dtype"])
    return value
