"""Prepare a run's data: register its tasks, build their token stores, and open them.

The first start registers the tasks with seqio, builds the missing token stores and writes a plan,
which lists the tasks with their rates and stores. Later starts read the plan and import neither
seqio nor TensorFlow, which saves several seconds. The files, below `Data.data_dir`:

    plans/5c0f...json                        named by everything that decides it (`plan_path`)
    stores/my_task/train-1f3a.../            named by everything that decides its content
    stores/my_task/.train-1f3a....partial/   incomplete (`data.tokenize.build_store`)

A plan is used only if its stores are intact and the files that they were made from are unchanged.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from t5x_lite.data.code_identity import describe, source_digest
from t5x_lite.data.data_config import Data
from t5x_lite.data.registry import (
    check_name,
    provided_objectives,
    registered_tasks,
    shared_vocabulary,
)
from t5x_lite.data.store.partial_store import PartialStore
from t5x_lite.data.store.remote_store import ObjectStore, RemoteStore, upload
from t5x_lite.data.store.token_store import CorruptStoreError, TokenStore, differences
from t5x_lite.data.stream.open_examples import AnyStore
from t5x_lite.data.stream.pair_trimming import PairTrimming
from t5x_lite.data.stream.seqio_pipeline import SeqioPipeline
from t5x_lite.data.stream.stream import StreamTask
from t5x_lite.data.stream.truncated_store import truncate_store
from t5x_lite.data.tasks.lazy_seqio import import_seqio
from t5x_lite.data.tasks.preprocessors import Denoise, TrimPairs, postcache_steps, with_objective
from t5x_lite.data.tokenize.background import BackgroundTokenizer
from t5x_lite.data.tokenize.build_store import MakeParts, build_token_store
from t5x_lite.data.tokenize.store_identity import (
    TOKENIZING_PACKAGES,
    changed_shards,
    describe_store,
)
from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic
from t5x_lite.io.safe_files import read_json, read_json_if_exists
from t5x_lite.io.urls import is_url
from t5x_lite.objectives.objective import Objective
from t5x_lite.objectives.sentinels import check_sentinels
from t5x_lite.tokenizers.vocabularies import BYTES, AnyVocabulary, open_vocabulary

if TYPE_CHECKING:
    import seqio

    from t5x_lite.data.data_config import Data


_PLAN_FORMAT = 3
# (data, name of a task, split) -> what tokenizes the files of its source (`data.tokenize.workers`).
PartMaker = Callable[["Data", str, str], MakeParts]
_LOG = logging.getLogger(__name__)


class Roots(Protocol):
    """Where stores are: below `data_dir`, or finished ones at `store_dir`, if that is set."""

    @property
    def data_dir(self) -> str:
        """A local directory."""
        ...

    @property
    def store_dir(self) -> str | None:
        """The address of an object store, such as "gs://bucket/tokens", or None."""
        ...


@dataclasses.dataclass(frozen=True)
class StoreLocation:
    """Where a split's store is, whether or not it exists, and what it is made from.

    Args:
        name: The path relative to `data_dir` or `store_dir`.
        description: What the store is made from (`store_identity.describe_store`).
    """

    name: str
    description: Mapping[str, Any]

    @property
    def size(self) -> int:
        """Bytes of the source's files, without those whose size is unknown."""
        return sum(self.description["source"]["sizes"].values())


def locate_store(task: "seqio.Task", split: str, data: "Data") -> StoreLocation:
    """Return where the store of a split is.

    Its name contains a hash of what it is made from, so that a changed task gets another store.

    Args:
        task: The task.
        split: The split.
        data: The data of the run.
    """
    description = describe_store(task, split, data.tokenizer)
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    folder = re.sub(r"[^\w.#]", "_", task.name)
    return StoreLocation(os.path.join("stores", folder, f"{split}-{digest[:16]}"), description)


