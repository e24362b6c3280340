"""What a study comes to: stages of every row and seed, their hashes, steps matched in compute."""

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

_PLACES = {"model_dir", "init_from", "output_dir", "ensemble", "mesh", "cpu_devices", "seed"}
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a function, in what stands for it


class Call(NamedTuple):
    """What a gin file comes to: what would be passed to its command, and its names as set."""

    arguments: Mapping[str, Any]
    settings: Mapping[str, Any]


# Of a command and the text of a gin file; returns the parts of a `Call`.
Read = Callable[[Kind, str], tuple[Mapping[str, Any], Mapping[str, Any]]]


class Compute(NamedTuple):
    """What a row's training costs. flops: model FLOPs of the whole, by the analytic count."""

    steps: int
    step_flops: float

    @property
    def flops(self) -> float:
        """Of all steps."""
        return self.steps * self.step_flops


@dataclasses.dataclass(frozen=True)
class PlannedRow:
    """A row with all its runs. pretraining: what one costs, or None. fine_tuning: by task.

    stages: by seed, in an order in which each comes after what it needs; judged: by seed and task,
    the keys of the stages that the row is judged by.
    """

    row: SweepRow
    pretraining: Compute | None
    fine_tuning: Mapping[str, Compute]
    stages: Mapping[int, Sequence[Stage]]
    judged: Mapping[int, Mapping[str, str]]


