"""Where the stores and plans of a run's data lie, and making a store that is missing."""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from t5x_lite.data.caching import MakeParts, build_token_store
from t5x_lite.data.remote import Objects, RemoteStore, upload
from t5x_lite.data.token_store import (
    TOKENISING_PACKAGES,
    DamagedStoreError,
    TokenStore,
    describe_store,
    differences,
)

if TYPE_CHECKING:
    import seqio

    from t5x_lite.data.plan import Data

_PLAN_FORMAT = 2
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a function, in what stands for it
# Given the data, a task's name and a split: who tokenises the files of its source.
PartMaker = Callable[["Data", str, str], MakeParts]
Report = Callable[[str], None]


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
class Place:
    """Where a split's store is to be: relative to `data_dir`, and what it is made from."""

    name: str
    description: Mapping[str, Any]

    @property
    def size(self) -> int:
        """How many bytes its source has, as far as they can be counted."""
        return sum(self.description["source"]["sizes"].values())


def store_place(task: "seqio.Task", split: str, data: "Data") -> Place:
    """Return the place of a split's store.

    Its name holds a hash of what it is made from, so that a changed task gets a new store.
    """
    description = describe_store(task, split, data.tokenizer)
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    folder = re.sub(r"[^\w.#]", "_", task.name)
    return Place(os.path.join("stores", folder, f"{split}-{digest[:16]}"), description)


def tell_differences(place: Place, data: "Data", report: Report) -> None:
    """Say in what the stores that a split has already do not fit."""
    directory = Path(data.data_dir, place.name)
    for other in sorted(directory.parent.glob(f"{place.description['split']}-*/manifest.json")):
        manifest = json.loads(other.read_text("utf-8"))
        differing = differences(place.description, manifest)
        report(f"{other.parent} does not fit: {'; '.join(differing)[:500]}")


def set_aside_if_damaged(place: Place, data: "Data", report: Report) -> None:
    """Move a store on disk whose files are not what was written out of the way, loudly.

    It is made anew from its source, to the same bytes.
    """
    directory = Path(data.data_dir, place.name)
    if not directory.exists():
        return
    try:
        TokenStore.open(directory, verify=True)
    except DamagedStoreError as error:
        aside = directory.with_name(f"damaged-{directory.name}.{time.time_ns()}")
        directory.rename(aside)
        report(f"the token store {directory} is DAMAGED ({error.damage}); it is now {aside}")


def make_store(
    task: "seqio.Task", place: Place, data: "Data", report: Report, make_parts: PartMaker | None
) -> None:
    """Build a split's store unless it is there, on disk and then, if need be, at an address."""
    split, directory = place.description["split"], Path(data.data_dir, place.name)
    set_aside_if_damaged(place, data, report)
    if not store_exists(data, place.name) and not directory.exists():
        tell_differences(place, data, report)
        report(f"tokenising {task.name}/{split} ...")
        maker = make_parts and make_parts(data, task.name, split)
        build_token_store(
            task, split, directory, report, tokenizer=data.tokenizer, make_parts=maker
        )
    if data.store_dir is not None and not store_exists(data, place.name):
        upload(directory, store_location(data, place.name), report)
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
    return Objects(location).read("manifest.json") is not None


def open_store(
    roots: Roots, name: str, expected: Mapping[str, Any] | None = None, *, verify: bool = False
) -> TokenStore | RemoteStore:
    """Open a store where it lies; raises ConfigError where it is not there, damaged or another.

    verify: one on disk is held against its checksums; what holds objects has its own.
    """
    location = store_location(roots, name)
    if roots.store_dir is None:
        return TokenStore.open(location, expected, verify=verify)
    return RemoteStore.open(location, expected)


def plan_path(data: "Data") -> Path:
    """Return where the plan of a run's data is written, which its name decides.

    The name follows from all that decides the plan, short of the content of corpora.
    """
    declared = [
        (type(each).__module__, *getattr(each, "sources", ())) for each in data.declarations
    ]
    modules = set(data.modules).union(*declared)
    parts = [
        _PLAN_FORMAT,
        data.mixture_or_task_name,
        data.tokenizer,
        [_ADDRESS.sub("", repr(declaration)) for declaration in data.declarations],
        data.splits,
        [(name, _module_digest(name)) for name in sorted(modules)],
        data.vocabulary and (repr(data.vocabulary), data.vocabulary.fingerprint),
        [(name, importlib.metadata.version(name)) for name in TOKENISING_PACKAGES],
    ]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return Path(data.data_dir, "plans", f"{digest[:24]}.json")


def _module_digest(name: str) -> str:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    source = Path(spec.origin).read_bytes() if spec and spec.origin else b""
    return hashlib.sha256(source).hexdigest()
