"""The tables of a study: ours beside the published, what was run, what it cost."""

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
    """All tables that there is something to say in, the comparison first."""
    found = [_comparison(study), _orderings(study), _rows(study), _failures(study)]
    return [table for table in found if table.rows]


def _comparison(study: StudyRecord) -> Table:
    published = study.published_columns
    heads = (
        *("row", "seeds", *study.columns, HELD_OUT),
        *(f"{column} (published)" for column in published),
    )
    rows = []
    for row in study.rows:
        verdicts = study.published_verdicts(row)
        found = study.published(row)
        figures = dict(zip(found[0].columns, found[1], strict=True)) if found else {}
        name = f"{row.name} (baseline)" if row.name == study.baseline else row.name
        rows.append(
            (
                *(name, str(sum(seed["state"] == "done" for seed in row.seeds))),
                *(_score(study, row, column) for column in study.columns),
                _spread(row, HELD_OUT),
                *(
                    f"{number(figures.get(c), _form(figures.get(c)))}{MARKS[verdicts.get(c, '')]}"
                    for c in published
                ),
            )
        )
    sources = "; ".join(dict.fromkeys(table.source for table in study.published_tables))
    beside = (
        f" Published: {sources}; other sizes, other data, to be compared in order alone, not in "
        "value."
        if published
        else ""
    )
    return Table(
        f"{study.title}: scores at scale {study.scale}",
        heads,
        rows,
        f"Mean ± standard deviation over seeds, each column at its best checkpoint. {_LEGEND} "
        f"Losses: nats per target token, lower is better. The {HELD_OUT} is of pretraining, each "
        f"row's on its own objective: only rows of one objective can be compared by it.{beside}",
    )


def _score(study: StudyRecord, row: StudyRow, column: str) -> str:
    return _spread(row, column) + MARKS[study.verdict(row, column)]


def _spread(row: StudyRow, column: str) -> str:
    if (score := row.score(column)) is None:
        return "-"
    form = ".3f" if abs(score.mean) < 20 else ".2f"
    spread = "" if score.std is None else f" ± {score.std:{form}}"
    return f"{score.mean:{form}}{spread}"


def _form(value: float | None) -> str:
    return ".3f" if value is not None and value < 10 else ".2f"


def _orderings(study: StudyRecord) -> Table:
    """How each row stands to the baseline beyond noise, published and here."""
    rows = []
    for row in study.rows:
        there = study.published_verdicts(row)
        here: dict[str, Verdict] = {column: study.verdict(row, column) for column in study.columns}
        if there and any(here.values()):
            rows.append((row.name, _tally(there), _tally(here), _agreement(there, here)))
    return Table(
        f"{study.title}: against the baseline, beyond noise",
        ("row", "published", "here", "the same?"),
        rows,
        "In how many columns a row is better or worse than the baseline by more than "
        f"{NOISE_STDS} standard deviations. A row stands as most of its columns beyond noise do.",
    )


def _tally(verdicts: Mapping[str, Verdict]) -> str:
    found = list(verdicts.values())
    parts = [f"{found.count(kind)} {kind}" for kind in ("better", "worse") if kind in found]
    return f"{', '.join(parts) or 'noise'} of {len(found)}"


def _agreement(there: Mapping[str, Verdict], here: Mapping[str, Verdict]) -> str:
    ours, theirs = _stands(here), _stands(there)
    if ours == theirs:
        return "yes"
    return "not seen" if ours == "noise" else "no" if theirs != "noise" else "noise there"


def _stands(verdicts: Mapping[str, Verdict]) -> Verdict:
    found = list(verdicts.values())
    better, worse = found.count("better"), found.count("worse")
    return "noise" if better == worse else "better" if better > worse else "worse"


def _rows(study: StudyRecord) -> Table:
    base = study.row(study.baseline).pretraining

    def line(row: StudyRow) -> Sequence[str]:
        cost = row.pretraining or {}
        relative = cost["flops"] / base["flops"] if cost and base else None
        tuning = sorted({f"{each['steps']:,}" for each in row.fine_tuning.values()})
        minutes = [seed["seconds"] / 60 for seed in row.seeds if seed["state"] == "done"]
        spent = statistics.fmean(minutes) if minutes else None
        return (
            *(row.name, "; ".join(row.changes) or "the base", number(cost.get("steps"), ",")),
            *(number(cost.get("flops"), ".3g"), number(relative, ".2f")),
            *(", ".join(tuning) or "-", number(spent, ".1f")),
        )

    matched = {
        "flops": "Steps of pretraining are such that its FLOPs match the baseline's",
        "steps": "Rows have the steps they are given, so that FLOPs differ",
    }
    return Table(
        f"{study.title}: what was run",
        (
            *("row", "changes", "steps of pretraining", "FLOPs", "in those of the baseline"),
            *("steps of fine-tuning", "minutes a seed"),
        ),
        [line(row) for row in study.rows],
        f"{matched[study.matched]}; counted analytically (planning/flops.py), padding included. "
        "Runs that several rows share count for each.",
    )


def _failures(study: StudyRecord) -> Table:
    rows = [
        (row.name, str(seed["seed"]), seed["reason"])
        for row in study.rows
        for seed in row.seeds
        if seed["state"] == "failed"
    ]
    return Table(f"{study.title}: rows that failed", ("row", "seed", "reason"), rows)