class Planner:
    """Plans rows at one scale; `everywhere` are bindings that all runs take and none is told by."""

    def __init__(
        self,
        study: Sweep,
        scale: Scale,
        named: str,
        read: Read,
        *,
        everywhere: Sequence[str] = (),
    ):
        self._study, self._scale, self._named = study, scale, named
        self._read, self._everywhere = read, tuple(everywhere)
        self._known: dict[tuple[Kind, tuple[str, ...]], Call] = {}

    def rows(self, seeds: Sequence[int], only: str | None = None) -> list[PlannedRow]:
        """Every row, or one of them, for some seeds; ConfigError, naming the row, for mistakes."""
        base = None
        if self._study.matched == "flops":
            row = next(r for r in self._study.all_rows() if r.name == self._study.baseline)
            base = self._pretrained(row, None, next(iter(self._scale.tasks)))[1]
            if base is None:
                raise ConfigError(
                    f"row {row.name!r} is not pretrained; wanted another to match FLOPs with",
                    "Sweep.baseline",
                    "Sweep.matched",
                )
        rows = [row for row in self._study.all_rows() if only in (None, row.name)]
        return [self._planned(row, base, seeds) for row in rows]

    def _planned(self, row: SweepRow, base: Compute | None, seeds: Sequence[int]) -> PlannedRow:
        try:
            pretrained = {task: self._pretrained(row, base, task) for task in self._scale.tasks}
            tasks = {task: self._tuned(row, task, pretrained[task][0]) for task in pretrained}
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
            {seed: judged for seed, (_, judged) in planned.items()},
        )

    def _pretrained(
        self, row: SweepRow, base: Compute | None, task: str
    ) -> tuple[tuple[str, ...], Compute | None]:
        """What a task's pretraining is configured with, numbers multiplied, and what it costs."""
        lines = pretraining(self._study, row, self._scale, self._named, task)
        if lines is None:
            return base_lines(self._study, self._scale, self._named), None
        lines += self._multiplied(lines, row.times, from_weights=False)
        call = self._call("train", lines)
        data = call.arguments["data"]
        data.objective.raw_length(data.feature_lengths)  # an error here comes before any run
        compute = _compute(call)
        if base is not None:
            steps = matched_steps(base, compute.step_flops, row.compute)
            if steps != compute.steps:
                lines += (f"TRAIN_STEPS = {steps}",)
                compute = _compute(self._call("train", lines))
        return lines, compute

    def _tuned(self, row: SweepRow, task: str, before: Sequence[str]) -> tuple[str, ...]:
        lines = fine_tuning(self._study, row, self._scale, self._named, task, before)
        from_weights = row.pretrain is not None
        return lines + self._multiplied(lines, row.finetune_times, from_weights=from_weights)

    def _multiplied(
        self, lines: tuple[str, ...], times: Mapping[str, float], *, from_weights: bool
    ) -> tuple[str, ...]:
        """Bindings that set numbers to multiples of what they are set to."""
        settings = {}
        if times:
            settings = self._call("train", lines, from_weights=from_weights).settings
        found = []
        for name, factor in times.items():
            same = (v for key, v in settings.items() if key == name or key.endswith(f".{name}"))
            value = next(reversed([*same]), None)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(f"{name} is {value!r} and cannot be multiplied; wanted a number")
            new = max(1, round(value * factor)) if isinstance(value, int) else value * factor
            found.append(f"{name} = {new!r}")
        return tuple(found)

    def _stages(
        self,
        row: SweepRow,
        before: Mapping[str, tuple[str, ...]],
        tasks: Mapping[str, tuple[str, ...]],
        seed: int,
    ) -> tuple[list[Stage], dict[str, str]]:
        found: dict[str, Stage] = {}

        def add(*arguments: Any, **named: Any) -> str:
            stage = self._stage(*arguments, **named)
            return found.setdefault(stage.key, stage).key

        members: dict[str, list[str]] = {task: [] for task in tasks}
        for member in (seed + MEMBERS * number for number in range(row.ensemble)):
            first = member if row.ensemble_of == "pretrain" else seed
            name = f"{slug(row.name)}.s{member}"
            for task, lines in tasks.items():
                weights = ()
                if before:
                    own = f".{task}" if row.pretrain_for else ""
                    called = f"{slug(row.name)}.s{first}.pretrain{own}"
                    weights = (add("train", called, before[task], first),)
                if row.finetune is None:
                    members[task] += weights
                else:
                    named = dict(task=task, needs=weights)
                    members[task].append(add("train", f"{name}.{task}", lines, member, **named))
        judged = {}
        for task, keys in members.items():
            judged[task] = keys[0]
            if row.finetune is None or len(keys) > 1:
                lines = tasks[task]
                if row.finetune is not None:
                    lines += ('include "runs/evaluate.gin"', "evaluate.evaluate.losses = False")
                name = f"{slug(row.name)}.s{seed}.{task}.judged"
                steps = 'STEPS = "newest"' if len(keys) > 1 else 'STEPS = "all"'
                judged[task] = add(
                    "evaluate", name, (*lines, steps), seed, task=task, needs=tuple(keys)
                )
        return list(found.values()), judged

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
        call = self._call(kind, lines, from_weights=bool(needs))
        told = [kind, operative(call), seed if kind == "train" else 0, needs]
        key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]
        return Stage(kind, name, lines, seed, key, task, needs)

    def _call(self, kind: Kind, lines: tuple[str, ...], *, from_weights: bool = False) -> Call:
        """What a configuration comes to; the places of a draft stand for those still to be."""
        if (kind, lines) not in self._known:
            needs = ("other",) if from_weights else ()
            draft = Stage(kind, "draft", lines, 0, "draft", needs=needs)
            text = draft.text({"draft": "draft", "other": "other"}, self._everywhere)
            self._known[kind, lines] = Call(*self._read(kind, text))
        return self._known[kind, lines]


def operative(call: Call) -> str:
    """All that a command would be passed, places and seeds aside, as text."""
    found = []
    for name, value in sorted(call.arguments.items()):
        if name in _PLACES:
            continue
        if name == "data":
            value = dataclasses.replace(value, data_dir="", store_dir=None, seed=0)
        found.append(f"{name} = {_ADDRESS.sub('', repr(value))}")
    return "\n".join(found)


def matched_steps(base: Compute, step_flops: float, compute: float = 1.0) -> int:
    """How many steps of `step_flops` come nearest to so many times the base's FLOPs; 1 at least."""
    return max(1, round(base.flops * compute / step_flops))


def _compute(call: Call) -> Compute:
    found = call.arguments
    flops = train_step_flops(
        found["model"], batch_size=found["batch_size"], lengths=found["data"].feature_lengths
    )
    return Compute(found["steps"], flops)
