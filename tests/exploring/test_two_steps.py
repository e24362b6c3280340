"""Rows of the shipped studies at tiny scale take two steps of every run they are made of."""

import dataclasses
from pathlib import Path

import pytest

from t5x_lite.run.evaluate import evaluate
from t5x_lite.run.train import train

GIN_CONFIGS = Path(__file__).resolve().parents[2] / "gin_configs"
PACKAGES = ("gin", "beartype")  # enough text to learn from, little enough to tokenise at once
NO_TINY = {"activations_524288", "base", "data_sets"}
STUDIES = sorted({p.stem for p in (GIN_CONFIGS / "explore").glob("*.gin")} - NO_TINY)
COMMANDS = {"train": train, "evaluate": evaluate}


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """Compile a program once for all rows that share it."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module")
def take_two_steps(planned, read_call, tmp_path_factory):
    """Carry out the runs of a row, each once for all rows: take_two_steps("mixing", "equal")."""
    folder, done = tmp_path_factory.mktemp("runs"), set()

    def shortened(given, directory):
        [corpus] = given["data"].declarations
        corpus = dataclasses.replace(corpus, packages=PACKAGES, vocab_size=412)
        data = dataclasses.replace(
            given["data"], declarations=(corpus,), data_dir=str(folder / "data")
        )
        found = given | {"data": data, "model_dir": directory, "batch_size": 8}
        if "model" in given:
            found["model"] = dataclasses.replace(given["model"], vocab_size=512)
        if "steps" in given and "checkpoints" in given:
            found["steps"] = 2
            found["evaluation"] = dataclasses.replace(given["evaluation"], max_examples=8)
            if tasks := given["task_evaluation"]:
                found["task_evaluation"] = dataclasses.replace(tasks, max_examples=4)
        else:
            found["max_examples"] = 4
        return found

    def carry_out(name, row):
        stages = planned(name, "tiny")[row].stages[0]
        folders = {stage.key: str(folder / stage.key) for stage in stages}
        for stage in stages:
            if stage.key not in done:
                given, _ = read_call(stage.kind, stage.text(folders))
                directory = folders[stage.needs[0] if stage.kind == "evaluate" else stage.key]
                COMMANDS[stage.kind](**shortened(given, directory))
                done.add(stage.key)
        return [folder / stage.key for stage in stages]

    return carry_out


@pytest.mark.parametrize("name", STUDIES)
def test_the_first_row_takes_two_steps(name, study, take_two_steps):
    for directory in take_two_steps(name, next(iter(study(name)["study"].rows))):
        assert (directory / "results.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_row_takes_two_steps(name, study, take_two_steps):
    for row in study(name)["study"].rows:
        take_two_steps(name, row)
