"""Specification of a study: rows, each of which changes a base configuration, and its scale."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from t5x_lite.errors import ConfigError, require_field

Matched = Literal["flops", "steps"]
# A text that ends in .gin is a file to include, any other is a gin binding. {"tiny": [...]} are
# changes at the scale "tiny" only.
Change = str | Mapping[str, Sequence[str]]

_ROW_KEYS = (
    *("pretrain", "pretrain_for", "finetune", "times", "finetune_times", "compute"),
    *("ensemble", "ensemble_of"),
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of a study's runs, and the scores that are compared.

    Args:
        pretrain: Gin files and bindings of pretraining.
        finetune: Gin files and bindings of fine-tuning. They follow those of pretraining and of a
            row's changes to it, so that the model is the same.
        tasks: The fine-tuning runs: changes by the name of the task, such as
            {"squad": ["MIXTURE_OR_TASK_NAME = 'squad_v010_allanswers'"]}.
        columns: The columns of the comparison: (name in `tasks`, "TASK/METRIC" as a run records
            it) by the head of the column. A column has the score of the best checkpoint of
            fine-tuning; the best loss is the lowest.

    Raises:
        ConfigError: A column names no task or no metric.
    """

    pretrain: Sequence[str]
    finetune: Sequence[str]
    tasks: Mapping[str, Sequence[str]]
    columns: Mapping[str, Sequence[str]]

    def __post_init__(self):
        for head, column in self.columns.items():
            if len(column) != 2 or column[0] not in self.tasks or "/" not in column[1]:
                raise ConfigError(
                    f"column {head!r} is {column!r}; expected one of {', '.join(self.tasks)} and "
                    "'TASK/METRIC'",
                    "Scale.columns",
                )


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One row of a study.

    Args:
        name: Its name.
        pretrain: Changes to pretraining; None is no pretraining.
        pretrain_for: Further changes to pretraining by task; each task then has its own
            pretraining.
        finetune: Changes to fine-tuning; None evaluates the pretrained model.
        times: Factors by which numbers of pretraining are multiplied, such as {"TRAIN_STEPS": 4}.
        finetune_times: Factors for numbers of fine-tuning.
        compute: FLOPs of pretraining as a multiple of the baseline's, if FLOPs are matched.
        ensemble: Number of models whose logits are averaged.
        ensemble_of: "pretrain" if each model of the ensemble has its own pretraining, "finetune" if
            they are fine-tuned separately from one pretraining.
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
        """Return a row from its value in a gin file.

        Args:
            name: Its name.
            changes: A list of changes to pretraining, or a dict of fields of `SweepRow`.

        Raises:
            ConfigError: The value is invalid.
        """
        if isinstance(changes, (list, tuple)):
            changes = {"pretrain": changes}
        if not isinstance(changes, Mapping) or set(changes) - set(_ROW_KEYS):
            raise ConfigError(
                f"row {name!r} is {changes!r}; expected a list of changes, or a dict of some of "
                f"{', '.join(_ROW_KEYS)}",
                "Sweep.rows",
            )
        row = cls(name=name, **changes)
        for part in (row.pretrain, row.finetune, *row.pretrain_for.values()):
            if isinstance(part, str) or not all(isinstance(c, (str, Mapping)) for c in part or ()):
                raise ConfigError(f"row {name!r} has {part!r}; expected a list", "Sweep.rows")
        if row.pretrain is None and row.finetune is None:
            raise ConfigError(
                f"row {name!r} is neither pretrained nor fine-tuned; expected at least one of them",
                "Sweep.rows",
            )
        if row.ensemble < 1 or row.compute <= 0:
            raise ConfigError(
                f"row {name!r} has ensemble {row.ensemble} and compute {row.compute}; expected 1 "
                "or more, and more than 0",
                "Sweep.rows",
            )
        if row.ensemble_of not in ("pretrain", "finetune"):
            raise ConfigError(
                f"row {name!r} is an ensemble of {row.ensemble_of!r}; expected 'pretrain' or "
                "'finetune'",
                "Sweep.rows",
            )
        return row


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A study: rows that are compared with one of them, the baseline.

    Args:
        name: Name of the study, used in file names.
        rows: Rows by name, as in the published table. A row is a list of changes to pretraining
            (gin files and bindings, in order), or a dict of fields of `SweepRow`.
        baseline: Name of the row that the others are compared with.
        title: Title in reports; the default is the name.
        table: The published table or tables to show beside the scores: keys of
            `metrics.published_t5_study.STUDY_TABLES`; None is none.
        matched: "flops" sets the steps of every row's pretraining so that its FLOPs are the
            baseline's; "steps" leaves the steps as they are configured.
        pretrain: Changes to the pretraining of all rows, before their own.
        finetune: Changes to the fine-tuning of all rows, before their own.

    Raises:
        ConfigError: A name, a row or the baseline is invalid.
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
                    f"the names of the rows {other!r} and {row.name!r} are the same in paths: "
                    f"{slug(row.name)}",
                    "Sweep.rows",
                )

    def all_rows(self) -> list[SweepRow]:
        """Return the rows, in order."""
        return [SweepRow.of(name, changes) for name, changes in self.rows.items()]

    @property
    def tables(self) -> tuple[str, ...]:
        """The published tables to show, as a tuple."""
        return (self.table,) if isinstance(self.table, str) else tuple(self.table or ())


def at_scale(changes: Sequence[Change], scale: str) -> list[str]:
    """Return the changes that apply at a scale, in order.

    Args:
        changes: Files and bindings, or dicts of them by scale.
        scale: Name of the scale.
    """
    applied: list[str] = []
    for change in changes:
        applied += [change] if isinstance(change, str) else change.get(scale, ())
    return applied


def slug(name: str) -> str:
    """Return a name as a part of paths: "encoder-decoder-LM" for "encoder-decoder, LM"."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def in_proportion(of_512: Mapping[str, int], length: int) -> dict[str, int]:
    """Scale feature lengths in proportion to the length of the text, rounded up.

    Args:
        of_512: Tokens by feature for texts of 512 tokens, T5's length.
        length: Tokens of the text.

    >>> in_proportion({"inputs": 512, "targets": 114}, 128)
    {'inputs': 128, 'targets': 29}
    """
    return {name: math.ceil(value * length / 512) for name, value in of_512.items()}
