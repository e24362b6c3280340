"""`t5x_lite report`: runs beside each other, or studies, as a page that anyone can open."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from t5x_lite.console import count
from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic
from t5x_lite.io.metric_writers import METRICS
from t5x_lite.reporting.error_bars import caption, study_figures
from t5x_lite.reporting.figures import figures
from t5x_lite.reporting.page import page
from t5x_lite.reporting.runs import RunRecord, named_apart, read_run
from t5x_lite.reporting.studies import StudyRecord, read_studies
from t5x_lite.reporting.study_comparison import study_tables
from t5x_lite.reporting.summaries import tables, tables_of_rows

_LOG = logging.getLogger(__name__)
PAGE = "report.html"
DOCUMENT = "report.md"


def report(
    *, runs: Sequence[str], output: str = "report", describe_config: Callable[[], str] = str
) -> None:
    """Write report.html, report.md, a CSV of every table and a PNG of every curve to `output`.

    runs: model directories, or what `t5x_lite explore` left (a scale's directory, or one study's
    .json there). What is still under way is shown as far as it is.
    """
    runs = [runs] if isinstance(runs, str) else list(runs)
    if not runs:
        raise ConfigError("no run is given; wanted one model directory or more", "report.runs")
    found = {path: read_studies(path) for path in runs if not (Path(path) / METRICS).is_file()}
    studies = [study for of_path in found.values() for study in of_path]
    single = named_apart([path for path in runs if not found.get(path)])
    of_rows = _runs_of_rows(studies)
    directory = Path(output)
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory} is a file; wanted a directory", "report.output")
    directory.mkdir(parents=True, exist_ok=True)
    told = [table for study in studies for table in study_tables(study)]
    told += tables_of_rows(of_rows) if of_rows else []
    told += tables(single) if single else []
    scores = [figure for study in studies for figure in study_figures(study)]
    curves = figures([*of_rows, *single])
    title, lead = _title(studies, single), _lead(studies, single)
    text = page(
        *(title, lead, [*of_rows, *single], told, curves),
        scores=scores,
        scores_note=caption(scores),
    )
    atomic.write_text(directory / PAGE, text)
    document = [f"# {title}\n", f"{lead}\n", *(table.markdown() for table in told)]
    atomic.write_text(directory / DOCUMENT, "\n".join(document))
    for number, table in enumerate(told, 1):
        atomic.write_text(directory / f"table_{number}.csv", table.csv())
    for figure in [*scores, *curves]:
        atomic.write_bytes(directory / figure.name, figure.png)
    _LOG.info(
        f"wrote {directory / PAGE}: {count(len(told), 'table')} and "
        f"{count(len(scores) + len(curves), 'figure')}"
    )


def _runs_of_rows(studies: Sequence[StudyRecord]) -> list[RunRecord]:
    """The first pretraining of each row that has one, under the row's name."""
    found: dict[Path, str] = {}
    for study in studies:
        for row in study.rows:
            if row.pretraining is None:
                continue
            for path in [study.directory / run for seed in row.seeds for run in seed["runs"][:1]]:
                if (path / METRICS).is_file():
                    found.setdefault(path, row.name)
                    break
    return [read_run(path, name) for path, name in found.items()]


def _title(studies: Sequence[StudyRecord], single: Sequence[RunRecord]) -> str:
    if studies:
        return ", ".join(study.title for study in studies)
    return single[0].name if len(single) == 1 else f"{len(single)} runs"


def _lead(studies: Sequence[StudyRecord], single: Sequence[RunRecord]) -> str:
    parts = [
        f"{study.title}: {len(study.rows)} rows at scale {study.scale}, "
        f"{sum(s['state'] == 'done' for row in study.rows for s in row.seeds)} of "
        f"{sum(len(row.seeds) for row in study.rows)} rows and seeds done."
        for study in studies
    ]
    if single:
        parts.append(
            f"Steps done: {', '.join(f'{run.name}: {run.last_step:,}' for run in single)}."
        )
    return " ".join(["Made by t5x_lite from the runs' own records.", *parts])
