"""`t5x_lite report`: one run, or several beside each other, as a page that anyone can open."""

from collections.abc import Callable, Sequence
from pathlib import Path

from t5x_lite.errors import ConfigError
from t5x_lite.reporting.figures import figures
from t5x_lite.reporting.page import page
from t5x_lite.reporting.runs import named_apart
from t5x_lite.reporting.summaries import tables
from t5x_lite.run.console import Console

PAGE = "report.html"
DOCUMENT = "report.md"


def report(
    *, runs: Sequence[str], output: str = "report", describe_config: Callable[[], str] = str
) -> None:
    """Write report.html, report.md, a CSV of every table and a PNG of every curve to `output`.

    runs: model directories; runs that are still under way are shown as far as they are.
    """
    runs = [runs] if isinstance(runs, str) else list(runs)
    if not runs:
        raise ConfigError("no run is given; wanted one model directory or more", "report.runs")
    read = named_apart(runs)
    directory = Path(output)
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory} is a file; wanted a directory", "report.output")
    directory.mkdir(parents=True, exist_ok=True)
    found, pictures = tables(read), figures(read)
    title = read[0].name if len(read) == 1 else f"{len(read)} runs"
    steps = ", ".join(f"{run.name}: {run.last_step:,}" for run in read)
    lead = f"Made by t5x_lite from the runs' own records. Steps done: {steps}."
    (directory / PAGE).write_text(page(title, lead, read, found, pictures), "utf-8")
    document = [f"# {title}\n", f"{lead}\n", *(table.markdown() for table in found)]
    (directory / DOCUMENT).write_text("\n".join(document), "utf-8")
    for number, table in enumerate(found, 1):
        (directory / f"table_{number}.csv").write_text(table.csv(), "utf-8")
    for figure in pictures:
        (directory / figure.name).write_bytes(figure.png)
    Console().note(f"{directory / PAGE}: {len(found)} tables and {len(pictures)} curves")
