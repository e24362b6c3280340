"""Lines in, lines out: texts or JSON lines to be read, results that grow and survive a kill."""

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

STANDARD = "-"  # standard input or output in the place of a path
Format = Literal["auto", "text", "json"]
Record = dict[str, Any]


class InputLines:
    """The lines of a file, or of standard input, as records with "inputs"; checked as a whole.

    A file ending in .jsonl or .json holds JSON objects with the `needed` fields; any other holds a
    text a line, which is the first of them. Raises ConfigError for a file that is missing or empty
    and for the first line that cannot be used, by its number.
    """

    def __init__(self, path: str, form: Format, needed: Sequence[str]):
        if form not in ("auto", "text", "json"):
            raise ConfigError(
                f'input_format is {form!r}; wanted "auto", "text" or "json"', "FORMAT"
            )
        self.path, self._needed = path, tuple(needed)
        self._standard = sys.stdin.buffer.readlines() if path == STANDARD else None
        is_json = path.endswith((".jsonl", ".json")) if form == "auto" else form == "json"
        self._json = is_json
        if not is_json and len(needed) > 1:
            raise ConfigError(
                f"{self._name} holds texts; wanted JSON lines with {' and '.join(needed)} "
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
            raise ConfigError(f"{self._name} is empty; wanted at least one line", "INPUTS")
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
                return parse_json_line(line, self._needed)
            return {self._needed[0]: decode_line(line)}
        except MalformedLineError as error:
            # Each line of input has its line of output: unlike training data, none is skipped.
            message = f"{self._name}, line {number:,}: {error.reason} ({error})"
            raise ConfigError(message, "INPUTS") from None


class OutputLines:
    """JSON lines written in blocks; a context manager that opens and closes the file.

    A block counts only once all of it is on the disk. Until all are written they stand in
    PATH.partial, and PATH.settings.json says what they are made of: a second start with the same
    settings goes on behind the last whole block, one with others is refused. Of several processes
    the first touches the disk; all know how many lines are `done`.
    """

    def __init__(self, path: str, settings: Mapping[str, Any], *, block: int):
        self.path, self.done, self._block = path, 0, block
        self._file: BinaryIO | None = None
        self._final, self._partial = Path(path), Path(f"{path}.partial")
        self._described = Path(f"{path}.settings.json")
        self._settings = json.loads(json.dumps(dict(settings)))
        self.done = processes.broadcast(self._found() if processes.is_first() else None)

    def __enter__(self) -> "OutputLines":
        """Open the file behind its last whole block."""
        if processes.is_first():
            self._file = sys.stdout.buffer if self.path == STANDARD else self._opened()
        self.done = processes.broadcast(self.done)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None and self.path != STANDARD:
            self._file.close()

    @property
    def complete(self) -> bool:
        """Whether an earlier start wrote everything."""
        return self.done < 0

    def write(self, records: Sequence[Record]) -> None:
        """Append a block."""
        self.done += len(records)
        if self._file is None:
            return
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        self._file.write("".join(lines).encode())
        self._file.flush()
        if self.path != STANDARD:
            os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Give the file its name."""
        if self._file is not None and self.path != STANDARD:
            atomic.rename(self._partial, self._final)

    def _found(self) -> int:
        """-1 where everything is there already, else 0; ConfigError if it is something else."""
        if self.path == STANDARD:
            return 0
        try:
            self._final.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._refuse(error)
        if self._final.exists():
            self._check_same()
            return -1
        if self._partial.exists() and self._partial.stat().st_size:
            self._check_same()
        return 0

    def _opened(self) -> BinaryIO:
        try:
            atomic.write_json(self._described, self._settings)
            file = open(self._partial, "a+b")  # noqa: SIM115  (closed at the end of the context)
        except OSError as error:
            self._refuse(error)
        file.seek(0)
        lines = [line for line in file if line.endswith(b"\n")]
        self.done = len(lines) // self._block * self._block
        file.truncate(sum(map(len, lines[: self.done])))
        file.seek(0, os.SEEK_END)
        return file

    def _refuse(self, error: OSError) -> NoReturn:
        raise ConfigError(f"{self.path} cannot be written: {error.strerror}", "OUTPUTS") from None

    def _check_same(self) -> None:
        now = self._settings
        try:
            before = read_json(self._described)
        except (OSError, ValueError):
            before = {}
        different = sorted(n for n in now.keys() | before.keys() if now.get(n) != before.get(n))
        if different:
            changes = ", ".join(f"{n} {before.get(n)!r} -> {now.get(n)!r}" for n in different)
            raise ConfigError(
                f"{self.path} holds results of other settings ({changes}); wanted another OUTPUTS, "
                f"or the same settings to go on with it",
                "OUTPUTS",
            )
