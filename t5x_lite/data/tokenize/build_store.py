"""Making token stores: a task tokenized once, one file of its source after another.

A store that is being made lies in a hidden directory beside its place, which it takes when it is
complete:

    .train-1f3a.partial/
      description.json           what it is made from; nothing else is ever gone on with
      parts/                     finished parts of the source's files (`data.tokenize.build_store`)
      targets.tokens.bin ...     the files of the store, which grow in the order of the source
      progress.json              how far they have grown

Appending writes at the place that the counts of the parts before it give: whoever is killed, at
whatever moment, the next goes on to the same bytes.
"""

import contextlib
import errno
import io
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from t5x_lite.data.data_config import Tokenizer
from t5x_lite.data.store import document_groups
from t5x_lite.data.store.token_store import (
    HEADER_BYTES,
    PROGRESS,
    TokenStore,
    differences,
    partial_directory,
    token_dtype,
)
from t5x_lite.data.tokenize.store_identity import describe_store
from t5x_lite.data.tokenize.tokenize_file import Group, read_groups
from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic, checksums
from t5x_lite.io.file_lock import file_lock
from t5x_lite.io.safe_files import read_json, read_json_if_exists

if TYPE_CHECKING:
    import seqio


_TOKENS = 1 << 23  # of a feature, which end a part: some 35 MB of English


def write_parts(task: "seqio.Task", split: str, number: int, partial: Path) -> Iterator[int]:
    """Tokenize a file of a task's source into `partial`/parts; yield its number at every part.

    Parts that are there already are left alone. Raises ConfigError where the file cannot be read or
    written, or holds ids that are not of its vocabulary.
    """
    description = read_json(partial / "description.json")
    shard = description["source"]["shards"][number]
    sizes = {name: each["size"] for name, each in description["vocabularies"].items()}
    groups = read_groups(task, split, number, sizes, tokenizer=description["tokenizer"])
    for place in range(1_000_000):
        if (said := read_json_if_exists(part_path(partial, number, place))) is not None:
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
    with space_on(path.parent.parent):
        with contextlib.ExitStack() as stack:
            written = _PartFiles(path, sizes, stack)
            is_last = True
            for group in groups:
                for name, (tokens, lengths_b) in group.items():
                    if tokens.size and not 0 <= tokens.min() <= tokens.max() < sizes[name]:
                        raise ConfigError(
                            f"task {task.name!r}: feature {name!r} holds ids from {tokens.min()} "
                            f"to {tokens.max()}, but its vocabulary has {sizes[name]}",
                            "MIXTURE_OR_TASK_NAME",
                        )
                    written.add(name, tokens, lengths_b)
                if written.is_full():
                    is_last = False
                    break
        # The stack has given the part's files their names: this file, written last, completes it.
        said = {"features": written.counts, "last": is_last}
        left_out = _left_out(task.source, shard) if is_last else None
        atomic.write_json(path, said | {"left_out": left_out})
    return said


class _PartFiles:
    """The files of a part, which get their names when the stack ends without an error.

    counts: by feature, how many examples, tokens and examples with tokens were added.
    """

    def __init__(self, path: Path, sizes: Mapping[str, int], stack: contextlib.ExitStack):
        self._path, self._sizes, self._stack = path, sizes, stack
        self._files: dict[str, dict[str, BinaryIO]] = {}
        self.counts: dict[str, dict[str, int]] = {}

    def add(self, name: str, tokens: np.ndarray, lengths_b: np.ndarray) -> None:
        """Write some examples of a feature."""
        if name not in self._files:
            self.counts[name] = {"examples": 0, "tokens": 0, "filled": 0}
            self._files[name] = {
                kind: self._stack.enter_context(
                    atomic.open_binary(self._path.with_suffix(f".{name}.{kind}.bin"))
                )
                for kind in ("tokens", "lengths")
            }
        self._files[name]["tokens"].write(tokens.astype(token_dtype(self._sizes[name])).tobytes())
        self._files[name]["lengths"].write(lengths_b.astype("<u4").tobytes())
        self.counts[name]["examples"] += len(lengths_b)
        self.counts[name]["tokens"] += len(tokens)
        self.counts[name]["filled"] += int(np.count_nonzero(lengths_b))

    def is_full(self) -> bool:
        """Tell whether another part should begin."""
        return any(each["tokens"] >= _TOKENS for each in self.counts.values())


