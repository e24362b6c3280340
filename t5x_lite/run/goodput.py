"""How much of a run's time went into steps, and what became of the rest, over all its launches.

Each launch leaves a record in the model directory, written anew every few seconds, so that a killed
one has left its own. What lies between a launch's last record and the next one's beginning is time
when the run was down.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from t5x_lite import processes
from t5x_lite.run.console import duration
from t5x_lite.run.ledger import PURPOSES, Ledger
from t5x_lite.run.observers import Moment, Observer, Report

FOLDER = "goodput"
_EVERY = 10.0  # seconds between two records


class Goodput(Observer):
    """Keeps the record of a launch; the first process's, whose time stands for all."""

    def __init__(self, model_dir: epath.PathLike, ledger: Ledger):
        self._ledger = ledger
        self._folder = epath.Path(model_dir) / FOLDER
        age = sum(ledger.seconds.values())
        self._began = time.time() - age
        self._path = self._folder / f"{self._began:.3f}.json"
        self._before = read_launches(model_dir)
        self._reached = max((each["step"] for each in self._before), default=0)
        self._written, self._has_begun = 0.0, False

    def __enter__(self) -> "Goodput":
        self._write()
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def before_step(self, step: int, state: Any) -> None:
        """Tell steps that an earlier launch had taken and lost from new ones.

        The first step of a launch belongs to what came before it (`run.startup`).
        """
        if self._has_begun:
            self._ledger.spend("recomputed steps" if step <= self._reached else "steps")

    def after_step(self, moment: Moment) -> None:
        self._has_begun = True
        self._ledger.step = moment.step
        if time.monotonic() - self._written > _EVERY:
            self._write()

    def on_log(self, step: int, numbers: Mapping[str, float], report: Report) -> None:
        seconds = {name.replace(" ", "_"): each for name, each in self.seconds().items()}
        report("goodput", {"share": self.shares()["steps"], **seconds})

    def on_save(self, step: int) -> None:
        self._write()

    def seconds(self) -> dict[str, float]:
        """Seconds of all launches by purpose, and when the run was down."""
        launches = [self._ledger.seconds, *(each["seconds"] for each in self._before)]
        total = {name: sum(each.get(name, 0.0) for each in launches) for name in PURPOSES}
        ends = [each["began"] + sum(each["seconds"].values()) for each in self._before]
        starts = [*(each["began"] for each in self._before), self._began][1:]
        down = sum(max(0.0, start - end) for end, start in zip(ends, starts, strict=True))
        return {**total, "down": down}

    def shares(self) -> dict[str, float]:
        """The same as parts of 1."""
        seconds = self.seconds()
        whole = sum(seconds.values())
        return {name: each / whole for name, each in seconds.items()}

    def line(self) -> str:
        """Say it in words, the largest losses first."""
        seconds, shares = self.seconds(), self.shares()
        lost = sorted(set(seconds) - {"steps"}, key=lambda name: -seconds[name])
        losses = ", ".join(f"{name} {duration(seconds[name])}" for name in lost if seconds[name])
        launches = len(self._before) + 1
        return (
            f"goodput {shares['steps']:.1%}: {duration(seconds['steps'])} of steps in "
            f"{duration(sum(seconds.values()))} of {launches} launch{'es' * (launches > 1)} "
            f"({losses})"
        )

    def _write(self) -> None:
        self._written = time.monotonic()
        if not processes.is_first():
            return
        record = {
            "began": self._began,
            "step": self._ledger.step,
            "seconds": self._ledger.seconds,
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(json.dumps(record))
            temporary.replace(self._path)
        except OSError:  # a full disk is no reason to end a run, and the next record says more
            return


def read_launches(model_dir: epath.PathLike) -> list[dict[str, Any]]:
    """The records of a run's launches so far, in order; one that cannot be read is left out."""
    found = []
    for path in sorted((epath.Path(model_dir) / FOLDER).glob("*.json")):
        try:
            record = json.loads(path.read_text())
            found.append({name: record[name] for name in ("began", "step", "seconds")})
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found
