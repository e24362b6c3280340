"""`t5x_lite explore`: train and evaluate the rows of a study, and record their scores."""

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from t5x_lite.command import Invocation
from t5x_lite.console import count, logged_wait
from t5x_lite.distributed.processes import START_AGAIN
from t5x_lite.errors import ConfigError
from t5x_lite.io import atomic
from t5x_lite.metrics.published_t5_study import STUDY_TABLES
from t5x_lite.sweep.cluster_jobs import write_job_commands
from t5x_lite.sweep.grid import PlannedRow, Planner
from t5x_lite.sweep.runner import DONE, RUNS, Runs, SweepJob, column_score, result_of, state_of
from t5x_lite.sweep.spec import Scale, Sweep, at_scale

_LOG = logging.getLogger(__name__)
Engine = Literal["slurm", "jobset", "xpk"]


def explore(
    *,
    study: Sweep,
    scales: Mapping[str, Scale],
    scale: str = "tiny",
    seeds: int = 3,
    output: str = "runs/explore",
    everywhere: Sequence[str] = (),
    budget: float | None = None,
    jobs: int = 1,
    only: str | None = None,
    seed: int | None = None,
    write_jobs: Engine | None = None,
    invocation: Invocation,
    describe_config: Callable[[], str] = str,
) -> None:
    """Pretrain, fine-tune and evaluate every row of a study at every seed, resumably.

    Results are in `output`/`scale`: NAME.json, and the runs in runs/, which several studies share.
    The exit code is 0 when all is done, 1 when a row failed, 75 when some rows are not done.

    Args:
        study: The rows and what they change.
        scales: Gin files, tasks and score columns by the name of a scale.
        scale: One of `scales`.
        seeds: Number of seeds, from 0.
        output: Directory for the runs.
        everywhere: Gin bindings for all runs.
        budget: Minutes after which the runs are saved and stopped; None is no limit.
        jobs: Number of rows that run at the same time on this machine.
        only: Name of one row to run; None is all.
        seed: One seed to run; None is all.
        write_jobs: Write the commands of all rows for a scheduler ("slurm", "jobset" or "xpk") and
            run none.
        invocation: Reads the runs' gin files, and has the flags that the runs take too.
        describe_config: Not used.

    Raises:
        ConfigError: A setting or a row is invalid; raised before anything runs.
    """
    stop_time = None if budget is None else time.monotonic() + 60 * budget
    _check_settings(study, scales, scale, seeds, jobs, only, seed)
    directory = Path(output) / scale
    directory.mkdir(parents=True, exist_ok=True)
    planner = Planner(study, scales[scale], scale, invocation.read, everywhere=everywhere)
    with logged_wait(_LOG, f"reading {count(len(study.rows), 'row')} of {study.name}"):
        planned = planner.rows(range(seeds))
    chosen = [
        SweepJob(row.row.name, number, row.stages[number])
        for number in range(seeds)
        for row in planned
        if only in (None, row.row.name) and seed in (None, number)
    ]
    if write_jobs is not None:
        write_job_commands(write_jobs, directory / study.name, invocation.arguments, chosen)
        return
    flags = invocation.search_arguments
    runs = Runs(directory, flags=flags, everywhere=everywhere, stop_time=stop_time)

    def write() -> None:
        atomic.write_json(
            directory / f"{study.name}.json", record(study, scales[scale], scale, planned, runs)
        )

    write()
    runs.run_all(chosen, at_once=jobs, on_end=lambda job: write())
    write()
    remaining = [job for job in chosen if not _is_job_done(job, runs)]
    failed = [job for job in remaining if any(_state(s, runs) == "failed" for s in job.stages)]
    _LOG.info(
        f"{len(chosen) - len(remaining)} of {count(len(chosen), 'job')} done, {len(failed)} "
        f"failed; "
        f"make a page of the results with: t5x_lite report {directory}"
    )
    if len(remaining) > len(failed):
        _LOG.info("the same command runs the remaining jobs")
        sys.exit(START_AGAIN)
    if failed:
        sys.exit(1)


