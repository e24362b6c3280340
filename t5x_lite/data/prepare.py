"""From the description of a run's data to token stores that are ready to be read.

The first start registers the declared tasks with seqio, tokenizes them and writes down what came of
it; later starts read that plan and import neither seqio nor TensorFlow.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from t5x_lite.data.code_identity import describe, source_digest
from t5x_lite.data.data_config import Data
from t5x_lite.data.registry import check_name, own_objectives, registered_tasks, shared_vocabulary
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
from t5x_lite.objectives.sentinels import check_sentinels
from t5x_lite.objectives.span_corruption import Objective
from t5x_lite.tokenizers.vocabularies import BYTES, AnyVocabulary, open_vocabulary

if TYPE_CHECKING:
    import seqio

    from t5x_lite.data.data_config import Data


_PLAN_FORMAT = 3
# Given the data, a task's name and a split: who tokenizes the files of its source.
PartMaker = Callable[["Data", str, str], MakeParts]
_LOG = logging.getLogger(__name__)


class Roots(Protocol):
    """Where everything lies: in `data_dir`, but finished stores under `store_dir`, if given."""

    @property
    def data_dir(self) -> str:
        """A directory."""
        ...

    @property
    def store_dir(self) -> str | None:
        """An address."""
        ...


@dataclasses.dataclass(frozen=True)
class StoreLocation:
    """Where a split's store is to be: relative to `data_dir`, and what it is made from."""

    name: str
    description: Mapping[str, Any]

    @property
    def size(self) -> int:
        """How many bytes its source has, as far as they can be counted."""
        return sum(self.description["source"]["sizes"].values())


def store_place(task: "seqio.Task", split: str, data: "Data") -> StoreLocation:
    """Return the place of a split's store.

    Its name holds a hash of what it is made from, so that a changed task gets a new store.
    """
    description = describe_store(task, split, data.tokenizer)
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    folder = re.sub(r"[^\w.#]", "_", task.name)
    return StoreLocation(os.path.join("stores", folder, f"{split}-{digest[:16]}"), description)


def log_differences(place: StoreLocation, data: "Data") -> None:
    """Log why the stores that a split has already cannot be used."""
    directory = Path(data.data_dir, place.name)
    for other in sorted(directory.parent.glob(f"{place.description['split']}-*/manifest.json")):
        manifest = read_json(other)
        differing = differences(place.description, manifest)
        _LOG.info(f"token store {other.parent} does not match: {'; '.join(differing)[:500]}")


def quarantine_if_corrupt(place: StoreLocation, data: "Data") -> None:
    """Rename a corrupt store on disk, with a warning; it is then rebuilt to the same bytes."""
    directory = Path(data.data_dir, place.name)
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
    place: StoreLocation,
    data: "Data",
    make_parts: PartMaker | None,
) -> None:
    """Build a split's store unless it is there, on disk and then, if need be, at an address."""
    split, directory = place.description["split"], Path(data.data_dir, place.name)
    quarantine_if_corrupt(place, data)
    if not store_exists(data, place.name) and not directory.exists():
        log_differences(place, data)
        if data.use_cached:
            raise ConfigError(
                f"there is no token store of {task.name}/{split} at "
                f"{store_location(data, place.name)}, and USE_CACHED_TASKS is True: make it with "
                "`t5x_lite cache` (the offline caches of seqio_cache_tasks are not read), or set "
                "USE_CACHED_TASKS to False to make it now",
                "Data.use_cached",
            )
        _LOG.info(f"tokenizing {task.name}/{split} ...")
        maker = make_parts and make_parts(data, task.name, split)
        build_token_store(task, split, directory, tokenizer=data.tokenizer, make_parts=maker)
    if data.store_dir is not None and not store_exists(data, place.name):
        upload(directory, store_location(data, place.name))
        shutil.rmtree(directory)
    open_store(data, place.name, place.description)


def store_location(roots: Roots, name: str) -> str:
    """Return where a store lies: a directory or an address."""
    if roots.store_dir is None:
        return os.path.join(roots.data_dir, name)
    return f"{roots.store_dir.rstrip('/')}/{name}"


