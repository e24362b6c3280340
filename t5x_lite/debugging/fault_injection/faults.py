"""The faults of `t5x_lite torture`, and the outcome that each must have."""

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

LONG = 600.0  # seconds; anything that takes longer hangs
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

    def wait_for_steps(self) -> bool:
        """Wait for a random number of logged steps; return False if the run ended before."""
        arrival: float | None = 0.0
        for _ in range(self.random.randint(1, 16)):
            if arrival is not None:
                arrival = self.run.wait_for(STEP.match, LONG, since=arrival)
        time.sleep(self.random.uniform(0.0, 0.3))
        return arrival is not None


@dataclass(frozen=True)
class Fault:
    """A fault.

    Args:
        name: The name in the table, and for `torture.faults`.
        inject: Injects the fault and ends the run. It returns the exit codes that are allowed; 0
            means that the run finished before the fault.
        expected: The outcome in words, for the table.
        processes: The smallest number of processes that the run must have.
        at_start: Whether the run must just have been started.
    """

    name: str
    inject: Callable[[FaultContext], tuple[int, ...]]
    expected: str
    processes: int = 1
    at_start: bool = False


def _kill(context: FaultContext) -> tuple[int, ...]:
    """Kill the run after some steps."""
    context.wait_for_steps()
    context.run.send(signal.SIGKILL)
    return (-9, 0)


def _kill_at(words: str, *, from_start: bool = False) -> Callable[[FaultContext], tuple[int, ...]]:
    """Return a fault that kills the run shortly after a log line with some words."""

    def kill(context: FaultContext) -> tuple[int, ...]:
        if not from_start:
            context.wait_for_steps()
        context.run.wait_for(lambda line: words in line, LONG, since=time.monotonic())
        time.sleep(context.random.uniform(0.0, 0.2))
        context.run.send(signal.SIGKILL)
        return (-9, 0)

    return kill


def _kill_early(context: FaultContext) -> tuple[int, ...]:
    """Kill the run while it starts."""
    time.sleep(context.random.uniform(0.5, 8.0))
    context.run.send(signal.SIGKILL)
    return (-9, 0)


def _kill_process(number: int | None) -> Callable[[FaultContext], tuple[int, ...]]:
    """Return a fault that kills process 0 of a pod, or for None a random other process."""

    def kill(context: FaultContext) -> tuple[int, ...]:
        if context.wait_for_steps():
            first, *others = context.run.pids
            os.kill(first if number == 0 else context.random.choice(others), signal.SIGKILL)
        return (137, 0)

    return kill


def _stall(context: FaultContext) -> tuple[int, ...]:
    """Stop one process with SIGSTOP. The others must name it, and the launcher must kill it."""
    if not context.wait_for_steps():
        return (0,)
    os.kill(context.random.choice(context.run.pids), signal.SIGSTOP)
    named = context.run.wait_for(lambda line: _NAMED.search(line), LONG)
    assert named is not None, "no process named the stopped one"
    return (75,)


# The log lines of process 0 and of the other processes.
_NAMED = re.compile(r"process \d+ on .*: no (heartbeat|answer) for \d+ s")


def _terminate(context: FaultContext) -> tuple[int, ...]:
    """Send SIGTERM, as a preemption does: the run saves the current step."""
    if context.wait_for_steps():
        context.run.send(signal.SIGTERM)
        context.expected.append("resuming from step")
    return (75, 143, 0)


def _terminate_twice(context: FaultContext) -> tuple[int, ...]:
    """Send SIGTERM twice: the run ends without waiting for its save."""
    if context.wait_for_steps():
        context.run.send(signal.SIGTERM)
        time.sleep(context.random.uniform(0.0, 0.3))
        context.run.send(signal.SIGTERM)
    return (-15, 143, 75, 0)


def _corrupt_checkpoint(how: Callable[[Path], None]) -> Callable[[FaultContext], tuple[int, ...]]:
    """Return a fault that corrupts a file of the newest checkpoint between two starts."""

    def corrupt(context: FaultContext) -> tuple[int, ...]:
        context.wait_for_steps()
        context.wait_for_checkpoints(2)
        context.run.send(signal.SIGKILL)
        code = context.run.end(LONG)
        if code and context.complete >= 2 and (context.newest / "checksums.json").exists():
            files = [path for path in context.newest.rglob("*") if path.is_file()]
            candidates = [p for p in files if p.name not in _NOT_CORRUPTED and p.stat().st_size]
            how(context.random.choice(sorted(candidates)))
            context.expected.append("is corrupt")
        return (-9, 0)

    return corrupt


# Without its marker, orbax ignores a step as incomplete. That is another fault than corruption.
_NOT_CORRUPTED = ("commit_success.txt", "checksums.json")


def _corrupt_store(how: Callable[[Path], None]) -> Callable[[FaultContext], tuple[int, ...]]:
    """Return a fault that corrupts a file of a token store between two starts."""

    def corrupt(context: FaultContext) -> tuple[int, ...]:
        context.wait_for_steps()
        context.run.send(signal.SIGKILL)
        if context.run.end(LONG):
            stores = (context.data_dir / "stores").glob("*/train-*/*")
            shards = [p for p in stores if p.suffix in (".bin", ".npy") and p.stat().st_size]
            how(context.random.choice(sorted(shards)))
            context.expected.append("is corrupt")
        return (-9, 0)

    return corrupt


def _truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _fill_disk(context: FaultContext) -> tuple[int, ...]:
    """Limit the size of files to 2 kB until a save has failed: a full disk without root."""
    if not context.wait_for_steps():
        return (0,)
    limits = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in context.run.pids}
    for pid, (_, hard) in limits.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (2048, hard))
    failed = context.run.wait_for(lambda line: "cannot save step" in line, LONG)
    for pid, limit in limits.items() if context.run.alive else ():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)
    if failed is None:
        return (0,)
    after = context.run.wait_for(lambda line: _SAVING in line, LONG, since=failed)
    assert after is not None or not context.run.alive, "nothing was saved after the disk had space"
    context.run.send(signal.SIGKILL)
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
