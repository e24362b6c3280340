"""Receipts: the same for the same run whatever stopped it, and where two runs part is named."""

import contextlib
import json

import pytest

from t5x_lite.checkpoints.policy import CheckpointPolicy
from t5x_lite.debugging.compare import compare, first_difference
from t5x_lite.errors import ConfigError
from t5x_lite.evaluation.validation_loss import Evaluation
from t5x_lite.trainer.step_hashes import StepHashes

QUIET = {
    "evaluation": Evaluation(period=100, max_examples=1, samples=0),
    "checkpoints": CheckpointPolicy(period=3, keep=None),
    "step_hashes": StepHashes(params_every_steps=2),
    "log_every_steps": 2,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tmp_path_factory.mktemp("receipts") / "run"


@pytest.fixture
def six_steps(run, train_small):
    """A run of six steps, made once."""
    if not run.exists():
        train_small(run, steps=6, **QUIET)
    return run


def lines(directory):
    return [json.loads(line) for line in (directory / "receipts.jsonl").read_text().splitlines()]


def compared(capsys, *runs, parted=False):
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1") if parted else contextlib.nullcontext():
        compare(run_a=str(runs[0]), run_b=str(runs[1]))
    return " ".join(capsys.readouterr().out.split())


def test_every_step_has_a_receipt_and_no_two_steps_the_same(six_steps):
    receipts = lines(six_steps)
    assert [r["step"] for r in receipts] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in receipts if "params" in r] == [2, 4, 6]
    for name in ("ids", "batch", "params"):
        found = [r[name] for r in receipts if name in r]
        assert len(set(found)) == len(found)


def test_a_stopped_run_on_another_mesh_has_the_receipts_of_its_data(
    six_steps, tmp_path, train_small, capsys
):
    train_small(tmp_path, steps=5, **QUIET)
    train_small(tmp_path, steps=6, mesh={"data": 8}, **QUIET)
    receipts, wanted = lines(tmp_path), lines(six_steps)
    assert [(r["ids"], r["batch"]) for r in receipts] == [(r["ids"], r["batch"]) for r in wanted]
    assert [r.get("params") for r in receipts[:5]] == [r.get("params") for r in wanted[:5]]


def test_runs_that_are_the_same_are_said_to_be(six_steps, tmp_path, train_small, capsys):
    train_small(tmp_path, steps=1, **QUIET)
    train_small(tmp_path, steps=6, **QUIET)
    assert "the runs are identical in 6 common steps, 1 to 6" in compared(
        capsys, six_steps, tmp_path
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(data={"seed": 5}), "diverge at step 1: the examples of the batch differ"),
        (dict(seed=5), "diverge at step 1: the loss, not the batch, differ"),
    ],
    ids=["other data", "other weights"],
)
def test_what_parted_first_is_named(changes, said, six_steps, tmp_path, train_small, capsys):
    train_small(tmp_path, steps=2, **QUIET, **changes)
    assert said in compared(capsys, six_steps, tmp_path, parted=True)


def receipts_of(**changes):
    made = {n: {"ids": f"i{n}", "batch": f"b{n}", "loss": f"l{n}"} for n in range(1, 7)}
    for n in (2, 4, 6):
        made[n]["params"] = f"p{n}"
    for name, steps in changes.items():
        for n in steps:
            made[n][name] = "other"
    return made


@pytest.mark.parametrize(
    ("changes", "step", "what", "since"),
    [
        (dict(ids=[3], batch=[3], loss=[3, 4], params=[4]), 3, "the examples", 2),
        (dict(batch=[5]), 5, "the bits of the batch", 4),
        (dict(loss=[5, 6], params=[6]), 5, "the loss", 4),
        (dict(params=[4, 6], loss=[5, 6]), 4, "the weights after the step", 2),
    ],
)
def test_the_first_difference_is_found(changes, step, what, since):
    found = first_difference(receipts_of(), receipts_of(**changes))
    assert (found.step, found.since) == (step, since)
    assert found.what.startswith(what)
    assert first_difference(receipts_of(), receipts_of()) is None


def test_a_directory_without_receipts_is_refused(tmp_path, six_steps):
    with pytest.raises(ConfigError, match=r"receipts\.jsonl does not exist"):
        compare(run_a=str(six_steps), run_b=str(tmp_path))