def log_differences(location: StoreLocation, data: "Data") -> None:
    """Log why the stores that exist of a split cannot be used.

    Args:
        location: The path of the store that is needed.
        data: The data of the run.
    """
    directory = Path(data.data_dir, location.name)
    for other in sorted(directory.parent.glob(f"{location.description['split']}-*/manifest.json")):
        differing = differences(location.description, read_json(other))
        _LOG.info(f"token store {other.parent} does not match: {'; '.join(differing)[:500]}")


def quarantine_if_corrupt(location: StoreLocation, data: "Data") -> None:
    """Rename a corrupt store on disk and log a warning; it will be rebuilt with the same bytes.

    Args:
        location: The path of the store, which need not exist.
        data: The data of the run.
    """
    directory = Path(data.data_dir, location.name)
    if not directory.exists():
        return
    try:
        TokenStore.open(directory, verify=True)
    except CorruptStoreError as error:
        target = directory.with_name(f"quarantine-{directory.name}.{time.time_ns()}")
        atomic.rename(directory, target)
        _LOG.warning(f"token store {directory} is corrupt ({error.corruption}); moved to {target}")


def make_store(
    task: "seqio.Task",
    location: StoreLocation,
    data: "Data",
    make_parts: PartMaker | None,
) -> None:
    """Build a split's store unless it exists, and upload it if `data.store_dir` is set.

    Args:
        task: The task.
        location: The path of the store.
        data: The data of the run.
        make_parts: Returns what tokenizes the files of the source; None tokenizes them here.

    Raises:
        ConfigError: The store does not exist and `data.use_cached` is set, or it cannot be built.
    """
    split, directory = location.description["split"], Path(data.data_dir, location.name)
    quarantine_if_corrupt(location, data)
    if not store_exists(data, location.name) and not directory.exists():
        log_differences(location, data)
        if data.use_cached:
            raise ConfigError(
                f"there is no token store of {task.name}/{split} at "
                f"{store_location(data, location.name)}, and USE_CACHED_TASKS is True: make it "
                "with `t5x_lite cache` (the offline caches of seqio_cache_tasks are not read), or "
                "set USE_CACHED_TASKS to False to make it now",
                "Data.use_cached",
            )
        _LOG.info(f"tokenizing {task.name}/{split} ...")
        maker = make_parts and make_parts(data, task.name, split)
        build_token_store(task, split, directory, tokenizer=data.tokenizer, make_parts=maker)
    if data.store_dir is not None and not store_exists(data, location.name):
        upload(directory, store_location(data, location.name))
        shutil.rmtree(directory)
    # Check what is there: it may be from another process, or uploaded long ago.
    open_store(data, location.name, location.description)


def store_location(roots: Roots, name: str) -> str:
    """Return the directory or the address of a store.

    Args:
        roots: Where stores are.
        name: The relative path of the store.
    """
    if roots.store_dir is None:
        return os.path.join(roots.data_dir, name)
    return f"{roots.store_dir.rstrip('/')}/{name}"


def store_exists(roots: Roots, name: str) -> bool:
    """Return whether a complete store exists.

    Args:
        roots: Where stores are.
        name: The relative path of the store.
    """
    location = store_location(roots, name)
    if roots.store_dir is None:
        return os.path.exists(location)
    return ObjectStore(location).read("manifest.json") is not None


def open_store(
    roots: Roots, name: str, expected: Mapping[str, Any] | None = None, *, verify: bool = False
) -> TokenStore | RemoteStore:
    """Open a store.

    Args:
        roots: Where stores are.
        name: The relative path of the store.
        expected: What it must be made from; None accepts anything.
        verify: Compare a store on disk with its checksums. Object stores verify their objects
            themselves.

    Raises:
        ConfigError: The store is missing, corrupt, or made from something else.
    """
    location = store_location(roots, name)
    if roots.store_dir is None:
        return TokenStore.open(location, expected, verify=verify)
    return RemoteStore.open(location, expected)


