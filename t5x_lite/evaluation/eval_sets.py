"""What tasks are judged on: every example of a split as its dataset holds it, read once.

A metric may need what no token store keeps: all answers to a question, the number of a paragraph.
The first start asks seqio for a split's examples and writes them down; later ones read that, and
import neither seqio nor TensorFlow where the task_providers tell how their tasks are judged.
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
from t5x_lite.io.json_lines import read_json_lines, write_json_lines
from t5x_lite.metrics.task_metrics import EvalExample, TaskMetrics, labels_are_hidden

if TYPE_CHECKING:
    import seqio

_LOG = logging.getLogger(__name__)
_FORMAT = 1
_KEPT = ("inputs", "targets")


@dataclass(frozen=True)
class EvaluationSet:
    """A task's examples of one split, and how what a model says of them is judged."""

    name: str
    split: str
    how: TaskMetrics
    cases: Sequence[EvalExample]

    @property
    def secret(self) -> bool:
        """Whether no example tells its label."""
        return labels_are_hidden(self.cases)


@dataclass(frozen=True)
class Splits:
    """Which split of each task is looked at: one of all tasks, but for those that are named."""

    default: str = "validation"
    named: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, wanted: str | Mapping[str, str]) -> "Splits":
        """Read "test", or {"dpr_v001_simple": "test"}, which leaves the others at "validation"."""
        return cls(default=wanted) if isinstance(wanted, str) else cls(named=wanted)

    def __getitem__(self, task: str) -> str:
        return self.named.get(task, self.default)


def evaluation_sets(
    data: Data,
    plan: Plan,
    *,
    splits: Splits = Splits(),
    without_metrics: bool = False,
) -> list[EvaluationSet]:
    """Return the sets of all tasks of a mixture that have their split and metrics.

    without_metrics: also of tasks that have a postprocessor alone, for their predictions. Inputs
    and targets are cut to `data.feature_lengths`, EOS included. Raises ConfigError where a task has
    a metric of a kind that nobody could call.
    """
    reader = _Reader(data, plan, splits, without_metrics)
    return [found for name in (task.name for task in plan.tasks) if (found := reader.read(name))]


class _Reader:
    """Reads sets from where they were written down or, with seqio, from their sources."""

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
        self._known: dict[str, TaskMetrics] = {}
        for declaration in data.task_providers:
            self._known |= getattr(declaration, "evaluations", {})

    def read(self, name: str) -> EvaluationSet | None:
        """Return a task's set; None for one without metrics or without its split."""
        split = self._splits[name]
        if self._lacks(name, split) or (how := self._how(name)) is None:
            return None
        _ = [how.needs(kind) for kind in ("predictions", "scores")]
        path = self._path(name, split)
        if path is None or not path.exists():
            task = self._task(name)
            if split not in task.splits:
                return None
            _LOG.info(f"reading the evaluation examples of {name}/{split} ...")
            examples = _examples(task, split, self._data)
            if path is None:
                return _set(name, split, how, examples)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json_lines(path, examples)
        return _set(name, split, how, read_json_lines(path, strict=True))

    def _lacks(self, name: str, split: str) -> bool:
        """Whether the plan tells that a task has no such split; it knows those it was made for."""
        task = self._plan[name]
        return (
            split in self._data.splits
            and bool(task.rate or split == "validation")
            and split not in {**task.stores, **task.live}
        )

    def _how(self, name: str) -> TaskMetrics | None:
        how = self._known.get(name)
        if how is None and self._data.module_names:
            task = self._task(name)
            how = TaskMetrics(task.postprocess_fn, task.metric_fns)
        judged = how is not None and (how.metrics or (self._without_metrics and how.postprocess))
        return how if judged else None

    def _task(self, name: str) -> "seqio.Task":
        if self._registered is None:
            if "seqio" not in sys.modules:
                _LOG.info("importing seqio and TensorFlow ...")
            import_seqio()
            found = registered_tasks(self._data)
            self._registered = {task.name: task for task, _ in found}
        return self._registered[name]

    def _path(self, name: str, split: str) -> Path | None:
        """Where a set is written down: for splits whose store tells what the source held."""
        store = self._plan[name].stores.get(split)
        if store is None:
            return None
        lengths = sorted(self._data.feature_lengths.items())
        parts = [_FORMAT, plan_path(self._data).stem, lengths, self._data.seed, store]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        folder = re.sub(r"[^\w.#]", "_", name)
        return Path(self._data.data_dir, "evaluation", folder, f"{split}-{digest}.jsonl")


def _set(
    name: str, split: str, how: TaskMetrics, examples: Iterable[Mapping[str, Any]]
) -> EvaluationSet | None:
    cases = [_case(example) for example in examples]
    return EvaluationSet(name, split, how, cases) if cases else None


def _examples(task: "seqio.Task", split: str, data: Data) -> Iterator[dict[str, Any]]:
    """Yield a split's examples in the order of the dataset, with values that JSON has."""
    dataset = task.get_dataset(
        sequence_length=dict(data.feature_lengths),
        split=split,
        use_cached=False,
        shuffle=False,
        seed=data.seed,
        num_epochs=1,
    )
    for example in dataset.as_numpy_iterator():
        if missing := [name for name in _KEPT if name not in example]:
            raise ConfigError(
                f"task {task.name!r} has metrics and no {missing[0]!r}; it has "
                f"{', '.join(sorted(example))}",
                "MIXTURE_OR_TASK_NAME",
            )
        yield {name: _as_json(value) for name, value in example.items()}


def _case(line: Mapping[str, Any]) -> EvalExample:
    example = {name: _from_json(value) for name, value in line.items()}
    return EvalExample(example["inputs"].tolist(), example["targets"].tolist(), example)


def _as_json(value: Any) -> Any:
    """A value of a dataset as JSON: texts tell themselves from numbers, arrays from lists.

    >>> _as_json(b"Zola"), _as_json(np.array([2, 3], np.int32)), _as_json(np.float32(0.5))
    ({'text': 'Zola'}, {'array': [2, 3], 'dtype': 'int32'}, 0.5)
    """
    if isinstance(value, bytes):
        return {"text": value.decode("utf-8", "surrogateescape")}
    if isinstance(value, np.generic):
        return _as_json(value.item())
    if isinstance(value, np.ndarray) and value.dtype != object:
        return {"array": value.tolist(), "dtype": value.dtype.name}
    if isinstance(value, np.ndarray):
        return [_as_json(part) for part in value.tolist()]
    if isinstance(value, list | tuple):
        return [_as_json(part) for part in value]
    if hasattr(value, "to_list"):  # a ragged value
        return _as_json(value.to_list())
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(part) for part in value]
    if isinstance(value, dict) and "text" in value:
        return value["text"].encode("utf-8", "surrogateescape")
    if isinstance(value, dict):
        return np.array(value["array"], value["dtype"])
    return value
