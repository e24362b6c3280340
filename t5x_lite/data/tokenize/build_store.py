"""Build a token store: tokenize a split of a task once, one file of its source after another.

An incomplete store is in a hidden directory beside its final one, and is renamed when complete:

    .train-1f3a.partial/
      description.json           what the store is made from; another description starts again
      parts/                     finished parts of the source's files, in any order
        00000-0000.json          the first part of file 0: its counts; written after its arrays
        00000-0000.targets.tokens.bin
        00000-0000.targets.lengths.bin
      targets.tokens.bin ...     the files of the store, to which parts are appended in order
      progress.json              the examples and tokens that they contain

Files are tokenized in any order and by any number of processes (`write_parts`); one process appends
their parts in the order of the source (`StoreWriter`). A part is appended at the position that the
counts of the parts before it give, and what is after that position is overwritten. So a process
may be killed at any time: the next one continues, and the result has the same bytes.
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


# Makes the parts of the files with the given numbers, in the given directory. It yields whenever
# there may be another part.
MakeParts = Callable[[Sequence[int], Path], Iterable[object]]

_LOG = logging.getLogger(__name__)
_TOKENS = 1 << 23  # of a feature, at which a part ends: about 35 MB of English
_MAX_PARTS = 1_000_000  # of a file
_KINDS = ("tokens.bin", "offsets.npy", "groups.npy")
_BYTES_PER_COPY = 1 << 24
_LENGTHS_PER_READ = 1 << 20
_PROGRESS_LINES = 20  # log lines about finished files; a few more if the count does not divide


def write_parts(task: "seqio.Task", split: str, number: int, partial: Path) -> Iterator[int]:
    """Tokenize one file of a task's source into `partial`/parts, and yield after every part.

    Parts that exist already are kept, and their examples are skipped.

    Args:
        task: The task.
        split: The split that the file belongs to.
        number: Which file of the split, from 0.
        partial: The directory of the incomplete store.

    Yields:
        `number`, after every part.

    Raises:
        ConfigError: The file cannot be read, the disk is full, or a token id is not below the size
            of the vocabulary.
    """
    description = read_json(partial / "description.json")
    shard = description["source"]["shards"][number]
    sizes = {name: entry["size"] for name, entry in description["vocabularies"].items()}
    groups = read_groups(task, split, number, sizes, tokenizer=description["tokenizer"])
    for part in range(_MAX_PARTS):
        path = part_path(partial, number, part)
        if (summary := read_json_if_exists(path)) is not None:
            _skip_part(groups, summary)
        else:
            summary = _write_part(task, shard, groups, sizes, path)
        yield number
        if summary["last"]:
            return


def part_path(partial: Path, number: int, part: int) -> Path:
    """Return the file whose existence means that a part is finished; it contains its counts.

    Args:
        partial: The directory of the incomplete store.
        number: Which file of the source, from 0.
        part: Which part of the file, from 0.
    """
    return partial / "parts" / f"{number:05d}-{part:04d}.json"


def _skip_part(groups: Iterator[Group], summary: Mapping[str, Any]) -> None:
    """Advance the iterator over the examples of a finished part."""
    remaining = max((counts["examples"] for counts in summary["features"].values()), default=0)
    while remaining > 0:
        remaining -= max(len(lengths_b) for _, lengths_b in next(groups).values())


def _write_part(
    task: "seqio.Task", shard: str, groups: Iterator[Group], sizes: Mapping[str, int], path: Path
) -> dict[str, Any]:
    with full_disk_as_config_error(path.parent.parent):
        with contextlib.ExitStack() as stack:
            files = _PartFiles(path, sizes, stack)
            is_last = True
            for group in groups:
                for name, (tokens, lengths_b) in group.items():
                    if tokens.size and not 0 <= tokens.min() <= tokens.max() < sizes[name]:
                        raise ConfigError(
                            f"task {task.name!r}: feature {name!r} holds ids from {tokens.min()} "
                            f"to {tokens.max()}, but its vocabulary has {sizes[name]}",
                            "MIXTURE_OR_TASK_NAME",
                        )
                    files.add(name, tokens, lengths_b)
                if files.is_full():
                    is_last = False
                    break
        # At the end of the stack the part's arrays are complete. This file, written last, makes
        # the part count as finished.
        summary = {"features": files.counts, "last": is_last}
        skipped_lines = _describe_skipped_lines(task.source, shard) if is_last else None
        atomic.write_json(path, summary | {"left_out": skipped_lines})
    return summary


class _PartFiles:
    """The arrays of a part, which appear under their names when the stack ends without an error.

    Args:
        path: The part's JSON file, after which the arrays are named.
        sizes: The size of each feature's vocabulary, which decides the type of its tokens.
        stack: Closes the files.

    Attributes:
        counts: By feature, the numbers of examples, of tokens, and of non-empty examples.
    """

    def __init__(self, path: Path, sizes: Mapping[str, int], stack: contextlib.ExitStack):
        self._path, self._sizes, self._stack = path, sizes, stack
        self._files: dict[str, dict[str, BinaryIO]] = {}
        self.counts: dict[str, dict[str, int]] = {}

    def add(self, name: str, tokens: np.ndarray, lengths_b: np.ndarray) -> None:
        """Append some examples of a feature.

        Args:
            name: The feature.
            tokens: The tokens of all examples, one after another.
            lengths_b: The number of tokens of each example.
        """
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
        """Return whether the part should end here."""
        return any(counts["tokens"] >= _TOKENS for counts in self.counts.values())


def _describe_skipped_lines(source: Any, shard: str) -> str | None:
    """Return how many lines of a file were skipped as malformed, None if none were."""
    line_stats = getattr(source, "line_stats", {}).get(shard)
    return line_stats.describe() if line_stats and line_stats.bad else None


@contextlib.contextmanager
def full_disk_as_config_error(directory: Path) -> Iterator[None]:
    """Turn the error of a full disk or an exhausted quota into a ConfigError with advice.

    Args:
        directory: Where files are written.

    Raises:
        ConfigError: The disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigError(
            f"no space left on the device of {directory.parent}: free some, or use another "
            "directory; the same command resumes from what is done",
            "DATA_DIR",
        ) from error


