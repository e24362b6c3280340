"""Making token stores: a task tokenised once, one file of its source after another.

A store that is being made lies in a hidden directory beside its place, which it takes when it is
complete:

    .train-1f3a.partial/
      description.json           what it is made from; nothing else is ever gone on with
      parts/00003.json           a finished file of the source: its examples and tokens
      parts/00003.targets.*.bin  their tokens and lengths, until they are appended to
      targets.tokens.bin ...     the files of the store, which grow in the order of the source

A part counts once its .json is there, and appending writes at the place that the counts of the
parts before it give: whoever is killed, at whatever moment, the next goes on to the same bytes.
"""

import contextlib
import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t5x_lite.data.locks import alone
from t5x_lite.data.reading import Tokenizer, read_groups
from t5x_lite.data.token_store import TokenStore, describe_store, differences, token_dtype
from t5x_lite.errors import ConfigError

if TYPE_CHECKING:
    import seqio

Report = Callable[[str], None]
# Makes the parts of the given numbers in a directory; yields each number when it is done.
MakeParts = Callable[[Sequence[int], Path], Iterable[int]]

_KINDS = ("tokens.bin", "offsets.npy")
_BYTES_PER_COPY = 1 << 24
_LENGTHS_PER_READ = 1 << 20
_TOLD = 20  # lines about the files that are done, some more where they do not divide
_HEADER_BYTES = 128  # of NumPy's file of one array of integers, however long it is


def build_token_store(
    task: "seqio.Task",
    split: str,
    directory: str | os.PathLike,
    report: Report = lambda line: None,
    *,
    tokenizer: Tokenizer = "seqio",
    make_parts: MakeParts | None = None,
) -> None:
    """Tokenise a split of a task, up to its cache placeholder, into a new directory.

    `report` is told of files some of whose lines were left out, and the manifest says so too.
    `make_parts` calls `write_part` for numbers, in any order and process; without it they are made
    here, one after the other. What an earlier call has finished is not done again, and while
    another process makes the same store this one waits for it. Raises ConfigError where the task
    cannot be cached, its source cannot be read or yields nothing, or the disk is full.
    """
    description, directory = describe_store(task, split, tokenizer), Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_directory(directory)
    with alone(directory.with_name(f".{directory.name}.lock"), report), _space_on(partial):
        if not directory.exists():
            if differences(description, _read_json(partial / "manifest.json") or {}):
                growing = GrowingFiles(partial, description)
                try:
                    growing.append()
                    missing = growing.missing()
                    made = (make_parts or _in_turn(task, split))(missing, partial)
                    for done, _ in enumerate(made, start=1):
                        growing.append()
                        growing.tell(len(missing) - done, report)
                    growing.finish(report)
                except ConfigError:
                    growing.forget_if_empty()
                    raise
            _settle(partial, directory)
    TokenStore.open(directory)


def partial_directory(directory: Path) -> Path:
    """Return where a store lies while it is being made."""
    return directory.with_name(f".{directory.name}.partial")


def write_part(task: "seqio.Task", split: str, number: int, partial: Path) -> int:
    """Tokenise one file of a task's source into `partial`/parts and return its number."""
    description = json.loads((partial / "description.json").read_text("utf-8"))
    shard = description["source"]["shards"][number]
    sizes = {name: each["size"] for name, each in description["vocabularies"].items()}
    groups = read_groups(task, split, number, sizes, tokenizer=description["tokenizer"])
    stem = partial / "parts" / f"{number:05d}"
    with _space_on(partial), contextlib.ExitStack() as stack:
        written = _PartFiles(stem, sizes, stack)
        for group in groups:
            for name, (tokens, lengths_b) in group.items():
                if tokens.size and not 0 <= tokens.min() <= tokens.max() < sizes[name]:
                    raise ConfigError(
                        f"task {task.name!r}: feature {name!r} holds ids from {tokens.min()} to "
                        f"{tokens.max()}, but its vocabulary has {sizes[name]}",
                        "MIXTURE_OR_TASK_NAME",
                    )
                written.add(name, tokens, lengths_b)
        features = written.commit()
        said = {"features": features, "left_out": _left_out(task.source, shard)}
        _write_json(stem.with_suffix(".json"), said)
    return number


