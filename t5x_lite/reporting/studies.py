"""Read the results of `t5x_lite explore`, and compare rows with the baseline beyond noise."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from t5x_lite.metrics.published_t5_study import (
    BASELINE_STD,
    COLUMNS,
    NOISE_STDS,
    STUDY_TABLES,
    StudyTable,
)

Verdict = Literal["better", "worse", "noise", ""]
HELD_OUT = "held-out loss"


class Score(NamedTuple):
    """A score over seeds.

    Attributes:
        mean: The mean.
        std: The standard deviation; None for a single seed.
        seeds: Number of seeds.
    """

    mean: float
    std: float | None
    seeds: int


@dataclass(frozen=True)
class StudyRow:
    """A row of a study.

    Attributes:
        name: Its name.
        changes: What it changes, as text.
        pretraining: "steps" and "flops"; None for a row without pretraining.
        fine_tuning: The same by task.
        seeds: State and scores of each seed.
    """

    name: str
    changes: Sequence[str]
    pretraining: Mapping[str, float] | None
    fine_tuning: Mapping[str, Mapping[str, float]]
    seeds: Sequence[Mapping[str, Any]]

    def score(self, column: str) -> Score | None:
        """Return the score of a column over the seeds that have it; None if no seed has it.

        The score of HELD_OUT is the mean validation loss of pretraining over its tasks.
        """
        if column == HELD_OUT:
            values = [
                statistics.fmean(losses)
                for seed in self.seeds
                if (losses := [v for k, v in seed["held_out"].items() if k.endswith("/loss")])
            ]
        else:
            values = [s["scores"][column] for s in self.seeds if column in s["scores"]]
        if not values:
            return None
        std = statistics.stdev(values) if len(values) > 1 else None
        return Score(statistics.fmean(values), std, len(values))


@dataclass(frozen=True)
class StudyRecord:
    """The current results of a study.

    Attributes:
        directory: Directory of its scale.
        name: Its name.
        title: Its title.
        scale: Name of the scale.
        matched: "flops" or "steps".
        baseline: Name of the baseline row.
        tables: Keys of published tables.
        columns: (task, "TASK/METRIC") by the head of a column.
        rows: The rows.
    """

    directory: Path
    name: str
    title: str
    scale: str
    matched: str
    baseline: str
    tables: Sequence[str]
    columns: Mapping[str, Sequence[str]]
    rows: Sequence[StudyRow]

    def row(self, name: str) -> StudyRow:
        """Return a row by name."""
        return next(row for row in self.rows if row.name == name)

    def lower_is_better(self, column: str) -> bool:
        """Return whether a column has losses."""
        return column == HELD_OUT or self.columns[column][1].endswith("/loss")

    def verdict(self, row: StudyRow, column: str) -> Verdict:
        """Compare a row with the baseline: does it differ by more than NOISE_STDS of its stds?

        Returns "" for the baseline, and where a score or the baseline's std is missing.
        """
        base, score = self.row(self.baseline).score(column), row.score(column)
        if row.name == self.baseline or base is None or base.std is None or score is None:
            return ""
        return _verdict(score.mean - base.mean, base.std, self.lower_is_better(column))

    def published(self, row: StudyRow) -> tuple[StudyTable, Sequence[float]] | None:
        """Return the first of the published tables that has the row, and the row's scores."""
        for table in self.published_tables:
            if row.name in table.rows:
                return table, table.rows[row.name]
        return None

    @property
    def published_tables(self) -> list[StudyTable]:
        """The published tables of the study."""
        return [STUDY_TABLES[key] for key in self.tables if key in STUDY_TABLES]

    @property
    def published_columns(self) -> tuple[str, ...]:
        """The columns of the published tables."""
        columns = [column for table in self.published_tables for column in table.columns]
        return tuple(dict.fromkeys(columns))

    def published_verdicts(self, row: StudyRow) -> dict[str, Verdict]:
        """Compare a row's published scores with the baseline's, where its std was published."""
        if (published := self.published(row)) is None or published[0].columns != COLUMNS:
            return {}
        table, figures = published
        base = table.rows[table.baseline]
        return {
            column: _verdict(value - before, std, table.lower_is_better)
            for column, value, before, std in zip(COLUMNS, figures, base, BASELINE_STD, strict=True)
            if row.name != self.baseline
        }


def _verdict(difference: float, std: float, lower_is_better: bool) -> Verdict:
    if abs(difference) <= NOISE_STDS * std:
        return "noise"
    return "better" if (difference < 0) == lower_is_better else "worse"


def read_studies(path: str | Path) -> list[StudyRecord]:
    """Read the studies of a directory, or of one file; other files are ignored."""
    path = Path(path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path] if path.is_file() else []
    contents = [(file, json.loads(file.read_text("utf-8"))) for file in files]
    return [
        _study(file, content)
        for file, content in contents
        if isinstance(content, dict) and {"rows", "baseline", "columns"} <= set(content)
    ]


def _study(file: Path, content: Mapping[str, Any]) -> StudyRecord:
    names = ("name", "title", "scale", "matched", "baseline", "tables", "columns")
    rows = [StudyRow(**row) for row in content["rows"]]
    return StudyRecord(file.parent, **{name: content[name] for name in names}, rows=rows)