def build_token_store(
    task: "seqio.Task",
    split: str,
    directory: str | os.PathLike,
    *,
    tokenizer: Tokenizer = "seqio",
    make_parts: MakeParts | None = None,
) -> None:
    """Tokenize a split of a task, up to its cache placeholder, into a new directory.

    An interrupted call is resumed by the next one. If another process builds the same store, this
    one waits for it. Files with skipped lines are logged and listed in the manifest.

    Args:
        task: The task.
        split: The split to tokenize.
        directory: Where the complete store is to be.
        tokenizer: "seqio" or "sentencepiece" (`data.tokenize.tokenize_file`).
        make_parts: Calls `write_parts` for some files, in any order and in any processes; None
            tokenizes them in this process, one after the other.

    Raises:
        ConfigError: The task cannot be cached, its source cannot be read or has no examples, or the
            disk is full.
    """
    description, directory = describe_store(task, split, tokenizer), Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_directory(directory)
    lock = directory.with_name(f".{directory.name}.lock")
    with file_lock(lock), full_disk_as_config_error(partial):
        if not directory.exists():
            # A manifest that matches was written by a process that was killed before `publish`.
            if differences(description, read_json_if_exists(partial / "manifest.json") or {}):
                writer = StoreWriter(partial, description)
                try:
                    writer.append_parts()
                    make = make_parts or _make_parts_here(task, split)
                    for _ in make(writer.missing_files(), partial):
                        writer.append_parts()
                        writer.log_progress()
                    writer.finish()
                except ConfigError:
                    writer.remove_if_empty()
                    raise
            publish(partial, directory)
    TokenStore.open(directory)


