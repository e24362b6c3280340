"""What a study is: a base, rows that change it by name, and how large it is to be."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from t5x_lite.errors import ConfigError, require_field

Matched = Literal["flops", "steps"]
# "models/x.gin" is a file, anything else a binding; {"tiny": [...]} holds at that scale only.
Change = str | Mapping[str, Sequence[str]]

_ROW_KEYS = (
    *("pretrain", "pretrain_for", "finetune", "times", "finetune_times", "compute"),
    *("ensemble", "ensemble_of"),
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the runs of a study are, and what they are judged by.

    pretrain, finetune: gin files and bindings of the base; those of fine-tuning come after those of
    pretraining and a row's changes to it, so that the model stays what it was.
    tasks: what is fine-tuned, one run each: name to changes ("MIXTURE_OR_TASK_NAME = 'squad...'").
    columns: of the comparison, head to (name in `tasks`, "TASK/METRIC" as a run records it). Each
    takes the best of the fine-tuning's checkpoints; a loss is best where it is lowest.
    """

    pretrain: Sequence[str]
    finetune: Sequence[str]
    tasks: Mapping[str, Sequence[str]]
    columns: Mapping[str, Sequence[str]]

    def __post_init__(self):
        for head, column in self.columns.items():
            if len(column) != 2 or column[0] not in self.tasks or "/" not in column[1]:
                raise ConfigError(
                    f"column {head!r} is {column!r}; wanted one of {', '.join(self.tasks)} and "
                    "'TASK/METRIC'",
                    "Scale.columns",
                )


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One row of a study.

    pretrain: its changes to the base; None is a row without pretraining.
    pretrain_for: more of them by task of a scale; each task then has a pretraining of its own.
    finetune: its changes to fine-tuning; None is a row that is judged as it was pretrained.
    times: numbers of the base that pretraining multiplies: {"TRAIN_STEPS": 4}; finetune_times: the
    same of fine-tuning. compute: FLOPs of pretraining in those of the baseline's, where they are
    matched.
    ensemble: so many models whose logits are averaged, each pretrained by itself, or, with
    ensemble_of "finetune", fine-tuned by itself from one pretraining.
    """

    name: str
    pretrain: Sequence[Change] | None = ()
    pretrain_for: Mapping[str, Sequence[Change]] = field(default_factory=dict)
    finetune: Sequence[Change] | None = ()
    times: Mapping[str, float] = field(default_factory=dict)
    finetune_times: Mapping[str, float] = field(default_factory=dict)
    compute: float = 1.0
    ensemble: int = 1
    ensemble_of: Literal["pretrain", "finetune"] = "pretrain"

    @classmethod
    def of(cls, name: str, changes: Any) -> "SweepRow":
        """A row as gin files have it: a list of changes to pretraining, or a dict."""
        if isinstance(changes, (list, tuple)):
            changes = {"pretrain": changes}
        if not isinstance(changes, Mapping) or set(changes) - set(_ROW_KEYS):
            raise ConfigError(
                f"row {name!r} is {changes!r}; wanted a list of changes, or a dict of some of "
                f"{', '.join(_ROW_KEYS)}",
                "Sweep.rows",
            )
        row = cls(name=name, **changes)
        for part in (row.pretrain, row.finetune, *row.pretrain_for.values()):
            if isinstance(part, str) or not all(isinstance(c, (str, Mapping)) for c in part or ()):
                raise ConfigError(f"row {name!r} has {part!r}; wanted a list", "Sweep.rows")
        if row.pretrain is None and row.finetune is None:
            raise ConfigError(
                f"row {name!r} is neither pretrained nor fine-tuned; wanted one of them",
                "Sweep.rows",
            )
        if row.ensemble < 1 or row.compute <= 0:
            raise ConfigError(
                f"row {name!r} has ensemble {row.ensemble} and compute {row.compute}; wanted 1 or "
                "more, and more than 0",
                "Sweep.rows",
            )
        if row.ensemble_of not in ("pretrain", "finetune"):
            raise ConfigError(
                f"row {name!r} is an ensemble of {row.ensemble_of!r}; wanted 'pretrain' or "
                "'finetune'",
                "Sweep.rows",
            )
        return row


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Rows that are compared with a baseline among them.

    rows: name to changes of pretraining ([".gin" files and bindings, in order]), or to a dict of
    `SweepRow`'s fields where a row differs elsewhere. Names are those of the published table.
    table: the published table, or tables, to set beside: keys of `metrics.published_t5_study`.
    matched: "flops" scales the steps of pretraining until every row's training FLOPs are the
    baseline's; "steps" leaves every row the steps it is given.
    pretrain, finetune: changes to all rows, before their own.
    """

    name: str
    rows: Mapping[str, Any]
    baseline: str
    title: str = ""
    table: str | Sequence[str] | None = None
    matched: Matched = "steps"
    pretrain: Sequence[Change] = ()
    finetune: Sequence[Change] = ()

    def __post_init__(self):
        valid = re.fullmatch(r"[\w.-]+", self.name)
        require_field(self, "name", valid, "letters, digits, '_', '-' and '.'")
        expected = f"one of the rows {', '.join(self.rows)}"
        require_field(self, "baseline", self.baseline in self.rows, expected)
        valid = self.matched in get_args(Matched)
        require_field(self, "matched", valid, " or ".join(get_args(Matched)))
        slugs: dict[str, str] = {}
        for row in self.all_rows():
            if (other := slugs.setdefault(slug(row.name), row.name)) != row.name:
                raise ConfigError(
                    f"rows {other!r} and {row.name!r} are hardly told apart by their names",
                    "Sweep.rows",
                )

    def all_rows(self) -> list[SweepRow]:
        """The rows, in order."""
        return [SweepRow.of(name, changes) for name, changes in self.rows.items()]

    @property
    def tables(self) -> tuple[str, ...]:
        """Keys of published tables."""
        return (self.table,) if isinstance(self.table, str) else tuple(self.table or ())


def at_scale(changes: Sequence[Change], scale: str) -> list[str]:
    """The changes that hold at a scale, in order."""
    found: list[str] = []
    for change in changes:
        found += [change] if isinstance(change, str) else change.get(scale, ())
    return found


def slug(name: str) -> str:
    """A name as a part of paths: "encoder-decoder, LM" is "encoder-decoder-LM"."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def in_proportion(of_512: Mapping[str, int], length: int) -> dict[str, int]:
    """Lengths for a text of `length` that stand to it as `of_512` stand to 512, rounded up.

    >>> in_proportion({"inputs": 512, "targets": 114}, 128)
    {'inputs': 128, 'targets': 29}
    """
    return {name: math.ceil(value * length / 512) for name, value in of_512.items()}
