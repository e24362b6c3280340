"""Tables of a study: scores with published ones, agreement with these, compute, failures."""

import statistics
from collections.abc import Mapping, Sequence

from t5x_lite.metrics.published_t5_study import NOISE_STDS
from t5x_lite.reporting.studies import HELD_OUT, StudyRecord, StudyRow, Verdict
from t5x_lite.reporting.tables import Table, number

MARKS: Mapping[Verdict, str] = {"better": " ▲", "worse": " ▼", "noise": " ≈", "": ""}
_LEGEND = (
    f"▲ better, ▼ worse than the baseline by more than {NOISE_STDS} of its standard deviations; "
    "≈ within them: noise."
)


def study_tables(study: StudyRecord) -> list[Table]:
    """Return the tables of a study that have rows, beginning with the scores."""
    candidates = [_comparison(study), _orderings(study), _rows(study), _failures(study)]
    return [table for table in candidates if table.rows]


def _comparison(study: StudyRecord) -> Table:
    published = study.published_columns
    heads = (
        *("row", "seeds", *study.columns, HELD_OUT),
        *(f"{column} (published)" for column in published),
    )
    rows = []
    for row in study.rows:
        verdicts = study.published_verdicts(row)
        entry = study.published(row)
        figures = dict(zip(entry[0].columns, entry[1], strict=True)) if entry else {}
        name = f"{row.name} (baseline)" if row.name == study.baseline else row.name
        rows.append(
            (
                *(name, str(sum(seed["state"] == "done" for seed in row.seeds))),
                *(_score(study, row, column) for column in study.columns),
                _mean_and_std(row, HELD_OUT),
                *(
                    f"{number(figures.get(c), _form(figures.get(c)))}{MARKS[verdicts.get(c, '')]}"
                    for c in published
                ),
            )
        )
    sources = "; ".join(dict.fromkeys(table.source for table in study.published_tables))
    beside = (
        f" Published: {sources}; these are of other sizes and other data: compare the order of "
        f"rows, "
        "not the values."
        if published
        else ""
    )
    return Table(
        f"{study.title}: scores at scale {study.scale}",
        heads,
        rows,
        f"Mean ± standard deviation over seeds, each column at its best checkpoint. {_LEGEND} "
        f"Losses: nats per target token, lower is better. The {HELD_OUT} is of pretraining, each "
        f"row's on its own objective: it is comparable only between rows of one objective.{beside}",
    )


def _score(study: StudyRecord, row: StudyRow, column: str) -> str:
    return _mean_and_std(row, column) + MARKS[study.verdict(row, column)]


def _mean_and_std(row: StudyRow, column: str) -> str:
    if (score := row.score(column)) is None:
        return "-"
    form = ".3f" if abs(score.mean) < 20 else ".2f"
    spread = "" if score.std is None else f" ± {score.std:{form}}"
    return f"{score.mean:{form}}{spread}"


def _form(value: float | None) -> str:
    return ".3f" if value is not None and value < 10 else ".2f"


def _orderings(study: StudyRecord) -> Table:
    """Return the table of how rows compare with the baseline, published and in this study."""
    rows = []
    for row in study.rows:
        there = study.published_verdicts(row)
        here: dict[str, Verdict] = {column: study.verdict(row, column) for column in study.columns}
        if there and any(here.values()):
            rows.append((row.name, _tally(there), _tally(here), _agreement(there, here)))
    return Table(
        f"{study.title}: comparison with the baseline, beyond noise",
        ("row", "published", "here", "the same?"),
        rows,
        "The number of columns in which a row is better or worse than the baseline by more than "
        f"{NOISE_STDS} standard deviations. The majority of these columns decides for the row.",
    )


def _tally(verdicts: Mapping[str, Verdict]) -> str:
    """Return the number of columns that are better and worse, such as "2 worse of 7"."""
    values = list(verdicts.values())
    parts = [f"{values.count(kind)} {kind}" for kind in ("better", "worse") if kind in values]
    return f"{', '.join(parts) or 'noise'} of {len(values)}"


def _agreement(there: Mapping[str, Verdict], here: Mapping[str, Verdict]) -> str:
    ours, theirs = _majority(here), _majority(there)
    if ours == theirs:
        return "yes"
    return "not seen" if ours == "noise" else "no" if theirs != "noise" else "noise there"


def _majority(verdicts: Mapping[str, Verdict]) -> Verdict:
    """Return the verdict of the majority of columns beyond noise; "noise" if they are equal."""
    values = list(verdicts.values())
    better, worse = values.count("better"), values.count("worse")
    return "noise" if better == worse else "better" if better > worse else "worse"


def _rows(study: StudyRecord) -> Table:
    base = study.row(study.baseline).pretraining

    def line(row: StudyRow) -> Sequence[str]:
        cost = row.pretraining or {}
        relative = cost["flops"] / base["flops"] if cost and base else None
        tuning = sorted({f"{compute['steps']:,}" for compute in row.fine_tuning.values()})
        minutes = [seed["seconds"] / 60 for seed in row.seeds if seed["state"] == "done"]
        spent = statistics.fmean(minutes) if minutes else None
        return (
            *(row.name, "; ".join(row.changes) or "none", number(cost.get("steps"), ",")),
            *(number(cost.get("flops"), ".3g"), number(relative, ".2f")),
            *(", ".join(tuning) or "-", number(spent, ".1f")),
        )

    matched = {
        "flops": "Steps of pretraining are set so that its FLOPs match those of the baseline",
        "steps": "Rows have their configured steps, so that FLOPs differ",
    }
    return Table(
        f"{study.title}: what was run",
        (
            *("row", "changes", "steps of pretraining", "FLOPs", "relative to the baseline"),
            *("steps of fine-tuning", "minutes per seed"),
        ),
        [line(row) for row in study.rows],
        f"{matched[study.matched]}; counted analytically (models/flops.py), with padding. "
        "Runs that several rows share are counted for each of them.",
    )


def _failures(study: StudyRecord) -> Table:
    rows = [
        (row.name, str(seed["seed"]), seed["reason"])
        for row in study.rows
        for seed in row.seeds
        if seed["state"] == "failed"
    ]
    return Table(f"{study.title}: rows that failed", ("row", "seed", "reason"), rows)