class StoreWriter:
    """Appends finished parts to the files of an incomplete store, in the order of the source.

    Args:
        partial: The directory of the incomplete store. If it was begun from another description, it
            is emptied.
        description: What the store is made from (`store_identity.describe_store`).
    """

    def __init__(self, partial: Path, description: Mapping[str, Any]):
        self._partial, self._description = partial, description
        self._shards = description["source"]["shards"]
        if read_json_if_exists(partial / "description.json") != description:
            shutil.rmtree(partial, ignore_errors=True)
            (partial / "parts").mkdir(parents=True)
            atomic.write_json(partial / "description.json", description)
        # The part to append next: number of the file in the source, number of the part in the file.
        self._number = self._part = 0
        self._complete: set[int] = set()  # numbers of files whose last part is finished
        self._num_logged = 0
        self._skipped_lines: dict[str, str] = {}
        # What was appended so far: examples, tokens and non-empty examples of each feature.
        self._features: dict[str, dict[str, int]] = {}

    def missing_files(self) -> list[int]:
        """Return the numbers of the source's files that are not tokenized completely."""
        for number in range(self._number, len(self._shards)):
            if number not in self._complete and self._has_all_parts(number):
                self._complete.add(number)
        return [n for n in range(len(self._shards)) if n not in self._complete]

    def log_progress(self) -> None:
        """Log how many files are done, about twenty times in all; never if there are few files."""
        count, step = len(self._shards), len(self._shards) // _PROGRESS_LINES
        if count < _PROGRESS_LINES:
            return
        done = count - len(self.missing_files())
        if done - done % step > self._num_logged:
            self._num_logged = done - done % step
            store = f"{self._description['task']}/{self._description['split']}"
            _LOG.info(f"tokenized {self._num_logged:,} of {count:,} files of {store}")

    def append_parts(self) -> None:
        """Append the next parts in the order of the source, until one is not finished yet."""
        while self._number < len(self._shards):
            path = part_path(self._partial, self._number, self._part)
            if (summary := read_json_if_exists(path)) is None:
                return
            for name, counts in summary["features"].items():
                so_far = self._features.setdefault(name, dict.fromkeys(counts, 0))
                self._append(name, path, so_far)
                for unit, count in counts.items():
                    so_far[unit] += count
            if summary["left_out"]:
                self._skipped_lines[self._shards[self._number]] = summary["left_out"]
            self._part += 1
            if summary["last"]:
                self._complete.add(self._number)
                self._number, self._part = self._number + 1, 0
            # Last: those who read the store while it grows rely on these counts.
            atomic.write_json(self._partial / PROGRESS, self._progress())

    def finish(self) -> None:
        """Write the headers of the arrays and the manifest, after all parts were appended.

        Raises:
            ConfigError: The source has no examples.
        """
        if not any(counts["examples"] for counts in self._features.values()):
            raise ConfigError(
                f"task {self._description['task']!r}: the split {self._description['split']!r} of "
                f"{', '.join(self._shards[:3])} ... holds no example",
                "DATA_DIR",
            )
        for shard, what in self._skipped_lines.items():
            _LOG.warning(f"{shard}: {what}")
        for name, counts in self._features.items():
            for kind, shape in (
                ("offsets.npy", (counts["examples"] + 1,)),
                ("groups.npy", (group_count(counts["filled"]), 2)),
            ):
                with _open_at(self._path(name, kind), None) as file:
                    file.write(_header(shape))
        sources = {"left_out": self._skipped_lines, "modified": _modification_times(self._shards)}
        manifest = {**self._description, **self._progress(), **sources}
        atomic.write_json(self._partial / "manifest.json", manifest)

    def remove_if_empty(self) -> None:
        """Remove the directory if no part was finished: there is nothing to resume from."""
        if not any((self._partial / "parts").glob("*.json")):
            shutil.rmtree(self._partial, ignore_errors=True)

    def _has_all_parts(self, number: int) -> bool:
        part = 0
        while (summary := read_json_if_exists(part_path(self._partial, number, part))) is not None:
            if summary["last"]:
                return True
            part += 1
        return False

    def _append(self, name: str, part: Path, so_far: Mapping[str, int]) -> None:
        """Append a part's tokens, offsets and groups to the files of a feature.

        If this is repeated after an interruption, the part's arrays may be gone already: each is
        removed after what it contains is on disk.
        """
        tokens, lengths = (
            part.with_suffix(f".{name}.{kind}.bin") for kind in ("tokens", "lengths")
        )
        item = np.dtype(token_dtype(self._description["vocabularies"][name]["size"])).itemsize
        if tokens.exists():
            with (
                open(tokens, "rb") as source,
                _open_at(self._path(name, "tokens.bin"), so_far["tokens"] * item) as file,
            ):
                shutil.copyfileobj(source, file, _BYTES_PER_COPY)
            tokens.unlink()
        if lengths.exists():
            self._append_offsets(name, lengths, so_far)
            lengths.unlink()

    def _append_offsets(self, name: str, lengths: Path, so_far: Mapping[str, int]) -> None:
        """Append to offsets.npy and groups.npy, which follow from the lengths of the examples.

        With groups of 2 documents instead of 128, and nothing appended before:

            lengths   3  0  2  1  2  1   ->   offsets  0  3  3  5  6  8  9
            groups: the 1st, 3rd and 5th non-empty document, and where its tokens start:
                      [0, 0]  [3, 5]  [5, 8]
        """
        # Offsets are one more than examples: the first one is 0, and is written as part of the
        # zeros that fill the file up to this position.
        offsets_at = HEADER_BYTES + 8 * (so_far["examples"] + 1)
        groups_at = HEADER_BYTES + 16 * group_count(so_far["filled"])
        per_group = document_groups.DOCUMENTS
        with (
            open(lengths, "rb") as source,
            _open_at(self._path(name, "offsets.npy"), offsets_at) as offsets,
            _open_at(self._path(name, "groups.npy"), groups_at) as table,
        ):
            document, end, filled = (so_far[unit] for unit in ("examples", "tokens", "filled"))
            while len(part_n := np.fromfile(source, "<u4", _LENGTHS_PER_READ)):
                ends_n = end + np.cumsum(part_n, dtype=np.int64)
                offsets.write(ends_n.astype("<i8").tobytes())
                filled_n = np.flatnonzero(part_n)
                # Of the non-empty documents, counted over all parts, every 128th starts a group.
                first_g = filled_n[-filled % per_group :: per_group]
                table_g2 = np.stack([document + first_g, ends_n[first_g] - part_n[first_g]], 1)
                table.write(table_g2.astype("<i8").tobytes())
                document, end = document + len(part_n), int(ends_n[-1])
                filled += len(filled_n)

    def _progress(self) -> dict[str, Any]:
        sizes = {name: entry["size"] for name, entry in self._description["vocabularies"].items()}
        num_examples = max((counts["examples"] for counts in self._features.values()), default=0)
        return {
            "num_examples": num_examples,
            "features": {
                name: {
                    "tokens": counts["tokens"],
                    "dtype": token_dtype(sizes[name]),
                    "groups": group_count(counts["filled"]),
                }
                for name, counts in self._features.items()
            },
        }

    def _path(self, name: str, ending: str) -> Path:
        return self._partial / f"{name}.{ending}"


