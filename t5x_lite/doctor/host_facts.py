"""What a host says of itself before a run: code, devices, clock, room, what it can read."""

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
from t5x_lite.data.prepare import ready
from t5x_lite.distributed import processes
from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic, files

_BESIDES = ("platform", "command", "git_revision")  # of `versions`: no version of a package
_MEMORY = Path("/proc/meminfo")
_PATIENCE = 10.0  # seconds that shared storage may take to show a new file


def facts(data: Data, config: str, places: Mapping[str, Path]) -> dict[str, Any]:
    """All that is known of this host without the others, as JSON has it."""
    found = versions()
    devices = jax.local_devices()
    return {
        "revision": found["git_revision"],
        "versions": {name: said for name, said in found.items() if name not in _BESIDES},
        "config": hashlib.sha256(config.encode()).hexdigest()[:12],
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "memory": free_memory(),
        "room": {name: free_room(place) for name, place in places.items()},
        "data": data_troubles(data),
        "stores": ready(data) is not None,
    }


def clock() -> float:
    """Seconds since 1970, at a moment that is the same for all processes."""
    processes.barrier("clocks")
    return time.time()


def free_memory() -> int | None:
    """Bytes that new programs may take on this host; None where the system does not say."""
    try:
        lines = _MEMORY.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if "MemAvailable" in line), None)


def free_room(directory: Path) -> int | None:
    """Bytes free where a directory is or will be; None where nobody knows."""
    existing = next((path for path in (directory, *directory.parents) if path.exists()), None)
    return None if existing is None else shutil.disk_usage(existing).free


def data_troubles(data: Data) -> list[str]:
    """What a run would miss of its data: vocabularies, sources that are not tokenized yet."""
    if (plan := ready(data)) is not None:
        return _troubles([lambda: plan.vocabulary().size, *_first_examples(plan)])
    looks = []
    for declared in data.task_providers:
        vocabulary = getattr(declared, "vocabulary", None) or data.vocabulary
        if vocabulary is not None:
            looks.append(lambda vocabulary=vocabulary: vocabulary.fingerprint)
        if directory := getattr(declared, "directory", None):
            looks.append(lambda directory=directory: _look_into(directory))
    return _troubles(looks)


def _first_examples(plan: Any) -> list[Callable[[], Any]]:
    return [
        lambda store=store: [store.tokens(feature)[:8].tolist() for feature in store.features]
        for _, _, store in plan.stores()
    ]


def _look_into(directory: str) -> None:
    if not files.matching(os.path.join(directory, "*")):
        raise ConfigError(f"there are no files in {directory}")


def _troubles(looks: Sequence[Callable[[], Any]]) -> list[str]:
    found = []
    for look in looks:
        try:
            look()
        except Exception as error:  # whatever stands between a run and its data
            found.append(str(error).splitlines()[0] if str(error) else repr(error))
    return found


def shared_and_writable(directory: Path) -> str:
    """Why this process cannot use the directory together with the others; "" if it can.

    Every process writes a file and looks for the file of its neighbor.
    """
    token = processes.broadcast(hashlib.sha256(os.urandom(16)).hexdigest()[:16])
    folder = directory / f".doctor-{token}"
    trouble = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(folder / str(processes.index()), token)
    except OSError as error:
        trouble = f"cannot write: {error.strerror or error}"
    processes.barrier("written")
    neighbor = folder / str((processes.index() + 1) % processes.count())
    if not trouble and not _appears(neighbor, token):
        trouble = f"does not see what {processes.name(int(neighbor.name))} writes there"
    processes.barrier("read")
    # On storage that all share the first one removes everything; elsewhere each its own.
    shutil.rmtree(folder, ignore_errors=True)
    return trouble


def _appears(path: Path, content: str) -> bool:
    until = time.monotonic() + (_PATIENCE if processes.count() > 1 else 0.0)
    while True:
        try:
            if path.read_text() == content:
                return True
        except OSError:
            pass
        if time.monotonic() >= until:
            return False
        time.sleep(0.2)


def timed_collective(mesh: jax.sharding.Mesh) -> tuple[float, float]:
    """What the devices' sum of ones is over how many there are, and the seconds it took."""
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    ones = jax.make_array_from_callback(
        (mesh.size, 256), split, lambda index: np.ones((1, 256), np.float32)
    )
    add = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, PartitionSpec()))
    float(add(ones))  # compiles
    began = time.perf_counter()
    total = float(add(ones))
    return total / (256 * mesh.size), time.perf_counter() - began
