"""A plan: the stores of a mixture's tasks, and what becomes of what they hold."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5x_lite.data.builder import Builder
from t5x_lite.data.growing import GrowingStore
from t5x_lite.data.limited import first_tokens
from t5x_lite.data.live import LiveTask
from t5x_lite.data.opening import AnyStore
from t5x_lite.data.pair_endings import PairEnding
from t5x_lite.data.remote import RemoteStore
from t5x_lite.data.stores import open_store, store_exists
from t5x_lite.data.stream_tasks import StreamTask
from t5x_lite.data.token_store import TokenStore
from t5x_lite.data.vocabularies import AnyVocabulary, named
from t5x_lite.objectives.denoising import Objective


@dataclass(frozen=True)
class PlannedTask:
    """A task's rate, the store of each split it has, and what becomes of what is stored.

    is_text: it is text for an objective, the task's own or, if it has none, the run's. ending: of
    pairs that are not simply cut. live: the splits, in the place of stores, of a task that none
    can serve.
    """

    name: str
    rate: float
    is_text: bool
    stores: Mapping[str, str]
    objective: Objective | None = None
    ending: PairEnding | None = None
    live: Mapping[str, LiveTask] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The stores of a mixture's tasks, under one vocabulary.

    text_tokens: how much of each task's text is trained on, None for all.
    builder: makes those that are not there yet; `close` ends it.
    """

    data_dir: str
    objective: Objective
    vocabulary_path: str
    extra_ids: int
    tasks: tuple[PlannedTask, ...]
    store_dir: str | None = None
    text_tokens: int | None = None
    builder: Builder | None = None

    def close(self) -> None:
        """End what is still going on: the making of stores, which another start takes up."""
        if self.builder is not None:
            self.builder.stop()

    def vocabulary(self) -> AnyVocabulary:
        """Return the vocabulary that all tasks share."""
        return named(self.vocabulary_path, self.extra_ids)

    def train_tasks(self) -> list[StreamTask]:
        """Open the train store of each task that is ever drawn."""
        return [self._open(task, "train") for task in self.tasks if task.rate > 0]

    def validation_tasks(self) -> list[StreamTask]:
        """Open the validation store of each task that has one."""
        return [
            self._open(task, "validation")
            for task in self.tasks
            if "validation" in {**task.stores, **task.live}
        ]

    def stores(self) -> list[tuple[PlannedTask, str, TokenStore | RemoteStore]]:
        """Open every store: its task, its split, itself."""
        return [
            (task, split, open_store(self, name))
            for task in self.tasks
            for split, name in task.stores.items()
        ]

    def _open(self, task: PlannedTask, split: str) -> StreamTask:
        if split in task.live:
            return StreamTask(task.name, task.live[split], task.rate, None)
        objective = (task.objective or self.objective) if task.is_text else None
        name = task.stores[split]
        if self.builder is None or store_exists(self, name):
            store: AnyStore = open_store(self, name)
            if task.is_text and split == "train" and self.text_tokens is not None:
                store = first_tokens(task.name, store, self.text_tokens)
        else:
            store = GrowingStore(Path(self.data_dir, name), self.builder.check)
        return StreamTask(task.name, store, task.rate, objective, task.ending)


def read_task(content: Mapping[str, Any], objectives: Mapping[str, Objective]) -> PlannedTask:
    """Read a task of a plan; raises KeyError where only registering it would tell its objective."""
    own, ending = content["own_objective"], content["ending"]
    return PlannedTask(
        **{name: content[name] for name in ("name", "rate", "is_text", "stores")},
        objective=objectives[content["name"]] if own else None,
        ending=ending and PairEnding(**ending),
    )


def task_as_json(task: PlannedTask) -> dict[str, Any]:
    """Return what `read_task` reads."""
    content = dataclasses.asdict(dataclasses.replace(task, objective=None))
    del content["objective"], content["live"]
    return content | {"own_objective": task.objective is not None}
