"""Read the records of runs from their model directories, and compare their configurations."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite.errors import ConfigError
from t5x_lite.io.metric_writers import METRICS, read_metrics
from t5x_lite.io.safe_files import read_json_if_exists

# Settings that differ between runs without changing the training.
_NOT_COMPARED = {
    "MODEL_DIR",
    "DATA_DIR",
    "INITIAL_CHECKPOINT_PATH",
    "WANDB_PROJECT",
    "train.model_dir",
}


@dataclass(frozen=True)
class RunRecord:
    """The records of one run.

    Attributes:
        directory: The model directory.
        name: The name in reports.
        records: Lines of metrics.jsonl by kind, in the order of steps.
        settings: Values by gin name, as text.
        config: The operative gin configuration.
        results: Content of results.json; empty if the run has not finished.
        versions: Versions of packages, revision and command of the last launch.
        mixture: The configured fraction of examples of each task.
    """

    directory: Path
    name: str
    records: Mapping[str, Sequence[Mapping[str, Any]]]
    settings: Mapping[str, str]
    config: str
    results: Mapping[str, Any]
    versions: Mapping[str, str]
    mixture: Mapping[str, float]

    @property
    def last_step(self) -> int:
        """The last step with a record."""
        return max((r["step"] for records in self.records.values() for r in records), default=0)

    @property
    def validated(self) -> list[str]:
        """The tasks with validation losses."""
        return [kind.removeprefix("validation/") for kind in self.records if "validation/" in kind]

    def series(self, kind: str, number: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the steps and values of a number, as far as it was recorded.

        Args:
            kind: Kind of the record, such as "train" or "validation/TASK".
            number: Name of the number, such as "loss".
        """
        points = [(r["step"], r[number]) for r in self.records.get(kind, ()) if number in r]
        steps, values = zip(*points, strict=True) if points else ((), ())
        return np.array(steps, int), np.array(values, float)

    def latest(self, kind: str, number: str) -> float | None:
        """Return the last value of a number; None if there is none."""
        _, values = self.series(kind, number)
        return float(values[-1]) if len(values) else None

    def median(self, kind: str, number: str) -> float | None:
        """Return the median of a number over the run; None if there is none."""
        _, values = self.series(kind, number)
        return float(np.median(values)) if len(values) else None

    def mixture_rows(self) -> list[tuple[str, float, float, float]]:
        """Return (task, configured fraction, fraction of examples so far, epochs) of each task."""
        drawn, epochs = (self.records.get(kind, ({},))[-1] for kind in ("examples", "epochs"))
        total = sum(drawn.get(name, 0) for name in self.mixture) or 1
        return [
            (name, planned, drawn.get(name, 0) / total, epochs.get(name, 0.0))
            for name, planned in self.mixture.items()
        ]


def read_run(directory: str | Path, name: str | None = None) -> RunRecord:
    """Read the records of a run.

    Args:
        directory: The model directory.
        name: The name in reports; None is that of the directory.

    Raises:
        ConfigError: The directory has no metrics.jsonl.
    """
    directory = Path(directory)
    if not (directory / METRICS).is_file():
        raise ConfigError(
            f"{directory} has no {METRICS}; expected the model directory of a run", "report.runs"
        )
    records: dict[str, list[dict[str, Any]]] = {}
    for record in read_metrics(directory):
        records.setdefault(record["kind"], []).append(record)
    launches = sorted((directory / "launches").glob("from_step_*"))
    launch = launches[-1] if launches else directory / "launches"
    config = _text(launch / "operative_config.gin")
    return RunRecord(
        directory=directory,
        name=name or directory.name,
        records=records,
        settings=settings(config),
        config=config,
        results=read_json_if_exists(directory / "results.json") or {},
        versions=read_json_if_exists(launch / "versions.json") or {},
        mixture=read_json_if_exists(launch / "mixture.json") or {},
    )


def read_runs(directories: Sequence[str | Path]) -> list[RunRecord]:
    """Read several runs, with the shortest names that are different.

    Args:
        directories: The model directories.

    Raises:
        ConfigError: A directory is given twice or has no run.
    """
    paths = [Path(d).resolve() for d in directories]
    if len(set(paths)) < len(paths):
        raise ConfigError("a run is given twice; expected each model directory once", "report.runs")
    parts = 1
    while len({p.parts[-parts:] for p in paths}) < len(paths):
        parts += 1
    return [read_run(path, "/".join(path.parts[-parts:])) for path in paths]


def settings(config: str) -> dict[str, str]:
    """Parse the bindings of an operative configuration: {"Loss.z_loss": "0.0001"}.

    Names include gin scopes. A value that gin wrote over several lines is joined to one line.

    Args:
        config: The configuration.
    """
    bindings, name = {}, ""
    for line in config.splitlines():
        if not line.strip() or line.lstrip().startswith(("#", "import ", "from ")):
            continue
        if match := re.match(r"([\w./]+) = (.*)$", line):
            name = match[1]
            bindings[name] = match[2].rstrip("\\").strip()
        elif name:
            bindings[name] = f"{bindings[name]} {line.rstrip(chr(92)).strip()}".strip()
    return bindings


def differences(runs: Iterable[RunRecord]) -> list[tuple[str, list[str]]]:
    """Return the settings that differ between runs: (name, values by run), "" for no value.

    Args:
        runs: The runs.
    """
    runs = list(runs)
    names = sorted({name for run in runs for name in run.settings} - _NOT_COMPARED)
    rows = [(name, [run.settings.get(name, "") for run in runs]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.is_file() else ""
