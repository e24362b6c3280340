"""Scores of a study as dots with error bars: black on white, told apart by shape."""

from collections.abc import Sequence

from t5x_lite.metrics.published_t5_study import NOISE_STDS
from t5x_lite.reporting.figures import Figure, as_png
from t5x_lite.reporting.studies import StudyRecord

# Beyond noise a dot is a full triangle; open where noise; the baseline a full square.
_MARKERS = {"better": ("^", "0"), "worse": ("v", "0"), "noise": ("o", "1"), "": ("s", "0")}


def study_figures(study: StudyRecord) -> list[Figure]:
    """A figure a column, where any row has a score."""
    found = []
    for number, column in enumerate(study.columns, 1):
        if any(row.score(column) is not None for row in study.rows):
            title = f"{study.title}: {column}"
            found.append(Figure(f"{study.name}_{number}.png", title, _draw(study, column)))
    return found


def _draw(study: StudyRecord, column: str) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [(row, score) for row in study.rows if (score := row.score(column)) is not None]
    figure, axes = pyplot.subplots(figsize=(6.4, 1.1 + 0.27 * len(rows)), layout="constrained")
    base = study.row(study.baseline).score(column)
    if base is not None and base.std is not None:
        reach = NOISE_STDS * base.std
        axes.axvspan(base.mean - reach, base.mean + reach, color="0.88", label="noise")
    if base is not None:
        axes.axvline(base.mean, color="0.4", linewidth=1, linestyle="--")
    for place, (row, score) in enumerate(rows):
        marker, inside = _MARKERS[study.verdict(row, column)]
        axes.errorbar(
            score.mean,
            place,
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
    return as_png(figure)


def caption(figures: Sequence[Figure]) -> str:
    """What the marks of all these figures mean."""
    return (
        f"Mean and one standard deviation over seeds. Grey: {NOISE_STDS} standard deviations of "
        "the baseline around its mean. Triangles differ from it by more, upward better, downward "
        "worse; open circles do not; squares are baselines, or have none to be held against."
        if figures
        else ""
    )