def group_count(num_documents: int) -> int:
    """Return the number of groups that non-empty documents form, the last one perhaps incomplete.

    Args:
        num_documents: The number of documents with tokens.
    """
    return -(-num_documents // document_groups.DOCUMENTS)


def publish(partial: Path, directory: Path) -> None:
    """Remove everything but the store's files, write their checksums, and rename the directory.

    Args:
        partial: The directory of the store, which has a manifest.
        directory: Its final name.
    """
    manifest = read_json_if_exists(partial / "manifest.json") or {}
    kept = {f"{name}.{kind}" for name in manifest["features"] for kind in _KINDS}
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in kept | {"manifest.json"}:
            path.unlink()
    checksums.write_checksums(partial)
    atomic.rename(partial, directory)


def _make_parts_here(task: "seqio.Task", split: str) -> MakeParts:
    def make(numbers: Sequence[int], partial: Path) -> Iterator[object]:
        for number in numbers:
            yield from write_parts(task, split, number, partial)

    return make


def _modification_times(shards: Collection[str]) -> dict[str, int]:
    """Return when each local file was modified, in nanoseconds since 1970."""
    return {shard: os.stat(shard).st_mtime_ns for shard in shards if os.path.exists(shard)}


def _header(shape: tuple[int, ...]) -> bytes:
    """Return the header of a .npy file of int64."""
    header = io.BytesIO()
    described = {"descr": "<i8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    assert len(header.getvalue()) == HEADER_BYTES
    return header.getvalue()


@contextlib.contextmanager
def _open_at(path: Path, position: int | None) -> Iterator[Any]:
    """Open a file for writing at a position, and truncate it there: the rest is from a killed run.

    Position None is the beginning, without truncation. At the end the content is on disk (fsync).
    """
    with open(path, "r+b" if path.exists() else "w+b") as file:
        if position is not None:
            file.truncate(position)
            file.seek(position)
        yield file
        file.flush()
        os.fsync(file.fileno())
