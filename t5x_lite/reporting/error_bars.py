"""Scores of a study as points with error bars, distinguished by shape."""

from collections.abc import Sequence

from t5x_lite.metrics.published_t5_study import NOISE_STDS
from t5x_lite.reporting.drawing import new_figure, to_png
from t5x_lite.reporting.figures import PNG_COLORS, PNG_DPI, Figure
from t5x_lite.reporting.studies import StudyRecord

# Marker and gray level: filled triangles beyond noise, open circles within it, squares without a
# verdict (the baseline).
_MARKERS = {"better": ("^", "0"), "worse": ("v", "0"), "noise": ("o", "1"), "": ("s", "0")}


def study_figures(study: StudyRecord) -> list[Figure]:
    """Draw a figure for each column of a study in which a row has a score."""
    figures = []
    for number, column in enumerate(study.columns, 1):
        if any(row.score(column) is not None for row in study.rows):
            title = f"{study.title}: {column}"
            figures.append(Figure(f"{study.name}_{number}.png", title, _draw(study, column)))
    return figures


def _draw(study: StudyRecord, column: str) -> bytes:
    rows = [(row, score) for row in study.rows if (score := row.score(column)) is not None]
    figure, axes = new_figure((6.4, 1.1 + 0.27 * len(rows)))
    base = study.row(study.baseline).score(column)
    if base is not None and base.std is not None:
        noise = NOISE_STDS * base.std
        axes.axvspan(base.mean - noise, base.mean + noise, color="0.88", label="noise")
    if base is not None:
        axes.axvline(base.mean, color="0.4", linewidth=1, linestyle="--")
    for position, (row, score) in enumerate(rows):
        marker, inside = _MARKERS[study.verdict(row, column)]
        axes.errorbar(
            score.mean,
            position,
            xerr=score.std or 0.0,
            fmt=marker,
            color="0",
            markerfacecolor=inside,
            markersize=6,
            capsize=3,
            linewidth=1.2,
        )
    axes.set_yticks(range(len(rows)), [row.name for row, _ in rows], fontsize="small")
    axes.invert_yaxis()
    better = "lower" if study.lower_is_better(column) else "higher"
    axes.set_xlabel(f"{column} ({better} is better)")
    axes.grid(axis="x", alpha=0.3)
    return to_png(figure, dpi=PNG_DPI, colors=PNG_COLORS)


def caption(figures: Sequence[Figure]) -> str:
    """Return the legend of score figures; "" without figures."""
    return (
        f"Mean and one standard deviation over seeds. Grey: {NOISE_STDS} standard deviations of "
        "the baseline around its mean. Triangles differ from it by more: upward is better, "
        "downward "
        "worse. Open circles do not. Squares are baselines, or rows without one to compare with."
        if figures
        else ""
    )
