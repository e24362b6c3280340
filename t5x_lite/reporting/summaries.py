"""Tables of a report on runs: results, differences of configuration, efficiency, mixtures."""

from collections.abc import Sequence

from t5x_lite.reporting.runs import RunRecord, differences
from t5x_lite.reporting.tables import Table, number


def tables(runs: Sequence[RunRecord]) -> list[Table]:
    """Return the tables of runs that have rows, beginning with the results."""
    candidates = [_outcome(runs), _differences(runs), _efficiency(runs)]
    candidates += [table for run in runs for table in (_mixture(run), _samples(run))]
    return [table for table in candidates if table.rows]


def tables_of_rows(runs: Sequence[RunRecord]) -> list[Table]:
    """Return the tables of single runs of a study, which `study_comparison` compares."""
    candidates = [_efficiency(runs), *map(_mixture, runs[:1]), *map(_samples, runs)]
    return [table for table in candidates if table.rows]


def _outcome(runs: Sequence[RunRecord]) -> Table:
    tasks = list(dict.fromkeys(task for run in runs for task in run.validated))
    rows = []
    for run in runs:
        for task in tasks:
            if (loss := run.latest(f"validation/{task}", "loss")) is None:
                continue
            result = run.results.get("tasks", {}).get(task, {})
            accuracy = run.latest(f"validation/{task}", "accuracy")
            rows.append(
                (
                    *(run.name, task, f"{run.last_step:,}", number(loss)),
                    *(number(result.get("unigram")), number(accuracy, ".1%")),
                )
            )
    return Table(
        "Validation loss at the end",
        ("run", "task", "step", "loss", "unigram baseline", "accuracy"),
        rows,
        "Nats per target token. The unigram baseline predicts every token with its frequency in "
        "the "
        "training targets.",
    )


def _differences(runs: Sequence[RunRecord]) -> Table:
    return Table(
        "Differences of the configurations",
        ("name", *(run.name for run in runs)),
        [(name, *values) for name, values in differences(runs)] if len(runs) > 1 else [],
    )


def _efficiency(runs: Sequence[RunRecord]) -> Table:
    def row(run: RunRecord) -> tuple[str, ...]:
        speed, mfu = (run.median("train", n) for n in ("tokens_per_second", "mfu"))
        padding, wait = (run.median("train", n) for n in ("padding", "data_wait"))
        skipped = run.latest("train", "skipped_steps")
        seconds = run.results.get("seconds")
        hours = None if seconds is None else seconds / 3600
        purposes = run.results.get("goodput") or {}
        goodput = purposes["steps"] / sum(purposes.values()) if purposes.get("steps") else None
        return (
            *(run.name, f"{run.last_step:,}", number(hours, ".2f"), number(speed, ",.0f")),
            *(number(mfu, ".1%"), number(padding, ".1%"), number(wait, ".1%")),
            *(number(goodput, ".1%"), number(skipped, ".0f")),
        )

    return Table(
        "Efficiency",
        (
            *("run", "steps", "hours of training", "real tokens/s", "MFU", "padding"),
            *("waiting for data", "goodput", "steps skipped"),
        ),
        [row(run) for run in runs if "train" in run.records],
        "Medians over the run. Only chips whose peak is known have an MFU. Goodput: the share of "
        "the time of all launches that was spent in training steps.",
    )


def _mixture(run: RunRecord) -> Table:
    rows = [
        (name, f"{planned:.2%}", f"{drawn:.2%}", f"{epochs:.3f}")
        for name, planned, drawn, epochs in run.mixture_rows()
    ]
    return Table(f"Mixture of {run.name}", ("task", "planned", "drawn", "epochs"), rows)


def _samples(run: RunRecord) -> Table:
    rows = [
        tuple(" ".join(str(sample[name]).split()) for name in sample)
        for sample in run.results.get("samples", ())
    ]
    columns = tuple(next(iter(run.results.get("samples", ())), {}))
    return Table(f"Validation examples of {run.name}, decoded greedily", columns, rows)
