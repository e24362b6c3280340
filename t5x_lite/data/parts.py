"""A file of a task's source, tokenised into parts that a store is put together from.

    parts/00003-0000.json           a finished part: how much it holds, and if it is the file's last
    parts/00003-0000.targets.*.bin  its tokens and lengths

A part counts once its .json is there. Where parts end depends on the file alone, so whoever goes on
with a file that was left half done makes the same parts.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t5x_lite.data.reading import Group, read_groups
from t5x_lite.data.token_store import token_dtype
from t5x_lite.errors import ConfigError

if TYPE_CHECKING:
    import seqio

_TOKENS = 1 << 23  # of a feature, which end a part: some 35 MB of English


def write_parts(task: "seqio.Task", split: str, number: int, partial: Path) -> Iterator[int]:
    """Tokenise one file of a task's source into `partial`/parts; yield its number at every part.

    Parts that are there already are left alone. Raises ConfigError where the file cannot be read or
    written, or holds ids that are not of its vocabulary.
    """
    description = json.loads((partial / "description.json").read_text("utf-8"))
    shard = description["source"]["shards"][number]
    sizes = {name: each["size"] for name, each in description["vocabularies"].items()}
    groups = read_groups(task, split, number, sizes, tokenizer=description["tokenizer"])
    for place in range(1_000_000):
        if (said := read_json(part_path(partial, number, place))) is not None:
            _pass_over(groups, said)
        else:
            said = _write_part(task, shard, groups, sizes, part_path(partial, number, place))
        yield number
        if said["last"]:
            return


def part_path(partial: Path, number: int, place: int) -> Path:
    """Return where a part of a file says that it is finished."""
    return partial / "parts" / f"{number:05d}-{place:04d}.json"


def _pass_over(groups: Iterator[Group], said: Mapping[str, Any]) -> None:
    """Take a finished part's examples from the groups."""
    left = max((each["examples"] for each in said["features"].values()), default=0)
    while left > 0:
        left -= max(len(lengths_b) for _, lengths_b in next(groups).values())


def _write_part(
    task: "seqio.Task", shard: str, groups: Iterator[Group], sizes: Mapping[str, int], path: Path
) -> dict[str, Any]:
    with space_on(path.parent.parent), contextlib.ExitStack() as stack:
        written = _PartFiles(path, sizes, stack)
        is_last = True
        for group in groups:
            for name, (tokens, lengths_b) in group.items():
                if tokens.size and not 0 <= tokens.min() <= tokens.max() < sizes[name]:
                    raise ConfigError(
                        f"task {task.name!r}: feature {name!r} holds ids from {tokens.min()} to "
                        f"{tokens.max()}, but its vocabulary has {sizes[name]}",
                        "MIXTURE_OR_TASK_NAME",
                    )
                written.add(name, tokens, lengths_b)
            if written.is_full():
                is_last = False
                break
        said = {"features": written.commit(), "last": is_last}
        write_json(path, said | {"left_out": _left_out(task.source, shard) if is_last else None})
    return said


class _PartFiles:
    """The files of a part, under names of this process until they are complete."""

    def __init__(self, path: Path, sizes: Mapping[str, int], stack: contextlib.ExitStack):
        self._path, self._sizes, self._stack = path, sizes, stack
        self._files: dict[str, dict[str, Any]] = {}
        self._counts: dict[str, dict[str, int]] = {}
        stack.callback(self._remove)

    def add(self, name: str, tokens: np.ndarray, lengths_b: np.ndarray) -> None:
        """Write some examples of a feature."""
        if name not in self._files:
            self._counts[name] = {"examples": 0, "tokens": 0, "filled": 0}
            self._files[name] = {
                kind: self._stack.enter_context(self._temporary(name, kind).open("wb"))
                for kind in ("tokens", "lengths")
            }
        self._files[name]["tokens"].write(tokens.astype(token_dtype(self._sizes[name])).tobytes())
        self._files[name]["lengths"].write(lengths_b.astype("<u4").tobytes())
        self._counts[name]["examples"] += len(lengths_b)
        self._counts[name]["tokens"] += len(tokens)
        self._counts[name]["filled"] += int(np.count_nonzero(lengths_b))

    def is_full(self) -> bool:
        """Tell whether another part should begin."""
        return any(each["tokens"] >= _TOKENS for each in self._counts.values())

    def commit(self) -> dict[str, dict[str, int]]:
        """Give the files their names; return what each feature has."""
        for name, opened in self._files.items():
            for kind, file in opened.items():
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, self._path.with_suffix(f".{name}.{kind}.bin"))
        return self._counts

    def _temporary(self, name: str, kind: str) -> Path:
        return self._path.with_suffix(f".{name}.{kind}.{os.getpid()}")

    def _remove(self) -> None:
        for name, opened in self._files.items():
            for kind in opened:
                self._temporary(name, kind).unlink(missing_ok=True)


def _left_out(source: Any, shard: str) -> str | None:
    """Return what the source says of lines of a file that it could not use."""
    tally = getattr(source, "tallies", {}).get(shard)
    return tally.describe() if tally and tally.bad else None


@contextlib.contextmanager
def space_on(directory: Path) -> Iterator[None]:
    """Let a full disk be a ConfigError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigError(
            f"no space left on the device of {directory.parent}: free some, or use another "
            "directory; the same command then goes on with what is done so far",
            "DATA_DIR",
        ) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is there as a whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a file that `write_json` wrote, None where there is none."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