def plan_path(data: "Data") -> Path:
    """Return the path of the plan of a run's data.

    Its name is a hash of everything that decides the plan, except the content of corpora: names,
    splits, tokenizer, versions of packages, the vocabulary, the task providers with what they
    register (`code_identity.describe`), and the code of the user's modules. Names and comments of
    modules do not change it.

    Args:
        data: The data of the run.
    """
    providers = [
        describe([provider, getattr(provider, "contents", None)])
        for provider in data.task_providers
    ]
    parts = [
        _PLAN_FORMAT,
        data.mixture_or_task_name,
        data.tokenizer,
        providers,
        data.splits,
        sorted({source_digest(module) for module in data.module_names}),
        data.vocabulary and (describe(data.vocabulary), data.vocabulary.fingerprint),
        [(name, importlib.metadata.version(name)) for name in TOKENIZING_PACKAGES],
    ]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return Path(data.data_dir, "plans", f"{digest[:24]}.json")


@dataclass(frozen=True)
class PlannedTask:
    """A task of a plan.

    Args:
        name: The task's name.
        rate: Its rate in the mixture.
        is_text: Whether its examples are text, which an objective turns into inputs and targets.
        stores: The relative path of the store of each split.
        objective: The task's own objective; None uses the run's.
        trimming: How long pairs are trimmed; None truncates them at the feature lengths.
        pipelines: For a task that no store can serve: seqio's pipeline of each split, instead of
            `stores`.
    """

    name: str
    rate: float
    is_text: bool
    stores: Mapping[str, str]
    objective: Objective | None = None
    trimming: PairTrimming | None = None
    pipelines: Mapping[str, SeqioPipeline] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The tasks of a mixture with their stores, which share one vocabulary.

    Args:
        data_dir: Where stores are.
        objective: The objective of text tasks without their own.
        vocabulary_path: The SentencePiece model, or "bytes".
        extra_ids: The number of sentinels.
        tasks: The tasks.
        store_dir: The address of finished stores; None keeps them in `data_dir`.
        max_text_tokens: Train on the first tokens of each text task only; None uses all.
        builder: Builds train stores that do not exist yet; None if all exist.
    """

    data_dir: str
    objective: Objective
    vocabulary_path: str
    extra_ids: int
    tasks: tuple[PlannedTask, ...]
    store_dir: str | None = None
    max_text_tokens: int | None = None
    builder: BackgroundTokenizer | None = None

    def close(self) -> None:
        """Stop building stores; the next start resumes from what is done."""
        if self.builder is not None:
            self.builder.stop()

    def vocabulary(self) -> AnyVocabulary:
        """Return the vocabulary that all tasks share."""
        return open_vocabulary(self.vocabulary_path, self.extra_ids)

    def train_tasks(self) -> list[StreamTask]:
        """Open the train store of each task whose rate is positive."""
        return [self._open(task, "train") for task in self.tasks if task.rate > 0]

    def validation_tasks(self) -> list[StreamTask]:
        """Open the validation store of each task that has one."""
        return [
            self._open(task, "validation")
            for task in self.tasks
            if "validation" in {**task.stores, **task.pipelines}
        ]

    def stores(self) -> list[tuple[PlannedTask, str, TokenStore | RemoteStore]]:
        """Open every store; returns (task, split, store)."""
        return [
            (task, split, open_store(self, name))
            for task in self.tasks
            for split, name in task.stores.items()
        ]

    def _open(self, task: PlannedTask, split: str) -> StreamTask:
        if split in task.pipelines:
            return StreamTask(task.name, task.pipelines[split], task.rate, None)
        objective = (task.objective or self.objective) if task.is_text else None
        name = task.stores[split]
        if self.builder is None or store_exists(self, name):
            store: AnyStore = open_store(self, name)
            if task.is_text and split == "train" and self.max_text_tokens is not None:
                store = truncate_store(task.name, store, self.max_text_tokens)
        else:
            # Read the store while it grows; the builder's errors are raised where data is missing.
            store = PartialStore(Path(self.data_dir, name), self.builder.check)
        return StreamTask(task.name, store, task.rate, objective, task.trimming)


def read_task(content: Mapping[str, Any], objectives: Mapping[str, Objective]) -> PlannedTask:
    """Return a task of a plan from its JSON.

    Args:
        content: What `task_as_json` returned.
        objectives: The objectives of tasks with their own, which JSON does not contain.

    Raises:
        KeyError: The task has its own objective, and it is not among `objectives`: it has to be
            registered again.
    """
    has_objective, trimming = content["own_objective"], content["trimming"]
    return PlannedTask(
        **{name: content[name] for name in ("name", "rate", "is_text", "stores")},
        objective=objectives[content["name"]] if has_objective else None,
        trimming=trimming and PairTrimming(**trimming),
    )


def task_as_json(task: PlannedTask) -> dict[str, Any]:
    """Return a task as JSON for `read_task`.

    Args:
        task: A task without pipelines.
    """
    content = dataclasses.asdict(dataclasses.replace(task, objective=None))
    del content["objective"], content["pipelines"]
    return content | {"own_objective": task.objective is not None}


def prepare(data: Data, *, make_parts: PartMaker | None = None) -> Plan:
    """Return the plan of a run's data, and build the token stores that are missing.

    Args:
        data: The data of the run.
        make_parts: Returns, for a task and a split, what tokenizes the files of its source
            (`data.tokenize.workers`). Without it they are tokenized here, one after the other.

    Raises:
        ConfigError: No task or mixture has that name, features are too short for the objective, a
            corpus cannot be read or is empty, or a token store cannot serve a task.
    """
    data = dataclasses.replace(data, data_dir=os.path.abspath(data.data_dir))
    if not data.module_names:
        check_name(data, [name for declared in data.task_providers for name in declared.names])
    if (plan := load_plan(data)) is None:
        plan = _make_plan(data, make_parts)
        # A task with pipelines has to be registered at every start: then a plan saves nothing.
        if not any(task.pipelines for task in plan.tasks):
            _write_plan(plan_path(data), plan)
    return plan


def _make_plan(data: Data, make_parts: PartMaker | None) -> Plan:
    """Register the tasks with seqio, build their stores, and return the plan."""
    _LOG.info("importing seqio and TensorFlow ...")
    import_seqio()
    rates = registered_tasks(data)
    vocabulary = shared_vocabulary(data, [task for task, _ in rates])
    late_steps, not_storable = postcache_steps(task for task, _ in rates)
    for reason in not_storable.values():
        _LOG.info(f"{reason}: it runs through seqio's own pipeline, on every host")
    if data.use_cached and not_storable:
        raise ConfigError(
            f"no token store can serve {', '.join(not_storable)}, and USE_CACHED_TASKS is True; "
            "set it to False",
            "Data.use_cached",
        )
    # Before hours of tokenizing: whether the objectives fit the feature lengths and sentinels.
    for step in late_steps.values():
        if isinstance(step, Denoise):
            objective = step.objective or data.objective
            objective.raw_length(data.feature_lengths)
            needed = objective.sentinels_needed(data.feature_lengths)
            check_sentinels(needed, vocabulary.sentinels)
    locations = {
        task.name: {split: locate_store(task, split, data) for split in _splits(task, rate, data)}
        for task, rate in rates
        if task.name not in not_storable
    }
    in_background = _make_stores([task for task, _ in rates], locations, data, make_parts)
    tasks = tuple(
        _task_with_stores(task, rate, locations[task.name], late_steps[task.name])
        if task.name in locations
        else _task_with_pipelines(task, rate, data, vocabulary)
        for task, rate in rates
    )
    return Plan(
        data_dir=data.data_dir,
        objective=data.objective,
        vocabulary_path=vocabulary.path,
        extra_ids=vocabulary.extra_ids,
        tasks=tasks,
        store_dir=data.store_dir,
        max_text_tokens=data.max_text_tokens,
        builder=_start_builder({name: locations[name]["train"] for name in in_background}, data),
    )


def _make_stores(
    tasks: Sequence["seqio.Task"],
    locations: Mapping[str, Mapping[str, StoreLocation]],
    data: Data,
    make_parts: PartMaker | None,
) -> list[str]:
    """Build the missing stores; return the tasks whose train store is to be built in background."""
    in_background = []
    for task in tasks:
        for split, location in locations.get(task.name, {}).items():
            if split == "train" and data.tokenization == "while_training":
                quarantine_if_corrupt(location, data)
                if not store_exists(data, location.name):
                    in_background.append(task.name)
            else:
                make_store(task, location, data, make_parts)
    return in_background


def _task_with_stores(
    task: "seqio.Task", rate: float, locations: Mapping[str, StoreLocation], late_step: object
) -> PlannedTask:
    """Plan a task with stores. Its last step runs while training: an objective, or trimming."""
    return PlannedTask(
        task.name,
        rate,
        is_text=isinstance(late_step, Denoise),
        stores={split: location.name for split, location in locations.items()},
        objective=late_step.objective if isinstance(late_step, Denoise) else None,
        trimming=late_step.trimming if isinstance(late_step, TrimPairs) else None,
    )


def _task_with_pipelines(
    task: "seqio.Task", rate: float, data: Data, vocabulary: AnyVocabulary
) -> PlannedTask:
    bound, splits = with_objective(task, data.objective), _splits(task, rate, data)
    pipelines = {split: SeqioPipeline(bound, split, vocabulary.size) for split in splits}
    return PlannedTask(task.name, rate, is_text=False, stores={}, pipelines=pipelines)


def _start_builder(
    locations: Mapping[str, StoreLocation], data: Data
) -> BackgroundTokenizer | None:
    """Start building the train stores of tasks, those of the smallest sources first."""
    if not locations:
        return None
    for location in locations.values():
        log_differences(location, data)
    _LOG.info(f"tokenizing {', '.join(locations)} while training ...")
    by_size = sorted(locations.items(), key=lambda item: item[1].size)
    directories = {name: os.path.join(data.data_dir, where.name) for name, where in by_size}
    return BackgroundTokenizer(data, directories)


def _splits(task: "seqio.Task", rate: float, data: Data) -> list[str]:
    """Return the splits to tokenize; a task of rate 0 is only evaluated, without a train store."""
    splits = [
        *(["train"] if rate else []),
        *(["validation"] if "validation" in task.splits else []),
    ]
    return [split for split in splits if split in data.splits]


def load_plan(data: Data) -> Plan | None:
    """Return the plan of a run's data if an earlier start wrote it and it is still valid.

    Args:
        data: The data of the run.

    Returns:
        The plan. None if there is none, if a store or the vocabulary is missing or has changed, or
        if a file of a source has changed.
    """
    if (content := read_json_if_exists(plan_path(data))) is None:
        return None
    try:
        tasks = tuple(read_task(task, provided_objectives(data)) for task in content["tasks"])
    except KeyError:
        return None
    plan = Plan(
        data_dir=data.data_dir,
        objective=data.objective,
        vocabulary_path=_resolve(data.data_dir, content["vocabulary_path"]),
        extra_ids=content["extra_ids"],
        tasks=tasks,
        store_dir=data.store_dir,
        max_text_tokens=data.max_text_tokens,
    )
    try:
        if plan.vocabulary().fingerprint != content["fingerprint"]:
            return None
    except ConfigError:
        return None
    for task in tasks:
        for name in task.stores.values():
            try:
                manifest = open_store(data, name, verify=True).manifest
            except ConfigError:
                return None
            if changed_shards(manifest):
                return None
    return plan


def _resolve(data_dir: str, path: str) -> str:
    """Return the absolute path of a path in a plan; an address and "bytes" are kept."""
    return path if path == BYTES or is_url(path) else os.path.join(data_dir, path)


def _write_plan(path: Path, plan: Plan) -> None:
    """Write a plan. Its paths are relative to `data_dir`, so that the directory can be moved."""
    model_path, base = plan.vocabulary_path, plan.data_dir
    is_below = Path(model_path).is_relative_to(base)
    content = {
        "vocabulary_path": os.path.relpath(model_path, base) if is_below else model_path,
        "extra_ids": plan.extra_ids,
        "fingerprint": plan.vocabulary().fingerprint,
        "tasks": [task_as_json(task) for task in plan.tasks],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(path, content)