def _left_out(source: Any, shard: str) -> str | None:
    """Return what the source says of lines of a file that it could not use."""
    line_stats = getattr(source, "line_stats", {}).get(shard)
    return line_stats.describe() if line_stats and line_stats.bad else None


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


_LOG = logging.getLogger(__name__)
# Makes the parts of the files of the given numbers in a directory; yields whenever there may be
# another part.
MakeParts = Callable[[Sequence[int], Path], Iterable[object]]

_KINDS = ("tokens.bin", "offsets.npy", "groups.npy")
_BYTES_PER_COPY = 1 << 24
_LENGTHS_PER_READ = 1 << 20
_PROGRESS_LINES = 20  # about the files that are done; some more if the count does not divide


def build_token_store(
    task: "seqio.Task",
    split: str,
    directory: str | os.PathLike,
    *,
    tokenizer: Tokenizer = "seqio",
    make_parts: MakeParts | None = None,
) -> None:
    """Tokenize a split of a task, up to its cache placeholder, into a new directory.

    A file some of whose lines were skipped is logged, and the manifest names it. `make_parts` calls
    `write_parts` for numbers, in any order and process; without it they are made here, one after
    the other. What an earlier call has finished is not done again, and while another process makes
    the same store this one waits for it. Raises ConfigError where the task cannot be cached, its
    source cannot be read or yields nothing, or the disk is full.
    """
    description, directory = describe_store(task, split, tokenizer), Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_directory(directory)
    with file_lock(directory.with_name(f".{directory.name}.lock")), space_on(partial):
        if not directory.exists():
            if differences(description, read_json_if_exists(partial / "manifest.json") or {}):
                growing = GrowingFiles(partial, description)
                try:
                    growing.append()
                    for _ in (make_parts or _in_turn(task, split))(growing.missing(), partial):
                        growing.append()
                        growing.log_progress()
                    growing.finish()
                except ConfigError:
                    growing.forget_if_empty()
                    raise
            _settle(partial, directory)
    TokenStore.open(directory)


