"""`t5x_lite report`: compare runs or studies on an HTML page."""

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
from t5x_lite.reporting.runs import RunRecord, read_run, read_runs
from t5x_lite.reporting.studies import StudyRecord, read_studies
from t5x_lite.reporting.study_comparison import study_tables
from t5x_lite.reporting.summaries import tables, tables_of_rows

_LOG = logging.getLogger(__name__)
PAGE = "report.html"
DOCUMENT = "report.md"


def report(
    *, runs: Sequence[str], output: str = "report", describe_config: Callable[[], str] = str
) -> None:
    """Write report.html, report.md, a CSV file of every table and a PNG file of every figure.

    Runs and studies need not be finished: the report shows their current state.

    Args:
        runs: Model directories, and results of `t5x_lite explore`: the directory of a scale, or the
            .json file of a study in it.
        output: Directory for the report.
        describe_config: Not used.

    Raises:
        ConfigError: No run is given, a directory has no run, or `output` is a file.
    """
    runs = [runs] if isinstance(runs, str) else list(runs)
    if not runs:
        raise ConfigError("no run is given; expected at least one model directory", "report.runs")
    studies_of = {p: read_studies(p) for p in runs if not (Path(p) / METRICS).is_file()}
    studies = [study for path_studies in studies_of.values() for study in path_studies]
    single = read_runs([path for path in runs if not studies_of.get(path)])
    of_rows = _runs_of_rows(studies)
    directory = Path(output)
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory} is a file; expected a directory", "report.output")
    directory.mkdir(parents=True, exist_ok=True)
    all_tables = [table for study in studies for table in study_tables(study)]
    all_tables += tables_of_rows(of_rows) if of_rows else []
    all_tables += tables(single) if single else []
    scores = [figure for study in studies for figure in study_figures(study)]
    curves = figures([*of_rows, *single])
    title, lead = _title(studies, single), _lead(studies, single)
    text = page(
        *(title, lead, [*of_rows, *single], all_tables, curves),
        scores=scores,
        scores_note=caption(scores),
    )
    atomic.write_text(directory / PAGE, text)
    document = [f"# {title}\n", f"{lead}\n", *(table.markdown() for table in all_tables)]
    atomic.write_text(directory / DOCUMENT, "\n".join(document))
    for number, table in enumerate(all_tables, 1):
        atomic.write_text(directory / f"table_{number}.csv", table.csv())
    for figure in [*scores, *curves]:
        atomic.write_bytes(directory / figure.name, figure.png)
    _LOG.info(
        f"wrote {directory / PAGE}: {count(len(all_tables), 'table')} and "
        f"{count(len(scores) + len(curves), 'figure')}"
    )


def _runs_of_rows(studies: Sequence[StudyRecord]) -> list[RunRecord]:
    """Read the first pretraining run of each row, with the name of the row."""
    names: dict[Path, str] = {}
    for study in studies:
        for row in study.rows:
            if row.pretraining is None:
                continue
            for path in [study.directory / run for seed in row.seeds for run in seed["runs"][:1]]:
                if (path / METRICS).is_file():
                    names.setdefault(path, row.name)
                    break
    return [read_run(path, name) for path, name in names.items()]


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
    return " ".join(["Made by t5x_lite from the records of the runs.", *parts])
