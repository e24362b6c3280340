"""Plan a study: the stages of every row and seed, their hashes, and steps matched in compute."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from t5x_lite.errors import ConfigError
from t5x_lite.models.flops import train_step_flops
from t5x_lite.sweep.spec import Scale, Sweep, SweepRow, slug
from t5x_lite.sweep.stages import MEMBERS, Kind, Stage, base_lines, fine_tuning, pretraining

# Arguments that do not change the result of a run: directories, seeds (in the hash separately) and
# the hardware.
_NOT_HASHED = {"model_dir", "init_from", "output_dir", "ensemble", "mesh", "cpu_devices", "seed"}
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # memory address in the repr of a function


class Call(NamedTuple):
    """The configuration of a command, read from a gin file.

    Attributes:
        arguments: The arguments that the command would be called with.
        settings: The value of each gin name that is set.
    """

    arguments: Mapping[str, Any]
    settings: Mapping[str, Any]


# (command, text of a gin file) -> the fields of a `Call`.
Read = Callable[[Kind, str], tuple[Mapping[str, Any], Mapping[str, Any]]]


class Compute(NamedTuple):
    """The compute of a training run.

    Attributes:
        steps: Number of steps.
        step_flops: Model FLOPs of a step, by the analytic count.
    """

    steps: int
    step_flops: float

    @property
    def flops(self) -> float:
        """Model FLOPs of all steps."""
        return self.steps * self.step_flops


@dataclasses.dataclass(frozen=True)
class PlannedRow:
    """A row with all its runs.

    Attributes:
        row: The row.
        pretraining: Compute of one pretraining; None if the row has none.
        fine_tuning: Compute of fine-tuning by task.
        stages: Stages by seed, each after those it needs.
        scored_stages: By seed and task, the key of the stage that has the row's scores.
    """

    row: SweepRow
    pretraining: Compute | None
    fine_tuning: Mapping[str, Compute]
    stages: Mapping[int, Sequence[Stage]]
    scored_stages: Mapping[int, Mapping[str, str]]


class Planner:
    """Plans the rows of a study at one scale.

    Args:
        study: The study.
        scale: The scale.
        scale_name: Its name.
        read: Reads the configuration of a command from the text of a gin file.
        everywhere: Gin bindings of all runs.
    """

    def __init__(
        self,
        study: Sweep,
        scale: Scale,
        scale_name: str,
        read: Read,
        *,
        everywhere: Sequence[str] = (),
    ):
        self._study, self._scale, self._scale_name = study, scale, scale_name
        self._read, self._everywhere = read, tuple(everywhere)
        self._known: dict[tuple[Kind, tuple[str, ...]], Call] = {}

    def rows(self, seeds: Sequence[int], only: str | None = None) -> list[PlannedRow]:
        """Plan the rows.

        Args:
            seeds: The seeds.
            only: Name of one row; None is all.

        Raises:
            ConfigError: A row is invalid; the message names it.
        """
        base = None
        if self._study.matched == "flops":
            row = next(r for r in self._study.all_rows() if r.name == self._study.baseline)
            base = self._pretraining(row, None, next(iter(self._scale.tasks)))[1]
            if base is None:
                raise ConfigError(
                    f"row {row.name!r} is not pretrained; expected a baseline with pretraining, "
                    f"to match its FLOPs",
                    "Sweep.baseline",
                    "Sweep.matched",
                )
        rows = [row for row in self._study.all_rows() if only in (None, row.name)]
        return [self._plan_row(row, base, seeds) for row in rows]

    def _plan_row(self, row: SweepRow, base: Compute | None, seeds: Sequence[int]) -> PlannedRow:
        try:
            pretrained = {task: self._pretraining(row, base, task) for task in self._scale.tasks}
            tasks = {
                task: self._fine_tuning_lines(row, task, pretrained[task][0]) for task in pretrained
            }
        except ConfigError as error:
            where = f"row {row.name!r} of {self._study.name}: {error.message}"
            raise ConfigError(where, "Sweep.rows", *error.names) from error
        compute = next(iter(pretrained.values()))[1]
        before = {task: lines for task, (lines, _) in pretrained.items()} if compute else {}
        planned: dict[int, tuple[list[Stage], dict[str, str]]] = {
            seed: self._stages(row, before, tasks, seed) for seed in seeds
        }
        trained = {} if row.finetune is None else tasks
        return PlannedRow(
            row,
            compute,
            {
                task: _compute(self._call("train", lines, from_weights=compute is not None))
                for task, lines in trained.items()
            },
            {seed: stages for seed, (stages, _) in planned.items()},
            {seed: scored for seed, (_, scored) in planned.items()},
        )

    def _pretraining(
        self, row: SweepRow, base: Compute | None, task: str
    ) -> tuple[tuple[str, ...], Compute | None]:
        """Return the gin lines of pretraining for a task, and its compute; None without one."""
        lines = pretraining(self._study, row, self._scale, self._scale_name, task)
        if lines is None:
            return base_lines(self._study, self._scale, self._scale_name), None
        lines += self._multiplied_bindings(lines, row.times, from_weights=False)
        call = self._call("train", lines)
        data = call.arguments["data"]
        data.objective.raw_length(data.feature_lengths)  # raises errors before any run starts
        compute = _compute(call)
        if base is not None:
            steps = matched_steps(base, compute.step_flops, row.compute)
            if steps != compute.steps:
                lines += (f"TRAIN_STEPS = {steps}",)
                compute = _compute(self._call("train", lines))
        return lines, compute

    def _fine_tuning_lines(
        self, row: SweepRow, task: str, before: Sequence[str]
    ) -> tuple[str, ...]:
        """Return the gin lines of a row's fine-tuning on a task, after those of pretraining."""
        lines = fine_tuning(self._study, row, self._scale, self._scale_name, task, before)
        from_weights = row.pretrain is not None
        return lines + self._multiplied_bindings(
            lines, row.finetune_times, from_weights=from_weights
        )

    def _multiplied_bindings(
        self, lines: tuple[str, ...], times: Mapping[str, float], *, from_weights: bool
    ) -> tuple[str, ...]:
        """Return bindings that multiply numbers of a configuration by factors."""
        settings = {}
        if times:
            settings = self._call("train", lines, from_weights=from_weights).settings
        bindings = []
        for name, factor in times.items():
            same = (v for key, v in settings.items() if key == name or key.endswith(f".{name}"))
            value = next(reversed([*same]), None)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(
                    f"{name} is {value!r} and cannot be multiplied; expected a number"
                )
            new = max(1, round(value * factor)) if isinstance(value, int) else value * factor
            bindings.append(f"{name} = {new!r}")
        return tuple(bindings)

    def _stages(
        self,
        row: SweepRow,
        before: Mapping[str, tuple[str, ...]],
        tasks: Mapping[str, tuple[str, ...]],
        seed: int,
    ) -> tuple[list[Stage], dict[str, str]]:
        """Return the stages of a row at a seed, and by task the key of the stage with its scores.

        Args:
            row: The row.
            before: By task, the gin lines of pretraining; empty if there is none.
            tasks: By task, the gin lines of fine-tuning.
            seed: The seed.
        """
        stages: dict[str, Stage] = {}

        def add(*arguments: Any, **options: Any) -> str:
            stage = self._stage(*arguments, **options)
            return stages.setdefault(stage.key, stage).key

        # Each member of an ensemble is pretrained, or only fine-tuned, with a seed of its own.

        members: dict[str, list[str]] = {task: [] for task in tasks}
        for member in (seed + MEMBERS * number for number in range(row.ensemble)):
            pretraining_seed = member if row.ensemble_of == "pretrain" else seed
            name = f"{slug(row.name)}.s{member}"
            for task, lines in tasks.items():
                weights = ()
                if before:
                    suffix = f".{task}" if row.pretrain_for else ""
                    pretraining_name = f"{slug(row.name)}.s{pretraining_seed}.pretrain{suffix}"
                    weights = (add("train", pretraining_name, before[task], pretraining_seed),)
                if row.finetune is None:
                    members[task] += weights
                else:
                    options = dict(task=task, needs=weights)
                    members[task].append(add("train", f"{name}.{task}", lines, member, **options))
        # A fine-tuning run evaluates itself. Pretrained models and ensembles need an evaluation.
        scored = {}
        for task, keys in members.items():
            scored[task] = keys[0]
            if row.finetune is None or len(keys) > 1:
                lines = tasks[task]
                if row.finetune is not None:
                    lines += ('include "runs/evaluate.gin"', "evaluate.evaluate.losses = False")
                name = f"{slug(row.name)}.s{seed}.{task}.judged"
                steps = 'STEPS = "newest"' if len(keys) > 1 else 'STEPS = "all"'
                scored[task] = add(
                    "evaluate", name, (*lines, steps), seed, task=task, needs=tuple(keys)
                )
        return list(stages.values()), scored

    def _stage(
        self,
        kind: Kind,
        name: str,
        lines: tuple[str, ...],
        seed: int,
        *,
        task: str = "",
        needs: tuple[str, ...] = (),
    ) -> Stage:
        """Return a stage, with the hash of all that determines its result."""
        call = self._call(kind, lines, from_weights=bool(needs))
        hashed = [kind, operative(call), seed if kind == "train" else 0, needs]
        key = hashlib.sha256(json.dumps(hashed).encode()).hexdigest()[:12]
        return Stage(kind, name, lines, seed, key, task, needs)

    def _call(self, kind: Kind, lines: tuple[str, ...], *, from_weights: bool = False) -> Call:
        """Read a configuration, with placeholders for the directories of the run."""
        if (kind, lines) not in self._known:
            needs = ("other",) if from_weights else ()
            draft = Stage(kind, "draft", lines, 0, "draft", needs=needs)
            text = draft.text({"draft": "draft", "other": "other"}, self._everywhere)
            self._known[kind, lines] = Call(*self._read(kind, text))
        return self._known[kind, lines]


def operative(call: Call) -> str:
    """Return all arguments of a command that determine its result, as text to be hashed."""
    lines = []
    for name, value in sorted(call.arguments.items()):
        if name in _NOT_HASHED:
            continue
        if name == "data":
            value = dataclasses.replace(value, data_dir="", store_dir=None, seed=0)
        lines.append(f"{name} = {_ADDRESS.sub('', repr(value))}")
    return "\n".join(lines)


def matched_steps(base: Compute, step_flops: float, compute: float = 1.0) -> int:
    """Return the number of steps whose FLOPs are closest to a multiple of the baseline's.

    Args:
        base: Compute of the baseline.
        step_flops: FLOPs of one step.
        compute: The multiple.

    Returns:
        A number of at least 1.
    """
    return max(1, round(base.flops * compute / step_flops))


def _compute(call: Call) -> Compute:
    arguments = call.arguments
    flops = train_step_flops(
        arguments["model"],
        batch_size=arguments["batch_size"],
        lengths=arguments["data"].feature_lengths,
    )
    return Compute(arguments["steps"], flops)