def store_exists(roots: Roots, name: str) -> bool:
    """Tell whether a store is there as a whole."""
    location = store_location(roots, name)
    if roots.store_dir is None:
        return os.path.exists(location)
    return ObjectStore(location).read("manifest.json") is not None


def open_store(
    roots: Roots, name: str, expected: Mapping[str, Any] | None = None, *, verify: bool = False
) -> TokenStore | RemoteStore:
    """Open a store where it lies; raises ConfigError if it is missing, corrupt or another.

    verify: one on disk is held against its checksums; what holds objects has its own.
    """
    location = store_location(roots, name)
    if roots.store_dir is None:
        return TokenStore.open(location, expected, verify=verify)
    return RemoteStore.open(location, expected)


def plan_path(data: "Data") -> Path:
    """Return the file that the plan of a run's data is in.

    Its name is a digest of all that decides the plan, except the content of corpora: names, splits,
    tokenizer, versions of packages, the vocabulary, the task providers with what they register
    (`code_identity.describe`), and the code of the user's modules. The names and comments of
    modules are not among them.
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
    """A task's rate, the store of each split it has, and what becomes of what is stored.

    is_text: it is text for an objective, the task's own or, if it has none, the run's. trimming: of
    pairs that are not simply cut. live: the splits, in the place of stores, of a task that none
    can serve.
    """

    name: str
    rate: float
    is_text: bool
    stores: Mapping[str, str]
    objective: Objective | None = None
    trimming: PairTrimming | None = None
    live: Mapping[str, SeqioPipeline] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The stores of a mixture's tasks, under one vocabulary.

    max_text_tokens: how much of each task's text is trained on, None for all.
    builder: makes those that are not there yet; `close` ends it.
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
        """End what is still going on: the making of stores, which another start takes up."""
        if self.builder is not None:
            self.builder.stop()

    def vocabulary(self) -> AnyVocabulary:
        """Return the vocabulary that all tasks share."""
        return open_vocabulary(self.vocabulary_path, self.extra_ids)

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
            if task.is_text and split == "train" and self.max_text_tokens is not None:
                store = truncate_store(task.name, store, self.max_text_tokens)
        else:
            store = PartialStore(Path(self.data_dir, name), self.builder.check)
        return StreamTask(task.name, store, task.rate, objective, task.trimming)


def read_task(content: Mapping[str, Any], objectives: Mapping[str, Objective]) -> PlannedTask:
    """Read a task of a plan; raises KeyError where only registering it would tell its objective."""
    own, trimming = content["own_objective"], content["trimming"]
    return PlannedTask(
        **{name: content[name] for name in ("name", "rate", "is_text", "stores")},
        objective=objectives[content["name"]] if own else None,
        trimming=trimming and PairTrimming(**trimming),
    )


def task_as_json(task: PlannedTask) -> dict[str, Any]:
    """Return what `read_task` reads."""
    content = dataclasses.asdict(dataclasses.replace(task, objective=None))
    del content["objective"], content["live"]
    return content | {"own_objective": task.objective is not None}


def prepare(data: Data, *, make_parts: PartMaker | None = None) -> Plan:
    """Return the plan of a run's data, making what is missing under `data.data_dir`.

    Args:
        data: of the run.
        make_parts: returns, for a task and a split, what tokenizes the files of its source
            (`data.tokenize.workers`). Without it they are tokenized here, one after the other.

    Raises:
        ConfigError: no task or mixture has that name, features are too short for the objective, a
            corpus cannot be read or is empty, or a token store cannot serve a task.
    """
    data = dataclasses.replace(data, data_dir=os.path.abspath(data.data_dir))
    if not data.module_names:
        check_name(data, [name for declared in data.task_providers for name in declared.names])
    if (plan := ready(data)) is None:
        plan = _make_plan(data, make_parts)
        if not any(task.live for task in plan.tasks):  # which every start must register anew
            _write_plan(plan_path(data), plan)
    return plan


def _make_plan(data: Data, make_parts: PartMaker | None) -> Plan:
    _LOG.info("importing seqio and TensorFlow ...")
    import_seqio()
    rates = registered_tasks(data)
    vocabulary = shared_vocabulary(data, [task for task, _ in rates])
    late_steps, live = postcache_steps(task for task, _ in rates)
    for reason in live.values():
        _LOG.info(f"{reason}: it runs through seqio's own pipeline, on every host")
    if data.use_cached and live:
        raise ConfigError(
            f"no token store can serve {', '.join(live)}, and USE_CACHED_TASKS is True; "
            "set it to False",
            "Data.use_cached",
        )
    for step in late_steps.values():
        if isinstance(step, Denoise):
            objective = step.objective or data.objective
            objective.raw_length(data.feature_lengths)
            needed = objective.sentinels_needed(data.feature_lengths)
            check_sentinels(needed, vocabulary.sentinels)
    storable = [(task, rate) for task, rate in rates if task.name not in live]
    places = {
        task.name: {split: store_place(task, split, data) for split in _splits(task, rate, data)}
        for task, rate in storable
    }
    later = []
    for task, _ in storable:
        for split, place in places[task.name].items():
            if split == "train" and data.tokenization == "while_training":
                quarantine_if_corrupt(place, data)
                later += [] if store_exists(data, place.name) else [task.name]
            else:
                make_store(task, place, data, make_parts)
    tasks = tuple(
        PlannedTask(
            task.name,
            rate,
            isinstance(step := late_steps[task.name], Denoise),
            {split: place.name for split, place in places[task.name].items()},
            step.objective if isinstance(step, Denoise) else None,
            step.trimming if isinstance(step, TrimPairs) else None,
        )
        if task.name in places
        else _live_task(task, rate, data, vocabulary)
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
        builder=_builder({name: places[name]["train"] for name in later}, data),
    )


def _live_task(task: "seqio.Task", rate: float, data: Data, pieces: AnyVocabulary) -> PlannedTask:
    bound, splits = with_objective(task, data.objective), _splits(task, rate, data)
    live = {split: SeqioPipeline(bound, split, pieces.size) for split in splits}
    return PlannedTask(task.name, rate, is_text=False, stores={}, live=live)


def _builder(places: Mapping[str, StoreLocation], data: Data) -> BackgroundTokenizer | None:
    """Start building the train stores of tasks, those of the smallest sources first."""
    if not places:
        return None
    for place in places.values():
        log_differences(place, data)
    _LOG.info(f"tokenizing {', '.join(places)} while training ...")
    in_order = sorted(places, key=lambda name: places[name].size)
    directories = {name: os.path.join(data.data_dir, places[name].name) for name in in_order}
    return BackgroundTokenizer(data, directories)


def _splits(task: "seqio.Task", rate: float, data: Data) -> list[str]:
    """Return the splits to tokenize: a task of rate 0 is there to be evaluated only."""
    there = [*(["train"] if rate else []), *(["validation"] if "validation" in task.splits else [])]
    return [split for split in there if split in data.splits]


def ready(data: Data) -> Plan | None:
    """Read a plan; None where there is none or something it rests on is gone or has changed."""
    if (content := read_json_if_exists(plan_path(data))) is None:
        return None
    try:
        tasks = tuple(read_task(task, own_objectives(data)) for task in content["tasks"])
    except KeyError:
        return None
    plan = Plan(
        data_dir=data.data_dir,
        objective=data.objective,
        vocabulary_path=_located(data.data_dir, content["vocabulary_path"]),
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


def _located(data_dir: str, path: str) -> str:
    """Return where a path in a plan leads: an address and "bytes" are not below `data_dir`."""
    return path if path == BYTES or is_url(path) else os.path.join(data_dir, path)


def _write_plan(path: Path, plan: Plan) -> None:
    """Write a plan, whose paths are relative to its directory, which may thus be moved."""
    path_of_model, base = plan.vocabulary_path, plan.data_dir
    is_below = Path(path_of_model).is_relative_to(base)
    content = {
        "vocabulary_path": os.path.relpath(path_of_model, base) if is_below else path_of_model,
        "extra_ids": plan.extra_ids,
        "fingerprint": plan.vocabulary().fingerprint,
        "tasks": [task_as_json(task) for task in plan.tasks],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(path, content)
