"""The faults of `t5x_lite torture`: what each one does, and the outcome that must follow."""

import os
import random
import re
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from t5x_lite.debugging.fault_injection.subprocess_run import STEP, TrainProcess

LONG = 600.0  # seconds that nothing takes unless it hangs
_SAVING = "saving checkpoint at step"  # in the log line of a save that has begun


@dataclass
class FaultContext:
    """What a fault acts on.

    Args:
        run: The run, which trains or is about to.
        directory: The directory of the run.
        random: The source of random times and choices.
        data_dir: The directory of the token stores, which no other run reads.
        expected: Words that the log of the next start must contain; a fault appends to it.
    """

    run: TrainProcess
    directory: Path
    random: random.Random
    data_dir: Path
    expected: list[str] = field(default_factory=list)

    @property
    def newest(self) -> Path:
        """The newest complete checkpoint."""
        markers = (self.directory / "checkpoints").glob("*/commit_success.txt")
        return max((path.parent for path in markers), key=lambda path: int(path.name))

    @property
    def complete(self) -> int:
        """The number of complete checkpoints."""
        return len(list((self.directory / "checkpoints").glob("*/commit_success.txt")))

    def wait_for_checkpoints(self, count: int) -> None:
        """Wait until there are this many checkpoints, or the run has ended."""
        while self.complete < count and self.run.alive:
            time.sleep(0.1)

    def trains(self) -> bool:
        """Wait for a random number of logged steps; returns False if the run ended before."""
        came: float | None = 0.0
        for _ in range(self.random.randint(1, 16)):
            if came is not None:
                came = self.run.wait_for(STEP.match, LONG, since=came)
        time.sleep(self.random.uniform(0.0, 0.3))
        return came is not None


@dataclass(frozen=True)
class Fault:
    """A fault.

    Args:
        name: The name in the table, and for `torture.faults`.
        does: Makes the fault and ends the run. It returns the exit codes of which one must follow;
            0 means that the run finished before the fault.
        expected: The outcome in words, for the table.
        processes: The smallest number of processes that the run must have.
        at_start: Whether the run must just have been started.
    """

    name: str
    does: Callable[[FaultContext], tuple[int, ...]]
    expected: str
    processes: int = 1
    at_start: bool = False


def _kill(scene: FaultContext) -> tuple[int, ...]:
    scene.trains()
    scene.run.send(signal.SIGKILL)
    return (-9, 0)


def _kill_at(words: str, *, from_start: bool = False) -> Callable[[FaultContext], tuple[int, ...]]:
    def kill(scene: FaultContext) -> tuple[int, ...]:
        if not from_start:
            scene.trains()
        scene.run.wait_for(lambda line: words in line, LONG, since=time.monotonic())
        time.sleep(scene.random.uniform(0.0, 0.2))
        scene.run.send(signal.SIGKILL)
        return (-9, 0)

    return kill


def _kill_early(scene: FaultContext) -> tuple[int, ...]:
    time.sleep(scene.random.uniform(0.5, 8.0))
    scene.run.send(signal.SIGKILL)
    return (-9, 0)


def _kill_process(number: int | None) -> Callable[[FaultContext], tuple[int, ...]]:
    """Kill process 0 of a pod, or with None a random other one."""

    def kill(scene: FaultContext) -> tuple[int, ...]:
        if scene.trains():
            first, *others = scene.run.pids
            os.kill(first if number == 0 else scene.random.choice(others), signal.SIGKILL)
        return (137, 0)

    return kill


def _stall(scene: FaultContext) -> tuple[int, ...]:
    """Stop one process with SIGSTOP: the others name it, and the launcher kills it."""
    if not scene.trains():
        return (0,)
    os.kill(scene.random.choice(scene.run.pids), signal.SIGSTOP)
    named = scene.run.wait_for(lambda line: _NAMED.search(line), LONG)
    assert named is not None, "no process named the stopped one"
    return (75,)


# Of a process other than 0, and of process 0.
_NAMED = re.compile(r"process \d+ on .*: no (heartbeat|answer) for \d+ s")


def _terminate(scene: FaultContext) -> tuple[int, ...]:
    if scene.trains():
        scene.run.send(signal.SIGTERM)
        scene.expected.append("resuming from step")
    return (75, 143, 0)