class GrowingFiles:
    """The files of a store that is being made, to which finished parts are appended in order."""

    def __init__(self, partial: Path, description: Mapping[str, Any]):
        self._partial, self._description = partial, description
        self._shards = description["source"]["shards"]
        if read_json_if_exists(partial / "description.json") != description:
            shutil.rmtree(partial, ignore_errors=True)
            (partial / "parts").mkdir(parents=True)
            atomic.write_json(partial / "description.json", description)
        self._number = self._place = 0  # of the part that comes next: its file, its place there
        self._complete: set[int] = set()  # files whose last part is there
        self._logged = 0
        self._left_out: dict[str, str] = {}
        self._features: dict[str, dict[str, int]] = {}

    def missing(self) -> list[int]:
        """Return the files of the source that are still to be tokenized."""
        for number in range(self._number, len(self._shards)):
            if number not in self._complete and self._is_complete(number):
                self._complete.add(number)
        return [n for n in range(len(self._shards)) if n not in self._complete]

    def log_progress(self) -> None:
        """Log, about twenty times in all, how many files are done; never for few files."""
        count, step = len(self._shards), len(self._shards) // _PROGRESS_LINES
        if count < _PROGRESS_LINES:
            return
        done = count - len(self.missing())
        if done - done % step > self._logged:
            self._logged = done - done % step
            store = f"{self._description['task']}/{self._description['split']}"
            _LOG.info(f"tokenized {self._logged:,} of {count:,} files of {store}")

    def append(self) -> None:
        """Append the parts that come next, as far as they are finished."""
        while self._number < len(self._shards):
            path = part_path(self._partial, self._number, self._place)
            if (said := read_json_if_exists(path)) is None:
                return
            for name, counts in said["features"].items():
                so_far = self._features.setdefault(name, dict.fromkeys(counts, 0))
                self._append(name, path, so_far)
                for unit, count in counts.items():
                    so_far[unit] += count
            if said["left_out"]:
                self._left_out[self._shards[self._number]] = said["left_out"]
            self._place += 1
            if said["last"]:
                self._complete.add(self._number)
                self._number, self._place = self._number + 1, 0
            atomic.write_json(self._partial / PROGRESS, self._progress())

    def finish(self) -> None:
        """Complete the files."""
        if not any(each["examples"] for each in self._features.values()):
            raise ConfigError(
                f"task {self._description['task']!r}: the split {self._description['split']!r} of "
                f"{', '.join(self._shards[:3])} ... holds no example",
                "DATA_DIR",
            )
        for shard, what in self._left_out.items():
            _LOG.warning(f"{shard}: {what}")
        for name, each in self._features.items():
            for kind, shape in (
                ("offsets.npy", (each["examples"] + 1,)),
                ("groups.npy", (group_count(each["filled"]), 2)),
            ):
                with _at(self._path(name, kind), None) as file:
                    file.write(_header(shape))
        left_out = {"left_out": self._left_out, "modified": _modified(self._shards)}
        manifest = {**self._description, **self._progress(), **left_out}
        atomic.write_json(self._partial / "manifest.json", manifest)

    def forget_if_empty(self) -> None:
        """Remove the directory if no part of the source was finished."""
        if not any((self._partial / "parts").glob("*.json")):
            shutil.rmtree(self._partial, ignore_errors=True)

    def _is_complete(self, number: int) -> bool:
        place = 0
        while (said := read_json_if_exists(part_path(self._partial, number, place))) is not None:
            if said["last"]:
                return True
            place += 1
        return False

    def _append(self, name: str, part: Path, so_far: Mapping[str, int]) -> None:
        """Write a part's tokens, offsets and groups where they belong, then remove the part's."""
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
            offsets_at = HEADER_BYTES + 8 * (so_far["examples"] + 1)
            groups_at = HEADER_BYTES + 16 * group_count(so_far["filled"])
            with (
                open(lengths, "rb") as source,
                _at(self._path(name, "offsets.npy"), offsets_at) as offsets,
                _at(self._path(name, "groups.npy"), groups_at) as table,
            ):
                document, end, filled = (so_far[unit] for unit in ("examples", "tokens", "filled"))
                while len(part_n := np.fromfile(source, "<u4", _LENGTHS_PER_READ)):
                    ends_n = end + np.cumsum(part_n, dtype=np.int64)
                    offsets.write(ends_n.astype("<i8").tobytes())
                    filled_n = np.flatnonzero(part_n)
                    first_g = filled_n[
                        -filled % document_groups.DOCUMENTS :: document_groups.DOCUMENTS
                    ]
                    table_g2 = np.stack([document + first_g, ends_n[first_g] - part_n[first_g]], 1)
                    table.write(table_g2.astype("<i8").tobytes())
                    document, end = document + len(part_n), int(ends_n[-1])
                    filled += len(filled_n)
            lengths.unlink()

    def _progress(self) -> dict[str, Any]:
        sizes = {name: each["size"] for name, each in self._description["vocabularies"].items()}
        return {
            "num_examples": max((each["examples"] for each in self._features.values()), default=0),
            "features": {
                name: {
                    "tokens": each["tokens"],
                    "dtype": token_dtype(sizes[name]),
                    "groups": group_count(each["filled"]),
                }
                for name, each in self._features.items()
            },
        }

    def _path(self, name: str, ending: str) -> Path:
        return self._partial / f"{name}.{ending}"


def group_count(filled: int) -> int:
    """Return how many groups so many documents with tokens make."""
    return -(-filled // document_groups.DOCUMENTS)


def _settle(partial: Path, directory: Path) -> None:
    """Let the complete files take their place, alone."""
    manifest = read_json_if_exists(partial / "manifest.json") or {}
    kept = {f"{name}.{kind}" for name in manifest["features"] for kind in _KINDS}
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in kept | {"manifest.json"}:
            path.unlink()
    checksums.write_checksums(partial)
    atomic.rename(partial, directory)


def _in_turn(task: "seqio.Task", split: str) -> MakeParts:
    return lambda numbers, partial: (
        each for number in numbers for each in write_parts(task, split, number, partial)
    )


def _modified(shards: Collection[str]) -> dict[str, int]:
    """Return when local files were changed last, in nanoseconds."""
    return {shard: os.stat(shard).st_mtime_ns for shard in shards if os.path.exists(shard)}


def _header(shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    described = {"descr": "<i8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    assert len(header.getvalue()) == HEADER_BYTES
    return header.getvalue()


@contextlib.contextmanager
def _at(path: Path, place: int | None) -> Iterator[Any]:
    """Open a file for writing from a place on; what is there and beyond is cut off.

    None is the beginning, of which nothing is cut off.
    """
    with open(path, "r+b" if path.exists() else "w+b") as file:
        if place is not None:
            file.truncate(place)
            file.seek(place)
        yield file
        file.flush()
        os.fsync(file.fileno())
