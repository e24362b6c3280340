"""What `t5x_lite explore` left of a study, and what its differences are worth."""

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
    """Mean over seeds and their standard deviation (None of a single one), or None for no seed."""

    mean: float
    std: float | None
    seeds: int


@dataclass(frozen=True)
class StudyRow:
    """A row: its scores by column and seed, and how each seed stands."""

    name: str
    changes: Sequence[str]
    pretraining: Mapping[str, float] | None
    fine_tuning: Mapping[str, Mapping[str, float]]
    seeds: Sequence[Mapping[str, Any]]

    def score(self, column: str) -> Score | None:
        """Over the seeds that have it; of the held-out losses of pretraining, their mean."""
        if column == HELD_OUT:
            found = [
                statistics.fmean(losses)
                for seed in self.seeds
                if (losses := [v for k, v in seed["held_out"].items() if k.endswith("/loss")])
            ]
        else:
            found = [s["scores"][column] for s in self.seeds if column in s["scores"]]
        if not found:
            return None
        std = statistics.stdev(found) if len(found) > 1 else None
        return Score(statistics.fmean(found), std, len(found))


@dataclass(frozen=True)
class StudyRecord:
    """A study as far as it came. columns: head to (task, score)."""

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
        """A row by its name."""
        return next(row for row in self.rows if row.name == name)

    def lower_is_better(self, column: str) -> bool:
        """Whether a column is of losses."""
        return column == HELD_OUT or self.columns[column][1].endswith("/loss")

    def verdict(self, row: StudyRow, column: str) -> Verdict:
        """Whether a row differs from the baseline by more than two of its standard deviations."""
        base, score = self.row(self.baseline).score(column), row.score(column)
        if row.name == self.baseline or base is None or base.std is None or score is None:
            return ""
        return _verdict(score.mean - base.mean, base.std, self.lower_is_better(column))

    def published(self, row: StudyRow) -> tuple[StudyTable, Sequence[float]] | None:
        """The first of the study's published tables that has the row, and its figures."""
        for table in self.published_tables:
            if row.name in table.rows:
                return table, table.rows[row.name]
        return None

    @property
    def published_tables(self) -> list[StudyTable]:
        """The published tables that are known."""
        return [STUDY_TABLES[key] for key in self.tables if key in STUDY_TABLES]

    @property
    def published_columns(self) -> tuple[str, ...]:
        """The columns of its published tables."""
        columns = [column for table in self.published_tables for column in table.columns]
        return tuple(dict.fromkeys(columns))

    def published_verdicts(self, row: StudyRow) -> dict[str, Verdict]:
        """The same of the published figures, where the baseline's spread was published."""
        if (found := self.published(row)) is None or found[0].columns != COLUMNS:
            return {}
        table, figures = found
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
    """The studies of a directory, or of one file; none where there is no study."""
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
