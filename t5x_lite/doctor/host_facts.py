"""Facts of a host before a run: code, devices, memory, disk space, clock, readable data."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from t5x_lite.checkpoints.run_directory import versions
from t5x_lite.data.data_config import Data
from t5x_lite.data.prepare import load_plan
from t5x_lite.distributed import processes
from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic, files

_NO_PACKAGES = ("platform", "command", "git_revision")  # entries of `versions`
_MEMORY = Path("/proc/meminfo")
_STORAGE_DELAY = 10.0  # seconds until shared storage shows a new file of another host


def facts(data: Data, config: str, directories: Mapping[str, Path]) -> dict[str, Any]:
    """Return the facts of this host that need no other host, as JSON.

    Args:
        data: The mixture.
        config: The configuration as text.
        directories: Directories whose disk space is needed, by gin name.
    """
    host_versions = versions()
    devices = jax.local_devices()
    return {
        "revision": host_versions["git_revision"],
        "versions": {k: v for k, v in host_versions.items() if k not in _NO_PACKAGES},
        "config": hashlib.sha256(config.encode()).hexdigest()[:12],
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "memory": free_memory(),
        "disk": {name: free_disk(path) for name, path in directories.items()},
        "data": data_problems(data),
        "stores": load_plan(data) is not None,
    }


def clock() -> float:
    """Return this host's time in seconds since 1970, at the same moment on all hosts."""
    processes.barrier("clocks")
    return time.time()


def free_memory() -> int | None:
    """Return the bytes of memory that are available on this host; None if that is unknown."""
    try:
        lines = _MEMORY.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if "MemAvailable" in line), None)


def free_disk(directory: Path) -> int | None:
    """Return the free bytes on the disk of a directory, which need not exist; None if unknown."""
    existing = next((path for path in (directory, *directory.parents) if path.exists()), None)
    return None if existing is None else shutil.disk_usage(existing).free


def data_problems(data: Data) -> list[str]:
    """Return a message for each part of the data that cannot be read.

    Tokenized data is checked by reading its first tokens. Otherwise vocabularies and the
    directories of the sources are checked.

    Args:
        data: The mixture.
    """
    if (plan := load_plan(data)) is not None:
        return _errors_of([lambda: plan.vocabulary().size, *_first_examples(plan)])
    checks = []
    for provider in data.task_providers:
        vocabulary = getattr(provider, "vocabulary", None) or data.vocabulary
        if vocabulary is not None:
            checks.append(lambda vocabulary=vocabulary: vocabulary.fingerprint)
        if directory := getattr(provider, "directory", None):
            checks.append(lambda directory=directory: _check_not_empty(directory))
    return _errors_of(checks)


def _first_examples(plan: Any) -> list[Callable[[], Any]]:
    """Return functions that read the first tokens of each token store."""
    return [
        lambda store=store: [store.tokens(feature)[:8].tolist() for feature in store.features]
        for _, _, store in plan.stores()
    ]


def _check_not_empty(directory: str) -> None:
    """Raise ConfigError for a directory without files."""
    if not files.matching(os.path.join(directory, "*")):
        raise ConfigError(f"there are no files in {directory}")


def _errors_of(checks: Sequence[Callable[[], Any]]) -> list[str]:
    """Run checks and return the first line of the error of each that fails."""
    errors = []
    for check in checks:
        try:
            check()
        except Exception as error:  # any error prevents the run from reading its data
            errors.append(str(error).splitlines()[0] if str(error) else repr(error))
    return errors


def storage_problem(directory: Path) -> str:
    """Return why the processes cannot share a directory; "" if they can.

    Every process writes a file and reads that of the next process.

    Args:
        directory: The directory.
    """
    token = processes.broadcast(hashlib.sha256(os.urandom(16)).hexdigest()[:16])
    folder = directory / f".doctor-{token}"
    problem = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(folder / str(processes.index()), token)
    except OSError as error:
        problem = f"cannot write: {error.strerror or error}"
    processes.barrier("written")
    neighbor = folder / str((processes.index() + 1) % processes.count())
    if not problem and not _appears(neighbor, token):
        problem = f"does not see what {processes.name(int(neighbor.name))} writes there"
    processes.barrier("read")
    # On shared storage the first process removes all files; otherwise each removes its own.
    shutil.rmtree(folder, ignore_errors=True)
    return problem


def _appears(path: Path, content: str) -> bool:
    """Wait until a file has some content; return False if it does not appear in time."""
    deadline = time.monotonic() + (_STORAGE_DELAY if processes.count() > 1 else 0.0)
    while True:
        try:
            if path.read_text() == content:
                return True
        except OSError:
            pass
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.2)


def timed_collective(mesh: jax.sharding.Mesh) -> tuple[float, float]:
    """Add up ones over all devices, as a test of devices and network.

    Args:
        mesh: The devices.

    Returns:
        The sum divided by the number of ones, which must be 1, and the seconds it took.
    """
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    ones = jax.make_array_from_callback(
        (mesh.size, 256), split, lambda index: np.ones((1, 256), np.float32)
    )
    add = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, PartitionSpec()))
    float(add(ones))  # compiles
    start = time.perf_counter()
    total = float(add(ones))
    return total / (256 * mesh.size), time.perf_counter() - start
