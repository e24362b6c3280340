"""A report as one HTML file without network access and scripts, with embedded pictures."""

import base64
import html
from collections.abc import Sequence

from t5x_lite.reporting.figures import Figure
from t5x_lite.reporting.runs import RunRecord
from t5x_lite.reporting.tables import Table

_STYLE = """
:root { color-scheme: light; --ink: #1a1a1a; --faint: #666; --line: #ddd; --tint: #f6f6f4; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1160px; padding: 1.5rem 1rem 4rem; color: var(--ink);
  background: #fff; font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; border-bottom: 2px solid var(--ink); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
.note, .lead { color: var(--faint); margin: .3rem 0 0; font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
td.long { text-align: left; white-space: normal;
  min-width: 16rem; max-width: 34rem; overflow-wrap: anywhere; }
th { border-bottom-color: var(--ink); }
th:first-child, td:first-child { text-align: left; }
.pictures { display: grid; gap: 1.2rem; margin-top: .8rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); }
figure { margin: 0; }
figcaption { font-weight: 600; font-size: .92rem; }
figure, img { width: 100%; min-width: 0; height: auto; }
details { margin: .6rem 0; overflow-wrap: anywhere; }
summary { cursor: pointer; }
pre { overflow-x: auto; background: var(--tint); padding: .8rem; font-size: .8rem; }
@media print { details { display: none; } }
"""


def page(
    title: str,
    lead: str,
    runs: Sequence[RunRecord],
    tables: Sequence[Table],
    figures: Sequence[Figure],
    *,
    scores: Sequence[Figure] = (),
    scores_note: str = "",
) -> str:
    """Return the HTML of a report.

    Args:
        title: Title of the page.
        lead: Text below the title.
        runs: Runs whose configurations are shown.
        tables: Tables, in order.
        figures: Curves.
        scores: Score figures of studies, which come first.
        scores_note: Legend of the score figures.
    """
    parts = [
        f"<h1>{html.escape(title)}</h1><p class='lead'>{html.escape(lead)}</p>",
        _pictures("Scores", scores, scores_note),
        "<h2>Numbers</h2>",
        *(table.html() for table in tables),
        _pictures("Curves", figures),
        "<h2>Configurations</h2>",
        *map(_configuration, runs),
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta http-equiv='Content-Security-Policy' "
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        "<link rel='icon' href='data:,'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        + "\n".join(part for part in parts if part)
        + "</body></html>\n"
    )


def _pictures(title: str, figures: Sequence[Figure], note: str = "") -> str:
    if not figures:
        return ""
    pictures = "".join(map(_picture, figures))
    caption = f"<p class='note'>{html.escape(note)}</p>" if note else ""
    return f"<h2>{title}</h2>{caption}<div class='pictures'>{pictures}</div>"


def _picture(figure: Figure) -> str:
    data = base64.b64encode(figure.png).decode()
    title = html.escape(figure.title)
    return (
        f"<figure><figcaption>{title}</figcaption>"
        f"<img alt='{title}' src='data:image/png;base64,{data}'></figure>"
    )


def _configuration(run: RunRecord) -> str:
    versions = "\n".join(f"{name}: {value}" for name, value in run.versions.items())
    return (
        f"<details><summary>{html.escape(run.name)} ({html.escape(str(run.directory))})</summary>"
        f"<pre>{html.escape(versions)}</pre><pre>{html.escape(run.config)}</pre></details>"
    )
