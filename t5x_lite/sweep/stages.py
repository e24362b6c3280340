"""The runs behind a row: what each is configured with, and which of the others it needs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from t5x_lite.errors import ConfigError
from t5x_lite.sweep.spec import Scale, Sweep, SweepRow, at_scale

Kind = Literal["train", "evaluate"]
MEMBERS = 1000  # the i-th member of an ensemble has the row's seed and i times as much


@dataclass(frozen=True)
class Stage:
    """One run of `t5x_lite KIND`.

    lines: its configuration as text of a gin file, without seeds and places. task: of the scale's
    `tasks`, "" for pretraining. needs: keys of the stages whose weights it takes. key: a hash of
    all that decides what comes of it.
    """

    kind: Kind
    name: str
    lines: tuple[str, ...]
    seed: int
    key: str
    task: str = ""
    needs: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Where it runs, below the folder of runs: a name for people, and the key."""
        return f"{self.name}-{self.key}"

    def text(self, folders: Mapping[str, str], everywhere: Sequence[str] = ()) -> str:
        """The gin file: the configuration, then seeds and places. folders: of stages, by key."""
        places = [f"MODEL_DIR = {json.dumps(folders[self.key])}"]
        needed = [folders[key] for key in self.needs]
        if self.kind == "train":
            places += [f"train.train.seed = {self.seed}", f"Data.seed = {self.seed}"]
            places += [f"INITIAL_CHECKPOINT_PATH = {json.dumps(folder)}" for folder in needed]
        else:
            # Checkpoints are evaluated where they lie, or together under the first one's name.
            places[0] = f"MODEL_DIR = {json.dumps(needed[0])}"
            places.append(f"evaluate.evaluate.output_dir = {json.dumps(folders[self.key])}")
            if needed[1:]:
                places.append(f"evaluate.evaluate.ensemble = {json.dumps(needed[1:])}")
        head = f"# Made by t5x_lite explore, for `t5x_lite {self.kind} --gin_file=...`."
        return "\n".join([head, *self.lines, *everywhere, *places]) + "\n"


def as_lines(changes: Sequence[str]) -> tuple[str, ...]:
    """Changes as statements of gin: files are included, bindings stand as they are."""
    return tuple(f'include "{c}"' if c.endswith(".gin") else c for c in changes)


def pretraining(
    study: Sweep, row: SweepRow, scale: Scale, named: str, task: str
) -> tuple[str, ...] | None:
    """What a row pretrains with for a task, before its numbers are multiplied; None for none."""
    if row.pretrain is None:
        return None
    if row.pretrain_for and task not in row.pretrain_for:
        raise ConfigError(
            f"a pretraining for task {task!r} of scale {named!r} is missing; there is one for each "
            f"of {', '.join(row.pretrain_for)}"
        )
    own = [*row.pretrain, *row.pretrain_for.get(task, ())]
    return as_lines([*scale.pretrain, *at_scale(study.pretrain, named), *at_scale(own, named)])


def base_lines(study: Sweep, scale: Scale, named: str) -> tuple[str, ...]:
    """The configuration that rows without pretraining take their model from."""
    return as_lines([*scale.pretrain, *at_scale(study.pretrain, named)])


def fine_tuning(
    study: Sweep, row: SweepRow, scale: Scale, named: str, task: str, before: Sequence[str]
) -> tuple[str, ...]:
    """The configuration of a row's fine-tuning on a task, after that of its pretraining.

    A row that is judged as it was pretrained has the same, for its evaluation.
    """
    changes = [*scale.finetune, *scale.tasks[task], *at_scale(study.finetune, named)]
    lines = as_lines([*changes, *at_scale(row.finetune or (), named)])
    if row.finetune is None:
        lines += ('include "runs/evaluate.gin"',)
    elif row.pretrain is None:
        lines += ("train.train.init_from = None",)
    return (*before, *lines)
