"""Rows of the shipped studies take two steps at tiny scale, pretraining and fine-tuning.

By the functions that `train` is made of, without its checkpoints and evaluations: what they do does
not depend on the row, and tests/run has them.
"""

import dataclasses
import itertools
from pathlib import Path

import jax
import pytest

from t5x_lite.data.stream.prefetch import to_devices
from t5x_lite.training.inputs import make_inputs
from t5x_lite.training.setup import build

GIN_CONFIGS = Path(__file__).resolve().parents[2] / "gin_configs"
PACKAGES = ("gin", "beartype")  # enough text to learn from, little enough to tokenize at once
NO_TINY = {"activations_524288", "base", "data_sets"}
STUDIES = sorted({p.stem for p in (GIN_CONFIGS / "explore").glob("*.gin")} - NO_TINY)
ROWS = 4  # of a batch


@pytest.fixture(scope="module")
def losses(planned, read_call, tmp_path_factory):
    """The losses of two steps of each of a row's trainings: losses("mixing", "equal")."""
    data_dir, known = tmp_path_factory.mktemp("data"), {}

    def two_steps(given):
        [corpus] = given["data"].task_providers
        corpus = dataclasses.replace(corpus, packages=PACKAGES, vocab_size=412)
        data = dataclasses.replace(
            given["data"],
            task_providers=(corpus,),
            data_dir=str(data_dir),
            tokenizer="sentencepiece",
            splits=("train",),
        )
        model = dataclasses.replace(given["model"], vocab_size=512)
        feed = make_inputs(data, model, batch_size=ROWS, loss_on_inputs=given["loss_on_inputs"])
        # One device: to compile for eight takes several times as long.
        program = build(
            model,
            given["optimizer"],
            given["learning_rate"],
            given["loss"],
            given["update"],
            mesh={"data": 1},
            batch_size=ROWS,
            seed=0,
            devices=jax.devices()[:1],
        )
        found = []
        with jax.set_mesh(program.mesh):
            state = program.initial()
            tasks = len(feed.stream.task_names)
            for batch, _ in itertools.islice(feed.stream.batches(feed.stream.start()), 2):
                placed = to_devices(batch, program.batch_sharding, batch_size=ROWS)
                state, metrics = program.step(state, placed, num_tasks=tasks)
                found.append(metrics.unpack())
        return found

    def of(name, row, *, tasks=None):
        stages = [stage for stage in planned(name, "tiny")[row].stages[0] if stage.kind == "train"]
        folders = {stage.key: "x" for stage in stages}
        done = []
        for stage in stages:
            if stage.task and tasks is not None and stage.task not in tasks:
                continue
            if stage.key not in known:
                given, _ = read_call("train", stage.text(folders))
                known[stage.key] = two_steps(given)
            done.append(known[stage.key])
        return done

    return of


def check(trainings):
    assert trainings
    for steps in trainings:
        assert len(steps) == 2
        for metrics in steps:
            assert metrics["skipped_steps"] == 0
            per_token = metrics["loss"] / metrics["weight"]
            assert 2 < per_token < 20  # a uniform guess among 512 pieces loses 6.2
            assert metrics["update_norm"] > 0


@pytest.mark.parametrize("name", STUDIES)
def test_the_first_row_takes_two_steps(name, study, losses):
    given = study(name)["study"]
    row = next(iter(given.rows))
    # Most fine-tunings are one program.
    check(losses(name, row, tasks=("name",) if row == given.baseline else ()))


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_row_takes_two_steps(name, study, losses):
    for row in study(name)["study"].rows:
        check(losses(name, row))
