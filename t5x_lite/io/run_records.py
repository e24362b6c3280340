"""The JSON lines that a run records, such as metrics.jsonl: written whole, read although torn.

    {"step": 100, "kind": "train", "loss": 4.81}
    {"step": 200, "kind": "train", "loss": 4.

A killed process can leave a torn last line, as the second above. It is no damage: the step is done
again. Any other line that is no JSON object is damage and never skipped without a message. (Data
files of users are read by `data.sources.jsonl_and_tsv`, which counts malformed lines.)
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic

_LOG = logging.getLogger(__name__)


def read_json_lines(path: epath.PathLike, *, strict: bool = False) -> Iterator[dict[str, Any]]:
    """Read records that were appended one by one.

    Args:
        path: A local path or a URL. A file that does not exist has no records.
        strict: Raise for a damaged line. For files that are written as a whole, and for records on
            which the numbers of a run depend: there, a torn last line is damage as well. The
            default logs a warning with file and line and reads on, as a lost line of metrics must
            not prevent a run from resuming.

    Yields:
        The records in order.

    Raises:
        ConfigError: A line is damaged or torn, and `strict` is set.
    """
    for _, record in _read(epath.Path(path), strict):
        yield record


def write_json_lines(
    path: epath.PathLike,
    records: Iterable[Mapping[str, Any]],
    *,
    default: Callable[[Any], Any] | None = None,
) -> None:
    """Write all records of a file atomically, one per line.

    Args:
        path: A local path or a URL. Its directory must exist.
        records: The records. They are written one by one, so they may be computed meanwhile.
        default: Converts values that JSON does not have, as in `json.dumps`.

    Raises:
        OSError: The file cannot be written; its old content, if any, is unchanged.
    """
    with atomic.open_text(path) as file:
        file.writelines(json.dumps(record, default=default) + "\n" for record in records)


def drop_steps_after(path: epath.PathLike, step: int) -> None:
    """Drop the records of later steps and a torn last line, before a run resumes and appends.

    >>> write_json_lines(path, [{"step": 1}, {"step": 2}, {"step": 3}])
    >>> drop_steps_after(path, 2)
    >>> list(read_json_lines(path))
    [{"step": 1}, {"step": 2}]

    Args:
        path: A local path or a URL of records that have "step". It need not exist.
        step: The step after which the run resumes.
    """
    path = epath.Path(path)
    if not path.exists():
        return
    lines = (line for line, record in _read(path) if record["step"] <= step)
    kept = b"".join(line.removesuffix(b"\n") + b"\n" for line in lines)
    if kept != path.read_bytes():
        atomic.write_bytes(path, kept)


def _read(path: epath.Path, strict: bool = False) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each line with its record."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("it is no JSON object")
            except (ValueError, RecursionError) as error:
                message = f"{path}, line {number}, is damaged: {error}"
                if strict:
                    raise ConfigError(message) from None
                if line.endswith(b"\n"):  # else it is the last line, torn
                    _LOG.warning("%s; it is skipped", message)
                continue
            yield line, record