class GrowingFiles:
    """The files of a store that is being made, to which finished parts are appended in order."""

    def __init__(self, partial: Path, description: Mapping[str, Any]):
        self._partial, self._description = partial, description
        self._shards = description["source"]["shards"]
        if _read_json(partial / "description.json") != description:
            shutil.rmtree(partial, ignore_errors=True)
            (partial / "parts").mkdir(parents=True)
            _write_json(partial / "description.json", description)
        self._appended = 0
        self._left_out: dict[str, str] = {}
        self._features: dict[str, dict[str, int]] = {}

    def missing(self) -> list[int]:
        """Return the files of the source that are still to be tokenised."""
        return [n for n in range(len(self._shards)) if not self._part(n).exists()]

    def tell(self, left: int, report: Report) -> None:
        """Say, some twenty times in all, how many files are done; not where there are few."""
        count = len(self._shards)
        if count >= _TOLD and (count - left) % (count // _TOLD) == 0:
            report(f"  {count - left:,} of {count:,} files")

    def append(self) -> None:
        """Append the parts that come next, as far as they are finished."""
        while self._appended < len(self._shards) and self._part(self._appended).exists():
            part = self._part(self._appended)
            said = _read_json(part) or {}
            for name, counts in said["features"].items():
                so_far = self._features.setdefault(name, {"examples": 0, "tokens": 0})
                self._append(name, part, counts, so_far)
                for unit, count in counts.items():
                    so_far[unit] += count
            if said["left_out"]:
                self._left_out[self._shards[self._appended]] = said["left_out"]
            self._appended += 1
            _write_json(self._partial / "progress.json", self._progress())

    def finish(self, report: Report) -> None:
        """Complete the files."""
        if not any(each["examples"] for each in self._features.values()):
            raise ConfigError(
                f"task {self._description['task']!r}: the split {self._description['split']!r} of "
                f"{', '.join(self._shards[:3])} ... holds no example",
                "DATA_DIR",
            )
        for shard, what in self._left_out.items():
            report(f"{shard}: {what}")
        for name, each in self._features.items():
            with open(self._path(name, "offsets.npy"), "r+b") as file:
                file.write(_header(each["examples"] + 1))
        left_out = {"left_out": self._left_out, "modified": _modified(self._shards)}
        manifest = {**self._description, **self._progress(), **left_out}
        _write_json(self._partial / "manifest.json", manifest)

    def forget_if_empty(self) -> None:
        """Remove the directory if no file of the source was finished."""
        if len(self.missing()) == len(self._shards):
            shutil.rmtree(self._partial, ignore_errors=True)

    def _append(
        self, name: str, part: Path, counts: Mapping[str, int], so_far: Mapping[str, int]
    ) -> None:
        """Write a part's tokens and offsets where they belong, then remove the part's."""
        tokens, lengths = (
            part.with_suffix(f".{name}.{kind}.bin") for kind in ("tokens", "lengths")
        )
        item = np.dtype(token_dtype(self._description["vocabularies"][name]["size"])).itemsize
        if tokens.exists():
            with (
                open(tokens, "rb") as source,
                _at(self._path(name, "tokens.bin"), so_far["tokens"] * item) as file,
            ):
                shutil.copyfileobj(source, file, _BYTES_PER_COPY)
            tokens.unlink()
        if lengths.exists():
            place = _HEADER_BYTES + 8 * (so_far["examples"] + 1)
            with open(lengths, "rb") as source, _at(self._path(name, "offsets.npy"), place) as file:
                end = so_far["tokens"]
                while len(part_n := np.fromfile(source, "<u4", _LENGTHS_PER_READ)):
                    ends_n = end + np.cumsum(part_n, dtype=np.int64)
                    file.write(ends_n.astype("<i8").tobytes())
                    end = int(ends_n[-1])
            lengths.unlink()

    def _progress(self) -> dict[str, Any]:
        sizes = {name: each["size"] for name, each in self._description["vocabularies"].items()}
        return {
            "num_examples": max((each["examples"] for each in self._features.values()), default=0),
            "features": {
                name: {"tokens": each["tokens"], "dtype": token_dtype(sizes[name])}
                for name, each in self._features.items()
            },
        }

    def _part(self, number: int) -> Path:
        return self._partial / "parts" / f"{number:05d}.json"

    def _path(self, name: str, ending: str) -> Path:
        return self._partial / f"{name}.{ending}"


class _PartFiles:
    """The files of a part, under names of this process until they are complete."""

    def __init__(self, stem: Path, sizes: Mapping[str, int], stack: contextlib.ExitStack):
        self._stem, self._sizes, self._stack = stem, sizes, stack
        self._files: dict[str, dict[str, Any]] = {}
        self._counts: dict[str, dict[str, int]] = {}
        stack.callback(self._remove)

    def add(self, name: str, tokens: np.ndarray, lengths_b: np.ndarray) -> None:
        """Write some examples of a feature."""
        if name not in self._files:
            self._counts[name] = {"examples": 0, "tokens": 0}
            self._files[name] = {
                kind: self._stack.enter_context(self._temporary(name, kind).open("wb"))
                for kind in ("tokens", "lengths")
            }
        self._files[name]["tokens"].write(tokens.astype(token_dtype(self._sizes[name])).tobytes())
        self._files[name]["lengths"].write(lengths_b.astype("<u4").tobytes())
        self._counts[name]["examples"] += len(lengths_b)
        self._counts[name]["tokens"] += len(tokens)

    def commit(self) -> dict[str, dict[str, int]]:
        """Give the files their names; return how many examples and tokens each feature has."""
        for name, opened in self._files.items():
            for kind, file in opened.items():
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, self._stem.with_suffix(f".{name}.{kind}.bin"))
        return self._counts

    def _temporary(self, name: str, kind: str) -> Path:
        return self._stem.with_suffix(f".{name}.{kind}.{os.getpid()}")

    def _remove(self) -> None:
        for name, opened in self._files.items():
            for kind in opened:
                self._temporary(name, kind).unlink(missing_ok=True)


