"""The runs of a row: the configuration of each, and the other runs whose weights it needs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from t5x_lite.errors import ConfigError
from t5x_lite.sweep.spec import Scale, Sweep, SweepRow, at_scale

Kind = Literal["train", "evaluate"]
MEMBERS = 1000  # member i of an ensemble has the row's seed + i * MEMBERS


@dataclass(frozen=True)
class Stage:
    """One run of `t5x_lite train` or `t5x_lite evaluate`.

    Attributes:
        kind: The command.
        name: A readable name.
        lines: Its configuration as lines of a gin file, without seeds and directories.
        seed: Its seed.
        key: A hash of all that determines its result.
        task: One of the scale's `tasks`; "" for pretraining.
        needs: Keys of the stages whose weights it takes.
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
        """Name of its directory: the readable name and the key."""
        return f"{self.name}-{self.key}"

    def text(self, folders: Mapping[str, str], everywhere: Sequence[str] = ()) -> str:
        """Return its gin file: the configuration, then seeds and directories.

        Args:
            folders: Directories of this stage and of those it needs, by key.
            everywhere: Gin bindings of all runs.
        """
        bindings = [f"MODEL_DIR = {json.dumps(folders[self.key])}"]
        needed = [folders[key] for key in self.needs]
        if self.kind == "train":
            bindings += [f"train.train.seed = {self.seed}", f"Data.seed = {self.seed}"]
            bindings += [f"INITIAL_CHECKPOINT_PATH = {json.dumps(folder)}" for folder in needed]
        else:
            # An evaluation reads the checkpoints of the stages it needs; several are an ensemble.
            bindings[0] = f"MODEL_DIR = {json.dumps(needed[0])}"
            bindings.append(f"evaluate.evaluate.output_dir = {json.dumps(folders[self.key])}")
            if needed[1:]:
                bindings.append(f"evaluate.evaluate.ensemble = {json.dumps(needed[1:])}")
        head = f"# Made by t5x_lite explore, for `t5x_lite {self.kind} --gin_file=...`."
        return "\n".join([head, *self.lines, *everywhere, *bindings]) + "\n"


def as_lines(changes: Sequence[str]) -> tuple[str, ...]:
    """Return changes as gin statements: files are included, bindings are kept."""
    return tuple(f'include "{c}"' if c.endswith(".gin") else c for c in changes)


def pretraining(
    study: Sweep, row: SweepRow, scale: Scale, scale_name: str, task: str
) -> tuple[str, ...] | None:
    """Return the gin lines of a row's pretraining; None for a row without pretraining.

    Args:
        study: The study.
        row: The row.
        scale: The scale.
        scale_name: Its name.
        task: The fine-tuning task, which matters for `SweepRow.pretrain_for`.

    Raises:
        ConfigError: The row has pretrainings by task, and none for this task.
    """
    if row.pretrain is None:
        return None
    if row.pretrain_for and task not in row.pretrain_for:
        raise ConfigError(
            f"the pretraining for task {task!r} of scale {scale_name!r} is missing; pretrain_for "
            f"has "
            f"{', '.join(row.pretrain_for)}"
        )
    changes = [*row.pretrain, *row.pretrain_for.get(task, ())]
    return as_lines(
        [*scale.pretrain, *at_scale(study.pretrain, scale_name), *at_scale(changes, scale_name)]
    )


def base_lines(study: Sweep, scale: Scale, scale_name: str) -> tuple[str, ...]:
    """Return the gin lines that rows without pretraining take their model from."""
    return as_lines([*scale.pretrain, *at_scale(study.pretrain, scale_name)])


def fine_tuning(
    study: Sweep, row: SweepRow, scale: Scale, scale_name: str, task: str, before: Sequence[str]
) -> tuple[str, ...]:
    """Return the gin lines of a row's fine-tuning, or of its evaluation if it has none.

    Args:
        study: The study.
        row: The row.
        scale: The scale.
        scale_name: Its name.
        task: The task.
        before: The gin lines of pretraining, which come first.
    """
    changes = [*scale.finetune, *scale.tasks[task], *at_scale(study.finetune, scale_name)]
    lines = as_lines([*changes, *at_scale(row.finetune or (), scale_name)])
    if row.finetune is None:
        lines += ('include "runs/evaluate.gin"',)
    elif row.pretrain is None:
        lines += ("train.train.init_from = None",)
    return (*before, *lines)