def record(
    study: Sweep, scale: Scale, scale_name: str, planned: Sequence[PlannedRow], runs: Runs
) -> dict[str, Any]:
    """Return what a report needs of a study, as JSON: rows, their compute, and scores by seed.

    Args:
        study: The study.
        scale: The scale.
        scale_name: Its name.
        planned: The rows.
        runs: Where the runs are.
    """
    return {
        "name": study.name,
        "title": study.title or study.name,
        "scale": scale_name,
        "matched": study.matched,
        "baseline": study.baseline,
        "tables": study.tables,
        "columns": {head: list(column) for head, column in scale.columns.items()},
        "rows": [_row(study, scale, scale_name, row, runs) for row in planned],
    }


def _row(
    study: Sweep, scale: Scale, scale_name: str, planned: PlannedRow, runs: Runs
) -> dict[str, Any]:
    """Return the record of a row: what it changes, its compute, and its seeds."""
    row, cost = planned.row, planned.pretraining
    changes = [*at_scale(row.pretrain or (), scale_name)]
    changes += [f"{name} x {factor:g}" for name, factor in row.times.items()]
    if row.pretrain is None:
        changes += ["no pretraining"]
    if row.finetune is None:
        changes += ["no fine-tuning"]
    changes += [f"fine-tuning: {change}" for change in at_scale(row.finetune or (), scale_name)]
    changes += [f"fine-tuning: {name} x {f:g}" for name, f in row.finetune_times.items()]
    if row.ensemble > 1:
        changes += [f"ensemble of {row.ensemble}, by {row.ensemble_of}"]
    return {
        "name": row.name,
        "changes": changes,
        "pretraining": cost and {"steps": cost.steps, "flops": cost.flops},
        "fine_tuning": {
            task: {"steps": compute.steps, "flops": compute.flops}
            for task, compute in planned.fine_tuning.items()
        },
        "seeds": [_seed(scale, planned, seed, runs) for seed in planned.stages],
    }


def _seed(scale: Scale, planned: PlannedRow, seed: int, runs: Runs) -> dict[str, Any]:
    """Return the record of a row at a seed: its state, and the scores of finished stages."""
    folders = {stage.key: runs.folder(stage) for stage in planned.stages[seed]}
    states = [state_of(folder) for folder in folders.values()]
    reasons = [state.reason for state in states if state.state == "failed"]
    results = {key: result_of(folder) for key, folder in folders.items() if _is_stage_done(folder)}
    scores = {}
    for head, (task, name) in scale.columns.items():
        if (result := results.get(planned.scored_stages[seed][task])) is not None:
            scores[head] = column_score(result["figures"], name)
    held_out: dict[str, float] = {}
    for stage in planned.stages[seed]:
        if not stage.task and stage.key in results and (by_step := results[stage.key]["figures"]):
            held_out |= by_step[max(by_step)]
    return {
        "seed": seed,
        "state": "failed" if reasons else "done" if len(results) == len(states) else "unfinished",
        "reason": reasons[0] if reasons else "",
        "scores": {head: score for head, score in scores.items() if score is not None},
        "held_out": held_out,
        "seconds": sum(result["seconds"] for result in results.values()),
        "runs": [f"{RUNS}/{folder.name}" for folder in folders.values()],
    }


def _check_settings(
    study: Sweep,
    scales: Mapping[str, Scale],
    scale: str,
    seeds: int,
    jobs: int,
    only: str | None,
    seed: int | None,
) -> None:
    if scale not in scales:
        raise ConfigError(f"scale is {scale!r}; expected one of {', '.join(scales)}", "SCALE")
    if unknown := set(study.tables) - set(STUDY_TABLES):
        raise ConfigError(
            f"there is no published table {', '.join(sorted(unknown))}; expected some of "
            f"{', '.join(STUDY_TABLES)}",
            "Sweep.table",
        )
    if seeds < 1 or jobs < 1:
        raise ConfigError(
            f"seeds is {seeds} and jobs {jobs}; expected 1 or more of each", "SEEDS", "explore.jobs"
        )
    if only is not None and only not in study.rows:
        raise ConfigError(
            f"only is {only!r}; expected one of the rows {', '.join(study.rows)}", "explore.only"
        )
    if seed is not None and not 0 <= seed < seeds:
        raise ConfigError(
            f"seed is {seed}; expected one of 0 to {seeds - 1}", "explore.seed", "SEEDS"
        )


def _is_job_done(job: SweepJob, runs: Runs) -> bool:
    return all(_state(stage, runs) == "done" for stage in job.stages)


def _state(stage: Any, runs: Runs) -> str:
    return state_of(runs.folder(stage)).state


def _is_stage_done(folder: Path) -> bool:
    return (folder / DONE).is_file()
