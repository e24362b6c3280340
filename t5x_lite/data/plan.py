"""From the description of a run's data to token stores that are ready to be read.

The first start registers the declared tasks with seqio, tokenises them and writes down what came of
it; later starts read that plan and import neither seqio nor TensorFlow.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from t5x_lite.addresses import is_address
from t5x_lite.data.builder import Builder
from t5x_lite.data.live import LiveTask
from t5x_lite.data.order import Exhaustion
from t5x_lite.data.planned import Plan, PlannedTask, read_task, task_as_json
from t5x_lite.data.quiet_import import import_seqio
from t5x_lite.data.reading import Tokenizer
from t5x_lite.data.registered import (
    check_name,
    own_objectives,
    registered_tasks,
    shared_vocabulary,
)
from t5x_lite.data.steps import (
    Denoise,
    EndPairs,
    all_late_steps,
    with_objective,
)
from t5x_lite.data.stores import (
    PartMaker,
    Place,
    Report,
    make_store,
    open_store,
    plan_path,
    set_aside_if_damaged,
    store_exists,
    store_place,
    tell_differences,
)
from t5x_lite.data.tasks import Declaration
from t5x_lite.data.token_store import changed_shards
from t5x_lite.data.vocabularies import BYTES, AnyVocabulary
from t5x_lite.errors import ConfigError
from t5x_lite.objectives.denoising import Objective, SpanCorruption
from t5x_lite.objectives.features import check_sentinels

if TYPE_CHECKING:
    import seqio

Tokenise = Literal["before_training", "while_training"]


@dataclass(frozen=True)
class Data:
    """What to train on.

    mixture_or_task_name: a seqio mixture or task, which one of `declarations` or of the Python
    modules named in `modules` registers when it is imported.
    feature_lengths: tokens of "inputs" and "targets" in a row.
    data_dir: where corpora, vocabularies and token stores are made and found again.
    store_dir: an address, such as "gs://bucket/tokens", to which finished stores are moved and
        where they are read (`data.remote`).
    objective: what text tasks are turned into.
    vocabulary: one to use in place of the tasks' own.
    tokenizer: what tokenises tasks that only rename and tokenise fields: "seqio", or, several times
        faster, "sentencepiece" (`data.reading` tells how they differ).
    tokenise: what happens where a task's train store is missing: it is made "before_training", or
        "while_training", by other processes (their number: `processes`), so that the first step
        comes early. The first epoch then shuffles blocks of 16,384 examples, from the beginning of
        the source to its end, whether or not the store is there; later epochs shuffle all.
    pack: put several short examples in one row.
    text_tokens: train on the first so many tokens of each task of text alone, over and over
    (`data.limited`); None: on all.
    exhaustion, num_epochs: what becomes of a task that was gone through so often: "repeat" it for
        ever, "stop" the run, or "renormalise": go on with the others until all were.
    seed: of the order of examples, the draws among tasks and the noise.
    splits: which to get ready; who only evaluates needs no "train".
    """

    mixture_or_task_name: str
    feature_lengths: Mapping[str, int]
    data_dir: str
    objective: Objective = dataclasses.field(default_factory=SpanCorruption)
    declarations: tuple[Declaration, ...] = ()
    modules: tuple[str, ...] = ()
    vocabulary: AnyVocabulary | None = None
    tokenizer: Tokenizer = "seqio"
    tokenise: Tokenise = "before_training"
    processes: int = 1
    store_dir: str | None = None
    pack: bool = True
    text_tokens: int | None = None
    exhaustion: Exhaustion = "repeat"
    num_epochs: int = 1
    seed: int = 0
    splits: tuple[str, ...] = ("train", "validation")

    def __post_init__(self):
        if self.tokenise not in get_args(Tokenise) or self.processes < 1:
            raise ConfigError(
                f"tokenise is {self.tokenise!r} in {self.processes} processes: it takes "
                f"{' or '.join(get_args(Tokenise))}, and 1 process or more",
                "Data.tokenise",
                "Data.processes",
            )
        if self.text_tokens is not None and (
            self.tokenise == "while_training" or self.text_tokens < 1
        ):
            raise ConfigError(
                f"text_tokens is {self.text_tokens}: it takes 1 token or more, of stores that are "
                "made before training",
                "Data.text_tokens",
                "Data.tokenise",
            )
        if self.store_dir is not None and (
            self.tokenise == "while_training" or not is_address(self.store_dir)
        ):
            raise ConfigError(
                f"store_dir is {self.store_dir!r}: it takes an address, such as "
                "gs://bucket/tokens, and stores that are made before training",
                "Data.store_dir",
                "Data.tokenise",
            )


def prepare(
    data: Data,
    report: Report = lambda line: None,
    *,
    make_parts: PartMaker | None = None,
) -> Plan:
    """Return the plan of a run's data, making what is missing under `data.data_dir`.

    `report` is told, a line at a time, what takes long. `make_parts` says for a task and a split
    how the files of its source are tokenised (`data.workers`); without it, here, one by one. Raises
    ConfigError for a name that nobody registers, for features too short for the objective, for a
    corpus that cannot be read or is empty, and for tasks that a token store cannot serve.
    """
    data = dataclasses.replace(data, data_dir=os.path.abspath(data.data_dir))
    if not data.modules:
        check_name(data, [name for declared in data.declarations for name in declared.names])
    if (plan := ready(data)) is None:
        plan = _make_plan(data, report, make_parts)
        if not any(task.live for task in plan.tasks):  # which every start must register anew
            _write_plan(plan_path(data), plan)
    return plan


def _make_plan(
    data: Data,
    report: Report,
    make_parts: PartMaker | None,
) -> Plan:
    report("importing seqio and TensorFlow ...")
    import_seqio()
    rates = registered_tasks(data, report)
    vocabulary = shared_vocabulary(data, [task for task, _ in rates])
    late_steps, live = all_late_steps(task for task, _ in rates)
    for reason in live.values():
        report(f"{reason}: it runs through seqio's own pipeline, on every host")
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
            if split == "train" and data.tokenise == "while_training":
                set_aside_if_damaged(place, data, report)
                later += [] if store_exists(data, place.name) else [task.name]
            else:
                make_store(task, place, data, report, make_parts)
    tasks = tuple(
        PlannedTask(
            task.name,
            rate,
            isinstance(step := late_steps[task.name], Denoise),
            {split: place.name for split, place in places[task.name].items()},
            step.objective if isinstance(step, Denoise) else None,
            step.ending if isinstance(step, EndPairs) else None,
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
        text_tokens=data.text_tokens,
        builder=_builder({name: places[name]["train"] for name in later}, data, report),
    )


def _live_task(task: "seqio.Task", rate: float, data: Data, pieces: AnyVocabulary) -> PlannedTask:
    bound, splits = with_objective(task, data.objective), _splits(task, rate, data)
    live = {split: LiveTask(bound, split, pieces.size) for split in splits}
    return PlannedTask(task.name, rate, is_text=False, stores={}, live=live)


def _builder(places: Mapping[str, Place], data: Data, report: Report) -> Builder | None:
    """Begin to make the train stores of tasks, those of the smallest sources first."""
    if not places:
        return None
    for place in places.values():
        tell_differences(place, data, report)
    report(f"tokenising {', '.join(places)} while training ...")
    in_order = sorted(places, key=lambda name: places[name].size)
    directories = {name: os.path.join(data.data_dir, places[name].name) for name in in_order}
    return Builder(data, directories, report)


def _splits(task: "seqio.Task", rate: float, data: Data) -> list[str]:
    """Return the splits to tokenise: a task of rate 0 is there to be evaluated only."""
    there = [*(["train"] if rate else []), *(["validation"] if "validation" in task.splits else [])]
    return [split for split in there if split in data.splits]


def ready(data: Data) -> Plan | None:
    """Read a plan; None where there is none or something it rests on is gone or has changed."""
    try:
        content = json.loads(plan_path(data).read_text("utf-8"))
    except FileNotFoundError:
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
        text_tokens=data.text_tokens,
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
    return path if path == BYTES or is_address(path) else os.path.join(data_dir, path)


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
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(content, file, indent=2)
    os.replace(file.name, path)