def _terminate_twice(scene: FaultContext) -> tuple[int, ...]:
    if scene.trains():
        scene.run.send(signal.SIGTERM)
        time.sleep(scene.random.uniform(0.0, 0.3))
        scene.run.send(signal.SIGTERM)
    return (-15, 143, 75, 0)


def _corrupt_checkpoint(how: Callable[[Path], None]) -> Callable[[FaultContext], tuple[int, ...]]:
    def corrupt(scene: FaultContext) -> tuple[int, ...]:
        scene.trains()
        scene.wait_for_checkpoints(2)
        scene.run.send(signal.SIGKILL)
        code = scene.run.end(LONG)
        if code and scene.complete >= 2 and (scene.newest / "checksums.json").exists():
            files = [path for path in scene.newest.rglob("*") if path.is_file()]
            named = [path for path in files if path.name not in _SPARED and path.stat().st_size]
            how(scene.random.choice(sorted(named)))
            scene.expected.append("is corrupt")
        return (-9, 0)

    return corrupt


# Without its marker orbax ignores a step as incomplete: that is not corruption.
_SPARED = ("commit_success.txt", "checksums.json")


def _corrupt_store(how: Callable[[Path], None]) -> Callable[[FaultContext], tuple[int, ...]]:
    """Corrupt a file of a token store between two starts."""

    def corrupt(scene: FaultContext) -> tuple[int, ...]:
        scene.trains()
        scene.run.send(signal.SIGKILL)
        if scene.run.end(LONG):
            stores = (scene.data_dir / "stores").glob("*/train-*/*")
            shards = [p for p in stores if p.suffix in (".bin", ".npy") and p.stat().st_size]
            how(scene.random.choice(sorted(shards)))
            scene.expected.append("is corrupt")
        return (-9, 0)

    return corrupt


def _truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _fill_disk(scene: FaultContext) -> tuple[int, ...]:
    """Limit files to 2 kB until a save has failed, like a full disk, but without root."""
    if not scene.trains():
        return (0,)
    limits = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in scene.run.pids}
    for pid, (_, hard) in limits.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (2048, hard))
    failed = scene.run.wait_for(lambda line: "cannot save step" in line, LONG)
    for pid, limit in limits.items() if scene.run.alive else ():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)
    if failed is None:
        return (0,)
    after = scene.run.wait_for(lambda line: _SAVING in line, LONG, since=failed)
    assert after is not None or not scene.run.alive, "nothing was saved after the disk had space"
    scene.run.send(signal.SIGKILL)
    return (-9, 0)


FAULTS = (
    Fault("kill", _kill, "the next start resumes; nothing is lost"),
    Fault(
        "kill early",
        _kill_early,
        "while it imports, compiles or restores: as if never started",
        at_start=True,
    ),
    Fault("kill in a save", _kill_at(_SAVING), "the incomplete step is ignored"),
    Fault(
        "kill in a restore",
        _kill_at("restoring step", from_start=True),
        "the checkpoint is unchanged",
        at_start=True,
    ),
    Fault("SIGTERM", _terminate, "the current step is saved; exit code 75, for a restart"),
    Fault("SIGTERM twice", _terminate_twice, "ends at once; older checkpoints stay"),
    Fault(
        "truncated file",
        _corrupt_checkpoint(_truncate),
        "detected; the previous checkpoint is restored",
    ),
    Fault(
        "flipped bit", _corrupt_checkpoint(_flip), "detected; the previous checkpoint is restored"
    ),
    Fault(
        "missing file",
        _corrupt_checkpoint(Path.unlink),
        "detected; the previous checkpoint is restored",
    ),
    Fault("full disk", _fill_disk, "the run continues, older steps stay, a later save succeeds"),
    Fault("deleted shard", _corrupt_store(Path.unlink), "detected; the token store is rebuilt"),
    Fault("corrupted shard", _corrupt_store(_flip), "detected; the token store is rebuilt"),
    Fault(
        "kill process 0", _kill_process(0), "the others end at once; all are restarted", processes=2
    ),
    Fault(
        "kill another process",
        _kill_process(None),
        "it is named, the others end; all are restarted",
        processes=2,
    ),
    Fault("stalled process", _stall, "it is named and killed; all are restarted", processes=2),
)