def _settle(partial: Path, directory: Path) -> None:
    """Let the complete files take their place, alone."""
    manifest = _read_json(partial / "manifest.json") or {}
    kept = {f"{name}.{kind}" for name in manifest["features"] for kind in _KINDS}
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in kept | {"manifest.json"}:
            path.unlink()
    partial.rename(directory)


def _in_turn(task: "seqio.Task", split: str) -> MakeParts:
    return lambda numbers, partial: (write_part(task, split, each, partial) for each in numbers)


def _left_out(source: Any, shard: str) -> str | None:
    """Return what the source says of lines of a file that it could not use."""
    tally = getattr(source, "tallies", {}).get(shard)
    return tally.describe() if tally and tally.bad else None


def _modified(shards: Collection[str]) -> dict[str, int]:
    """Return when local files were changed last, in nanoseconds."""
    return {shard: os.stat(shard).st_mtime_ns for shard in shards if os.path.exists(shard)}


def _header(length: int) -> bytes:
    header = io.BytesIO()
    described = {"descr": "<i8", "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(header, described)
    assert len(header.getvalue()) == _HEADER_BYTES
    return header.getvalue()


@contextlib.contextmanager
def _at(path: Path, place: int) -> Iterator[Any]:
    """Open a file for writing from a place on; what is there and beyond is cut off."""
    with open(path, "r+b" if path.exists() else "w+b") as file:
        file.truncate(place)
        file.seek(place)
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _space_on(directory: Path) -> Iterator[None]:
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


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is there as a whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
