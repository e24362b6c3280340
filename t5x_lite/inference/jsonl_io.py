"""Input lines of `t5x_lite infer`, and output lines that are written in blocks and resumable."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

from t5x_lite.data.sources.jsonl_and_tsv import (
    MalformedLineError,
    decode_line,
    parse_json_line,
)
from t5x_lite.distributed import processes
from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic
from t5x_lite.io.safe_files import read_json

STANDARD = "-"  # standard input or output instead of a path
Format = Literal["auto", "text", "json"]
Record = dict[str, Any]


class InputLines:
    """The lines of a file, or of standard input, as records: dicts with "inputs".

    All lines are checked at once, so that an invalid one is reported before a model is loaded.
    Iterating reads the file again.

    Args:
        path: The file; "-" is standard input.
        form: "json" for a JSON object per line, "text" for a text per line; "auto" is "json" for
            names that end in .jsonl or .json.
        required: The fields that each record must have. A line of text is the first of them.

    Attributes:
        count: Number of lines.
        fingerprint: SHA-256 of all lines.

    Raises:
        ConfigError: The file is missing or empty, or a line is invalid; names the first such line.
    """

    def __init__(self, path: str, form: Format, required: Sequence[str]):
        if form not in ("auto", "text", "json"):
            raise ConfigError(
                f'input_format is {form!r}; expected "auto", "text" or "json"', "FORMAT"
            )
        self.path, self._required = path, tuple(required)
        self._standard = sys.stdin.buffer.readlines() if path == STANDARD else None
        is_json = path.endswith((".jsonl", ".json")) if form == "auto" else form == "json"
        self._json = is_json
        if not is_json and len(required) > 1:
            raise ConfigError(
                f"{self._name} has lines of text; expected JSON objects with "
                f"{' and '.join(required)} "
                f'(a file that ends in .jsonl, or FORMAT = "json")',
                "INPUTS",
                "FORMAT",
            )
        digest, self.count = hashlib.sha256(), 0
        for number, line in enumerate(self._lines(), 1):
            self._record(line, number)
            digest.update(line + b"\n")
            self.count = number
        if not self.count:
            raise ConfigError(f"{self._name} is empty; expected at least one line", "INPUTS")
        self.fingerprint = digest.hexdigest()

    def __iter__(self) -> Iterator[Record]:
        for number, line in enumerate(self._lines(), 1):
            yield self._record(line, number)

    @property
    def _name(self) -> str:
        return "standard input" if self.path == STANDARD else self.path

    def _lines(self) -> Iterator[bytes]:
        if self._standard is not None:
            yield from (line.rstrip(b"\r\n") for line in self._standard)
            return
        try:
            with open(self.path, "rb") as file:
                for line in file:
                    yield line.rstrip(b"\r\n")
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error.strerror}", "INPUTS") from None

    def _record(self, line: bytes, number: int) -> Record:
        try:
            if self._json:
                return parse_json_line(line, self._required)
            return {self._required[0]: decode_line(line)}
        except MalformedLineError as error:
            # Each line of input has its line of output: unlike training data, none is skipped.
            message = f"{self._name}, line {number:,}: {error.reason} ({error})"
            raise ConfigError(message, "INPUTS") from None


class OutputLines:
    """JSON lines that are written in blocks: a context manager that opens and closes the file.

    Until all lines are written, the file is PATH.partial. PATH.settings.json has the settings that
    the lines depend on. A second start with the same settings resumes after the last whole block,
    because a block counts only once it is on disk; one with other settings is refused. Among
    several processes the first accesses the disk, and all know the number of lines that are `done`.

    Args:
        path: The file; "-" is standard output, which cannot be resumed.
        settings: Everything that the lines depend on, as JSON.
        block: Lines of a block.

    Attributes:
        path: The file.
        done: Number of lines that were written, also by earlier starts; -1 if all were written by
            an earlier start.

    Raises:
        ConfigError: The file cannot be written, or has results of other settings.
    """

    def __init__(self, path: str, settings: Mapping[str, Any], *, block: int):
        self.path, self.done, self._block = path, 0, block
        self._file: BinaryIO | None = None
        self._final, self._partial = Path(path), Path(f"{path}.partial")
        self._settings_file = Path(f"{path}.settings.json")
        self._settings = json.loads(json.dumps(dict(settings)))
        self.done = processes.broadcast(self._existing_state() if processes.is_first() else None)

    def __enter__(self) -> "OutputLines":
        """Open the file after its last whole block."""
        if processes.is_first():
            self._file = sys.stdout.buffer if self.path == STANDARD else self._open()
        self.done = processes.broadcast(self.done)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None and self.path != STANDARD:
            self._file.close()

    @property
    def complete(self) -> bool:
        """Whether an earlier start wrote all lines."""
        return self.done < 0

    def write(self, records: Sequence[Record]) -> None:
        """Append a block and wait until it is on disk."""
        self.done += len(records)
        if self._file is None:
            return
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        self._file.write("".join(lines).encode())
        self._file.flush()
        if self.path != STANDARD:
            os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Rename the file to its final name, after all blocks are written."""
        if self._file is not None and self.path != STANDARD:
            atomic.rename(self._partial, self._final)

    def _existing_state(self) -> int:
        """Return -1 if all lines are written already, else 0.

        Raises:
            ConfigError: The directory cannot be written to, or the lines have other settings.
        """
        if self.path == STANDARD:
            return 0
        try:
            self._final.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._raise_unwritable(error)
        if self._final.exists():
            self._check_same()
            return -1
        if self._partial.exists() and self._partial.stat().st_size:
            self._check_same()
        return 0

    def _open(self) -> BinaryIO:
        """Open the partial file, without its incomplete block, and count its lines."""
        try:
            atomic.write_json(self._settings_file, self._settings)
            file = open(self._partial, "a+b")  # noqa: SIM115  (closed at the end of the context)
        except OSError as error:
            self._raise_unwritable(error)
        # Drop an incomplete line or block: its results are computed again.
        file.seek(0)
        lines = [line for line in file if line.endswith(b"\n")]
        self.done = len(lines) // self._block * self._block
        file.truncate(sum(map(len, lines[: self.done])))
        file.seek(0, os.SEEK_END)
        return file

    def _raise_unwritable(self, error: OSError) -> NoReturn:
        raise ConfigError(f"{self.path} cannot be written: {error.strerror}", "OUTPUTS") from None

    def _check_same(self) -> None:
        """Raise ConfigError if the file has results of other settings."""
        now = self._settings
        try:
            before = read_json(self._settings_file)
        except (OSError, ValueError):
            before = {}
        different = sorted(n for n in now.keys() | before.keys() if now.get(n) != before.get(n))
        if different:
            changes = ", ".join(f"{n} {before.get(n)!r} -> {now.get(n)!r}" for n in different)
            raise ConfigError(
                f"{self.path} has results of other settings ({changes}); use another OUTPUTS, or "
                f"the same settings to resume it",
                "OUTPUTS",
            )
