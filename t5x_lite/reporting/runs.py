"""What model directories say of their runs, and how their configurations differ."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite.errors import ConfigError
from t5x_lite.io.metric_writers import METRICS, read_metrics
from t5x_lite.io.safe_files import read_json_if_exists

# Of a configuration, what tells two runs apart without making them different.
_PLACES = {"MODEL_DIR", "DATA_DIR", "INITIAL_CHECKPOINT_PATH", "WANDB_PROJECT", "train.model_dir"}


@dataclass(frozen=True)
class RunRecord:
    """One run. records: of each kind, in the order of steps. settings: gin name to value, as text.

    results: of a run that ended, else empty. versions: of packages, revision and command, as of the
    last launch. mixture: the share of examples that was planned of each task.
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
        """The last step that anything was recorded of."""
        return max((r["step"] for records in self.records.values() for r in records), default=0)

    @property
    def validated(self) -> list[str]:
        """The tasks it was evaluated on."""
        return [kind.removeprefix("validation/") for kind in self.records if "validation/" in kind]

    def series(self, kind: str, number: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a number, where it was recorded."""
        points = [(r["step"], r[number]) for r in self.records.get(kind, ()) if number in r]
        steps, values = zip(*points, strict=True) if points else ((), ())
        return np.array(steps, int), np.array(values, float)

    def latest(self, kind: str, number: str) -> float | None:
        """The last value of a number, or None."""
        _, values = self.series(kind, number)
        return float(values[-1]) if len(values) else None

    def middle(self, kind: str, number: str) -> float | None:
        """The median of a number over the run, or None."""
        _, values = self.series(kind, number)
        return float(np.median(values)) if len(values) else None

    def shares(self) -> list[tuple[str, float, float, float]]:
        """Of each task: the share of examples planned, the share drawn, and epochs."""
        drawn, epochs = (self.records.get(kind, ({},))[-1] for kind in ("examples", "epochs"))
        total = sum(drawn.get(name, 0) for name in self.mixture) or 1
        return [
            (name, planned, drawn.get(name, 0) / total, epochs.get(name, 0.0))
            for name, planned in self.mixture.items()
        ]


def read_run(directory: str | Path, name: str | None = None) -> RunRecord:
    """Read a model directory; ConfigError if no run was ever there."""
    directory = Path(directory)
    if not (directory / METRICS).is_file():
        raise ConfigError(
            f"{directory} holds no {METRICS}; wanted the model directory of a run", "report.runs"
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


def named_apart(directories: Sequence[str | Path]) -> list[RunRecord]:
    """Read several runs under names that tell them apart, as short as that allows."""
    paths = [Path(d).resolve() for d in directories]
    if len(set(paths)) < len(paths):
        raise ConfigError("a run is given twice; wanted each model directory once", "report.runs")
    parts = 1
    while len({p.parts[-parts:] for p in paths}) < len(paths):
        parts += 1
    return [read_run(path, "/".join(path.parts[-parts:])) for path in paths]


def settings(config: str) -> dict[str, str]:
    """The bindings of an operative configuration: {"Loss.z_loss": "0.0001"}; scopes and all.

    A value that gin wrote over several lines is joined to one.
    """
    found, name = {}, ""
    for line in config.splitlines():
        if not line.strip() or line.lstrip().startswith(("#", "import ", "from ")):
            continue
        if begun := re.match(r"([\w./]+) = (.*)$", line):
            name = begun[1]
            found[name] = begun[2].rstrip("\\").strip()
        elif name:
            found[name] = f"{found[name]} {line.rstrip(chr(92)).strip()}".strip()
    return found


def differences(runs: Iterable[RunRecord]) -> list[tuple[str, list[str]]]:
    """The names whose values differ among runs, each with the value of every run ("" for none)."""
    runs = list(runs)
    names = sorted({name for run in runs for name in run.settings} - _PLACES)
    rows = [(name, [run.settings.get(name, "") for run in runs]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.is_file() else ""
