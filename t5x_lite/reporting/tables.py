"""Tables of a report as HTML, Markdown and CSV."""

import csv
import html
import io
from collections.abc import Sequence
from typing import NamedTuple

_SHORT = 48  # characters of a cell that stay on one line


class Table(NamedTuple):
    """A table of a report.

    Attributes:
        title: Its title.
        columns: Heads of the columns; the first column has the name of the row.
        rows: Cells as text.
        note: A note below the table.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def html(self) -> str:
        """Return the table as HTML; a wide table scrolls."""

        def cells(row: Sequence[str], tag: str) -> str:
            kinds = (" class='long'" if len(cell) > _SHORT else "" for cell in row)
            pairs = zip(row, kinds, strict=True)
            return "".join(f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for cell, kind in pairs)

        body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in self.rows)
        note = f"<p class='note'>{html.escape(self.note)}</p>" if self.note else ""
        return (
            f"<h3>{html.escape(self.title)}</h3><div class='wide'><table><thead><tr>"
            f"{cells(self.columns, 'th')}</tr></thead><tbody>{body}</tbody></table></div>{note}"
        )

    def markdown(self) -> str:
        """Return the table as Markdown; "|" in a cell is escaped."""

        def line(row: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"

        rule = ["---", *("---:" for _ in self.columns[1:])]
        lines = [line(self.columns), line(rule), *map(line, self.rows)]
        note = [f"\n{self.note}"] if self.note else []
        return "\n".join([f"### {self.title}\n", *lines, *note]) + "\n"

    def csv(self) -> str:
        """Return the table as CSV."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return buffer.getvalue()


def number(value: float | None, form: str = ".3f") -> str:
    """Format a number; "-" for None."""
    return "-" if value is None else format(value, form)
