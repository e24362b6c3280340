"""A step run again: the same step, and the first module whose numbers go wrong is named."""

import jax
import numpy as np
import pytest

from t5x_lite.checkpoints.policy import CheckpointPolicy
from t5x_lite.debugging.activation_probes import ProbeRow, Range
from t5x_lite.debugging.fault_injection.nan_batch import NanBatch
from t5x_lite.debugging.replay import StepRanges, findings, replay
from t5x_lite.errors import ConfigError
from t5x_lite.evaluation.validation_loss import Evaluation
from t5x_lite.trainer.resume import resume_from
from t5x_lite.training.step import Update
from t5x_lite.tree_paths import flatten, merge

QUIET = {
    "evaluation": Evaluation(period=100, max_examples=1, samples=0),
    "checkpoints": CheckpointPolicy(period=2, keep=None),
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("replayed") / "run"


@pytest.fixture
def run(directory, train_small):
    """A run of five steps with checkpoints after 2, 4 and 5; trained once."""
    if not directory.exists():
        train_small(directory, steps=5, **QUIET)
    return directory


@pytest.fixture
def replayed(train_settings, capsys, log_lines):
    """Replay a step: replayed(run, step=4) -> the exit code and what was logged and printed."""

    def call(directory, *, step, largest=65504.0, **changes):
        capsys.readouterr()
        log_lines.clear()
        code = 0
        try:
            settings = train_settings(directory, steps=5, **{**QUIET, **changes})
            replay(step=step, largest=largest, settings=settings)
        except SystemExit as ended:
            code = ended.code
        return code, "\n".join(log_lines) + capsys.readouterr().out

    return call


def files(directory):
    return {p: p.stat().st_mtime_ns for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("step", "after"),
    [
        pytest.param(1, 0, marks=pytest.mark.slow),
        (4, 2),
        pytest.param(5, 4, marks=pytest.mark.slow),
    ],
)
def test_a_step_comes_out_as_its_receipt_says_and_nothing_is_written(step, after, run, replayed):
    before = files(run)
    code, said = replayed(run, step=step)
    assert code == 0
    assert f"replaying from step {after} to step {step}" in said
    assert "the batch is bit-exact and the loss bit-exact" in said
    assert "all weights, outputs and gradients are finite" in said
    assert files(run) == before


@pytest.fixture
def planted(monkeypatch):
    """Put a value into one number of a weight, of one layer where it is of a stack."""

    def plant(path, value, layer=None):
        def with_it(*arguments):
            found = resume_from(*arguments)
            array = np.array(flatten(found.state.params)[path])
            (array if layer is None else array[layer]).flat[3] = value
            place = flatten(found.state.params)[path].sharding
            params = merge(found.state.params, {path: jax.device_put(array, place)})
            return found._replace(state=found.state._replace(params=params))

        monkeypatch.setattr("t5x_lite.debugging.replay.resume_from", with_it)

    return plant


@pytest.mark.parametrize(
    ("path", "layer", "value", "named"),
    [
        (
            "decoder/layers/mlp/wi_0/kernel",
            1,
            np.nan,
            "decoder/layers/1/mlp/wi_0: its weights: 1 of 2,048 are not finite",
        ),
        pytest.param(
            "encoder/layers/self_attention/key/kernel",
            0,
            1e6,
            "encoder/layers/0/self_attention/key: its weights: up to 1e+06 in magnitude",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_first_module_with_a_bad_weight_is_named(
    path, layer, value, named, run, replayed, planted
):
    planted(path, value, layer)
    code, said = replayed(run, step=5)
    assert code == 1
    assert f"first value that is not finite and at most 65504: {named}" in said


@pytest.mark.slow
def test_the_first_module_whose_output_is_out_of_range_is_named(run, replayed, planted):
    """Normed numbers are never above sqrt(32) times the scale, which alone is in range."""
    planted("decoder/layers/cross/norm/scale", 20.0, 0)
    code, said = replayed(run, step=5, largest=21.0)
    assert code == 1
    name = "decoder/layers/0/cross/norm"
    assert f"first value that is not finite and at most 21: {name}: its output: up to" in said


def test_a_batch_that_is_not_finite_is_named_before_the_gradients_it_spoils(run, replayed):
    """The callback was not the run's, so the batch is another than the run's too."""
    code, said = replayed(run, step=5, callbacks=[NanBatch(5)])
    assert code == 1
    named = "batch/decoder_loss_weights: its numbers: 8 of 128 are not finite"
    assert f"first value that is not finite and at most 65504: {named}" in said
    assert "the batch is DIFFERENT" in said


@pytest.mark.slow
def test_a_batch_that_a_callback_of_the_run_changed_is_changed_again(
    tmp_path, train_small, replayed
):
    callbacks = [NanBatch(3)]
    train_small(tmp_path / "run", steps=5, callbacks=callbacks, **QUIET)
    code, said = replayed(tmp_path / "run", step=3, callbacks=callbacks)
    assert code == 1
    assert "the batch is bit-exact" in said


def test_gradients_are_named_from_the_loss_backwards_and_after_all_else():
    good, bad = Range(4, 0, -1.0, 1.0), Range(4, 2, -1.0, 1.0)
    rows = [ProbeRow(name, good, good, bad if name < "c" else good, good) for name in "abc"]
    (first, second) = findings(StepRanges(rows, {"weights": good}, good), largest=10.0)
    assert (first.name, first.what, second.name) == ("b", "output's gradient", "a")
    spoiled = StepRanges(rows, {"weights": good}, bad)
    assert next(findings(spoiled, largest=10.0)).name == "loss"


@pytest.mark.slow
def test_microbatches_and_recomputation_are_looked_into(tmp_path, train_small, replayed):
    changes = {"update": Update(microbatches=2), "model": {"remat": "full", "dropout_rate": 0.1}}
    train_small(
        tmp_path / "run",
        steps=2,
        cpu_devices=None,
        mesh={"data": -1},
        batch_size=16,
        **QUIET,
        **changes,
    )
    code, said = replayed(tmp_path / "run", step=2, mesh={"data": -1}, batch_size=16, **changes)
    assert code == 0
    assert "the loss bit-exact" in said


def test_what_cannot_be_replayed_is_refused(tmp_path, run, replayed):
    with pytest.raises(ConfigError, match="expected a step from 1"):
        replayed(run, step=0)
    with pytest.raises(ConfigError, match="has no run"):
        replayed(tmp_path, step=1)
