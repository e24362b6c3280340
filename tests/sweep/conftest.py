"""The shipped studies, read as `t5x_lite explore` reads them."""

import dataclasses
import itertools
from pathlib import Path

import gin
import pytest

from t5x_lite.cli import gin_config, main
from t5x_lite.sweep.explore import explore
from t5x_lite.sweep.grid import Planner

GIN_CONFIGS = Path(__file__).resolve().parents[2] / "gin_configs"
SEARCH = ["", str(GIN_CONFIGS)]


@pytest.fixture(scope="session")
def study():
    """What a gin file makes of `explore`'s parameters: study("mixing")["scales"]."""
    known = {}

    def read(name):
        if name not in known:
            files = [f"explore/{name}.gin"]
            gin_config.check_macros(gin_config.read(files, [], SEARCH), "explore")
            gin_config.clear()
            gin_config.parse(files, [], SEARCH)
            gin_config.check_values(explore, given=("invocation",))
            known[name] = gin.get_bindings(explore)
        return known[name]

    yield read
    gin_config.clear()


@pytest.fixture(scope="session")
def planned(study, read_call):
    """The rows of a study and their runs: planned("mixing", "base")."""
    known = {}

    def plan(name, scale):
        if (name, scale) not in known:
            given, sized = study(name)["study"], study(name)["scales"][scale]
            if name != "multitask":  # tasks have the same files in all: two of seven are enough
                few = dict(itertools.islice(sized.tasks.items(), 2))
                sized = dataclasses.replace(sized, tasks=few, columns={})
            planner = Planner(given, sized, scale, read_call)
            known[name, scale] = {row.row.name: row for row in planner.rows([0])}
        return known[name, scale]

    return plan


@pytest.fixture(scope="session")
def call(planned, read_call):
    """What a row's pretraining, or its fine-tuning on a task, passes to `train`."""

    def of(name, scale, row, task=""):
        stage = next(s for s in planned(name, scale)[row].stages[0] if s.task == task)
        text = stage.text(dict.fromkeys((stage.key, *stage.needs), "runs/x"))
        return read_call(stage.kind, text)[0]

    return of


@pytest.fixture(scope="session")
def read_call():
    """What a gin file given as text passes to a command, and what its names are set to."""
    return lambda command, text: main.read_command(command, text, SEARCH)
